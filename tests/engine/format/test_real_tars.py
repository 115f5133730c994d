"""Tars of real programs: what is read, and that the remedy for what is refused works."""

import io
import re
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from bionemo.webdatamodule._engine.format.index import build_index
from bionemo.webdatamodule._engine.format.shard_files import find_shards, unlisted
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.writing.adopt import adopt
from bionemo.webdatamodule.errors import CorruptShardError, DataWarning, NoShardsError

SAMPLES = [(f"s{number}", f"{number}" * 3) for number in range(4)]


def read(directory, prefix="t"):
    """Return key and text of every sample."""
    reader = ShardReader([ShardSet.open(str(directory), prefix)], ["__key__", "txt"])
    return reader.read(np.arange(reader.n_samples))


def write_files(directory, samples=SAMPLES):
    """Write a file for each sample and return their names."""
    for key, text in samples:
        (directory / f"{key}.txt").write_text(text)
    return [f"{key}.txt" for key, _ in samples]


def gnu_tar(directory, *options, files=None):
    """Write a shard with the tar program."""
    names = write_files(directory) if files is None else files
    subprocess.run(["tar", "-cf", "t-0.tar", *options, "--", *names], cwd=directory, check=True, capture_output=True)
    return directory / "t-0.tar"


def blank_padded(directory):
    """Write a shard as Archive::Tar does: blanks for leading zeros, and records of one block at the end."""
    parts = []
    for key, text in SAMPLES:
        name = f"{key}.txt".encode()
        header = name.ljust(100, b"\0") + b"%06o\0\0%06o\0\0%06o\0\0" % (0o644, 0, 0) + b"%11o %11o " % (len(text), 1)
        header += b" " * 8 + b"0" + b"\0" * 100 + b"ustar\x0000" + b"\0" * 80
        header = header.ljust(512, b"\0")
        header = header[:148] + b"%6o\0 " % sum(header) + header[156:]
        parts += [header, text.encode().ljust(512, b"\0")]
    path = directory / "t-0.tar"
    path.write_bytes(b"".join(parts) + b"\0" * 1024)
    return path


def test_numbers_padded_with_blanks(tmp_path):
    """Archive::Tar and tars older than POSIX write blanks for leading zeros."""
    path = blank_padded(tmp_path)
    with tarfile.open(path) as archive:
        assert [f"{key}.txt" for key, _ in SAMPLES] == archive.getnames()
    assert SAMPLES == read(tmp_path)
    changed = bytearray(path.read_bytes())
    changed[0] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CorruptShardError, match="its checksum is wrong"):
        build_index(path)


@pytest.mark.parametrize("factor", [1, 2, 20, 32, 64, 128, 256, 512, 1024, 2048])
def test_blocking_factors(tmp_path, factor):
    """Records of up to 1 MiB are filled up with zeros."""
    gnu_tar(tmp_path, f"-b{factor}")
    assert SAMPLES == read(tmp_path)


@pytest.mark.parametrize("format_", ["gnu", "pax", "oldgnu"])
def test_volume_labels(tmp_path, format_):
    """A label is not a member."""
    gnu_tar(tmp_path, f"--format={format_}", "--label=volume one")
    assert SAMPLES == read(tmp_path)


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_every_format_of_the_tar_program(tmp_path, format_):
    """Names, numbers and directories come in the form of each."""
    write_files(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "d.txt").write_text("d")
    gnu_tar(tmp_path, f"--format={format_}", files=["./s0.txt", "dir", "s1.txt"])
    assert [("./s0", "000"), ("dir/d", "d"), ("s1", "111")] == read(tmp_path)


@pytest.mark.parametrize(
    "name", ["/data/1.txt", "../raw/1.txt", "a/../../1.txt", "./1.txt", "//1.txt", "/" + "d/" * 90 + "1.txt"]
)
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_absolute_names_and_names_with_two_dots(tmp_path, name, format_):
    """Nothing is unpacked, so a name is a key whatever it would lead to."""
    with tarfile.open(tmp_path / "t-0.tar", "w", format=format_) as archive:
        info = tarfile.TarInfo(name)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    assert [(name.removesuffix(".txt"), "x")] == read(tmp_path)


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar"])
@pytest.mark.parametrize("adopted", [False, True])
def test_hard_links(tmp_path, format_, adopted):
    """A link has the bytes of the member that it links to, also over several links and long names."""
    long = "long" * 40 if format_ != "ustar" else "long" * 20
    (tmp_path / "a.txt").write_text("aaa")
    for name in ("b", "c", long, f"d-{long}"):
        (tmp_path / f"{name}.txt").hardlink_to(tmp_path / "a.txt")
    files = ["./a.txt", "b.txt", f"{long}.txt", f"d-{long}.txt", "c.txt"]
    path = gnu_tar(tmp_path, f"--format={format_}", files=files)
    with tarfile.open(path) as archive:
        assert 4 == sum(member.islnk() for member in archive)
    if adopted:
        adopt(str(tmp_path), "t")
    assert [("./a", "aaa"), ("b", "aaa"), (long, "aaa"), (f"d-{long}", "aaa"), ("c", "aaa")] == read(tmp_path)


def remedy(error):
    """Return the command that an error's message names."""
    return re.findall(r"`([^`]*)`", error.value.message)[-1]


def run(command, directory, **names):
    """Run a command of a message, with the names of files put in."""
    for placeholder, name in names.items():
        command = command.replace(placeholder, name)
    subprocess.run(command, shell=True, cwd=directory, check=True, capture_output=True)


def test_the_remedy_for_zeros_at_the_end(tmp_path):
    """Records of unusual size look like lost members; the command in the message removes them."""
    gnu_tar(tmp_path, "-b100")
    with pytest.raises(CorruptShardError, match="zeros follow the last member at byte 4096") as caught:
        read(tmp_path)
    run(remedy(caught), tmp_path, SHARD="t-0.tar")
    assert SAMPLES == read(tmp_path)


COMPRESSORS = {"gzip": "gz", "bzip2": "bz2", "xz": "xz", **({"zstd": "zst"} if shutil.which("zstd") else {})}


@pytest.mark.parametrize("program", COMPRESSORS)
def test_the_remedy_for_compressed_shards(tmp_path, program):
    """Both for files that are named as compressed and for those that are not, the command unpacks them."""
    path = gnu_tar(tmp_path)
    ending = COMPRESSORS[program]
    run(f"{program} t-0.tar && rm -f t-0.tar", tmp_path)
    with pytest.raises(NoShardsError, match=f"t-0.tar.{ending}, which is compressed") as caught:
        read(tmp_path)
    run(f"cp t-0.tar.{ending} kept", tmp_path)
    run(remedy(caught), tmp_path)
    assert SAMPLES == read(tmp_path)
    (tmp_path / "kept").rename(path)
    with pytest.raises(CorruptShardError, match="compressed with") as caught:
        read(tmp_path)
    run(remedy(caught), tmp_path, SHARD="t-0.tar")
    assert SAMPLES == read(tmp_path)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda path: path.symlink_to("s0.txt"), "--dereference"),
        (lambda path: path.hardlink_to(path.parent / "other" / "x.txt"), "--hard-dereference"),
        (lambda path: path.write_bytes(b""), "--sparse"),
    ],
    ids=["symbolic link", "hard link", "sparse file"],
)
def test_the_remedy_for_members_that_are_no_plain_files(tmp_path, make, option):
    """The option of tar that a message names gives a shard that is read."""
    files = write_files(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("other")
    make(tmp_path / "z.txt")
    without = option == "--sparse"
    if without:
        with (tmp_path / "z.txt").open("wb") as file:
            file.truncate(1 << 20)
    options = ["--format=gnu", *[option] * without]
    path = gnu_tar(tmp_path, *options, files=["other/x.txt", *files, "z.txt"])
    if option == "--hard-dereference":
        run("tar --delete -f t-0.tar other/x.txt", tmp_path)
    with pytest.raises(CorruptShardError, match=f"member 'z.txt' at byte .*write the tar with(out)? {option}"):
        read(tmp_path)
    path.unlink()
    gnu_tar(tmp_path, *[option] * (not without), files=[*files, "z.txt"])
    assert ["s0", "s1", "s2", "s3", "z"] == [key for key, _ in read(tmp_path)]


def test_the_remedy_for_devices(tmp_path):
    """A member that is no data at all is removed."""
    path = tmp_path / "t-0.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.txt", tarfile.REGTYPE), ("p.txt", tarfile.FIFOTYPE), ("b.txt", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    with pytest.raises(CorruptShardError, match=r"'p\.txt' at byte 512 is a fifo") as caught:
        read(tmp_path)
    run(remedy(caught), tmp_path, SHARD="t-0.tar", MEMBER="p.txt")
    assert [("a", ""), ("b", "")] == read(tmp_path)


@pytest.mark.parametrize(
    ("names", "prefix", "expected"),
    [
        (["sa_000020.tar", "sa_000003.tar"], "sa_", ["sa_000003.tar", "sa_000020.tar"]),
        (["x10.tar", "x9.tar", "xy.tar"], "x", ["x9.tar", "x10.tar"]),
        (["t-1.tar", "t-0.tar", "t-val-0.tar", "t_old_3.tar"], "t", ["t-0.tar", "t-1.tar"]),
        (["t-b.tar", "t-a.tar"], "t", ["t-a.tar", "t-b.tar"]),
    ],
)
def test_shards_are_found_by_their_prefix(tmp_path, names, prefix, expected):
    """Numbers behind a dash come first, then other names behind a dash, then numbers without one."""
    for name in names:
        (tmp_path / name).touch()
    assert expected == [path.removeprefix(f"{tmp_path}/") for path in find_shards(str(tmp_path), prefix)]


@pytest.mark.parametrize("other", ["t-a.tar", "t-0 (1).tar", "t5.tar"])
def test_tars_that_are_left_out_beside_numbered_ones_are_warned_of(tmp_path, other):
    """They are shards by the documented pattern; those that are numbered with another prefix are other data."""
    for name in ("t-0.tar", other, "t-val-0.tar"):
        (tmp_path / name).touch()
    with pytest.warns(DataWarning, match=rf"such as t-0\.tar, so {re.escape(other)} is not read; number it as well"):
        assert [f"{tmp_path}/t-0.tar"] == find_shards(str(tmp_path), "t")


def test_what_is_named_as_a_shard_and_is_no_file_is_an_error(tmp_path):
    """A directory, and a link whose file is gone."""
    (tmp_path / "t-0.tar").mkdir()
    with pytest.raises(CorruptShardError, match=r"t-0\.tar is named as a shard and is not a file; restore or remove"):
        find_shards(str(tmp_path), "t")
    (tmp_path / "t-0.tar").rmdir()
    (tmp_path / "t-0.tar").symlink_to("gone")
    with pytest.raises(CorruptShardError, match=r"t-0\.tar .* is a link to a file that does not exist; restore or"):
        find_shards(str(tmp_path), "t")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("sa_000020.tar", "sa_"), ("train-000.tar", "train"), ("a.b-c-7.tar", "a.b-c"), ("x1.tar", "x")],
)
def test_the_prefix_that_a_message_names_is_found(tmp_path, name, prefix):
    """The advice for another prefix works."""
    (tmp_path / name).touch()
    with pytest.raises(NoShardsError, match=f"It has {re.escape(name)}; their prefix is {prefix!r}"):
        find_shards(str(tmp_path), "wdshards")
    assert [str(tmp_path / name)] == find_shards(str(tmp_path), prefix)


def test_numbers_alone_are_no_prefix(tmp_path):
    """Then the shards have to be linked or renamed, as the message says."""
    (tmp_path / "000000.tar").touch()
    with pytest.raises(NoShardsError, match=r"rename or link them as wdshards-000000\.tar") as caught:
        find_shards(str(tmp_path), "wdshards")
    (tmp_path / "wdshards-000000.tar").symlink_to(tmp_path / "000000.tar")
    assert [str(tmp_path / "wdshards-000000.tar")] == find_shards(str(tmp_path), "wdshards")
    assert "nothing" not in caught.value.message


def test_shards_without_a_dash_are_adopted(tmp_path):
    """The manifest lists them, and one that it does not list is noticed."""
    gnu_tar(tmp_path).rename(tmp_path / "sa_000020.tar")
    assert ["sa_000020.tar"] == [entry.name for entry in adopt(str(tmp_path), "sa_").shards]
    assert SAMPLES == read(tmp_path, "sa_")
    shutil.copy(tmp_path / "sa_000020.tar", tmp_path / "sa_000021.tar")
    assert ["sa_000021.tar"] == unlisted(str(tmp_path), "sa_", ["sa_000020.tar"])
