"""Conversion: what goes in comes out, whole or not at all; numbers in brackets are rows of the fault matrix."""

import argparse
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import pickle
import resource
import shutil
import tempfile
import threading
import time
from concurrent import futures
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from tests.helpers.convert import convert
from tests.helpers.faults import Faults

from bionemo.webdatamodule import PickledDataWDS
from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.format.manifest import lease_path, read_manifest, staging_path
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.reading.verify import verify
from bionemo.webdatamodule._engine.storage import filesystem, lock, targets
from bionemo.webdatamodule._engine.storage.lock import Lease
from bionemo.webdatamodule._engine.writing.adopt import adopt
from bionemo.webdatamodule._engine.writing.conversion import Chosen
from bionemo.webdatamodule._engine.writing.convert import place_of
from bionemo.webdatamodule._engine.writing.layout import cut, default_n_shards, estimate_bytes
from bionemo.webdatamodule._engine.writing.run import Workers
from bionemo.webdatamodule.builtins.executors import Processes, Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes, encode_escaped
from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    ConversionError,
    DataWarning,
    InputError,
    ManifestError,
    PluginError,
)
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.testing import in_fresh_process
from bionemo.webdatamodule.testing.conversion import raw_samples

NAMES = [f"s{number:02d}" for number in range(10)]


def store(directory, values, suffix="pyd"):
    """Pickle values into files and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        path = directory / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(value))
    return directory


@pytest.fixture
def source(tmp_path):
    """A directory of ten pickles."""
    return store(tmp_path / "source", {name: {"name": name} for name in NAMES})


@pytest.fixture
def out(tmp_path):
    """Where the shards go."""
    return tmp_path / "out"


def run(source, out, names=NAMES, *, suffixes="pyd", n_shards=3, executor=None, encode=encode_dashes, **more):
    """Convert pickles of one split and return the manifest."""
    reader = PickleReader(directory=source, suffixes=suffixes) if isinstance(source, os.PathLike) else source
    options = {"directory": str(source), "suffixes": suffixes} if reader is not source else {}
    return convert(
        reader=reader,
        names={"train": names},
        directories={"train": str(out)},
        prefix="p",
        n_shards=n_shards,
        key_encoder=encode,
        executor=executor or Serial(),
        **{"writer": "pickles", "options": options, **more},
    )["train"]


def read(out, suffix="pyd", prefix="p"):
    """Return key and value of every sample, as this package reads them."""
    reader = ShardReader([ShardSet.open(str(out), prefix)], ["__key__", suffix])
    return reader.read(np.arange(reader.n_samples))


def keys(out):
    """Return every key, in order."""
    return [key for key, _ in read(out)]


def state(out):
    """Return inode and modification time of every file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(out.iterdir())}


def contents(out):
    """Return the hash of every file."""
    files = sorted(path for path in out.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewrite(path, value):
    """Replace a pickle by another one, with a time of its own."""
    path.write_bytes(pickle.dumps(value))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))


# -- what goes in comes out


def test_samples_come_back_in_order(source, out):
    """Every sample is there once, in the order of the names."""
    manifest = run(source, out)
    assert [(name, {"name": name}) for name in NAMES] == read(out)
    assert (10, [3, 3, 4]) == (manifest.n_samples, [shard.samples for shard in manifest.shards])
    assert ["p-000000.tar", "p-000000.tar.idx", "p-000001.tar"] == sorted(path.name for path in out.iterdir())[:3]


def test_stock_webdataset_and_pickle_read_the_shards(source, out):
    """The documented form: key with dashes, pickle.dumps(data) under the suffix."""
    store(source, {"v.1": torch.arange(3)}, suffix="mydata.pt")
    run(source, out, ["v.1"], suffixes="mydata.pt", n_shards=1)
    ((key, fields),) = raw_samples([f"{out}/p-000000.tar"]).items()
    assert ("v-1", ["mydata.pt"]) == (key, list(fields))
    assert torch.equal(torch.arange(3), pickle.loads(fields["mydata.pt"]))


def test_verify_finds_nothing_to_complain_of(source, out):
    """A fresh conversion passes, also with every sample decoded."""
    run(source, out)
    assert ((), ()) == (verify(str(out), "p", deep=True).problems, verify(str(out), "p").notes)


def test_several_files_make_one_sample(source, out):
    """Each suffix is a field."""
    store(source, dict.fromkeys(NAMES, 7), suffix="label.pyd")
    manifest = run(source, out, suffixes=iter(["pyd", "label.pyd"]))
    assert ("label.pyd", "pyd") == manifest.suffixes
    assert [(name, 7) for name in NAMES] == read(out, "label.pyd")


def test_the_manifest_tells_where_the_data_come_from(source, out):
    """Writer, options, key encoder and versions are on record."""
    manifest = run(source, out, provider={"plugin": "pickles", "version": "1"}, key_encoder_name="dashes")
    assert {
        "name": "pickles",
        "options": {"directory": str(source), "suffixes": "pyd"},
        "plugin": "pickles",
        "version": "1",
    } == dict(manifest.writer)
    assert {"name": "dashes"} == dict(manifest.key_encoder)
    assert ["bionemo-webdatamodule", "python"] == sorted(manifest.versions)


# -- reruns


def test_fewer_shards_replace_all_old_ones(source, out):
    """[1] Nothing of the five old shards is left beside the two new ones."""
    run(source, out, n_shards=5)
    run(source, out, n_shards=2)
    assert NAMES == keys(out)
    assert ["p-000000.tar", "p-000001.tar"] == sorted(path.name for path in out.glob("*.tar"))


def test_removed_names_are_gone(source, out):
    """[2] A rerun with three of the names leaves exactly these."""
    run(source, out)
    run(source, out, NAMES[2:5], n_shards=2)
    assert NAMES[2:5] == keys(out)


def test_unchanged_input_touches_nothing(source, out):
    """[3] Every file keeps its inode and time, and the executor is not even started."""
    first = run(source, out)
    before = state(out), out.stat().st_mtime_ns
    assert first == run(source, out, executor=None.__class__)  # no context manager: it would fail if it were entered
    assert before == (state(out), out.stat().st_mtime_ns)


def test_unchanged_input_needs_no_right_to_write(source, out, monkeypatch):
    """[3] Data that are all there can be used from a read-only directory."""
    first = run(source, out)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert first == run(source, out)


def test_a_changed_source_is_noticed_and_only_its_shard_is_written_again(source, out):
    """[4] The other shards keep their inodes."""
    run(source, out)
    before = state(out)
    rewrite(source / "s04.pyd", "new")
    run(source, out)
    changed = {name for name in before if before[name] != state(out)[name]}
    assert ["p-000001.tar", "p-000001.tar.idx", "p.manifest.json"] == sorted(changed)
    assert ("s04", "new") == read(out)[4]


def test_appended_samples_change_only_the_last_shards(source, out):
    """Shards before the new samples stay."""
    run(source, out, NAMES[:9])
    before = state(out)
    run(source, out, NAMES)
    assert ["p-000002.tar", "p-000002.tar.idx", "p.manifest.json"] == sorted(
        name for name in before if before[name] != state(out)[name]
    )
    assert NAMES == keys(out)


class Plain:
    """A reader that is not a dataclass and cannot tell whether its samples changed."""

    def __init__(self, scale=1):
        self.scale = scale

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            yield Sample(name, {"x": b"%d" % self.scale})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A reader with options of all kinds."""

    scale: object = 1
    path: object = "nowhere"
    note: object = dataclasses.field(default="", compare=False)

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            yield Sample(name, {"x": b"data"})


def test_other_options_of_the_writer_make_everything_anew(out):
    """The same names read in another way are other data."""
    before = run(Plain(), out, options={"scale": 1})
    assert before == run(Plain(), out, options={"scale": 1})
    assert before.shards != run(Plain(), out, options={"scale": 2}).shards


@pytest.mark.parametrize("kind", [Plain, Made])
def test_a_reader_given_as_an_object_with_other_options_makes_everything_anew(kind, out):
    """Its fields or attributes are what it was made from, though nobody said so."""
    before = run(kind(scale=1), out, options={})
    assert before == run(kind(scale=1), out, options={})
    assert before.shards != run(kind(scale=2), out, options={}).shards


def inputs(reader, out):
    """Return what the first shard of a reader is made from."""
    return run(reader, out, n_shards=1).shards[0].inputs


def adding(value, version=None):
    """Return a function that encloses a value."""

    def add(name):
        return f"{name}{value}"

    if version is not None:
        add.version = version
    return add


def test_options_are_identified_by_name_and_value(out):
    """Functions with other names, values in them or versions, sets, bytes and nested objects each count."""
    options = [
        adding,
        adding(1),
        adding(2),
        adding(1, version=2),
        adding(1, version=3),
        functools.partial(max, 1),
        functools.partial(max, 2),
        max,
        "a",
        b"a",
        {"a": 1},
        {"a": 2},
        {"a"},
        Plain(),
        Plain(2),
        Made(),
        np.arange(3),
        np.arange(4),
    ]
    found = [inputs(Made(scale=option), out) for option in options]
    assert len(options) == len(set(found))
    assert found[:3] == [inputs(Made(scale=option), out) for option in (adding, adding(1), adding(2))]


def test_a_function_counts_by_its_name_and_a_lambda_is_logged(out, caplog):
    """Bytecode differs between versions of Python, so it is not a part of what a shard is made from."""
    add = adding(1)
    before = inputs(Made(scale=add), out)
    add.__code__ = add.__code__.replace(co_consts=(*add.__code__.co_consts, "another Python compiles it otherwise"))
    assert before == inputs(Made(scale=add), out)
    one = inputs(Made(scale=lambda name: name), out)
    assert f"a lambda of {__name__} in the writer's options has no name of its own" in caplog.text
    caplog.clear()
    add = lambda name: name  # noqa: E731 - a lambda with a version
    add.version = 1
    assert one != inputs(Made(scale=add), out)
    assert "lambda" not in caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale": ("a", "b")}, {"scale": ["a", "b"]}),
        ({"scale": np.float64(0.5)}, {"scale": 0.5}),
        ({"scale": np.int32(5)}, {"scale": 5}),
        ({"scale": np.str_("a")}, {"scale": "a"}),
        ({"scale": {"a": 1, "b": 2}}, {"scale": {"b": 2, "a": 1}}),
        ({"path": "SRC"}, {"path": "./SRC/"}),
        ({"path": "SRC"}, {"path": Path("SRC").absolute}),
        ({"path": ["SRC", "b"]}, {"path": (Path("SRC"), "./b")}),
        ({"note": 1}, {"note": 2}),
    ],
)
def test_how_options_are_spelled_does_not_matter(one, other, out, tmp_path, monkeypatch):
    """Paths, sequences and numbers of other types are the same options, and fields that do not compare are none."""
    monkeypatch.chdir(tmp_path)
    other = {name: value() if callable(value) else value for name, value in other.items()}
    assert inputs(Made(**one), out) == inputs(Made(**other), out)


def test_the_same_request_spelled_differently_touches_nothing(source, out, monkeypatch):
    """Sources as relative or absolute paths, suffixes alone or in a list, names as numpy's strings."""
    monkeypatch.chdir(source.parent)
    reader = functools.partial(PickleReader, suffixes="pyd")
    run(reader(directory="source"), out, options={"directory": "source", "suffixes": "pyd"})
    before = state(out)
    for directory in ("source/", "./source", str(source), source, f"{out}/../source"):
        run(PickleReader(directory=directory, suffixes=["pyd"]), out, options={"directory": directory})
        assert before == state(out)
    run(reader(directory="source"), out, np.array(NAMES))
    run(reader(directory="source"), out, tuple(map(np.str_, NAMES)))
    assert before == state(out)


def test_another_key_encoder_makes_the_shards_anew(source, out):
    """Keys are part of what was asked for."""
    store(source, {"a.b": 1})
    run(source, out, ["a.b"], n_shards=1)
    run(source, out, ["a.b"], n_shards=1, encode=encode_escaped)
    assert ["a%2eb"] == keys(out)


def test_lost_shards_and_indexes_are_made_again(source, out):
    """A shard that was removed or cut, or an index that is gone, is not a finished conversion."""
    run(source, out)
    before = contents(out)
    for damage in (
        (out / "p-000001.tar").unlink,
        lambda: os.truncate(out / "p-000002.tar", 512),
        (out / "p-000000.tar.idx").unlink,
        lambda: [path.unlink() for path in out.iterdir()],
        lambda: (out / "p.manifest.json").write_text("garbage"),
    ):
        damage()
        run(source, out)
        assert before == contents(out)


@pytest.mark.parametrize("damage", [b"", b"junk"])
def test_a_damaged_index_does_not_block_the_next_conversion(damage, source, out):
    """Its shard is made anew when the next change is, and an emptied one at once."""
    run(source, out)
    (out / "p-000001.tar.idx").write_bytes(damage)
    rewrite(source / "s00.pyd", "new")
    manifest = run(source, out)
    assert () == verify(str(out), "p", deep=True).problems
    (out / "p-000001.tar.idx").write_bytes(b"")
    assert manifest == run(source, out)
    assert () == verify(str(out), "p").problems


def flip(path, position=600):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_conversion_that_checks_repairs_flipped_bits(source, out):
    """Only with check=True are hashes compared; then just the damaged shards are made anew."""
    manifest = run(source, out)
    before = contents(out)
    nodes = state(out)
    assert (manifest, nodes) == (run(source, out, check=True), state(out))
    flip(out / "p-000001.tar")
    flip(out / "p-000002.tar.idx", 40)
    damaged = state(out)
    run(source, out)
    assert damaged == state(out)
    run(source, out, check=True)
    assert before == contents(out)
    assert nodes["p-000000.tar"] == state(out)["p-000000.tar"]
    assert all(damaged[name] != state(out)[name] for name in ("p-000001.tar", "p-000002.tar"))


def test_a_shard_that_cannot_be_read_is_made_anew(source, out, monkeypatch):
    """A bad place of the disk is like a flipped bit."""
    before = run(source, out)
    real = targets.file_sha256

    def failing(path):
        if path.endswith("p-000001.tar"):
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path)

    with monkeypatch.context() as patches:
        patches.setattr(targets, "file_sha256", failing)
        node = state(out)["p-000001.tar"]
        assert before == run(source, out, check=True)
    assert node != state(out)["p-000001.tar"]


def test_adopted_shards_are_not_overwritten(source, out):
    """What another tool wrote stays, whoever indexed it."""
    out.mkdir()
    with wds.ShardWriter(f"{out}/p-%06d.tar", verbose=0) as writer:
        writer.write({"__key__": "a", "txt": "precious"})
    adopt(str(out), "p")
    before = contents(out)
    for n_shards in (1, 3):
        with pytest.raises(InputError, match=r"holds p-000000.tar and 1 more file that another tool wrote"):
            run(source, out, n_shards=n_shards)
    assert before == contents(out)


@pytest.mark.parametrize("damage", [lambda text: text[:100], lambda text: text.replace('"format": 1', '"format": 2')])
def test_adopted_shards_are_not_overwritten_where_their_manifest_cannot_be_read(source, out, damage):
    """Their indices say that another tool wrote them; a newer version's manifest is none to replace at all."""
    out.mkdir()
    with wds.ShardWriter(f"{out}/p-%06d.tar", verbose=0) as writer:
        writer.write({"__key__": "a", "txt": "precious"})
    adopt(str(out), "p")
    path = out / "p.manifest.json"
    path.write_text(damage(path.read_text()))
    before = contents(out)
    with pytest.raises((InputError, ManifestError), match=r"holds p-000000.tar|update bionemo-webdatamodule"):
        run(source, out)
    assert before == contents(out)


def test_a_manifest_of_a_newer_version_is_not_replaced(source, out):
    """What it lists is not for this version to judge."""
    run(source, out)
    path = out / "p.manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    before = contents(out)
    with pytest.raises(ManifestError, match="update bionemo-webdatamodule"):
        run(source, out, NAMES[:5])
    assert before == contents(out)


@pytest.mark.parametrize("place", ["p.manifest.json", "p.manifest.next.json"])
def test_a_manifest_of_somebody_evil_moves_no_files(place, source, out):
    """Names and inputs that lead elsewhere are no manifest, with a good checksum, too."""
    run(source, out)
    manifest = read_manifest(str(out), "p")
    for name in ("precious.txt", "victim.tar", "victim.idx"):
        (out.parent / name).write_text("precious")
    evil = dataclasses.replace(
        manifest,
        shards=tuple(
            dataclasses.replace(shard, name="../precious.txt", inputs="../../victim") for shard in manifest.shards[:1]
        ),
    )
    (out / place).write_text(evil.to_json())
    run(source, out)
    assert ["precious"] * 3 == [
        (out.parent / name).read_text() for name in ("precious.txt", "victim.tar", "victim.idx")
    ]
    assert NAMES == keys(out)


def test_a_manifest_that_may_not_be_read_is_told(source, out, monkeypatch):
    """Nothing is overwritten that cannot be looked at, and the error names the file."""
    run(source, out)
    before = contents(out)
    real = open

    def refusing(path, *args, **kwargs):
        if str(path).endswith("manifest.json"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    rewrite(source / "s00.pyd", "new")
    with monkeypatch.context() as patches:
        patches.setattr("builtins.open", refusing)
        patches.setattr(Path, "read_bytes", lambda path: refusing(path, "rb").read())
        with pytest.raises(ManifestError, match=r"p\.manifest\.json cannot be read: Permission denied"):
            run(source, out)
    assert before == contents(out)


class Reading(PickleReader):
    """A reader that notes which samples it reads."""

    def __call__(self, names):
        """Note the names."""
        read_names.extend(names)
        return super().__call__(names)


read_names = []


@pytest.mark.parametrize("n_shards", [3, None])
def test_a_rerun_reads_no_sample(n_shards, source, out):
    """[3] With nothing changed not even a few are read to estimate a size."""
    reader = Reading(directory=source, suffixes="pyd")
    run(reader, out, n_shards=n_shards)
    read_names.clear()
    run(reader, out, n_shards=n_shards)
    assert [] == read_names
    rewrite(source / "s04.pyd", "new")
    run(reader, out, n_shards=n_shards)
    assert ("s04", "new") == read(out)[4]


# -- bad samples and sources


def test_missing_files_are_all_listed_and_nothing_is_written(source, out):
    """[5] Every missing file is named, with its path, before there is anything in the output."""
    (source / "s03.pyd").unlink()
    (source / "s07.pyd").unlink()
    with pytest.raises(InputError) as caught:
        run(source, out)
    assert [
        "2 problems in the input, nothing was published:",
        f"  s03: No such file or directory: {source}/s03.pyd",
        f"  s07: No such file or directory: {source}/s07.pyd",
    ] == caught.value.message.splitlines()
    assert not out.exists()


def test_twenty_problems_are_listed_and_the_rest_counted(source, out):
    """Thousands of missing files give a readable message."""
    with pytest.raises(InputError) as caught:
        run(source, out, [f"no{number}" for number in range(1000)])
    lines = caught.value.message.splitlines()
    assert ("1,000 problems in the input, nothing was published:", 22) == (lines[0], len(lines))
    assert "  and 980 more" == lines[-1]


class Ghost:
    """A class that is not there when it is read back."""


def broken_pickles():
    """Return what can be wrong with a pickle file, and what is said about it."""
    ghost = pickle.dumps(Ghost()).replace(b"Ghost", b"Gohst")
    return [
        ("empty", b"", ""),
        ("garbage", b"\x00\x01garbage", ""),
        ("cut", pickle.dumps(list(range(1000)))[:100], ""),
        ("trailing", pickle.dumps(1) + b"junk", "follow"),
        ("several", pickle.dumps(1) + pickle.dumps(2), "follow"),
        ("refused", pickle.dumps(os.system), "system"),
        ("ghost", ghost, "Gohst"),
    ]


def test_broken_pickles_are_all_listed_and_nothing_is_published(source, out):
    """[6, 7, 8] Empty, cut, garbage, several objects, refused and missing classes are named together."""
    run(source, out)
    before = contents(out)
    for name, data, _ in broken_pickles():
        (source / f"{name}.pyd").write_bytes(data)
    names = [*NAMES[:5], *(name for name, _, _ in broken_pickles()), *NAMES[5:]]
    with pytest.raises(InputError) as caught:
        run(source, out, names, executor=Processes(workers=2))
    lines = caught.value.message.splitlines()[1:]
    assert [name for name, _, _ in broken_pickles()] == [line.split(":")[0].strip() for line in lines]
    assert all(
        said in line and "suffix=pyd" in line for (_, _, said), line in zip(broken_pickles(), lines, strict=True)
    )
    assert before == contents(out)


def test_a_refused_class_names_the_argument_that_allows_it(source, out):
    """[8] What the safe codec refuses can be allowed, and is then converted."""
    store(source, {"odd": argparse.Namespace(a=1)})
    with pytest.raises(InputError, match=r'odd: .*allow_pickle=\["argparse.Namespace"\]'):
        run(source, out, ["odd"], n_shards=1)
    codecs = Codecs(policy=Policy(allow=("argparse.Namespace",)))
    assert 1 == run(source, out, ["odd"], n_shards=1, codecs=codecs).n_samples


def test_unreadable_files_are_listed(source, out):
    """A directory, a pipe and a dangling link in a file's place are problems of their samples."""
    for name in ("s01", "s02", "s03"):
        (source / f"{name}.pyd").unlink()
    (source / "s01.pyd").mkdir()
    os.mkfifo(source / "s02.pyd")
    (source / "s03.pyd").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"^3 problems") as caught:
        run(source, out)
    assert ["s01", "s02", "s03"] == [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]]


def test_a_source_that_changes_meanwhile_is_noticed(source, out):
    """A file that is rewritten between plan and end does not slip in."""

    class Restless(PickleReader):
        def __call__(self, names):
            for sample in super().__call__(names):
                yield sample
                if sample.name == "s05" and out.exists():
                    rewrite(source / "s05.pyd", "changed")

    with pytest.raises(ConversionError, match="the source changed while it was read"):
        run(Restless(directory=source, suffixes="pyd"), out)


class Faulty:
    """A writer plugin that breaks its contract at the fifth sample."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, names):
        """Yield samples, and something else for the fifth name."""
        for name in names:
            if name == "s04":
                yield from self.fault(name)
            else:
                yield Sample(name, {"x": b"data"})


class Failing:
    """A writer plugin that fails at every sample."""

    def __init__(self, message):
        self.message = message

    def __call__(self, names):
        """Fail."""
        raise ValueError(self.message)


def raising(error):
    """Return a fault that raises."""

    def fault(name):
        raise error
        yield

    return fault


BREACHES = {
    "no sample": (lambda name: [7], "yields int instead of Sample"),
    "no mapping": (lambda name: [Sample(name, b"data")], "gives bytes instead of a mapping"),
    "no field": (lambda name: [Sample(name, {})], "gives no field"),
    "str": (lambda name: [Sample(name, {"x": "text"})], "gives str instead of bytes .*suffix=x"),
    "no bytes": (lambda name: [Sample(name, {"x": None})], "gives NoneType instead of bytes"),
    "suffix": (lambda name: [Sample(name, {"a/b": b""})], "gives the suffix 'a/b', which has a slash"),
    "case": (lambda name: [Sample(name, {"a": b"", "A": b""})], "gives suffixes that differ only in case"),
    "other name": (lambda name: [Sample("s99", {"x": b""})], "gives sample 's99' where 's04' is due"),
    "no name": (lambda name: [Sample(None, {"x": b""})], "gives sample None where 's04' is due"),
    "twice": (lambda name: [Sample(name, {"x": b""})] * 2, "gives sample 's04' where 's05' is due"),
    "missing": (lambda name: [], "gives sample 's05' where 's04' is due"),
    "raises": (raising(KeyError("gene")), "fails with KeyError: 'gene'"),
    "exits": (raising(SystemExit(0)), "fails with SystemExit: 0"),
    "nothing": (lambda name: [Sample(name, None)], "gives NoneType instead of a mapping"),
    "a list": (lambda name: [Sample(name, ["x"])], "gives list instead of a mapping"),
}


@pytest.mark.parametrize("kind", BREACHES)
def test_a_writer_that_breaks_its_contract_is_named(kind, out):
    """[94] The error says which plugin, at which sample, did what."""
    fault, said = BREACHES[kind]
    with pytest.raises(PluginError, match=rf"the writer faulty {said}") as caught:
        run(Faulty(fault), out, writer="faulty", n_shards=1)
    assert "faulty" == caught.value.where["writer"]
    assert caught.value.where["sample"] in {"s04", "s05"}
    assert None is read_manifest(str(out), "p")


def test_a_writer_that_gives_too_few_or_too_many_samples_is_named(out):
    """[94] Samples that are missing at the end, or one more than asked for."""
    with pytest.raises(PluginError, match=r"ends before this sample .*sample=s04"):
        run(Faulty(lambda _: []), out, NAMES[:5], n_shards=1, writer="faulty")
    with pytest.raises(PluginError, match="gives more samples than it was asked for"):
        run(Faulty(lambda name: [Sample(name, {"x": b""})] * 2), out, NAMES[:5], n_shards=1, writer="faulty")


def test_an_error_at_any_sample_keeps_the_old_data(source, out):
    """[9] Whichever sample fails, what was there before is whole, and a mended source converts."""
    run(source, out, n_shards=2)
    before = contents(out)
    for number, name in enumerate(NAMES):
        rewrite(source / f"{name}.pyd", number)
        good = (source / f"{name}.pyd").read_bytes()
        (source / f"{name}.pyd").write_bytes(b"broken")
        with pytest.raises(InputError, match=f"{name}: "):
            run(source, out, n_shards=2)
        assert before == contents(out)
        (source / f"{name}.pyd").write_bytes(good)
        run(source, out, n_shards=2)
        before = contents(out)
    assert list(enumerate(NAMES)) == [(value, key) for key, value in read(out)]


# -- the disk


def outcome(out, old, new):
    """Return what a reader sees: nothing, a refusal, or old or new data that verify finds whole."""
    try:
        manifest = read_manifest(str(out), "p")
    except ManifestError:
        return "refused"
    if manifest is not None:
        assert () == verify(str(out), "p").problems
        return {old: "old", new: "new"}[manifest.digest]
    if staging_path(str(out), "p") and Path(staging_path(str(out), "p")).exists():
        return "refused"
    assert [] == (list(out.glob("p-*")) if out.exists() else [])
    return "nothing"


@pytest.mark.parametrize("kind", ["error", "full", "kill", "torn", "power"])
@pytest.mark.parametrize("over_old_data", [False, True])
def test_a_fault_at_any_file_operation_leaves_old_new_or_a_refusal(kind, over_old_data, tmp_path):
    """[10, 12, 14] Every operation fails, or is the last before the process or the machine dies."""
    one = store(tmp_path / "one", dict.fromkeys(NAMES[:4], 1))
    two = store(tmp_path / "two", dict.fromkeys(NAMES[:4], 2))
    old = run(one, tmp_path / "old", NAMES[:4], n_shards=3).digest
    new = run(two, tmp_path / "new", NAMES[:4], n_shards=2).digest
    whole = contents(tmp_path / "new").keys()
    counted = Faults()
    number = 0
    seen = []
    while number == 0 or number < len(counted.operations):
        out = tmp_path / f"out{number}"
        if over_old_data:
            shutil.copytree(tmp_path / "old", out)
        with counted if number == 0 else Faults(at=number - 1, kind=kind) as faults:
            try:
                run(two, out, NAMES[:4], n_shards=2)
            except ConversionError as error:
                assert kind in {"error", "full"}, error  # noqa: PT017 - only these two are told to the caller
        seen.append(outcome(out, old, new))
        assert seen[-1] in ({"old", "new", "refused"} if over_old_data else {"nothing", "new", "refused"}), (
            faults.operations[-1]
        )
        with Faults():
            run(two, out, NAMES[:4], n_shards=2)
        assert (new, whole) == (read_manifest(str(out), "p").digest, contents(out).keys()), faults.operations[-1]
        number += 1
    assert "old" in seen or not over_old_data


def test_finished_shards_survive_a_kill(source, out):
    """[10] The rerun makes only what was not finished."""
    with Faults() as counted:
        run(source, out.with_name("other"), n_shards=5)
    records = [number for number, (name, path) in enumerate(counted.operations) if str(path).endswith(".part")]
    third = [number for number in records if counted.operations[number][0] == "create"][2]
    with Faults(at=third):
        run(source, out, n_shards=5)
    staged = {path.stat().st_ino for path in Path(staging_path(str(out), "p")).glob("*.tar")}
    assert 2 == len(staged)
    run(source, out, n_shards=5)
    assert staged < {path.stat().st_ino for path in out.glob("*.tar")}


def test_a_small_disk_is_refused_before_work_starts(source, out, monkeypatch):
    """[12] The message has both numbers."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConversionError, match=r"has 1 kB free, and the shards need about 10.2 kB"):
        run(source, out)


def test_finished_shards_need_no_more_room(source, out, monkeypatch):
    """[12] A rerun is not refused where there is room for exactly what is left."""
    with Faults() as counted:
        run(source, out.with_name("other"), n_shards=5)
    creations = [
        number
        for number, (name, path) in enumerate(counted.operations)
        if name == "create" and str(path).endswith(".part")
    ]
    with Faults(at=creations[4]):
        run(source, out, n_shards=5)
    with monkeypatch.context() as patches:
        patches.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2100}))
        assert 10 == run(source, out, n_shards=5).n_samples


def test_splits_on_one_disk_share_its_room(source, tmp_path, monkeypatch):
    """[12] What they need together counts, and the error says so before anything is written."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 6000}))
    out = tmp_path / "out"
    with pytest.raises(ConversionError) as caught:
        convert_two(source, NAMES[:5], NAMES[5:], (out / "train", out / "val"), n_shards=1)
    assert (
        f"{out}/train and {out}/val together have 6 kB free, and the shards need about 10.2 kB; "
        "finished shards are kept: make room and run it again"
    ) == caught.value.message
    assert 5 == convert_two(source, NAMES[:5], NAMES[5:5] or ["s06"], (out / "train", out / "val"))["train"].n_samples


def test_a_full_disk_raises_an_error_that_says_how_much_is_needed(source, out, monkeypatch):
    """[12] The error names the file, the room that is needed, and that finished shards are kept."""
    real = os.write

    def full(descriptor, data):
        if len(data) > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        ConversionError,
        match=r"No space left .*; correct this and run it again; .*needed about 10.2 kB .* finished shards are kept",
    ) as caught:
        run(source, out, n_shards=1, executor=Processes(workers=1))
    assert caught.value.where["file"].endswith(".part")


def test_files_that_cannot_be_written_are_named_and_leave_nothing(tmp_path, monkeypatch):
    """[12] Neither half-written files stay, nor does the text of a link pass for a file's name."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the lease's text", None, "link")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        filesystem.write_whole(f"{tmp_path}/manifest", b"data")
    assert (f"{tmp_path}/manifest", []) == (caught.value.filename, list(tmp_path.iterdir()))
    monkeypatch.setattr(os, "symlink", full)
    with pytest.raises(OSError, match="No space left") as caught:
        filesystem.make_link("text", f"{tmp_path}/link")
    assert (f"{tmp_path}/link", None) == (caught.value.filename, caught.value.filename2)


def test_an_output_that_is_a_file_is_refused(source, tmp_path):
    """[15] Also where it is a parent of the output."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is not a directory, so shards cannot go to"):
            run(source, out)


def test_a_read_only_output_is_refused_before_work_starts(source, out, monkeypatch):
    """[15] The nearest directory that exists is asked."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=f"{out.parent} is read-only"):
        run(source, out)


def test_shards_of_another_program_are_not_overwritten(source, out):
    """Tars that no manifest of this package lists are left alone."""
    out.mkdir()
    (out / "p-000007.tar").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"holds p-000007.tar that no manifest lists"):
        run(source, out)
    assert b"precious" == (out / "p-000007.tar").read_bytes()


def test_other_files_in_the_output_stay(source, out):
    """Notes, and sets of other prefixes, live in the same directory."""
    out.mkdir()
    for name in ("README", "p2-000000.tar", "p-val-000000.tar", "p-12.tar"):
        (out / name).write_text(name)
    run(source, out, n_shards=4)
    run(source, out, n_shards=2)
    assert ["README", "p-12.tar", "p-val-000000.tar", "p2-000000.tar"] == sorted(
        path.name for path in out.iterdir() if path.read_bytes() == path.name.encode()
    )


# -- two at once


def test_many_conversions_at_once_end_in_one_whole_result(tmp_path):
    """[16] Threads with different inputs into one directory: the last one wins, whole."""
    sources = [store(tmp_path / str(number), dict.fromkeys(NAMES, number)) for number in range(2)]
    for attempt in range(3):
        out = tmp_path / f"out{attempt}"
        with futures.ThreadPoolExecutor(4) as pool:
            done = [pool.submit(run, sources[number % 2], out, n_shards=2 + number % 2) for number in range(4)]
            digests = {future.result().digest for future in done}
        assert read_manifest(str(out), "p").digest in digests
        assert () == verify(str(out), "p").problems
        assert 1 == len({value for _, value in read(out)})
        assert [] == [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_ranks_that_ask_for_the_same_convert_it_once(source, out, caplog):
    """[16] With prepare_data_per_node on a shared disk one works and the others wait for it."""
    caplog.set_level(logging.INFO, logger="bionemo.webdatamodule")
    with futures.ThreadPoolExecutor(4) as pool:
        manifests = [future.result() for future in [pool.submit(run, source, out) for _ in range(4)]]
    assert [manifests[0]] * 4 == manifests
    assert 1 == len([record for record in caplog.records if "10 samples in 3 shards" in record.getMessage()])


def test_a_reader_that_is_open_keeps_its_data_or_is_told(source, out):
    """[17] A new conversion changes no file that is open."""
    run(source, out, n_shards=2)
    before = {path: path.open("rb") for path in out.glob("*.tar")}
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before}
    for name in NAMES:
        rewrite(source / f"{name}.pyd", "new")
    run(source, out, n_shards=1)
    assert hashes == {path: hashlib.sha256(file.read()).hexdigest() for path, file in before.items()}
    for file in before.values():
        file.close()


def test_a_package_reader_that_is_open_gives_old_data_or_says_that_they_changed(source, out):
    """[17] Between any two samples a whole conversion may happen; no value is mixed, lost or made up."""
    expected = [(name, {"name": name}) for name in NAMES]
    for opened in range(len(NAMES)):
        run(source, out, n_shards=5)
        reader = ShardReader([ShardSet.open(str(out), "p")], ["__key__", "pyd"])
        found = [reader.read(np.array([number]))[0] for number in range(opened)]
        new = store(out.with_name("new"), dict.fromkeys(NAMES, "new"))
        run(new, out, n_shards=2)
        with contextlib.suppress(ChangedDataError):
            for number in range(opened, len(NAMES)):
                found.extend(reader.read(np.array([number])))
        assert opened <= len(found)
        assert expected[: len(found)] == found


def test_a_dead_process_leaves_nothing_that_stays(source, out):
    """[18] Lease and staging of a process that is gone are taken over and cleared away."""
    staging = Path(staging_path(str(out), "p"))
    staging.mkdir(parents=True)
    (staging / "junk.tar.part").write_bytes(b"junk")
    owner = {**lock._identity(), "pid": 2**22 + 1, "started": "1", "token": "x"}
    Path(lease_path(str(out), "p")).symlink_to(json.dumps(owner))
    run(source, out)
    assert NAMES == keys(out)
    assert [] == [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_lease_of_another_machine_counts_until_it_is_old(source, out, monkeypatch):
    """[18] Without signs of life for two minutes by the disk's own clock it is taken over."""
    out.mkdir()
    path = lease_path(str(out), "p")
    owner = json.dumps({**lock._identity(), "host": "elsewhere", "token": "x"})
    Path(path).symlink_to(owner)
    held = Lease(path, probe=staging_path(str(out), "p"))
    assert not held._is_abandoned(owner)
    old = time.time() - lock.EXPIRY - 5
    os.utime(path, (old, old), follow_symlinks=False)
    assert held._is_abandoned(owner)
    run(source, out)
    assert NAMES == keys(out)


def test_a_lease_is_waited_for(source, out, caplog):
    """[16] A second conversion begins when the first lets go, and says once for whom it waits."""
    out.mkdir()
    done = []
    with Lease(lease_path(str(out), "p"), probe=staging_path(str(out), "p")):
        thread = threading.Thread(target=lambda: done.append(run(source, out)))
        thread.start()
        thread.join(0.3)
        assert [] == done
    thread.join(30)
    assert 1 == len(done)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"another conversion holds {out}/.p.lease: process {os.getpid()} on " in warning
    assert "120 seconds after its last sign of life" in warning


def test_leases_are_taken_in_one_order_whether_they_exist_or_not(tmp_path):
    """A lease is a link to no file; two conversions with nested directories would wait for each other."""
    (tmp_path / "out" / "val").mkdir(parents=True)
    leases = [lease_path(str(tmp_path / "out"), "p"), lease_path(str(tmp_path / "out" / "val"), "p")]
    before = sorted(leases, key=place_of)
    for lease in leases:
        Path(lease).symlink_to('{"host": "there"}')
        assert before == sorted(leases, key=place_of)


def test_whoever_lost_the_lease_publishes_nothing(source, out):
    """[16] A process that was frozen until another took over finds out before it changes the directory."""

    class Robbed(PickleReader):
        def __call__(self, names):
            path = Path(lease_path(str(out), "p"))
            if path.is_symlink():
                path.unlink()
                path.symlink_to("{}")
            return super().__call__(names)

    with pytest.raises(ConversionError, match="another conversion took over"):
        run(Robbed(directory=source, suffixes="pyd"), out)
    assert None is read_manifest(str(out), "p")


# -- numbers of shards


def test_exactly_as_many_shards_as_asked_for():
    """[20] All numbers up to 60: sizes differ by at most one, every sample once, in order."""
    for n_samples in range(1, 61):
        for n_shards in range(1, n_samples + 1):
            parts = cut(n_samples, n_shards)
            sizes = [len(part) for part in parts]
            assert n_shards == len(parts)
            assert max(sizes) - min(sizes) <= 1
            assert list(range(n_samples)) == [sample for part in parts for sample in part]


def test_fewer_samples_than_shards_give_one_each_and_a_warning(source, out):
    """[19] No shard is empty."""
    with pytest.warns(DataWarning, match="has 10 samples, fewer than the 12 shards"):
        manifest = run(source, out, n_shards=12)
    assert [1] * 10 == [shard.samples for shard in manifest.shards]


@pytest.mark.parametrize("n_tars_wds", [0, -1, "3", True, 2.5, [2]])
def test_a_number_of_shards_that_is_none_is_refused_at_construction(n_tars_wds, source, tmp_path):
    """[22] The data module does not wait for prepare_data to say so."""
    with pytest.raises(ConfigError, match="n_tars_wds"):
        PickledDataWDS(str(source), "pyd", {"train": NAMES}, f"{tmp_path}/out-", 2, n_tars_wds=n_tars_wds)


@pytest.mark.parametrize("n_shards", [0, -1, "3", True, 2.0])
def test_a_number_of_shards_that_is_none_is_refused(n_shards, source, out):
    """[22] Zero, negative numbers, text, booleans and fractions."""
    with pytest.raises(ConfigError, match="must be a positive whole number or None"):
        run(source, out, n_shards=n_shards)


def test_without_a_number_shards_follow_the_size(source, out):
    """The default makes shards of about 256 MiB, from the sizes of a few samples."""
    assert 1 == len(run(source, out, n_shards=None).shards)
    assert [1, 1, 2, 40] == [default_n_shards(size << 20) for size in (0, 256, 500, 10240)]
    reader = Faulty(lambda name: [Sample(name, {"x": b""})])
    assert 10 * 1024 == estimate_bytes(reader, NAMES[:4] * 2 + NAMES[5:7])


# -- names and keys


def problems(error):
    """Return the lines of an InputError."""
    return [line.strip() for line in error.value.message.splitlines()[1:]]


def test_an_empty_split_is_refused(source, out):
    """[21] The error names the split."""
    with pytest.raises(InputError) as caught:
        run(source, out, [])
    assert ["split train is empty; leave it out or give it names"] == problems(caught)


@pytest.mark.parametrize("names", ["s00", b"s00", None, object(), {"s00": 1}])
def test_names_that_are_no_list_are_refused(names, source, out):
    """[23] A string is not taken apart into letters."""
    with pytest.raises(ConfigError, match="the names of split train must be a list of strings"):
        run(source, out, names)


def test_names_may_come_from_a_generator(source, out):
    """[23] It is used up once."""
    run(source, out, (name for name in NAMES))
    assert NAMES == keys(out)


def test_names_that_are_no_strings_are_listed(source, out):
    """[23, 34] Numbers, None and empty names."""
    with pytest.raises(InputError) as caught:
        run(source, out, ["s00", 7, "", None])
    assert ["name 1 of split train is 7", "name 2 of split train is ''", "name 3 of split train is None"] == [
        line.partition(";")[0] for line in problems(caught)
    ]


def test_suffixes_from_an_iterator_serve_every_sample(source, out):
    """[24] A one-shot iterator is not used up by the first sample."""
    run(source, out, suffixes=(suffix for suffix in ["pyd"]))
    assert 10 == len(read(out))


def convert_two(source, train, val, directories, **more):
    """Convert two splits."""
    return convert(
        reader=PickleReader(directory=source, suffixes="pyd"),
        names={"train": train, "val": val},
        directories=dict(zip(("train", "val"), map(str, directories), strict=True)),
        prefix="p",
        key_encoder=encode_dashes,
        executor=Serial(),
        **more,
    )


def test_two_splits_in_one_directory_are_refused(source, tmp_path):
    """[25] Also where the paths only look different."""
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match="the splits train and val have the same directory"):
        convert_two(source, ["s00"], ["s01"], (tmp_path / "out", tmp_path / "link"))


def test_a_name_in_two_splits_is_refused(source, tmp_path):
    """[26] Leaks between train and val are named."""
    with pytest.raises(InputError) as caught:
        convert_two(source, NAMES[:6], NAMES[5:], (tmp_path / "train", tmp_path / "val"))
    assert ["the name 's05' is in the splits train and val"] == problems(caught)


def test_all_that_is_wrong_is_in_one_error(source, tmp_path):
    """[5, 25, 26, 31, 32] Clashes, duplicates, overlaps, colliding keys, missing files and strangers, all at once."""
    store(source, {"a.b": 1, "a-b": 2})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p-000000.tar").write_bytes(b"precious")
    with pytest.raises(InputError) as caught:
        convert_two(source, ["s00", "s00", "a.b", "a-b"], ["s00", "no", 7], [tmp_path / "out"] * 2)
    assert [
        f"the splits train and val have the same directory {tmp_path}/out; one would overwrite the other",
        "name 2 of split val is 7; names are strings with something in them",
        "the name 's00' occurs 2 times in split train",
        "the names 'a.b' and 'a-b' of split train get one key, 'a-b'; rename all but one, or use key_encoder='escaped'",
        *[(f"{tmp_path}/out holds p-000000.tar that no manifest lists; move it away or choose another prefix")] * 2,
    ] == problems(caught)
    with pytest.raises(InputError) as caught:
        convert_two(source, ["s00", "s00"], ["s00", "no"], (tmp_path / "train", tmp_path / "val"))
    assert [
        "the name 's00' occurs 2 times in split train",
        "the name 's00' is in the splits train and val",
        f"no: No such file or directory: {source}/no.pyd",
    ] == problems(caught)


@pytest.mark.parametrize("names", [{"s00", "s01"}, frozenset({"s00"})])
def test_names_without_an_order_are_refused(names, source, out):
    """[23, 27] The order of a set changes with PYTHONHASHSEED, and so would the shards."""
    with pytest.raises(ConfigError, match=r"are a (frozen)?set, whose order changes .*sorted\(names\)"):
        run(source, out, names)
    run(source, out, dict.fromkeys(NAMES).keys())
    assert NAMES == keys(out)


def test_keys_that_collide_are_refused_naming_both(source, out):
    """[31] Adjacent or not, with the key that they share."""
    store(source, {"a.b": 1, "a-b": 2, "x": 3})
    with pytest.raises(InputError) as caught:
        run(source, out, ["a.b", "x", "a-b"])
    assert [
        "the names 'a.b' and 'a-b' of split train get one key, 'a-b'; rename all but one, or use key_encoder='escaped'"
    ] == problems(caught)
    run(source, out, ["a.b", "x", "a-b"], encode=encode_escaped)
    assert [("a%2eb", 1), ("x", 3), ("a-b", 2)] == read(out)


def test_duplicate_names_are_refused(source, out):
    """[32] With the count."""
    with pytest.raises(InputError) as caught:
        run(source, out, ["s00", "s01", "s00", "s00"])
    assert ["the name 's00' occurs 3 times in split train"] == problems(caught)


def test_a_name_whose_key_cannot_be_stored_says_how_it_can(source, out):
    """[33] The default encoder leaves line ends as they are, and another one does not."""
    store(source, {"a\nb": 1})
    with pytest.raises(InputError, match=r"'a\\nb', which has a character .*; rename it, or use key_encoder='escaped'"):
        run(source, out, ["a\nb"], n_shards=1)
    run(source, out, ["a\nb"], n_shards=1, encode=encode_escaped)
    assert ["a%0ab"] == keys(out)


@pytest.mark.parametrize("name", ["../s00", "/etc/passwd", "a/../../b", "..", "a\0b"])
def test_names_that_leave_the_directory_are_refused(name, source, out):
    """[33] A name is no way to read other filesystem."""
    with pytest.raises(InputError, match=r"leads out of the directory|points outside|stumble"):
        run(source, out, [name], encode=lambda name: name)
    with pytest.raises(InputError, match="leads out of the directory"):
        list(PickleReader(directory=source, suffixes="pyd")([name]))


def test_strange_names_come_back(source, out):
    """[33, 34] Dots, spaces, text of any language, newlines, undecodable bytes, directories."""
    strange = [
        ".hid",
        "a.",
        "a b",
        "é",
        "e\u0301",
        "日本",
        "new\nline",
        "\udcff",
        "v1.0/a",
        "__meta__/a",
        "__key__",
        "%",
    ]
    store(source, {name: name for name in strange})
    run(source, out, strange, encode=encode_escaped)
    assert strange == [value for _, value in read(out)]


def test_names_that_differ_in_case_or_normal_form_stay_apart(source, out):
    """[35] They are different samples."""
    names = ["a", "A", "\u00e9", "e\u0301"]
    store(source, {name: name for name in names})
    run(source, out, names)
    assert [(name, name) for name in names] == read(out)


@pytest.mark.parametrize("suffix", ["_t.pyd", "Tensor.PYD", "a[x].pyd", "a;b", "a b", "x..y", "日", "pyd_"])
def test_odd_suffixes_come_back_exactly(suffix, source, out):
    """[36] Underscores, upper case, brackets and semicolons are not patterns."""
    store(source, {"s00": 7}, suffix=suffix)
    run(source, out, ["s00"], suffixes=suffix, n_shards=1)
    assert [("s00", 7)] == read(out, suffix)


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        ("", "is empty"),
        ("a/b", "has a slash"),
        (".pyd", "begins with a dot; write 'pyd'"),
        ("__key__", "ends in two underscores"),
        ("x__", "ends in two underscores"),
        ("a\nb", "control character"),
        ("\udcff", "not valid text"),
        (7, "not a string but int"),
    ],
)
def test_suffixes_that_cannot_be_stored_are_refused_at_construction(suffix, said, source):
    """[36] The error says which and why."""
    with pytest.raises(ConfigError, match=said):
        PickleReader(directory=source, suffixes=[suffix])


@pytest.mark.parametrize("suffixes", [[], ["a", "a"], ["a", "A"], None, b"pyd", {"a": 1}])
def test_lists_of_suffixes_that_make_no_sense_are_refused(suffixes, source):
    """[36] None, no, equal, or merely differently spelled suffixes."""
    with pytest.raises(ConfigError, match="suffixes"):
        PickleReader(directory=source, suffixes=suffixes)


def test_a_suffix_may_end_another(source, out):
    """[37] Matches are exact."""
    store(source, dict.fromkeys(NAMES, "copy"), suffix="copy.pyd")
    run(source, out, suffixes=["pyd", "copy.pyd"])
    assert [{"name": "s00"}, "copy"] == [read(out, "pyd")[0][1], read(out, "copy.pyd")[0][1]]


@pytest.mark.parametrize(
    "suffix",
    [
        "mydata.pt",
        "pt",
        "pth",
        "npy",
        "npz",
        "json",
        "txt",
        "cls",
        "index",
        "gz",
        "x.gz",
        "pkl",
        "pickle",
        "pyd",
        "jpg",
        "png",
        "bin",
        "dat",
        "cbor",
        "mp",
        "ten",
        "inx",
        "tif",
    ],
)
def test_what_was_pickled_comes_out_as_an_object_whatever_the_suffix(suffix, source, out):
    """[38] The codec is on record, so no table of extensions gives the suffix another meaning."""
    store(source, {"s00": {"value": [1, 2.5, "x"]}}, suffix=suffix)
    manifest = run(source, out, ["s00"], suffixes=suffix, n_shards=1)
    assert {suffix: "pickle"} == manifest.codecs
    assert [("s00", {"value": [1, 2.5, "x"]})] == read(out, suffix)


def test_values_that_look_like_nothing_come_back(source, out):
    """[39] None, False, 0, empty text and empty containers are values."""
    values = [None, False, 0, "", b"", [], {}, ()]
    store(source, dict(zip(NAMES, values, strict=False)))
    run(source, out, NAMES[: len(values)])
    found = [value for _, value in read(out)]
    assert [(type(value), value) for value in values] == [(type(value), value) for value in found]
    store(source, {"empty": torch.empty(0)})
    run(source, out, ["empty"], n_shards=1)
    ((_, empty),) = read(out)
    assert (torch.Tensor, torch.float32, (0,)) == (type(empty), empty.dtype, tuple(empty.shape))


@pytest.mark.parametrize(
    "name",
    ["a b", "run[1]", "run#1", "run?1", "100%d", "{0..3}", "a::b", "a;b", "~x", "日本", "q'uote", "-dash", "a:b"],
)
def test_any_output_path_works(name, source, tmp_path):
    """[40] Brackets, hashes, percent signs, braces, quotes and spaces are not syntax."""
    run(source, tmp_path / name / "train")
    assert NAMES == keys(tmp_path / name / "train")


def test_relative_paths_and_home_work(source, tmp_path, monkeypatch):
    """[40] Relative to the working directory, and below ``~``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run(source, "rel/train")
    run(source, Path("~/train"))
    assert NAMES == keys(tmp_path / "rel/train") == keys(tmp_path / "home" / "train")


@pytest.mark.parametrize("name", ["a b", "run[1]", "#?%~{}", "日本"])
def test_any_source_path_works(name, tmp_path, out):
    """[40] Sources, too."""
    run(store(tmp_path / name, dict.fromkeys(NAMES, 1)), out)
    assert 10 == len(read(out))


def test_a_prefix_may_begin_another(source, tmp_path):
    """[41] Each reads its own shards."""
    for prefix, names in (("t", NAMES[:4]), ("t-val", NAMES[4:])):
        convert(
            reader=PickleReader(directory=source, suffixes="pyd"),
            names={"train": names},
            directories={"train": str(tmp_path / "out")},
            prefix=prefix,
            n_shards=2,
            key_encoder=encode_dashes,
            executor=Serial(),
        )
    assert [NAMES[:4], NAMES[4:]] == [
        [key for key, _ in read(tmp_path / "out", prefix=prefix)] for prefix in ("t", "t-val")
    ]


@pytest.mark.parametrize("prefix", ["", ".p", "a/b", "a\n", None])
def test_a_prefix_that_is_no_file_name_is_refused(prefix, source, out):
    """A prefix begins a file name."""
    with pytest.raises(ConfigError, match="must be the beginning of a file name"):
        convert(
            reader=PickleReader(directory=source, suffixes="pyd"),
            names={"train": NAMES},
            directories={"train": str(out)},
            prefix=prefix,
            key_encoder=encode_dashes,
            executor=Serial(),
        )


# -- the same bytes everywhere


def test_equal_input_gives_equal_bytes(source, tmp_path, monkeypatch):
    """[27] Whatever the process, start method, hash seed, time zone, time and number of workers."""
    store(source, {name: {"array": np.full(5, 1.5), "set": {"b", "a", name}} for name in NAMES})
    run(source, tmp_path / "one")
    expected = contents(tmp_path / "one")
    run(source, tmp_path / "two", executor=Processes(workers=3, start_method="forkserver"))
    assert expected == contents(tmp_path / "two")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    in_fresh_process(
        convert,
        reader=PickleReader(directory=source, suffixes="pyd"),
        names={"train": NAMES},
        directories={"train": str(tmp_path / "three")},
        prefix="p",
        n_shards=3,
        key_encoder=encode_dashes,
        executor=Processes(workers=2),
        writer="pickles",
        options={"directory": str(source), "suffixes": "pyd"},
    )
    assert expected == contents(tmp_path / "three")


def test_files_follow_the_umask_and_staging_is_private(source, out):
    """[28, 92] Members are 0644, files what the umask allows, staging is for its owner alone."""
    before = os.umask(0o027)
    modes = []

    class Watching(PickleReader):
        def __call__(self, names):
            staging = Path(staging_path(str(out), "p"))
            if staging.exists():
                modes.append(staging.stat().st_mode & 0o777)
            return super().__call__(names)

    try:
        run(Watching(directory=source, suffixes="pyd"), out, n_shards=1)
    finally:
        os.umask(before)
    assert {0o700} == set(modes)
    assert {0o640} == {path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert 0o750 == out.stat().st_mode & 0o777


# -- executors


@dataclasses.dataclass(frozen=True)
class Process:
    """A reader whose samples say which process reads them, and take some time."""

    seconds: float = 0.0

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            time.sleep(self.seconds)
            yield Sample(name, {"pid.txt": b"%d" % os.getpid()})


class OnlyElsewhere(Process):
    """A reader that works in no process but a pool's."""

    def __call__(self, names):
        """Yield samples."""
        if parent_process() is None:
            raise OSError("not here")
        yield from super().__call__(names)


@pytest.mark.parametrize(
    ("reader", "executor", "n_shards", "here"),
    [
        (Process(0.03), Processes(), 1, True),
        (Process(), Processes(), 3, True),
        (Process(0.03), Processes(), 3, False),
        (OnlyElsewhere(), Processes(), 3, False),
        (OnlyElsewhere(), Processes(workers=2), 3, False),
        (Process(), Processes(workers=1), 1, False),
    ],
)
def test_little_work_starts_no_process_unless_asked(reader, executor, n_shards, here, out):
    """A pool for one task, or for some that take no time, would only cost time."""
    run(reader, out, n_shards=n_shards, executor=executor, writer="process")
    found = {int(text) for _, text in read(out, "pid.txt")}
    assert here is (found == {os.getpid()})
    assert len(found) <= n_shards


def test_processes_and_serial_give_the_same(source, tmp_path):
    """How the work is run does not show in the result."""
    executors = [
        Serial(),
        Processes(workers=2),
        Processes(workers=1, start_method="spawn"),
        futures.ThreadPoolExecutor(2),
    ]
    found = [
        contents(tmp_path / str(number))
        for number, executor in enumerate(executors)
        if run(source, tmp_path / str(number), executor=executor)
    ]
    assert [found[0]] * 4 == found


def test_what_cannot_be_pickled_is_named(source, out):
    """A lambda as key encoder works in this process, and is named where it would have to travel."""
    with pytest.raises(ConfigError, match=r"the key encoder .* cannot be sent to another process.*executor='serial'"):
        run(source, out, encode=lambda name: name, executor=Processes(workers=1))
    run(source, out, encode=lambda name: name)
    assert NAMES == keys(out)


class Dying(PickleReader):
    """A reader whose process is killed, as the system does for want of memory."""

    def __call__(self, names):
        """Die at the fifth sample."""
        if "s04" in names and len(names) < 10:
            os.kill(os.getpid(), 9)
        return super().__call__(names)


def test_a_worker_that_dies_is_reported(source, out):
    """The error says what happened and that finished shards are kept; nothing hangs."""
    with pytest.raises(ConversionError, match="a process that made shards died"):
        run(Dying(directory=source, suffixes="pyd"), out, executor=Processes(workers=1))
    assert None is read_manifest(str(out), "p")


def test_executors_pickle_and_check_their_options():
    """They travel with a data module, and bad options are refused at once."""
    for executor in (Processes(workers=2), Serial()):
        assert type(executor) is type(pickle.loads(pickle.dumps(executor)))
    assert "Processes(workers=2, start_method='fork')" == repr(pickle.loads(pickle.dumps(Processes(workers=2))))
    for options in ({"workers": 0}, {"workers": True}, {"workers": "2"}, {"start_method": "thread"}):
        with pytest.raises(ConfigError):
            Processes(**options)


@dataclasses.dataclass(frozen=True)
class Surveyed:
    """A source whose states are looked at by processes that leave their numbers in a directory.

    Attributes:
        seen: The directory.
        missing: Samples that it does not have.
    """

    seen: str
    missing: frozenset[str] = frozenset()

    def fingerprints(self, names):
        """Return a text for each sample."""
        (Path(self.seen) / str(os.getpid())).touch()
        return ["" if name in self.missing else "here" for name in names]

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            if name in self.missing:
                raise FileNotFoundError(2, "No such file or directory", name)
            yield Sample(name, {"x.txt": name.encode()})


MANY = [f"s{number:05d}" for number in range(6000)]


@pytest.mark.parametrize("n_shards", [4, 600])
def test_the_executor_looks_at_many_samples(n_shards, tmp_path):
    """One process would wait for a slow file system at every one; where shards are there already nothing starts."""
    seen = tmp_path / "seen"
    seen.mkdir()

    def convert_and_return_processes():
        run(Surveyed(str(seen)), tmp_path / "out", MANY, n_shards=n_shards, executor=Processes(workers=2))
        pids = {int(path.name) for path in seen.iterdir()}
        for path in seen.iterdir():
            path.unlink()
        return pids

    assert os.getpid() not in convert_and_return_processes()
    assert {os.getpid()} == convert_and_return_processes()
    assert MANY == [text for _, text in read(tmp_path / "out", "x.txt")]


class Sizes(Processes):
    """Processes that note for how many tasks they were asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    @property
    def for_tasks(self):
        """Return what notes it."""
        return lambda n_tasks: self.asked.append(n_tasks) or Serial()


@pytest.mark.parametrize("order", [("train", "val"), ("val", "train")])
def test_as_many_processes_as_shards_are_asked_for_once(order, tmp_path):
    """Those that look at the samples write the shards, of all splits."""
    (tmp_path / "seen").mkdir()
    names = {"train": MANY, "val": [f"v{number}" for number in range(5000)]}
    executor = Sizes()
    convert(
        reader=Surveyed(str(tmp_path / "seen")),
        names={split: names[split] for split in order},
        directories={split: str(tmp_path / split) for split in order},
        prefix="p",
        n_shards=20,
        key_encoder=encode_dashes,
        executor=executor,
    )
    assert [40] == executor.asked


def test_an_executor_that_is_too_small_is_replaced():
    """How many shards there are may only be known when some samples were looked at."""
    executor = Sizes()
    with contextlib.ExitStack() as entered:
        workers = Workers(Chosen(name="sizes", object=executor), entered)
        found = [workers.start(lambda n=n: n) for n in (3, 2, 3, 8, 8)]
    assert [3, 8] == executor.asked
    assert found[0] is found[1] is found[2] is not found[3] is found[4]


class Breaking(Surveyed):
    """A source that fails at one sample, and says at how many it was asked to look."""

    def fingerprints(self, names):
        """Return a text for each sample, unless one is broken."""
        (Path(self.seen) / f"{names[0]}-{len(names)}").touch()
        if not self.missing.isdisjoint(names):
            raise RuntimeError("broken")
        return ["here"] * len(names)


def test_looking_ends_at_the_first_error_also_in_this_process(tmp_path):
    """An executor that does each task at once is not asked for the others before."""
    reader = Breaking(str(tmp_path), missing=frozenset({"s00001"}))
    with pytest.raises(PluginError, match=r"fingerprints\(\) of the writer .* fails with RuntimeError: broken"):
        run(reader, tmp_path / "out", MANY, n_shards=12, executor=Serial())
    assert ["s00000-500"] == [path.name for path in tmp_path.iterdir()]


def test_writing_ends_at_the_first_error_also_in_this_process(out):
    """An executor that does each task at once does not do the others first."""
    asked = []

    class Broken(Plain):
        def __call__(self, names):
            asked.append(names[0])
            raise KeyError(names[0])

    with pytest.raises(PluginError, match="fails with KeyError: 's00'"):
        run(Broken(), out, n_shards=5, executor=Serial())
    assert ["s00", "s00"] == asked  # for the room on the disk, and for the first shard


class Waiting(Surveyed):
    """A source that is slow to tell the state of a sample."""

    def fingerprints(self, names):
        """Return a text for each sample, after a while."""
        time.sleep(0.2)
        return super().fingerprints(names)


def test_interrupted_looking_leaves_nothing_to_a_users_executor(tmp_path):
    """What it has not begun is cancelled, as tasks that write are."""
    made = []

    class Interrupted(futures.ThreadPoolExecutor):
        def submit(self, *args):
            made.append(super().submit(*args))
            if len(made) == 3:
                raise KeyboardInterrupt
            return made[-1]

    with Interrupted(1) as pool, pytest.raises(KeyboardInterrupt):
        run(Waiting(str(tmp_path)), tmp_path / "out", MANY, n_shards=12, executor=pool)
    assert [False, True] == [future.cancelled() for future in made[:2]]


@pytest.mark.parametrize("answer", ["abc", [], [("x", [])] * 5, [5] * 4, None])
def test_an_executor_that_answers_something_else_is_not_believed(answer, tmp_path):
    """Then this process looks, and the tasks show what is wrong with the executor."""

    class Lying(futures.ThreadPoolExecutor):
        def submit(self, *args):
            return super().submit(lambda: answer)

    (tmp_path / "seen").mkdir()
    with Lying(1) as pool, pytest.raises(PluginError, match="as the result of a task, not what it returned"):
        run(Surveyed(str(tmp_path / "seen")), tmp_path / "out", MANY, n_shards=12, executor=pool)


def test_what_many_samples_lack_is_listed_whoever_looks(tmp_path):
    """Samples that are missing are listed in their order, whether processes looked or this one."""
    reader = Surveyed(str(tmp_path), missing=frozenset({"s00001", "s03000", "s05999"}))
    for executor in (Processes(workers=2), Serial()):
        with pytest.raises(InputError, match=r"3 problems.*\n  s00001: No such file.*\n  s03000: .*\n  s05999: "):
            run(reader, tmp_path / "out", MANY, n_shards=4, executor=executor)
    assert not (tmp_path / "out").exists()


class Unasked(Surveyed):
    """A source that cannot be sent to another process."""

    def __reduce__(self):
        """Refuse."""
        raise TypeError("not me")


def test_many_samples_of_a_source_that_cannot_travel_are_looked_at_here(tmp_path):
    """The conversion names the source, or works in this process."""
    (tmp_path / "seen").mkdir()
    reader = Unasked(str(tmp_path / "seen"))
    with pytest.raises(ConfigError, match=r"the writer .* cannot be sent to another process \(TypeError: not me\)"):
        run(reader, tmp_path / "out", MANY, n_shards=4, executor=Processes(workers=1))
    assert [str(os.getpid())] == [path.name for path in (tmp_path / "seen").iterdir()]
    assert 4 == len(run(reader, tmp_path / "out", MANY, n_shards=4, executor=futures.ThreadPoolExecutor(2)).shards)


def peak_of_planning(n_samples, n_shards):
    """Convert many names with a plan of all and a source that fails at once; return the peak above import in bytes."""
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = [f"{number:060d}.x.y" for number in range(n_samples)]
    with tempfile.TemporaryDirectory() as out, contextlib.suppress(PluginError):
        run(Many(), Path(out), names, n_shards=n_shards, executor=Processes(workers=2))
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started)


class Many:
    """A source that tells the states of its samples and has none of them."""

    def fingerprints(self, names):
        """Return a text for each sample."""
        return [f"{len(name)}@17640829391234{number:05d}" for number, name in enumerate(names)]

    def __call__(self, names):
        """Fail."""
        raise KeyError(names[0])


def test_a_million_names_fit_into_little_memory():
    """Planning a million samples and sending their tasks to workers takes under 300 MB, the names among them."""
    assert in_fresh_process(peak_of_planning, 1_000_000, 4) < 300 << 20


# -- the source


def test_names_of_a_directory_of_pickles(source):
    """The source lists samples that have every suffix, also those below, sorted."""
    store(source, {"s01": 1, "sub/deep/x": 2}, suffix="b.pyd")
    store(source, {"sub/deep/x": 3})
    assert [*NAMES[:2], "s01.b"] == sorted(PickleReader(directory=source, suffixes="pyd").names())[:3]
    assert ["s01", "sub/deep/x"] == PickleReader(directory=source, suffixes=["pyd", "b.pyd"]).names()
    with pytest.raises(InputError, match="cannot be listed: No such file or directory"):
        PickleReader(directory=source / "nowhere", suffixes="pyd").names()


def test_large_files_are_read_whole(tmp_path):
    """Files beyond the first read, and around its size, come complete."""
    for size in (0, 65535, 65536, 65537, 300_000):
        (tmp_path / "a.bin").write_bytes(bytes(size))
        (sample,) = PickleReader(directory=tmp_path, suffixes="bin")(["a"])
        assert size == len(sample.files["bin"])


def test_a_writer_without_fingerprints_is_trusted_by_names_and_options(out):
    """Such a source counts as unchanged while names and options are."""
    reader = Faulty(lambda name: [Sample(name, {"x": b"5"})])
    first = run(reader, out)
    before = state(out)
    assert first == run(reader, out)
    assert before == state(out)


def test_fingerprints_are_checked(out):
    """[94] One string a sample."""

    class Wrong(Faulty):
        def fingerprints(self, names):
            return [7] * len(names)

    with pytest.raises(PluginError, match="must give one string a sample"):
        run(Wrong(raising(KeyError())), out)


def test_plain_bytes_of_other_writers_are_stored_as_they_are(out):
    """Only pickle suffixes are decoded and written anew."""
    manifest = run(Faulty(functools.partial(lambda name: [Sample(name, {"x": b"5"})])), out, writer="other")
    assert {"x": "bytes"} == manifest.codecs


@pytest.mark.parametrize(
    ("prints", "said"),
    [
        (lambda names: None, "must give one string a sample, not None"),
        (lambda names: "x" * len(names), "must give one string a sample"),
        (iter, "must give one string a sample"),
        (lambda names: 1 / 0, "fails with ZeroDivisionError: division by zero"),
        (lambda names: Path("/nowhere").read_text(), "fails with FileNotFoundError"),
    ],
)
def test_fingerprints_that_fail_name_the_writer(prints, said, out):
    """[94] Whatever goes wrong in a plugin, the error says whose fault it is."""
    reader = Faulty(raising(KeyError()))
    reader.fingerprints = prints
    with pytest.raises(PluginError, match=rf"fingerprints\(\) of the writer faulty {said}") as caught:
        run(reader, out, writer="faulty")
    assert "faulty" == caught.value.where["writer"]


@pytest.mark.parametrize(
    ("codecs", "said"),
    [(None, "must map suffixes to codecs, not None"), ({"x": "zip"}, "declares the codec 'zip' for the suffix 'x'")],
)
def test_codecs_that_no_reader_knows_are_refused_before_work_starts(codecs, said, out):
    """[94] Such shards could not be read back."""
    reader = Plain()
    reader.codecs = codecs
    with pytest.raises(PluginError, match=said):
        run(reader, out, writer="faulty")
    assert not out.exists()


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        (lambda name: None, "makes None of the name 's00', which is not a string but NoneType"),
        (lambda name: 1 / 0, "fails at the name 's00' with ZeroDivisionError"),
    ],
)
def test_a_key_encoder_that_breaks_its_contract_is_named(encode, said, source, out):
    """[94] The error says which, and at which name."""
    with pytest.raises(PluginError, match=f"the key encoder odd {said}") as caught:
        run(source, out, encode=encode, key_encoder_name="odd")
    assert "odd" == caught.value.where["key_encoder"]


class Broken(contextlib.AbstractContextManager):
    """An executor that does not start, or is none."""

    def __init__(self, fault):
        self.fault = fault

    def __enter__(self):
        """Fail, or return something else."""
        return self.fault()

    def __exit__(self, *_):
        """Do nothing."""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: 1 / 0, "cannot start: ZeroDivisionError"),
        (lambda: Path("/nowhere").read_text(), "cannot start: FileNotFoundError"),
        (lambda: 7, "gives int, which is not a concurrent.futures.Executor"),
    ],
)
def test_an_executor_that_does_not_start_is_named(fault, said, source, out):
    """[94] It is not an error of the disk, and nothing is published."""
    with pytest.raises(PluginError, match=rf"the executor \S*Broken {said}"):
        run(source, out, executor=Broken(fault))
    assert [] == list(out.iterdir())


class Odd(futures.Executor):
    """An executor that does something else with its tasks."""

    def __init__(self, submit):
        self.submit = submit


def settled(result):
    """Return a future with a result, or one that was cancelled."""
    future = futures.Future()
    if result == "cancelled":
        future.cancel()
        future.set_running_or_notify_cancel()
    else:
        future.set_result(result)
    return future


@pytest.mark.parametrize(
    ("submit", "error", "said"),
    [
        (lambda _: None, PluginError, "gives NoneType for a task, which is not a Future"),
        (lambda _: settled(None), PluginError, "gives NoneType as the result of a task"),
        (
            lambda _: settled("cancelled"),
            ConversionError,
            "the executor contextlib.nullcontext cancelled a shard",
        ),
    ],
)
def test_an_executor_that_breaks_its_contract_is_told(submit, error, said, source, out):
    """Whatever comes back, it is not an internal error."""
    with pytest.raises(error, match=said):
        run(source, out, executor=contextlib.nullcontext(Odd(submit)))


def test_tasks_before_one_that_cannot_be_given_away_are_cancelled(source, out):
    """An executor that refuses a task in the middle does not run the others to their end."""
    given = []

    def submit(_):
        if len(given) == 2:
            raise RuntimeError("full")
        given.append(futures.Future())
        return given[-1]

    with pytest.raises(ConversionError, match="full"):
        run(source, out, executor=contextlib.nullcontext(Odd(submit)))
    assert [True, True] == [future.cancelled() for future in given]


@pytest.mark.timeout(120)
def test_errors_that_are_longer_than_a_pipe_end_the_conversion(out):
    """Workers that are stopped in the middle of a message leave nobody waiting for the rest of it."""
    everywhere = Failing("x" * 500_000)
    for _ in range(5):
        with pytest.raises(PluginError, match="fails with ValueError: xxx"):
            run(everywhere, out, n_shards=4, executor=Processes(workers=4))
