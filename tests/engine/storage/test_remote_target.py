"""Conversion to a URL: the same promises where nothing can be renamed."""

import pickle
import time

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.helpers.convert import convert

from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule._engine.storage.targets import target_of
from bionemo.webdatamodule.builtins.executors import Processes, Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.errors import ConversionError, InputError, ManifestError, NoShardsError, RemoteError

NAMES = [f"s{number}" for number in range(6)]
URL = "memory://bucket/data/train"
CHANGES = ("pipe_file", "put_file", "rm_file")


class DiedError(BaseException):
    """The process died."""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A bucket and a cache directory of the test's own, and no waiting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


def store(directory, value):
    """Write pickles and return their directory."""
    directory.mkdir(exist_ok=True)
    for name in NAMES:
        (directory / f"{name}.pyd").write_bytes(pickle.dumps((name, value)))
    return directory


@pytest.fixture
def source(tmp_path):
    """Six pickles."""
    return store(tmp_path / "source", 1)


def run(source, n_shards=3, url=URL, executor=None):
    """Convert to a URL and return the manifest."""
    return convert(
        reader=PickleReader(directory=source, suffixes="pyd"),
        names={"train": NAMES},
        directories={"train": url},
        prefix="p",
        n_shards=n_shards,
        key_encoder=encode_dashes,
        executor=executor or Serial(),
        writer="pickles",
        options={"directory": str(source)},
    )["train"]


def objects():
    """Return name and content of every object."""
    return {name.rpartition("/")[2]: file.getvalue() for name, file in MemoryFileSystem.store.items()}


def read():
    """Return every value as this package reads it."""
    reader = ShardReader([ShardSet.open(URL, "p")], ["pyd"])
    return [value for (value,) in reader.read(np.arange(reader.n_samples))]


def test_shards_are_uploaded_and_read_back(source):
    """The same files as in a directory, and nothing else."""
    manifest = run(source, executor=Processes(workers=2))
    assert [(name, 1) for name in NAMES] == read()
    assert sorted(
        ["p.manifest.json", *(shard.name + end for shard in manifest.shards for end in ("", ".idx"))]
    ) == sorted(objects())


def test_the_bytes_are_those_of_a_local_conversion(source, tmp_path):
    """Where shards go does not show in them."""
    run(source)
    run(source, url=str(tmp_path / "out"))
    assert objects() == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_unchanged_input_uploads_nothing(source, monkeypatch):
    """A rerun only looks."""
    first = run(source)
    for name in CHANGES:
        monkeypatch.setattr(MemoryFileSystem, name, None)
    assert first == run(source)


def test_only_changed_shards_are_uploaded(source):
    """Objects of the other shards stay."""
    run(source)
    before = {name: file.modified for name, file in MemoryFileSystem.store.items()}
    (source / "s5.pyd").write_bytes(pickle.dumps("changed"))
    run(source)
    changed = sorted(name for name, file in MemoryFileSystem.store.items() if before[name] != file.modified)
    assert ["p-000002.tar", "p-000002.tar.idx", "p.manifest.json"] == [name.rpartition("/")[2] for name in changed]
    assert "changed" == read()[5]


def test_fewer_shards_leave_no_old_ones(source):
    """Objects that are no longer listed are removed."""
    run(source, n_shards=5)
    run(source, n_shards=1)
    assert ["p-000000.tar", "p-000000.tar.idx", "p.manifest.json"] == sorted(objects())
    assert [(name, 1) for name in NAMES] == read()


def test_objects_of_somebody_else_are_not_overwritten(source):
    """Shards that no manifest lists are left alone."""
    fsspec.filesystem("memory").pipe_file("/bucket/data/train/p-000001.tar", b"precious")
    with pytest.raises(InputError, match=r"holds p-000001\.tar that no manifest lists"):
        run(source)


def outcome(values):
    """Return what a reader sees."""
    try:
        found = {value for _, value in read()}
    except NoShardsError:
        return "nothing"
    except ManifestError:
        return "refused"
    (value,) = found
    return values[value]


def strike(monkeypatch, at, error):
    """Let the operation of that number fail, and count them."""
    calls = []
    for name in CHANGES:
        real = getattr(MemoryFileSystem, name)

        def operation(self, *args, _real=real, **kwargs):
            calls.append(args)
            if len(calls) - 1 == at:
                raise error
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, operation)
    return calls


@pytest.mark.parametrize("over_old_data", [False, True])
def test_a_stop_at_any_operation_leaves_old_new_or_a_refusal(over_old_data, source, tmp_path, monkeypatch):
    """After each, a rerun ends right; also one by another machine, which has nothing staged."""
    new = store(tmp_path / "new", 2)
    seen = []
    number, count = 0, 1
    while number < count:
        MemoryFileSystem.store.clear()
        if over_old_data:
            run(source, n_shards=3)
        with monkeypatch.context() as patches:
            calls = strike(patches, number, DiedError())
            try:
                run(new, n_shards=2)
            except DiedError:
                count = max(count, len(calls) + 1)
        seen.append(outcome({1: "old", 2: "new"}))
        if number % 2:
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"elsewhere{number}"))
        run(new, n_shards=2)
        assert [(name, 2) for name in NAMES] == read()
        assert 5 == len(objects())
        number += 1
    assert {"refused", "new", "old" if over_old_data else "nothing"} == set(seen)


def test_a_failed_upload_is_told_and_tried_again(source, monkeypatch):
    """Short troubles are waited out; lasting ones are an error with the URL."""
    with monkeypatch.context() as patches:
        strike(patches, 3, OSError("connection reset"))
        run(source)
    assert [(name, 1) for name in NAMES] == read()
    MemoryFileSystem.store.clear()
    with monkeypatch.context() as patches:
        patches.setattr(MemoryFileSystem, "put_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
        with pytest.raises(RemoteError, match=r"train/p-000000\.tar\.idx is not permitted"):
            run(source)
    run(source)
    assert [(name, 1) for name in NAMES] == read()


def test_of_two_machines_one_gives_way(source, monkeypatch):
    """Whoever finds another's announcement in the place of his own publishes nothing."""
    real = MemoryFileSystem.put_file

    def intruding(self, *args, **kwargs):
        self.pipe_file("/bucket/data/train/p.manifest.next.json", b"another's")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patches:
        patches.setattr(MemoryFileSystem, "put_file", intruding)
        with pytest.raises(ConversionError, match="another machine is converting into memory://bucket/data/train"):
            run(source)
    assert "refused" == outcome({})
    run(source)
    assert [(name, 1) for name in NAMES] == read()


def test_nothing_is_left_in_the_cache(source, tmp_path):
    """Staging is removed after the upload, the lease is given back."""
    run(source)
    assert [] == [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]


def test_messages_keep_secrets():
    """User names, passwords and signatures of a URL are not shown."""
    assert "s3://bucket/x" == str(target_of("s3://key:secret@bucket/x?signature=1", "p"))


def test_shards_are_uploaded_while_others_are_made(source, monkeypatch):
    """Where a URL has no data yet; readers refuse it until all are there."""
    seen = []
    real = PickleReader.__call__

    def reading(self, names):
        if not objects():  # how much room is needed is estimated before
            return real(self, names)
        while len(objects()) < NAMES.index(names[0]) + 1:  # the journal and two for each shard of two samples
            time.sleep(0.01)  # pytest's time limit ends it
        seen.append(sorted(objects()))
        with pytest.raises(ManifestError, match="is being published"):
            ShardSet.open(URL, "p")
        return real(self, names)

    with monkeypatch.context() as patches:
        patches.setattr(PickleReader, "__call__", reading)
        run(source)
    shards = [[f"p-{number:06d}.tar", f"p-{number:06d}.tar.idx"] for number in range(2)]
    assert [sorted(sum(shards[:n], ["p.manifest.next.json"])) for n in range(3)] == seen
    assert [(name, 1) for name in NAMES] == read()


def test_shards_beside_a_bad_one_are_removed_again(source):
    """Bad input is found when others are uploaded already, and publishes nothing."""
    (source / "s5.pyd").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="nothing was published"):
        run(source)
    assert {} == objects()


def test_old_data_stay_until_all_new_ones_are_made(source):
    """Where there are data, readers keep them until the conversion cannot fail for bad input any more."""
    run(source)
    before = objects()
    (source / "s0.pyd").write_bytes(pickle.dumps("changed"))
    (source / "s5.pyd").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="nothing was published"):
        run(source)
    assert before == objects()
