"""Errors of stages say which stage it was, and at which sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from tests.helpers.convert import convert

from bionemo.webdatamodule import Codec, Sample, Use, WebDataModule, hookimpl
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.columns import ValueColumn, stack_fields
from bionemo.webdatamodule.errors import ConfigError, CorruptShardError, DecodeError, PluginError
from bionemo.webdatamodule.plugins import Plugins

SHARDS = {"kwargs_wds": {"train": {"shardshuffle": False}}}  # shards order
ORDERS = pytest.mark.parametrize("options", [{}, SHARDS], ids=["global", "shards"])
WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Numbers:
    """Reads a number for each name."""

    def __call__(self, names):
        for name in names:
            yield Sample(name, {"n.cls": name.encode()})


@pytest.fixture
def directory(tmp_path):
    """Return a directory of four shards of ten numbers."""
    convert(
        reader=Numbers(),
        names={"train": [str(number) for number in range(40)]},
        directories={"train": str(tmp_path)},
        prefix="wdshards",
        key_encoder=str,
        executor=Serial(),
        n_shards=4,
    )
    return tmp_path


def epoch(directory, *stages, workers=0, suffixes="n.cls", **options):
    """Return the batches of an epoch."""
    loader = {"train": {"num_workers": workers}}
    module = WebDataModule(
        {"train": directory},
        None,
        suffixes,
        4,
        pipeline_wds={"train": ["untuple", *stages]},
        kwargs_wld=loader,
        **options,
    )
    module.setup("fit")
    return list(module.train_dataloader())


def stops_at_17(sample):
    """Do what next() does where there is nothing."""
    return True if sample != 17 else next(iter(()))


@ORDERS
@WORKERS
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Use("map", function=stops_at_17), "Map"),
        (Use("select", predicate=stops_at_17), "Select"),
        (wds.map(stops_at_17), "_map"),
        (Use("batch", size=2, collate=lambda samples: [stops_at_17(n) for n in [*samples, 17]]), "Batch"),
    ],
    ids=["map", "select", "webdataset", "batch"],
)
def test_a_function_that_raises_stop_iteration_ends_no_epoch(directory, options, workers, stage, name):
    """Python takes that for the end of an iterator, and the samples behind it would be lost without a word."""
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        epoch(directory, stage, workers=workers, **options)
    assert f"stage={name}" in caught.value.__notes__[0] or f"stage=<{name}" in caught.value.__notes__[0]


class Stopping:
    """A codec that raises StopIteration at one number."""

    def decode(self, view):
        """Return the number."""
        number = int(bytes(view))
        return number if number != 17 else next(iter(()))


@ORDERS
@WORKERS
def test_a_codec_that_raises_stop_iteration_loses_no_sample(directory, options, workers):
    """It is an error of the field, as any other."""
    with pytest.raises(DecodeError, match="cannot be decoded: StopIteration") as caught:
        epoch(directory, workers=workers, codecs={"n.cls": Stopping()}, **options)
    assert "17" == caught.value.where["key"]


class Forgetful:
    """A stage whose columnar form returns nothing."""

    def __call__(self, samples):
        """Pass samples on."""
        return samples

    def columns(self, fields):
        """Forget to return them."""


@WORKERS
def test_columns_that_return_nothing_are_an_error(directory, workers):
    """A batch would be None, and its samples lost."""
    with pytest.raises(ConfigError, match=r"columns\(\) of the stage .*Forgetful.* gives None; it returns columns"):
        epoch(directory, Forgetful(), workers=workers)


class Columnless:
    """A codec whose column is something else.

    Args:
        made: What it returns for the fields.
    """

    def __init__(self, made):
        self.made = made

    def decode(self, view):
        """Return the number."""
        return int(bytes(view))

    def column(self, views):
        """Return what it was made for."""
        return self.made(views)


@pytest.mark.parametrize("made", [lambda _: None, list, lambda views: ValueColumn(list(views)[1:])])
def test_columns_of_a_codec_are_looked_at(directory, made):
    """They stand for as many samples as there are fields."""
    with pytest.raises(
        PluginError, match=r"column\(\) of the codec .*Columnless.* for \d+ fields; it returns an object"
    ):
        epoch(directory, codecs={"n.cls": Columnless(made)})


def fails_at_17(samples):
    """Fail, in a way that a user might catch, at one sample."""
    for sample in samples:
        if sample == 17:
            raise KeyError("no such protein")
        yield sample


def refuses_17(samples):
    """Raise an error of this package at one sample."""
    for sample in samples:
        if sample == 17:
            raise ConfigError("no such protein")
        yield sample


class Columnar:
    """A third party's stage that fails on the column of one number, in the columnar form alone."""

    anywhere = True

    def __call__(self, samples):
        return samples

    def columns(self, fields):
        return ValueColumn([1 // (17 - number) for number in fields.values()])


class Ragged:
    """A third party's stage that makes tensors of different lengths, in the columnar form."""

    anywhere = True

    def __call__(self, samples):
        return samples

    def columns(self, fields):
        return stack_fields(ValueColumn([torch.zeros(number) for number in fields.values()]))


def unlike(sample):
    """Return an array of another length for each number."""
    return np.zeros(sample)


@ORDERS
@WORKERS
def test_an_exception_keeps_its_class_and_gets_stage_shard_and_key(directory, options, workers):
    """A note says where it was; the message and the class are the user's."""
    with pytest.raises(KeyError, match=r"^'no such protein'") as caught:
        epoch(directory, fails_at_17, workers=workers, **options)
    (note,) = caught.value.__notes__
    assert "fails_at_17, split=train, " in note
    assert "rank=0" in note
    assert f"shard={directory}/wdshards-000001.tar, key=17)" in note
    assert ("worker=" in note) == bool(workers)


@ORDERS
@WORKERS
def test_an_error_of_this_package_gets_them_as_its_place(directory, options, workers):
    """They are in ``where``, and in the message behind the sentence."""
    with pytest.raises(ConfigError, match=r"^no such protein \(.*stage=.*refuses_17") as caught:
        epoch(directory, refuses_17, workers=workers, **options)
    found = caught.value.where
    assert ("train", 0, "17", f"{directory}/wdshards-000001.tar") == tuple(
        found[name] for name in ("split", "rank", "key", "shard")
    )


@WORKERS
def test_the_columnar_form_of_a_stage_names_the_sample_too(directory, workers):
    """The samples of the share are tried one by one; the class is the stage's."""
    with pytest.raises(ZeroDivisionError) as caught:
        epoch(directory, Columnar(), workers=workers)
    (note,) = caught.value.__notes__
    assert "Columnar object" in note
    assert f"shard={directory}/wdshards-000001.tar, key=17)" in note


def test_samples_that_only_fail_together_are_not_blamed_one_by_one(directory):
    """The error says so, and names the stage."""
    with pytest.raises(DecodeError, match="these 4 samples do not fit into one batch: stack expects") as caught:
        epoch(directory, Ragged())
    assert "Ragged object" in caught.value.where["stage"]
    assert "key" not in caught.value.where


def test_the_stage_that_failed_is_named_and_not_those_behind_it(directory):
    """Stages before and behind it, and functions that wrap the samples in C, do not change that."""
    with pytest.raises(KeyError) as caught:
        epoch(
            directory,
            Use("shuffle", size=4),
            lambda samples: map(int, samples),
            fails_at_17,
            lambda samples: map(float, samples),
        )
    assert 1 == len(caught.value.__notes__)
    assert "fails_at_17, split" in caught.value.__notes__[0]


def test_a_stage_that_fails_when_it_is_called_is_named(directory):
    """It need not be a generator."""

    def eager(samples):
        return [1 // (17 - sample) for sample in samples]

    with pytest.raises(ZeroDivisionError) as caught:
        epoch(directory, eager)
    assert "eager, split=train" in caught.value.__notes__[0]
    assert "key=17" in caught.value.__notes__[0]


@ORDERS
def test_a_batch_that_cannot_be_made_names_the_stage(directory, options):
    """In shards order the batch is made by a stage; in global order too, where samples are made first."""
    with pytest.raises((RuntimeError, DecodeError)) as caught:
        epoch(directory, lambda samples: map(unlike, samples), **options)
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert "Batch(" in said
    assert "split=train" in said


def test_damage_is_not_blamed_on_a_stage(directory):
    """In shards order reading happens inside the chain of stages, and its errors stay as they are."""
    path = directory / "wdshards-000001.tar"
    data = bytearray(path.read_bytes())
    data[512] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShardError) as caught:
        epoch(directory, fails_at_17, **SHARDS)
    assert "stage" not in caught.value.where


class Importing:
    """A codec that imports a package when it is used."""

    def decode(self, view):
        """Import it."""
        import not_installed_codec  # noqa: F401


class Opening:
    """A codec that opens a file."""

    def decode(self, view):
        """Open it."""
        return Path("/nowhere/file").read_bytes()


class Dividing:
    """A codec that fails."""

    def decode(self, view):
        """Fail."""
        return 1 / 0


def with_codec(factory):
    """Return plugins of which one has a codec."""

    class Plugin:
        @hookimpl
        def webdatamodule_codecs(self):
            yield Codec(name="odd", summary="s", suffixes=("n.cls",), factory=factory)

    plugins = Plugins()
    plugins.register(Plugin(), "mine", distribution="my-plugin", version="1.2")
    return plugins


@ORDERS
@WORKERS
@pytest.mark.parametrize(
    ("codec", "kind", "cause", "message"),
    [
        (Importing, PluginError, ImportError, "'not_installed_codec'; install what provides the module not_installed_"),
        (Opening, DecodeError, FileNotFoundError, "No such file or directory: '/nowhere/file'; correct this and start"),
        (Dividing, DecodeError, ZeroDivisionError, "ZeroDivisionError: division by zero"),
    ],
)
def test_errors_of_a_codec_are_blamed_on_it_and_not_on_a_stage(
    directory, options, workers, codec, kind, cause, message
):
    """Suffix, codec, plugin and key are named, and the cause is kept; no stage is at fault."""
    data = WebDataModule(
        {"train": directory}, None, "n.cls", 4, plugins=with_codec(codec),
        kwargs_wld={"train": {"num_workers": workers}}, **options,
    )  # fmt: skip
    data.setup("fit")
    with pytest.raises(kind, match=f"^the field cannot be decoded: .*{message}") as caught:
        list(data.train_dataloader())
    expected = {"suffix": "n.cls", "codec": "odd", "plugin": "mine", "distribution": "my-plugin 1.2", "split": "train"}
    assert expected.items() <= caught.value.where.items()
    assert {"key", "shard"} <= set(caught.value.where)
    assert "stage" not in caught.value.where
    assert not hasattr(caught.value, "__notes__")
    if not workers:
        assert isinstance(caught.value.__cause__, cause)
        assert not hasattr(caught.value.__cause__, "__notes__")


def test_a_codec_that_is_given_as_an_object_has_no_plugin(directory):
    """It is named by its class."""
    data = WebDataModule({"train": directory}, None, "n.cls", 4, codecs={"n.cls": Dividing()})
    data.setup("fit")
    with pytest.raises(DecodeError, match=r"suffix=n.cls, codec=Dividing") as caught:
        list(data.train_dataloader())
    assert "plugin" not in caught.value.where


class Lacking:
    """A columnar stage that imports a package when it is used."""

    def __init__(self, error):
        self.error = error

    def __repr__(self):
        return "Lacking()"

    def columns(self, fields):
        """Raise the error."""
        raise self.error

    def __call__(self, samples):
        """Raise the error."""
        raise self.error


@pytest.mark.parametrize("error", [ModuleNotFoundError("no package"), OSError("no file")])
def test_a_stage_that_lacks_a_package_or_a_file_is_still_blamed(directory, error):
    """Where all fields can be decoded, it is the stage's own error, which keeps its type."""
    with pytest.raises(type(error)) as caught:
        epoch(directory, Lacking(error))
    assert any("raised by a stage (stage=Lacking()" in note for note in caught.value.__notes__)
