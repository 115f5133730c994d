"""The tar writer: what tar readers see, and that its bytes never differ."""

import hashlib
import io
import os
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bionemo.webdatamodule._engine.format.tar_write import BLOCK, ShardWriter, file_sha256, header
from bionemo.webdatamodule.errors import ConversionError, InputError


def write(path, samples):
    """Write samples to a tar and return what the writer says of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        writer = ShardWriter(descriptor, path=str(path))
        for key, fields in samples:
            writer.add(key, fields)
        return writer.finish()
    finally:
        os.close(descriptor)


def member(path, size):
    """Return what Python's tarfile reads from a member's header."""
    data = header(path, size)
    return tarfile.open(fileobj=io.BytesIO(data + b"\0" * 1024), mode="r:", encoding="utf-8").next()


def test_writes_what_tarfile_reads(tmp_path):
    """Names, payloads, owner, mode and time are as they should be."""
    samples = [("a", [("x", b"1"), ("y", b"")]), ("dir/b", [("x", b"z" * BLOCK), ("y", b"q" * 1000)])]
    write(tmp_path / "t.tar", samples)
    with tarfile.open(tmp_path / "t.tar") as tar:
        members = tar.getmembers()
        found = [(one.name, tar.extractfile(one).read()) for one in members]
    assert [("a.x", b"1"), ("a.y", b""), ("dir/b.x", b"z" * BLOCK), ("dir/b.y", b"q" * 1000)] == found
    assert {(0o644, 0, 0, "", "", 0, b"0")} == {
        (one.mode, one.uid, one.gid, one.uname, one.gname, one.mtime, one.type) for one in members
    }
    assert {} == members[0].pax_headers


def test_says_what_it_wrote(tmp_path):
    """Size, hash, index and suffixes describe the file."""
    written = write(tmp_path / "t.tar", [("a", [("x", b"12"), ("y", b"345")]), ("b", [("x", b"6")])])
    data = (tmp_path / "t.tar").read_bytes()
    assert (len(data), 2, hashlib.sha256(data).hexdigest(), ("x", "y")) == (
        written.bytes,
        written.samples,
        written.sha256,
        written.suffixes,
    )
    assert written.sha256 == file_sha256(str(tmp_path / "t.tar"))


def test_the_index_tells_where_everything_lies(tmp_path):
    """Offsets, sizes and checksums lead to each payload; a missing field is -1."""
    from bionemo.webdatamodule._engine.format.index import ShardIndex

    written = write(tmp_path / "t.tar", [("a", [("y", b"345")]), ("b", [("x", b"6"), ("y", b"78")])])
    data = (tmp_path / "t.tar").read_bytes()
    index = ShardIndex.from_buffer(written.index)
    assert (("x", "y"), len(data), [0, 1024]) == (index.suffixes, index.tar_bytes, index.headers.tolist())
    assert [[-1, 512], [1536, 2560]] == index.offsets.tolist()
    assert [[0, 3], [1, 2]] == index.sizes.tolist()
    assert [[0, zlib.crc32(b"345")], [zlib.crc32(b"6"), zlib.crc32(b"78")]] == index.crcs.tolist()


def test_large_shards_are_written_in_pieces(tmp_path):
    """Payloads beyond the write buffer come out whole and in order."""
    payloads = [bytes([number]) * 300_001 for number in range(12)]
    write(tmp_path / "t.tar", [(str(number), [("x", data)]) for number, data in enumerate(payloads)])
    with tarfile.open(tmp_path / "t.tar") as tar:
        assert payloads == [tar.extractfile(one).read() for one in tar]


@given(
    st.lists(st.text("abc/é日-_ %", min_size=1, max_size=90).map(lambda name: f"k{name}"), unique=True, max_size=6),
    st.binary(max_size=1100),
)
def test_any_key_and_payload_comes_back(tmp_path_factory, keys, payload):
    """What tarfile reads is what was written, with short, long and non-ASCII names."""
    path = tmp_path_factory.mktemp("tar") / "t.tar"
    write(path, [(key, [("x.pyd", payload)]) for key in keys])
    with tarfile.open(path, encoding="utf-8") as tar:
        assert [(f"{key}.x.pyd", payload) for key in keys] == [(one.name, tar.extractfile(one).read()) for one in tar]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (b"a" * 100, 1),
        (b"d" * 150 + b"/" + b"a" * 100, 1),
        (b"a" * 101, 3),
        (b"d" * 156 + b"/" + b"a" * 90, 3),
        ("é.x".encode(), 3),
        (b"\xff.x", 1),
    ],
)
def test_only_names_that_need_it_get_a_pax_record(name, blocks):
    """USTAR holds 100 bytes, 155 more of directories, and ASCII."""
    assert blocks * BLOCK == len(header(name, 5))
    assert name.decode("utf-8", "surrogateescape") == member(name, 5).name


def test_sizes_beyond_ustar_get_a_pax_record():
    """A member of 8 GiB and more is written in the extended form (row 29)."""
    assert (BLOCK, 3 * BLOCK) == (len(header(b"a", 8**11 - 1)), len(header(b"a", 8**11)))
    assert [8**11 - 1, 8**11, 10**13] == [member(b"a", size).size for size in (8**11 - 1, 8**11, 10**13)]


def test_pax_lengths_count_their_own_digits():
    """Around the lengths at which the count gets another digit the records stay well-formed."""
    for length in range(980, 1000):
        assert "é" * (length // 2) == member("é".encode() * (length // 2), 1).name


def test_names_that_no_tar_holds_are_refused(tmp_path):
    """Lone surrogates, and long names that are not text, have no form in a tar."""
    with pytest.raises(InputError, match="key_encoder='escaped'"):
        write(tmp_path / "t.tar", [("\ud800", [("x", b"")])])
    with pytest.raises(InputError, match="key_encoder='escaped'"):
        header(b"\xff" * 101, 1)


def test_a_failed_write_names_the_file():
    """An error of the disk says which file and how far it came."""
    writer = ShardWriter(os.open("/dev/full", os.O_WRONLY), path="/dev/full")
    writer.add("a", [("x", b"1")])
    said = r"failed: No space left on device; correct this and run it again \(file=/dev/full\)"
    with pytest.raises(ConversionError, match=said):
        writer.finish()
