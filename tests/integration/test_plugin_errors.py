"""Errors within a loader, an executor, a store or a codec of a third party name its plugin, and keep their cause."""

import contextlib
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import pytest

from bionemo.webdatamodule import Codec, Executor, Loader, Sample, SourceDataWDS, Store, WebDataModule, hookimpl
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.components import StoredFile
from bionemo.webdatamodule.errors import ConfigError, ConversionError, PluginError, RemoteError, UsageError
from bionemo.webdatamodule.plugins import HOOKS, Plugins

ACME = "plugin=acme, distribution=acme-data 1.0"
NOTHING = type(None)


class Lines:
    """A source of six lines."""

    def names(self):
        """Return the names of the lines."""
        return [f"s{number}" for number in range(6)]

    def __call__(self, names):
        """Read them."""
        for name in names:
            yield Sample(name, {"txt": name.encode()})


class Shelf:
    """A store whose URLs, ``acme:///directory/file``, are paths; methods that are given replace its own."""

    def __init__(self, **methods):
        vars(self).update(methods)

    def path(self, url):
        """Return the path of a file."""
        return Path(url.removeprefix("acme://"))

    def list(self, url):
        """Return the files of a directory."""
        return [StoredFile(name=path.name, size=path.stat().st_size) for path in sorted(self.path(url).iterdir())]

    def stat(self, url):
        """Return the size of a file."""
        return StoredFile(name=self.path(url).name, size=self.path(url).stat().st_size)

    def get(self, url):
        """Return a file."""
        return self.path(url).read_bytes()

    def read(self, url, ranges, into):
        """Read ranges of a file."""
        for (begin, end), memory in zip(ranges, into, strict=True):
            memory[:] = self.get(url)[begin:end]

    def put(self, data, url):
        """Write a file."""
        self.path(url).parent.mkdir(parents=True, exist_ok=True)
        self.path(url).write_bytes(data if isinstance(data, bytes) else Path(data).read_bytes())

    def delete(self, url):
        """Delete a file."""
        self.path(url).unlink()


class Pool(futures.Executor):
    """An executor with a method ``submit`` that is given."""

    def __init__(self, submit):
        self.submit = submit


class Leaving(contextlib.AbstractContextManager):
    """An executor that fails when it is left."""

    def __enter__(self):
        """Return an executor that works."""
        return Serial().__enter__()

    def __exit__(self, *_):
        """Fail."""
        raise RuntimeError("stuck")


class Iterated:
    """An iterable whose parts fail: its beginning, its second item or its end."""

    def __init__(self, items, fault):
        self.items, self.fault, self.count = items, fault, 0

    def __iter__(self):
        """Begin."""
        self.fail("begin")
        self.source = iter(self.items)
        return SimpleIterator(self)

    def fail(self, part):
        """Raise an error in one part."""
        if part == self.fault:
            raise KeyError(part)


class SimpleIterator:
    """The iterator of :class:`Iterated`."""

    def __init__(self, owner):
        self.owner = owner

    def __iter__(self):
        """Return itself."""
        return self

    def __next__(self):
        """Return the next item."""
        self.owner.fail("next")
        return next(self.owner.source)

    def close(self):
        """End."""
        self.owner.fail("close")


def raising(error):
    """Return a function that raises an error, whatever it is called with."""

    def function(*_args):
        raise error

    return function


LINE = raising.__code__.co_firstlineno + 4
"""The line that raises."""


def settled(error):
    """Return a future with an error."""
    future = futures.Future()
    future.set_exception(error)
    return future


def plugins(kind, factory, **more):
    """Return the default plugins and a plugin ``acme`` with a component ``bad``."""
    (hook,) = (hook for hook, record in HOOKS.items() if record is kind)
    component = kind(name="bad", summary="does not work", factory=factory, **more)
    found = Plugins()
    found.register(
        SimpleNamespace(**{hook: hookimpl(lambda: [component], specname=hook)}),
        "acme",
        distribution="acme-data",
        version="1.0",
    )
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a directory with shards, and try remote operations twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0.001, attempts=2))
    SourceDataWDS(Lines(), {"train": 1.0}, "good-", "txt", 2, executor="serial", n_tars_wds=1).prepare_data()
    return tmp_path


def load(directory="good-train", **options):
    """Load an epoch."""
    data = WebDataModule({"train": directory}, None, "txt", 2, **options)
    data.setup("fit")
    return list(data.train_dataloader())


def convert(target="made-", **options):
    """Convert the lines to a shard."""
    given = {"executor": "serial", "n_tars_wds": 1, **options}
    SourceDataWDS(Lines(), {"train": 1.0}, target, "txt", 2, **given).prepare_data()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("factory", "error", "cause", "message"),
    [
        (
            raising(TypeError("no")),
            ConfigError,
            TypeError,
            f"the loader 'bad' refuses its options {{}}: no (split=train, {ACME})",
        ),
        (
            lambda: 7,
            PluginError,
            NOTHING,
            (
                "the factory of the loader 'bad' returns 7, not a function from a dataset to an iterable of its items "
                f"(split=train, {ACME})"
            ),
        ),
        (
            lambda: raising(KeyError("x")),
            PluginError,
            KeyError,
            (
                "the loader 'bad' fails with KeyError: 'x'; correct it, or use the loader 'webloader' "
                f"({ACME}, split=train, rank=0)"
            ),
        ),
        (
            lambda: lambda _: [7],
            UsageError,
            NOTHING,
            f"the loader 'bad' passed on 7; pass on the dataset's items as they are ({ACME}, split=train, rank=0)",
        ),
    ],
    ids=["factory raises", "factory returns", "call raises", "item"],
)
def test_a_loader_of_a_plugin_is_named(factory, error, cause, message):
    """The error has the loader and its plugin."""
    with pytest.raises(error) as caught:
        load(loader="bad", plugins=plugins(Loader, factory))
    assert f"{message} [{error.code}]" == str(caught.value)
    assert cause is type(caught.value.__cause__)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("fault", "order"),
    [("begin", "global"), ("begin", "shards"), ("next", "global"), ("next", "shards"), ("close", "global")],
)
def test_an_error_of_a_loaders_iterator_gets_a_note(fault, order):
    """It keeps its type, since it may be one of the user's stage in a worker."""
    with pytest.raises(KeyError, match=fault) as caught:
        load(loader="bad", plugins=plugins(Loader, lambda: lambda items: Iterated(items, fault)), order=order)
    assert [f"raised while the loader 'bad' was iterated ({ACME}, split=train, rank=0)"] == caught.value.__notes__


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("loader", [lambda items: items, list], ids=["lazy", "eager"])
def test_an_error_of_a_stage_is_not_the_loaders(loader):
    """It passes the loader of a plugin as it is, with the note that names the stage."""

    def fails(samples):
        for sample in samples:
            raise KeyError(sample)
        yield

    with pytest.raises(KeyError) as caught:
        load(loader="bad", plugins=plugins(Loader, lambda: loader), pipeline_wds={"train": fails})
    (note,) = caught.value.__notes__
    assert note.startswith(f"raised by a stage (stage={__name__}.")
    assert "acme" not in note


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("executor", "error", "cause", "message"),
    [
        (
            raising(RuntimeError("no")),
            PluginError,
            RuntimeError,
            f"the executor 'bad' cannot be made: RuntimeError: no (at {__file__}:{LINE}) ({ACME})",
        ),
        (
            lambda: contextlib.nullcontext(7),
            PluginError,
            NOTHING,
            f"the executor 'bad' gives int, which is not a concurrent.futures.Executor ({ACME})",
        ),
        (
            lambda: contextlib.nullcontext(Pool(raising(RuntimeError("full")))),
            ConversionError,
            RuntimeError,
            (
                "a shard could not be given to the executor 'bad': RuntimeError: full; correct this and run it again, "
                f"finished shards are kept ({ACME})"
            ),
        ),
        (
            lambda: contextlib.nullcontext(Pool(lambda _: 7)),
            PluginError,
            NOTHING,
            f"the executor 'bad' gives int for a task, which is not a Future ({ACME})",
        ),
        (
            lambda: contextlib.nullcontext(Pool(lambda _: settled(RuntimeError("lost")))),
            ConversionError,
            RuntimeError,
            (
                "a shard could not be made on the executor 'bad': RuntimeError: lost; correct this and run it again, "
                f"finished shards are kept ({ACME})"
            ),
        ),
        (
            Leaving,
            PluginError,
            RuntimeError,
            f"the executor 'bad' cannot end: RuntimeError: stuck ({ACME})",
        ),
    ],
    ids=["factory raises", "enter", "submit raises", "submit returns", "task", "exit raises"],
)
def test_an_executor_of_a_plugin_is_named(executor, error, cause, message):
    """The error has the executor, its plugin and what it was asked for."""
    with pytest.raises(error) as caught:
        convert(executor="bad", plugins=plugins(Executor, executor))
    assert f"{message} [{error.code}]" == str(caught.value)
    assert cause is type(caught.value.__cause__)


@pytest.mark.parametrize(
    ("methods", "error", "cause", "message"),
    [
        (
            {"get": raising(TypeError("no"))},
            RemoteError,
            TypeError,
            (
                "acme://{place}/good-train/wdshards.manifest.json cannot be fetched or stored, tried 2 times in 0 s; "
                f"TypeError: no (split=train, store=bad, {ACME})"
            ),
        ),
        (
            {"get": raising(ImportError("No module named 'tape'"))},
            PluginError,
            ImportError,
            f"the store 'bad' lacks a package: No module named 'tape'; install what it needs ({ACME})",
        ),
        (
            {"get": raising(NotImplementedError())},
            RemoteError,
            NotImplementedError,
            (
                "acme://{place}/good-train/wdshards.manifest.json: get() of the store 'bad' is not implemented; "
                f"use a URL of a server that can do it (split=train, {ACME})"
            ),
        ),
        (
            {"get": lambda _: "text"},
            PluginError,
            NOTHING,
            (
                "acme://{place}/good-train/wdshards.manifest.json: get() of the store 'bad' gives 'text', not bytes "
                f"({ACME})"
            ),
        ),
    ],
    ids=["raises", "lacks a package", "is not implemented", "returns"],
)
def test_a_store_of_a_plugin_is_named_when_a_manifest_is_read(place, methods, error, cause, message):
    """The error has the URL, the store, its plugin and what it was asked for."""
    with pytest.raises(error) as caught:
        load(f"acme://{place}/good-train", plugins=plugins(Store, lambda: Shelf(**methods), schemes=("acme",)))
    assert f"{message.format(place=place)} [{error.code}]" == str(caught.value)
    assert cause is type(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "methods", "message"),
    [
        (
            "foreign",
            {"list": lambda _: None},
            "foreign: list() of the store 'bad' gives None, not a list of StoredFile",
        ),
        (
            "foreign",
            {"list": lambda _: ["a"]},
            "foreign: list() of the store 'bad' gives ['a'], not a list of StoredFile",
        ),
        (
            "foreign/wdshards-{000000..000000}.tar",
            {"stat": lambda _: 7},
            "foreign/wdshards-000000.tar: stat() of the store 'bad' gives 7, not a StoredFile",
        ),
    ],
)
def test_a_store_of_a_plugin_is_named_when_shards_are_looked_for(place, url, methods, message):
    """What is no file of a store is refused where it comes from."""
    (place / "foreign").mkdir()
    (place / "good-train" / "wdshards-000000.tar").rename(place / "foreign" / "wdshards-000000.tar")
    with pytest.raises(PluginError) as caught:
        load(f"acme://{place}/{url}", plugins=plugins(Store, lambda: Shelf(**methods), schemes=("acme",)))
    assert f"acme://{place}/{message} ({ACME}) [plugin]" == str(caught.value)


def test_a_store_of_a_plugin_that_reads_too_little_is_named(place):
    """Bytes without their checksums come from it."""
    bad = plugins(Store, lambda: Shelf(read=lambda *_: None), schemes=("acme",))
    with pytest.raises(RemoteError, match="do not have the checksums of the shard's index") as caught:
        load(f"acme://{place}/good-train", plugins=bad)
    shard = {"shard": f"acme://{place}/good-train/wdshards-000000.tar"}
    assert {**shard, "plugin": "acme", "distribution": "acme-data 1.0", "split": "train"} == caught.value.where


@pytest.mark.usefixtures("place")
def test_a_missing_file_is_no_fault_of_the_plugin(place):
    """The URL alone is named, since the store did what it has to."""
    with pytest.raises(RemoteError) as caught:
        load(f"acme://{place}/good-train/x-{{0..1}}.tar", plugins=plugins(Store, Shelf, schemes=("acme",)))
    assert f"acme://{place}/good-train/x-0.tar is not there (split=train) [remote]" == str(caught.value)


def test_a_store_of_a_plugin_that_cannot_write_is_named(place):
    """The conversion says which operation of which store it needs."""
    bad = plugins(Store, lambda: Shelf(put=raising(NotImplementedError("read-only"))), schemes=("acme",))
    with pytest.raises(RemoteError) as caught:
        convert(f"acme://{place}/out-", plugins=bad)
    assert (
        f"acme://{place}/out-train/wdshards.manifest.next.json: put() of the store 'bad' is not implemented: "
        f"read-only; use a URL of a server that can do it ({ACME}) [remote]"
    ) == str(caught.value)


@pytest.mark.usefixtures("place")
def test_a_codec_of_a_plugin_that_cannot_be_made_is_named():
    """The error has the codec and its plugin."""
    with pytest.raises(PluginError) as caught:
        load(codecs={"txt": "bad"}, plugins=plugins(Codec, lambda: 7))
    assert (
        f"the factory of the codec 'bad' returns 7, not an object with decode() (suffix=txt, {ACME}) [plugin]"
        == str(caught.value)
    )


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("method", "use", "where"),
    [
        ("recode", convert, {"sample": "s0", "suffix": "txt", "split": "train"}),
        ("decode", load, {"key": "s0", "suffix": "txt", "split": "train"}),
    ],
)
def test_a_codec_of_a_plugin_that_lacks_a_module_is_named(method, use, where):
    """No sample is to blame, so it ends the work, with what to install."""
    lacking = raising(ModuleNotFoundError("No module named 'tape'", name="tape"))
    codec = SimpleNamespace(**{"decode": bytes, method: lacking})
    with pytest.raises(PluginError) as caught:
        use(plugins=plugins(Codec, lambda: codec, suffixes=("txt",), override=True), codecs={})
    assert caught.value.message == (
        "the field cannot be decoded: ModuleNotFoundError: No module named 'tape'; "
        "install what provides the module tape"
    )
    assert {**where, "codec": "bad", "plugin": "acme"}.items() <= caught.value.where.items()


@pytest.mark.usefixtures("place")
def test_two_codecs_of_one_suffix_are_refused_at_setup():
    """Nothing is read before, and a choice of one of them is enough."""
    both = plugins(Codec, lambda: SimpleNamespace(decode=bytes), suffixes=("txt",), override=True)
    other = Codec(name="other", summary="x", suffixes=("txt",), factory=dict, override=True)
    both.register(SimpleNamespace(webdatamodule_codecs=hookimpl(lambda: [other], specname="webdatamodule_codecs")), "b")
    data = WebDataModule({"train": "good-train"}, None, "txt", 2, plugins=both)
    with pytest.raises(PluginError, match=r"several codecs decode the suffix 'txt': 'bad' of .* and 'other' of "):
        data.setup("fit")
    assert 3 == len(load(codecs={"txt": "bad"}, plugins=both))
