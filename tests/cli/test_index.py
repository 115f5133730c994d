"""The commands index and preview."""

import json
import os
import pathlib
import pickle

import fsspec
import numpy as np
import pytest
import torch
import webdataset as wds

from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.preview import describe, in_words
from bionemo.webdatamodule._engine.format.manifest import journal_path, manifest_path, read_manifest
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.reading.verify import verify
from bionemo.webdatamodule._engine.writing.adopt import adopt
from bionemo.webdatamodule.errors import ConversionError, CorruptShardError, DataWarning, ManifestError, NoShardsError
from bionemo.webdatamodule.testing.stores import serving


@pytest.fixture
def foreign(tmp_path):
    """Two shards that webdataset wrote."""
    with wds.ShardWriter(str(tmp_path / "wdshards-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(7):
            writer.write({"__key__": f"s{number}", "cls": number, "x.pyd": {"t": torch.full((3,), float(number))}})
    return tmp_path


def read(directory):
    """Return all samples of a directory."""
    found = ShardReader([ShardSet.open(directory, "wdshards")], ["__key__", "cls", "x.pyd"])
    return [(key, number, value["t"].tolist()) for key, number, value in found.read(np.arange(7))]


def test_adopted_shards_read_as_before(foreign, capsys):
    """The tars stay untouched, samples are the same, and now there are a manifest and checksums."""
    before = {path.name: path.read_bytes() for path in foreign.iterdir()}
    expected = read(foreign)
    assert 0 == main(["index", str(foreign), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (7, 2, ["cls", "x.pyd"]) == (row["samples"], row["shards"], row["suffixes"])
    assert expected == read(foreign)
    assert before == {name: (foreign / name).read_bytes() for name in before}
    assert row["digest"] == ShardSet.open(foreign, "wdshards").digest
    assert () == verify(str(foreign), "wdshards", deep=True).problems


def test_adopted_shards_are_guarded(foreign):
    """After adoption a changed field is noticed, and a shard added by hand is not read."""
    adopt(str(foreign), "wdshards")
    (foreign / "wdshards-000002.tar").write_bytes((foreign / "wdshards-000000.tar").read_bytes())
    assert 7 == ShardSet.open(foreign, "wdshards").n_samples
    shard = foreign / "wdshards-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(torch.full((3,), 5.0).numpy().tobytes(), torch.full((3,), 6.0).numpy().tobytes()))
    with pytest.raises(CorruptShardError, match="checksum") as caught:
        read(foreign)
    assert "s5" == caught.value.where["key"]


def test_a_manifest_is_replaced_only_when_asked(foreign, capsys):
    """A second run is refused, for it would bless whatever there is; --again does so."""
    adopt(str(foreign), "wdshards")
    with pytest.raises(ManifestError, match="--again"):
        adopt(str(foreign), "wdshards")
    (foreign / "wdshards-000001.tar").unlink()
    assert 2 == main(["index", str(foreign)])
    assert "has a manifest" in capsys.readouterr().err
    assert 0 == main(["index", str(foreign), "--again"])
    assert "4 samples in 1 shard" in capsys.readouterr().out


def test_what_cannot_be_adopted_is_left_alone(foreign):
    """Damage, no shards and a conversion at work are errors, and no manifest appears."""
    with pytest.raises(NoShardsError, match="not a local directory"):
        adopt(str(foreign / "nowhere"), "wdshards")
    with pytest.raises(NoShardsError, match="It has wdshards"):
        adopt(str(foreign), "other")
    journal = pathlib.Path(journal_path(str(foreign), "wdshards"))
    journal.touch()
    with pytest.raises(ManifestError, match="at work"):
        adopt(str(foreign), "wdshards")
    journal.unlink()
    os.truncate(foreign / "wdshards-000001.tar", 2048)
    with pytest.raises(CorruptShardError, match="cut short"):
        adopt(str(foreign), "wdshards")
    assert read_manifest(str(foreign), "wdshards") is None


def test_keys_with_dots_are_warned_of(tmp_path):
    """webdataset's rule makes one sample of them, with a suffix for each."""
    with wds.ShardWriter(f"{tmp_path}/t-%06d.tar", verbose=0) as writer:
        for number in range(60):
            writer.write({"__key__": f"image.{number}", "txt": "x"})
    with pytest.warns(DataWarning, match=r"60 different suffixes, such as '0.txt'; a suffix begins at the first dot"):
        adopt(str(tmp_path), "t")


def test_a_full_disk_leaves_no_manifest(foreign, monkeypatch):
    """An error of the disk is named, and the shards stay foreign."""
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device", "here")))
    with pytest.raises(ConversionError, match="No space left"):
        adopt(str(foreign), "wdshards")
    assert not pathlib.Path(manifest_path(str(foreign), "wdshards")).exists()
    assert 7 == len(read(foreign))


def test_a_full_disk_names_the_file_and_leaves_nothing(foreign, monkeypatch):
    """What the system refuses without a name is told with one, and no half-written file stays."""
    before = sorted(path.name for path in foreign.iterdir())
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConversionError, match="No space left") as caught:
        adopt(str(foreign), "wdshards")
    assert f"{foreign}/wdshards-000000.tar.idx" == caught.value.where["file"]
    assert before == sorted(path.name for path in foreign.iterdir())


def test_preview_shows_keys_and_kinds(foreign, capsys):
    """The first samples are shown with type, shape and dtype of each field."""
    assert 0 == main(["preview", str(foreign), "-n", "2"])
    expected = [
        "7 samples in 2 shards",
        "",
        "s0",
        "  cls    int 0",
        "  x.pyd  dict[1] {t: Tensor float32[3]}",
        "",
        "s1",
        "  cls    int 1",
        "  x.pyd  dict[1] {t: Tensor float32[3]}",
    ]
    assert expected == capsys.readouterr().out.splitlines()
    assert 0 == main(["preview", str(foreign), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (7, 2, ["cls", "x.pyd"]) == (found["samples"], found["shards"], found["suffixes"])
    assert ["s0", "s1", "s2"] == [sample["key"] for sample in found["preview"]]


def test_preview_says_what_cannot_be_decoded(tmp_path, capsys):
    """A field that is refused is described by the reason; fields that a sample lacks are left out."""
    with wds.ShardWriter(str(tmp_path / "t-%06d.tar"), verbose=0) as writer:
        writer.write({"__key__": "a", "evil.pyd": pickle.dumps(pathlib.PurePosixPath.joinpath), "txt": "ü"})
        writer.write({"__key__": "b", "txt": "t" * 100})
    assert 1 == main(["preview", str(tmp_path), "--prefix", "t", "--json"])
    first, second = json.loads(capsys.readouterr().out)["preview"]
    assert ["error"] == list(first["fields"]["evil.pyd"])
    assert {"txt": {"type": "str", "length": 100, "value": "t" * 60}} == second["fields"]


def test_preview_shows_what_is_sound_beside_what_is_damaged(foreign, capsys):
    """A field whose bytes changed is told with its reason, and so is a sample without a key; the others are shown."""
    adopt(str(foreign), "wdshards")
    path = foreign / "wdshards-000000.tar"
    data = bytearray(path.read_bytes())
    tensor = torch.full((3,), 1.0).numpy().tobytes()
    data[data.index(tensor)] ^= 1
    path.write_bytes(data)
    assert 1 == main(["preview", str(foreign)])
    first, second, third = capsys.readouterr().out.split("\n\n")[1:]
    assert ["s0", "  cls    int 0", "  x.pyd  dict[1] {t: Tensor float32[3]}"] == first.splitlines()
    assert ["s1", "  cls    int 1"] == second.splitlines()[:2]
    assert second.splitlines()[2].startswith("  x.pyd  cannot be read: the field was changed")
    assert "s2" == third.splitlines()[0]

    data[data.index(b"s2.")] ^= 1
    path.write_bytes(data)
    assert 1 == main(["preview", str(foreign), "--json"])
    samples = json.loads(capsys.readouterr().out)["preview"]
    assert ["s0", "s1", None] == [sample["key"] for sample in samples]
    assert {} == samples[2]["fields"]
    assert 1 == main(["preview", str(foreign)])
    assert capsys.readouterr().out.split("\n\n")[-1].startswith("cannot be read: ")


def test_preview_finds_the_only_prefix(tmp_path, capsys):
    """As the other commands do; of several one is chosen."""
    with wds.ShardWriter(str(tmp_path / "t-%06d.tar"), verbose=0) as writer:
        writer.write({"__key__": "a", "txt": "t"})
    adopt(str(tmp_path), "t")
    assert 0 == main(["preview", str(tmp_path)])
    assert capsys.readouterr().out.startswith("1 sample in 1 shard")
    (tmp_path / "u.manifest.json").touch()
    assert 2 == main(["preview", str(tmp_path)])
    assert "holds t, u; choose one with --prefix" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["preview"],
        ["plan", "--global-batch", "1"],
        ["bench", "--seconds", "0.01", "--workers", "0"],
        ["report", "--output", "report.html"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_commands_find_the_only_prefix_behind_a_url(words, foreign, capsys, monkeypatch):
    """As info and verify do; of several one is to be chosen."""
    monkeypatch.chdir(foreign)
    for path in foreign.glob("*.tar"):
        path.rename(foreign / path.name.replace("wdshards", "other"))
    adopt(str(foreign), "other")
    memory, url = fsspec.filesystem("memory"), "memory://prefixes"
    memory.put([str(path) for path in foreign.glob("other*")], "/prefixes/")
    try:
        assert main([words[0], url, *words[1:]]) in ((0, 1) if words == ["doctor"] else (0,))
        assert "7 samples" in capsys.readouterr().out
        memory.pipe_file("/prefixes/u.manifest.json", b"")
        assert 2 == main([words[0], url, *words[1:]])
        assert f"{url} holds other, u; choose one with --prefix" in capsys.readouterr().err
    finally:
        memory.rm("/prefixes", recursive=True)


def test_the_usual_prefix_is_read_where_listing_is_not_permitted(foreign, capsys, monkeypatch):
    """A store may let one read and not list."""

    def refuse(self, url):
        raise PermissionError("no")

    adopt(str(foreign), "wdshards")
    memory = fsspec.filesystem("memory")
    memory.put([str(path) for path in foreign.iterdir()], "/secret/")
    monkeypatch.setattr("bionemo.webdatamodule.builtins.stores.FsspecStore.list", refuse)
    try:
        assert 0 == main(["preview", "memory://secret"])
        assert "7 samples" in capsys.readouterr().out
    finally:
        memory.rm("/secret", recursive=True)


def test_the_prefixes_behind_a_url_are_named(foreign, capsys):
    """Where there are shards, and none of the prefix that was asked for."""
    memory = fsspec.filesystem("memory")
    memory.put([str(path) for path in foreign.glob("*.tar")], "/named/")
    try:
        assert 2 == main(["preview", "memory://named", "--prefix", "other"])
        assert "memory://named has no shards of the prefix 'other'; try --prefix wdshards" in capsys.readouterr().err
    finally:
        memory.rm("/named", recursive=True)


@pytest.mark.parametrize("words", [["preview"], ["index"], ["bench"], ["plan", "--global-batch", "1"]])
def test_foreign_shards_of_another_prefix_are_named(tmp_path, capsys, words):
    """They need no conversion, but their prefix."""
    for name in ("part-0.tar", "part-1.tar", "my-own-x.tar"):
        (tmp_path / name).touch()
    for more, prefix in ([], "wdshards"), (["--prefix", "other"], "other"):
        assert 2 == main([*words, *more, str(tmp_path)])
        error = capsys.readouterr().err
        assert f"has no shards of the prefix '{prefix}'; try --prefix my-own or --prefix part" in error
    (tmp_path / "empty").mkdir()
    assert 2 == main([*words, str(tmp_path / "empty")])
    assert "try --prefix" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "NoneType"),
        (True, "bool True"),
        (1 << 80, f"int '{1 << 80}'"),
        (float("nan"), "float 'nan'"),
        ("text", "str[4] 'text'"),
        (b"raw", "bytes[3]"),
        (np.zeros((2, 0), "<f4"), "ndarray float32[2, 0]"),
        (torch.zeros((), dtype=torch.bfloat16), "Tensor bfloat16[]"),
        ([torch.zeros(2), 1], "list[2] of Tensor float32[2]"),
        ((), "tuple[0]"),
        ({"a": {"b": {"c": {"d": 1}}}}, "dict[1] {a: dict[1] {b: dict[1] {c: dict[1] {}}}}"),
        ({1, 2}, "set '{1, 2}'"),
    ],
)
def test_values_are_described_in_a_line(value, expected):
    """Type, shape, dtype, length and short values; containers as deep as is of use."""
    assert expected == in_words(describe(value))
    json.dumps(describe(value), allow_nan=False)


def test_shards_behind_a_url_are_indexed_beside_them_or_elsewhere(foreign, capsys):
    """The same manifest as of a local copy; shards are fetched and not changed."""
    memory = fsspec.filesystem("memory")
    for path in foreign.glob("*.tar"):
        memory.pipe_file(f"/foreign/{path.name}", path.read_bytes())
    here, beside = adopt(str(foreign), "wdshards"), "memory://foreign"
    try:
        assert 0 == main(["index", beside, "--output", str(foreign / "elsewhere")])
        assert ["/foreign/wdshards-000000.tar", "/foreign/wdshards-000001.tar"] == sorted(memory.find("/foreign"))
        memory.put(f"{foreign}/elsewhere/*", "/foreign/")  # as --help says
        assert 0 == main(["verify", beside])
        assert here.digest == ShardSet.open(beside, "wdshards").digest
        memory.rm("/foreign/*.idx")
        memory.rm("/foreign/*.json")
        assert 0 == main(["index", beside, "--json"])
        assert 0 == main(["verify", beside])
        assert 2 == main(["index", beside])
        assert "--again" in capsys.readouterr().err
        assert {here.digest} == {
            read_manifest(str(foreign / "elsewhere"), "wdshards").digest,
            read_manifest(str(foreign), "wdshards").digest,
            ShardSet.open(beside, "wdshards").digest,
        }
        assert read(foreign) == read(beside)
    finally:
        memory.rm("/foreign", recursive=True)


def test_a_manifest_on_a_web_server_is_seen_though_it_lists_nothing(foreign, capsys):
    """It is there already; with --again the shards are to be named, and nothing is said of a manifest."""
    with serving(foreign.parent) as server:
        url = f"{server}/{foreign.name}"
        assert 2 == main(["index", url])
        assert f"the files of {url} cannot be listed; give the shards as a pattern" in capsys.readouterr().err
        adopt(str(foreign), "wdshards")
        assert 2 == main(["index", url])
        assert f"{url} has a manifest of the prefix 'wdshards' already" in capsys.readouterr().err
        assert 2 == main(["index", "--again", url])
        assert "no manifest" not in capsys.readouterr().err
