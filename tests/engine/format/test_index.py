import gzip
import io
import json
import logging
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from bionemo.webdatamodule._engine.format.grouping import group
from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index, index_name
from bionemo.webdatamodule._engine.format.tar_headers import member_name
from bionemo.webdatamodule._engine.format.tar_scan import walk
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.storage.index_cache import is_within
from bionemo.webdatamodule.errors import CorruptShardError
from bionemo.webdatamodule.names import split_member

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
FIVE = [(f"s{number}.{suffix}", bytes([number]) * 700 * number) for number in range(5) for suffix in ("x.pyd", "y.txt")]


def tar(path, members, format_=tarfile.USTAR_FORMAT, **fields):
    """Write a tar of (name, payload) pairs, or of TarInfo objects, with Python's tarfile."""
    with tarfile.open(path, "w", format=format_, encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            for name, value in fields.items():
                setattr(info, name, value)
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def fields(path):
    """Return (key, {suffix: payload}) of each sample, by the index."""
    index, data = build_index(path), path.read_bytes()
    found = []
    for row, header in enumerate(index.headers.tolist()):
        key = split_member(member_name(data, header))[0].decode("utf-8", "surrogateescape")
        places = zip(index.suffixes, index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True)
        found.append((key, {suffix: data[at : at + size] for suffix, at, size in places if at >= 0}))
    return found


def by_tarfile(path):
    """Return the same, read with Python's tarfile and grouped as webdataset groups."""
    found = {}
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            if member.isreg():
                key, suffix = wds.tariterators.base_plus_ext(member.name)
                found.setdefault(key, {})[suffix] = archive.extractfile(member).read()
    return list(found.items())


def edited(path, position, new):
    """Write bytes over a file's bytes, and mend the checksum of the header they are in."""
    data = bytearray(path.read_bytes())
    data[position : position + len(new)] = new
    start = position // 512 * 512
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\x00 " % sum(data[start : start + 512])
    path.write_bytes(data)
    return path


def test_sidecar_lies_beside_the_shard():
    """The index of a shard is named after it."""
    assert "wdshards-000000.tar.idx" == index_name("wdshards-000000.tar")


@pytest.mark.parametrize("with_crcs", [True, False])
def test_index_survives_its_file_format(tmp_path, with_crcs):
    """What to_bytes writes from_buffer reads, as read-only views, and equal indexes give equal bytes."""
    index = build_index(tar(tmp_path / "a.tar", FIVE))
    crcs = np.arange(10, dtype=np.uint32).reshape(5, 2) if with_crcs else None
    index = replace(index, crcs=crcs)
    data = index.to_bytes()
    again = ShardIndex.from_buffer(data)
    assert data == again.to_bytes()
    assert (index.suffixes, index.tar_bytes) == (again.suffixes, again.tar_bytes)
    assert not again.offsets.flags.writeable
    assert 0 == len(data[: data.index(index.offsets.tobytes())]) % 64


def test_any_change_of_an_index_is_noticed(tmp_path):
    """Every cut and every flipped byte of an index file is refused or without effect."""
    index = build_index(tar(tmp_path / "a.tar", FIVE))
    data = index.to_bytes()
    for end in range(len(data)):
        with pytest.raises(CorruptShardError):
            ShardIndex.from_buffer(data[:end])
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x10
        try:
            same = ShardIndex.from_buffer(bytes(changed))
        except CorruptShardError:
            continue
        assert index.offsets.tolist() == same.offsets.tolist()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "names",
    [
        ["a.x", "a.y.z", "b.x"],
        ["dir/a.x", "dir.with.dots/a.x", "./c.x"],
        ["ü/ä.x", "\U0001f600.x", "sp ace.x", "not\udcffutf8.x"],
        ["k" * 180 + ".x", "d" * 120 + "/" + "k" * 90 + ".x", "short.x"],
        ["__meta__/a.x", "__meta__.x", "a.__url__", "a.__bad__"],
        ["a.X", "a.x", "a._x", "a.[x];"],
    ],
)
def test_foreign_tars_read_as_tarfile_reads_them(tmp_path, format_, names):
    """Keys, suffixes and payloads of USTAR, GNU and PAX tars are those that tarfile and webdataset see."""
    if format_ == tarfile.USTAR_FORMAT:
        names = [name for name in names if len(name) < 100]  # it holds no longer ones
    path = tar(tmp_path / "a.tar", [(name, os.urandom(size)) for size, name in enumerate(names, 510)], format_)
    assert by_tarfile(path) == fields(path)


def test_tars_of_webdatasets_writer_are_read(tmp_path):
    """The PAX record that wds.ShardWriter puts before each member is taken."""
    with wds.ShardWriter(str(tmp_path / "t-%06d.tar"), verbose=0) as writer:
        for number in range(20):
            writer.write({"__key__": f"s{number:03}", "x.pyd": number, "y.txt": "t" * number})
    path = tmp_path / "t-000000.tar"
    assert b"mtime=" in path.read_bytes()[512:1024]
    assert by_tarfile(path) == fields(path)


@pytest.mark.parametrize("format_", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tars_of_the_tar_program_are_read(tmp_path, format_):
    """All formats of GNU tar are taken, directories in them passed over, empty files kept."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for name in ("a.x", "a.y", "sub/b.x", "sub/c.x"):
        (source / name).write_bytes(name.encode() * 100 if name != "a.y" else b"")
    path = tmp_path / "a.tar"
    names = [".", "a.x", "a.y", "sub/b.x", "sub/c.x", "sub"]
    command = ["tar", "-c", f"--format={format_}", "--no-recursion", "-f", path, "-C", source, *names]
    subprocess.run(command, check=True)
    assert by_tarfile(path) == fields(path)


def test_members_without_a_suffix_are_left_out_and_said(tmp_path, caplog):
    """Files that are not fields do no harm, and the log names one of them."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    path = tar(tmp_path / "a.tar", [("README", b"r"), ("a.x", b"1"), (".DS_Store", b"d"), ("b.x", b"2")])
    assert [("a", {"x": b"1"}), ("b", {"x": b"2"})] == fields(path)
    assert "left out 2 members of a tar without key and suffix in the name" in caplog.text
    assert "README" in caplog.text


def test_empty_suffix_and_missing_fields_have_their_places(tmp_path):
    """A field that a sample lacks has offset -1 and size 0; an empty one has a place."""
    index = build_index(tar(tmp_path / "a.tar", [("a.x", b""), ("b.y", b"yy"), ("c.", b"c")]))
    assert ("", "x", "y") == index.suffixes
    assert [[-1, 512, -1], [-1, -1, 1024], [2048, -1, -1]] == index.offsets.tolist()
    assert [[0, 0, 0], [0, 0, 2], [1, 0, 0]] == index.sizes.tolist()
    assert [0, 512, 1536] == index.headers.tolist()


def test_every_truncation_is_noticed(tmp_path):
    """A tar cut at any block, or in the middle of one, is refused, also between members."""
    data = tar(tmp_path / "a.tar", FIVE).read_bytes()
    members = sum(512 + (len(payload) + 511) // 512 * 512 for _, payload in FIVE)
    path = tmp_path / "cut.tar"
    for end in [*range(0, members + 1024, 512), members + 1, members + 1000]:
        path.write_bytes(data[:end])
        with pytest.raises(CorruptShardError, match=r"cut short|empty|multiple of 512"):
            build_index(path)
    path.write_bytes(data[: members + 1024])
    assert 5 == build_index(path).n_samples


def test_every_flipped_bit_of_headers_and_end_is_noticed(tmp_path):
    """No bit of a header or of the end of the archive can change unseen."""
    path = tar(tmp_path / "a.tar", [("a.x", b"1"), ("b.x", b"2")])
    data = path.read_bytes()
    for position in [*range(1024, 1536), *range(2048, 3072, 64), 3071]:
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(CorruptShardError):
                walk(bytes(changed))


GARBAGE = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(10240),
    "tail of zeros": lambda data: data[:2048] + bytes(len(data) - 2048 + 20480),
    "page": lambda data: b"<!DOCTYPE html><html>404</html>".ljust(1024),
    "noise": lambda data: random.Random(1).randbytes(10240),
    "gzip": gzip.compress,
    "joined": lambda data: data + data,
    "joined without the first end": lambda data: data[:-10240] + b"x" * 512 + data,
    "garbage after the end": lambda data: data + b"x" * 512,
    "short": lambda data: data[:100],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_files_that_are_no_good_tar_are_refused(tmp_path, kind):
    """Empty files, zeros, pages, noise, compressed and joined tars are errors that name the file."""
    path = tar(tmp_path / "a.tar", FIVE)
    path.write_bytes(GARBAGE[kind](path.read_bytes()))
    with pytest.raises(CorruptShardError) as caught:
        build_index(path)
    assert caught.value.where["shard"] == path


def info(name, kind=tarfile.REGTYPE, **more):
    """Return a TarInfo."""
    result = tarfile.TarInfo(name)
    result.type = kind
    for field, value in more.items():
        setattr(result, field, value)
    return result


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (info("a.x", tarfile.LNKTYPE, linkname="b.x"), "'a.x' at byte 1024 is a hard link to no member before it"),
        (info("a.x", tarfile.LNKTYPE, linkname="z.x"), "is a hard link to no member before it"),
        (info("a.x", tarfile.SYMTYPE, linkname="/etc/passwd"), "'a.x' at byte 1024 is a symbolic link"),
        (info("a.x", tarfile.SYMTYPE, linkname="l" * 200), "'a.x' at byte [0-9]+ is a symbolic link"),
        (info("a" * 200 + ".x", tarfile.SYMTYPE, linkname="b.x"), "'a{200}' at byte [0-9]+ is a symbolic link"),
        (info("a.x", tarfile.CHRTYPE), "character device"),
        (info("a.x", tarfile.BLKTYPE), "block device"),
        (info("a.x", tarfile.FIFOTYPE), "fifo"),
        (info("a.x", tarfile.GNUTYPE_SPARSE), "sparse"),
        (info("a.x", b"M"), "multi-volume"),
        (info("a.x", b"Z"), "unknown kind b'Z'"),
        (info("a.x", tarfile.DIRTYPE, size=5), "a directory with content"),
        (("", b"1"), "has no name"),
        (("a.__key__", b"1"), "stands for the key"),
    ],
)
def test_members_that_shards_have_no_use_for_are_refused_by_name(tmp_path, member, message):
    """Links, devices, sparse files: each error names the member and says what it is."""
    path = tar(tmp_path / "a.tar", [("0.x", b"0"), member, ("z.x", b"0")], tarfile.GNU_FORMAT)
    with pytest.raises(CorruptShardError, match=message):
        build_index(path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"GNU.sparse.major": "1", "GNU.sparse.realsize": "400000000"}, "sparse"),
        ({"SCHILY.realsize": "400000000"}, "sparse"),
        ({"size": "-5"}, "gives the size"),
        ({"size": "1" * 30}, "gives the size"),
        ({"size": "99999999999"}, "are left"),
    ],
)
def test_pax_records_cannot_smuggle_anything_in(tmp_path, records, message):
    """What a PAX record says of a member is held to the same rules."""
    path = tar(tmp_path / "a.tar", [("a.x", b"1")], tarfile.PAX_FORMAT, pax_headers=records)
    with pytest.raises(CorruptShardError, match=message):
        build_index(path)


def test_harmless_pax_records_are_taken(tmp_path):
    """Times, owners, comments and a long path change nothing else."""
    records = {
        "mtime": "1.5",
        "comment": "ü",
        "uname": "somebody",
        "SCHILY.xattr.user.a": "b",
        "path": "p" * 300 + ".x",
    }
    path = tar(tmp_path / "a.tar", [("a.x", b"1")], tarfile.PAX_FORMAT, pax_headers=records)
    assert [("p" * 300, {"x": b"1"})] == fields(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"-0000000700\x00", "negative"),
        (b"\xff" * 12, "negative"),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), "are left"),
        (b"\x80" + b"\xff" * 11, "are left"),
        (b"\x80" + (1 << 63).to_bytes(11, "big"), "are left"),
        (b"77777777777\x00", "are left"),
        (b"0o000000001\x00", "no number"),
        (b"000000_0001\x00", "no number"),
        (b"+0000000001\x00", "no number"),
        (b"hello world\x00", "no number"),
    ],
)
def test_absurd_sizes_are_refused(tmp_path, size, message):
    """Negative, huge and malformed sizes with a good checksum are errors."""
    path = edited(tar(tmp_path / "a.tar", [("a.x", b"1"), ("b.x", b"2")]), 1024 + 124, size)
    with pytest.raises(CorruptShardError, match=message):
        build_index(path)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"5", b"V", b"D", b"1"])
def test_absurd_sizes_of_other_members_are_refused(tmp_path, kind):
    """Records, directories, labels and links cannot claim what does not fit into a number of 64 bits."""
    for size in (1 << 62, 1 << 63, (1 << 88) - 1):
        path = edited(tar(tmp_path / "a.tar", [("a.x", b"1"), ("b.x", b"2")]), 1024 + 156, kind)
        edited(path, 1024 + 124, b"\x80" + size.to_bytes(11, "big"))
        with pytest.raises(CorruptShardError):
            build_index(path)


@pytest.mark.parametrize("written", ["octal", "spaces", "base 256", "PAX"])
def test_a_size_is_compared_with_the_index_however_it_is_written(tmp_path, written):
    """Reading takes what indexing took, and another size under the same index is an error."""
    records = {"size": "700"} if written == "PAX" else {}
    members = [info("a.cls"), info("a.txt", size=700, pax_headers=records)]
    path = tmp_path / "t-0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"2" * 700))
    at = path.read_bytes().index(b"a.txt\0") + 124
    write = {
        "octal": lambda size: edited(path, at, b"%011o\x00" % size),
        "spaces": lambda size: edited(path, at, b"%11o " % size),
        "base 256": lambda size: edited(path, at, b"\x80" + size.to_bytes(11, "big")),
        "PAX": lambda size: path.write_bytes(path.read_bytes().replace(b"size=700", b"size=%d" % size)),
    }[written]
    if written == "PAX":
        edited(path, at, b"00000000000\x00")
    write(700)
    os.utime(path, (1, 1))
    assert ["2" * 700] == [text for (text,) in ShardReader([ShardSet.open(tmp_path, "t")], ["txt"]).read(np.arange(1))]
    stale = ShardSet.open(tmp_path, "t")
    write(699)
    os.utime(path, (1, 1))
    with pytest.raises(CorruptShardError, match="not what it was when the shard was indexed"):
        ShardReader([stale], ["txt"]).read(np.arange(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 10**15},
        {"samples": 2**63 + 5},
        {"samples": 10**400},
        {"samples": -1},
        {"samples": 2.0},
        {"samples": True},
        {"samples": 4},
        {"suffixes": ["x"] * 10**6},
        {"suffixes": "xy"},
        {"suffixes": [1, 2]},
        {"suffixes": 5},
        {"tar_bytes": 1e300},
        {"tar_bytes": 10**400},
        {"tar_bytes": None},
        {"crcs": False},
        {"crcs": 10**9},
    ],
    ids=lambda changes: f"{changes!r:.40}",
)
def test_indexes_that_claim_what_is_not_there_are_refused(tmp_path, changes):
    """An index whose checksum is right is still held against its own length, in little memory."""
    index = build_index(tar(tmp_path / "a.tar", FIVE))
    data = replace(index, crcs=np.zeros(index.offsets.shape, np.uint32)).to_bytes()
    if changes == {"crcs": 10**9}:  # any true value means that there are checksums
        assert 5 == ShardIndex.from_buffer(claiming(data, changes)).n_samples
        return
    with pytest.raises(CorruptShardError, match="cut short, changed or none at all"):
        ShardIndex.from_buffer(claiming(data, changes))


def test_indexes_whose_arrays_are_not_aligned_are_refused(tmp_path):
    """Numbers of such an array could not be looked up."""
    data = build_index(tar(tmp_path / "a.tar", FIVE)).to_bytes()
    length = int.from_bytes(data[12:16], "little")
    with pytest.raises(CorruptShardError, match=rf"begin at byte {16 + length + 4}, not at a multiple of 64"):
        ShardIndex.from_buffer(
            data[:12] + (length + 4).to_bytes(4, "little") + data[16 : 16 + length] + b"    " + data[16 + length :]
        )


def claiming(data, changes):
    """Return an index file that says other things of itself."""
    length = int.from_bytes(data[12:16], "little")
    about = json.loads(data[16 : 16 + length])
    text = json.dumps({**about, **changes}).encode()
    text += b" " * (-(16 + len(text)) % 64)
    return data[:12] + len(text).to_bytes(4, "little") + text + data[16 + length :]


@pytest.mark.parametrize(
    ("array", "value"),
    [("offsets", 2**63 - 1), ("offsets", -2), ("sizes", 2**63 - 1), ("sizes", -1), ("headers", -1), ("headers", 2**62)],
)
def test_indexes_that_point_elsewhere_are_not_within(tmp_path, array, value):
    """Sums that overflow are no way around the size of the tar."""
    path = tar(tmp_path / "a.tar", FIVE)
    index = build_index(path)
    assert is_within(index, path.stat().st_size)
    changed = getattr(index, array).copy()
    changed.flat[-1] = value
    assert not is_within(replace(index, **{array: changed}), path.stat().st_size)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.x", "b.x", "a.y"], "lie apart"),
        (["a.x", "a.x"], "twice"),
        (["a.x", "a.y", "a.x"], "twice"),
        (["a.x", "b.x", "a.x"], "lie apart"),
        (["README"], "no member named like a field"),
    ],
)
def test_samples_in_pieces_are_refused(tmp_path, names, message):
    """Members twice, samples in two places and tars without fields are errors."""
    with pytest.raises(CorruptShardError, match=message):
        build_index(tar(tmp_path / "a.tar", [(name, b"1") for name in names]))


def test_keys_with_dots_are_recognised(tmp_path):
    """Where every sample has a suffix of its own, the error says that keys must not have dots."""
    members = [(f"{number}.{number}.x", b"") for number in range(100)]
    with pytest.raises(CorruptShardError, match="keys must not have dots"):
        build_index(tar(tmp_path / "a.tar", members))


BOMBS = """
import io, resource, sys, tarfile
from bionemo.webdatamodule._engine.storage.index_cache import is_within
from bionemo.webdatamodule.errors import CorruptShardError
from bionemo.webdatamodule._engine.format.index import build_index
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for path in sys.argv[1:]:
    try:
        build_index(path)
    except CorruptShardError as error:
        print(error.code)
"""


def test_bombs_are_refused_within_little_memory(tmp_path):
    """Small files that claim to be large, and large records, do not fill memory."""
    paths = []
    for kind, size in [(b"x", 100 << 20), (b"L", 100 << 20), (b"g", 100 << 20), (b"S", 400 << 20), (b"0", 1 << 40)]:
        header = info("a.x", kind, size=size).tobuf(tarfile.GNU_FORMAT)
        path = tmp_path / f"bomb{len(paths)}.tar"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(min(size, 100 << 20) + 10240)  # sparse on disk
        paths.append(path)
    path = tmp_path / "gzip.tar"
    path.write_bytes(gzip.compress(bytes(100 << 20)))
    paths.append(path)
    many = tmp_path / "many.tar"
    tar(many, [(f"{number % 2000}.{number}.x", b"") for number in range(2000)])
    paths.append(many)
    run = subprocess.run([sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, check=True, timeout=60)
    assert ["corrupt-shard"] * len(paths) == run.stdout.split()


def test_damaged_tars_give_documented_errors_only(tmp_path):
    """Two thousand random mutations either read or raise CorruptShardError."""
    data = tar(tmp_path / "a.tar", [*FIVE[:4], ("l" * 150 + ".x", b"1")], tarfile.PAX_FORMAT).read_bytes()
    rng = random.Random(5)
    for _ in range(2000):
        mutant = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at, other = rng.randrange(len(mutant)), rng.randrange(len(mutant))
            length = rng.choice([1, 2, 12, 512])
            action = rng.randrange(4)
            if action == 0:
                mutant[at : at + length] = rng.randbytes(length)
            elif action == 1:
                mutant[at : at + length] = mutant[other : other + length]
            elif action == 2:
                del mutant[at // 512 * 512 : at // 512 * 512 + 512]
            else:
                start = at // 512 * 512
                mutant[start + 124 : start + 136] = b"%011o\x00" % rng.choice([0, 1, 511, 513, 8**11 - 1])
                mutant[start + 148 : start + 156] = b" " * 8
                mutant[start + 148 : start + 156] = b"%06o\x00 " % sum(mutant[start : start + 512])
        try:
            found = group(walk(bytes(mutant)))
        except CorruptShardError:
            continue
        assert (found.offsets + found.sizes).max() <= len(mutant)


@given(st.text(max_size=12, alphabet=st.sampled_from("a./_ü-")))
def test_names_split_where_webdataset_splits_them(name):
    """Key and suffix are webdataset's, except for names that begin with a dot, which are not fields here."""
    parts = split_member(name.encode())
    if parts is None:
        base = name.rpartition("/")[2]
        assert "." not in base or base.startswith(".")
    else:
        assert wds.tariterators.base_plus_ext(name) == tuple(part.decode() for part in parts)
