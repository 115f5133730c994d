"""Every remedy that a message about stores, caches or conversions names is carried out here."""

import errno
import os
import shutil
import tempfile
from concurrent import futures
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from bionemo.webdatamodule import SourceDataWDS, Use
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._engine.format.manifest import Manifest, journal_path
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.remote import directory, retry, transfer
from bionemo.webdatamodule._engine.writing import adopt, staging, tasks
from bionemo.webdatamodule._engine.writing import convert as engine
from bionemo.webdatamodule.errors import DataWarning, WebDataModuleError
from bionemo.webdatamodule.pickles import dumps
from bionemo.webdatamodule.plugins import DISABLED, installed_plugins

URL = "memory://advice"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0.001, attempts=2))


@pytest.fixture
def place(tmp_path):
    """Twelve pickles, shards of them here and behind a URL, and there without a manifest too."""
    (tmp_path / "source").mkdir()
    for number in range(12):
        (tmp_path / "source" / f"s{number:02d}.x.pyd").write_bytes(dumps(number))
    convert(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "shards"), URL, recursive=True)
    for tar in (tmp_path / "shards").glob("*.tar"):
        memory.put(str(tar), f"{URL}-foreign/{tar.name}")
    yield tmp_path
    for url in (URL, f"{URL}-foreign"):
        memory.rm(url, recursive=True)


def convert(place, target=None, function=None, *, check=False, **more):
    """Convert the pickles into three shards."""
    names = [f"s{number:02d}" for number in range(12)]
    source = Use("pickles", directory=str(place / "source"), suffixes="x.pyd", function=function)
    module = SourceDataWDS(
        source, {"train": names}, {"train": str(target or place / "shards")}, "x.pyd", 4,
        n_tars_wds=3, **{"executor": "serial", **more},
    )  # fmt: skip
    engine.convert(module._conversion, check=check)


def read(place, where=URL, *, cache="cache", **more):
    """Return the sorted samples of a directory."""
    found = ShardSet.open(str(where), "wdshards", cache_dir=str(place / cache), **more)
    reader = ShardReader([found], ["x.pyd"])
    return sorted(value for (value,) in reader.read(np.arange(reader.n_samples)))


def refused(words, call, *args, **options):
    """Call what fails with some advice."""
    with pytest.raises(WebDataModuleError, match=words):
        call(*args, **options)


def full(function):
    """Return the function on a disk that is full."""

    def fails(*args, **options):
        del args, options
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fails


ALL = list(range(12))


def test_a_url_without_a_store(place, monkeypatch):
    """The default plugin is enabled again."""
    monkeypatch.setenv(DISABLED, "stores,obstore")
    installed_plugins.cache_clear()
    refused("or enable the default plugin 'stores'", read, place)
    monkeypatch.setenv(DISABLED, "obstore")
    installed_plugins.cache_clear()
    assert ALL == read(place)


def test_two_stores_for_a_url(place, install, monkeypatch):
    """One of the plugins in the message is disabled."""
    install(
        "acme",
        """
        from bionemo.webdatamodule.builtins.stores import FsspecStore
        from bionemo.webdatamodule.components import Store
        from bionemo.webdatamodule.hookspecs import hookimpl

        @hookimpl
        def webdatamodule_stores():
            yield Store(name="acme", summary="another one", schemes=("*",), factory=FsspecStore)
        """,
    )
    monkeypatch.setenv(DISABLED, "obstore")
    installed_plugins.cache_clear()
    refused("'acme' of the plugin 'acme'; disable one with WEBDATAMODULE_DISABLED_PLUGINS|of the plugin", read, place)
    for disabled in ("stores", "acme"):
        monkeypatch.setenv(DISABLED, f"obstore,{disabled}")
        monkeypatch.setattr(directory, "_clients", {})
        installed_plugins.cache_clear()
        assert ALL == read(place, cache=disabled)


def test_a_store_that_cannot_list(place, monkeypatch):
    """A pattern of the shards needs no listing."""

    def no_list(self, url):
        raise NotImplementedError

    monkeypatch.setattr("bionemo.webdatamodule.builtins.stores.FsspecStore.list", no_list)
    refused("give the shards as a pattern", read, place, f"{URL}-foreign")
    assert ALL == read(place, f"{URL}-foreign/wdshards-{{000000..000002}}.tar")


def test_a_cache_that_cannot_be_used(place):
    """Another directory can."""
    (place / "cache").write_text("")
    refused("give a cache_dir that is a directory and can be written", read, place)
    assert ALL == read(place, cache="another")


def test_a_cache_of_the_user_that_cannot_be_used(place, monkeypatch, capsys):
    """The environment may name another one."""
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    assert 2 == main(["preview", URL])
    assert "give a cache_dir or XDG_CACHE_HOME that is a directory and can be written" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "another"))
    assert 0 == main(["preview", URL])


def test_a_cache_on_a_full_disk(place, monkeypatch):
    """With space there, or elsewhere, it goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "write_at", full(transfer.write_at))
        refused("free space there, give a smaller cache_size, or another cache_dir", read, place)
    assert ALL == read(place)
    assert ALL == read(place, cache="another")


def test_no_room_for_the_headers_of_a_shard(place, monkeypatch):
    """TMPDIR says where there is some; also where there is no directory at all."""
    monkeypatch.setattr(tempfile, "tempdir", str(place / "gone"))
    refused("no room for the headers of memory.*; set TMPDIR", read, place, f"{URL}-foreign")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(place))
    assert ALL == read(place, f"{URL}-foreign")


@pytest.mark.parametrize("kept", [None, 1000], ids=["of the same size", "shorter"])
@pytest.mark.parametrize("indexed", [True, False], ids=["with its index", "without"])
def test_a_shard_that_was_replaced_in_the_store(place, indexed, kept):
    """It is restored, or the conversion runs with --check."""
    memory = fsspec.filesystem("memory")
    name = "wdshards-000001.tar"
    good = (place / "shards" / name).read_bytes()
    bad = bytearray(good)
    bad[514] ^= 1
    for remedy in (lambda: memory.pipe(f"{URL}/{name}", good), lambda: convert(place, URL, check=True)):
        memory.pipe(f"{URL}/{name}", bytes(bad[:kept]))
        if not indexed:
            memory.rm(f"{URL}/{name}.idx")
        shutil.rmtree(place / "cache", ignore_errors=True)
        refused("restore it, or run `webdatamodule convert` with --check", read, place)
        remedy()
        assert ALL == read(place)
        memory.put(str(place / "shards" / f"{name}.idx"), f"{URL}/{name}.idx")


def test_a_conversion_that_is_being_published(place):
    """After it, or after the conversion ran again, the data can be read."""
    memory = fsspec.filesystem("memory")
    journal = f"{URL}/{journal_path('', 'wdshards')}"
    manifest = memory.cat(f"{URL}/wdshards.manifest.json")
    for remedy in (lambda: memory.rm(journal), lambda: convert(place, URL)):
        memory.pipe(journal, manifest)
        refused("is being published; wait for it or run it again", read, place)
        remedy()
        assert ALL == read(place)


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_shards_that_change_after_they_were_opened(place, change):
    """Beginning again takes them as they are."""
    for other in ("manifest.json", "000000.tar.idx", "000001.tar.idx", "000002.tar.idx"):
        next((place / "shards").glob(f"wdshards*{other}")).unlink()
    reader = ShardReader([ShardSet.open(str(place / "shards"), "wdshards")], ["x.pyd"])
    last = place / "shards" / "wdshards-000002.tar"
    if change == "removed":
        last.unlink()
    else:
        shutil.copy(place / "shards" / "wdshards-000001.tar", last)
    refused("; start again", reader.read, np.arange(12))
    assert (8 if change == "removed" else 12) == len(read(place, place / "shards"))


def test_a_disk_that_is_too_small(place, monkeypatch):
    """With room there the conversion runs."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        refused("make room and run it again", convert, place, place / "again")
    convert(place, place / "again")
    assert ALL == read(place, place / "again")


class Once(futures.Executor):
    """An executor that fails at its second task, the first time."""

    failed = False

    def __init__(self, failure):
        self.failure, self.tasks = failure, 0

    def submit(self, task, /, *args, **kwargs):
        """Run the task, or fail."""
        future = futures.Future()
        self.tasks += 1
        if self.tasks == 2 and not self.failed:
            self.failed = True
            self.failure(future)
        else:
            future.set_result(task(*args, **kwargs))
        return future


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (lambda future: future.cancel(), "cancelled a shard; run it again, finished shards are kept"),
        (
            lambda future: future.set_exception(futures.BrokenExecutor("gone")),
            "run it again with fewer workers, finished shards are kept",
        ),
    ],
    ids=["cancelled", "died"],
)
def test_a_conversion_whose_executor_fails(place, failure, words, monkeypatch):
    """It is run again; the shards that were finished are not made again."""
    executor, made, target = Once(failure), [], str(place / "again")
    monkeypatch.setattr(tasks, "keep", lambda *args: made.append(args) or staging.keep(*args))
    refused(words, convert, place, target, executor=executor)
    refused("was stopped before it finished; run it again", read, place, target)
    refused("is at work, or was stopped; wait for it or run it again", adopt.adopt, target, "wdshards")
    convert(place, target, executor=executor)
    assert ALL == read(place, target)
    assert 3 == len(made)
    adopt.adopt(target, "wdshards", again=True)
    assert ALL == read(place, target)


def test_a_disk_that_refuses_an_index(place, monkeypatch):
    """After that was corrected, indexing runs again."""
    for file in (place / "shards").glob("*"):
        if file.suffix != ".tar":
            file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "write_whole", full(None))
        refused("correct this and run it again", adopt.adopt, str(place / "shards"), "wdshards")
    adopt.adopt(str(place / "shards"), "wdshards")
    assert ALL == read(place, place / "shards")


class Opaque:
    """An option that cannot be told from others of its kind."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __call__(self, name, files):
        """Return the sum."""
        return {"x.pyd": int(name[1:]) + self.value}

    def __reduce__(self):
        raise TypeError


def test_a_function_that_cannot_be_compared(place):
    """Where it changes, the shards are removed before the next conversion."""
    target = place / "functions"
    for added, expected in ((0, 0), (100, 0), (100, 100)):
        if expected:
            shutil.rmtree(target)
        with pytest.warns(DataWarning, match="if it changes, remove the shards before the next conversion"):
            convert(place, target, function=Opaque(added))
        assert [value + expected for value in ALL] == read(place, target)


def test_a_cache_that_is_too_small_for_a_batch(place):
    """A larger one holds all pieces that are read together."""
    refused("give a larger cache_size", read, place, cache_size=1)
    assert ALL == read(place, cache_size=1 << 20)


def test_parts_that_are_more_than_the_whole(place):
    """With smaller parts the samples are divided."""
    source = Use("pickles", directory=str(place / "source"), suffixes="x.pyd")

    def prepare(val):
        target = f"{place}/parts-"
        SourceDataWDS(source, {"train": 0.75, "val": val}, target, "x.pyd", 4, executor="serial").prepare_data()

    refused("must be positive and add up to 1 at most", prepare, 0.5)
    prepare(0.25)
    assert [9, 3] == [len(read(place, place / f"parts-{split}")) for split in ("train", "val")]


def test_a_source_that_changes_while_it_is_read(place):
    """The conversion is run again."""
    changed = place / "source" / "s11.x.pyd"

    def function(name, files):
        if name == "s11" and changed.read_bytes() != b"N.":
            changed.write_bytes(b"N.")
        return files

    refused("the source changed while it was read; run the conversion again", convert, place, place / "new", function)
    convert(place, place / "new", function)
    assert 12 == len(ShardReader([ShardSet.open(str(place / "new"), "wdshards")], ["x.pyd"]).read(np.arange(12)))


def test_a_codec_that_is_not_installed(place, install, monkeypatch):
    """The plugin that has it is installed."""
    manifest = place / "shards" / "wdshards.manifest.json"
    found = Manifest.from_json(manifest.read_text(), prefix="wdshards")
    manifest.write_text(replace(found, codecs={"x.pyd": "acme"}).to_json())
    refused("install the plugin that has it", read, place, place / "shards")
    install(
        "acme",
        """
        from bionemo.webdatamodule.components import Codec
        from bionemo.webdatamodule.hookspecs import hookimpl
        from bionemo.webdatamodule.pickles import loads

        class Decoder:
            def decode(self, view):
                return loads(view)

        @hookimpl
        def webdatamodule_codecs():
            yield Codec(name="acme", summary="another one", suffixes=(), factory=Decoder)
        """,
    )
    monkeypatch.setenv(DISABLED, "obstore")
    installed_plugins.cache_clear()
    assert ALL == read(place, place / "shards")
