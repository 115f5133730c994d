"""Third parties' stages and codecs take the same path as the defaults, and get the same batches."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.helpers import twins
from tests.helpers.convert import convert

from bionemo.webdatamodule import Sample, Stage, Use, WebDataModule, context, hookimpl
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.stages import Untuple
from bionemo.webdatamodule.columns import stack_fields
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.plugins import Plugins
from bionemo.webdatamodule.testing import same


@dataclass(frozen=True)
class Arrays:
    """Reads an array, its number, and a pickle of another length each."""

    def __call__(self, names):
        for name in names:
            stream = io.BytesIO()
            np.save(stream, np.full((3, 2), int(name), np.float32))
            yield Sample(name, {"x.npy": stream.getvalue(), "n.cls": name.encode()})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a directory of shards."""
    found = tmp_path_factory.mktemp("shards")
    convert(
        reader=Arrays(),
        names={"train": [str(number) for number in range(40)]},
        directories={"train": str(found)},
        prefix="wdshards",
        key_encoder=str,
        executor=Serial(),
        n_shards=3,
    )
    return found


@pytest.fixture
def plugins():
    """Return the default plugins and the twins."""
    found = Plugins()
    found.register(twins, "twins")
    return found


def epoch(directory, suffixes="x.npy", workers=0, **options):
    """Return the batches of an epoch."""
    options = {name: {"train": value} if name.startswith("pipeline") else value for name, value in options.items()}
    module = WebDataModule(
        {"train": directory}, None, suffixes, 7, kwargs_wld={"train": {"num_workers": workers}}, **options
    )
    module.setup("fit")
    return list(module.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_twins_make_the_batches_of_the_defaults_from_columns(directory, plugins, workers):
    """A codec, a stage and a batch stage of a third party see no samples, and nothing differs."""
    found = epoch(
        directory,
        workers=workers,
        plugins=plugins,
        codecs={"x.npy": "twin_npy"},
        pipeline_wds="twin_untuple",
        pipeline_prebatch_wld=Use("twin_batch"),
    )
    assert same(epoch(directory), found)
    assert all(batch.shape[1:] == (3, 2) for batch in found)


@pytest.mark.parametrize("collate", ["default", "pad"])
@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_twins_and_defaults_mix(directory, plugins, collate, names):
    """Any of them stands before or behind any other."""
    before = [] if names is None else [Use("named", names=names)]
    expected = epoch(
        directory, ["x.npy", "n.cls"], pipeline_wds=before, pipeline_prebatch_wld=Use("batch", collate=collate)
    )
    found = epoch(
        directory,
        ["x.npy", "n.cls"],
        plugins=plugins,
        pipeline_wds=before,
        pipeline_prebatch_wld=Use("twin_batch", collate=collate),
    )
    assert same(expected, found)


@dataclass(frozen=True)
class Place:
    """Adds to a batch how many workers there are where it runs."""

    anywhere: bool

    def __call__(self, samples):
        workers = context.worker().count
        return ((workers, sample) for sample in samples)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["batch", Place(True)], [2]),
        (["batch", Place(False)], [0]),
        (["batch", Place(True), Place(False), Place(True)], [0, 0, 2]),
        ([Use("batch", collate=list), Place(True)], [2]),
    ],
)
def test_a_stage_says_where_it_may_run(directory, stages, expected):
    """Workers run the leading stages that say ``anywhere``, whatever the options of ``batch``; others stay behind."""
    for made in epoch(directory, workers=2, pipeline_prebatch_wld=stages):
        places, batch = [], made
        while isinstance(batch, tuple):
            number, batch = batch
            places.append(number)
        assert expected == places
        assert 7 >= len(batch)


class Tagged:
    """A batch stage that replaces the default one."""

    anywhere = True

    def __call__(self, samples):
        return [("tagged", list(samples))]

    def columns(self, fields):
        return "tagged", stack_fields(fields)


def test_a_plugin_that_replaces_batch_takes_effect_where_no_stage_is_given(directory):
    """Default stages are looked up by name."""
    plugins = Plugins()

    class Plugin:
        @staticmethod
        @hookimpl
        def webdatamodule_stages():
            return [Stage(name="batch", summary="x", factory=Tagged, override=True)]

    plugins.register(Plugin, "tagged")
    found = epoch(directory, plugins=plugins)
    assert ["tagged"] * 6 == [tag for tag, _ in found]
    assert same([batch for _, batch in found], epoch(directory))


class Declines:
    """A stage with a columnar form that cannot serve this time."""

    anywhere = True

    def __call__(self, samples):
        return (sample for sample in samples)

    def columns(self, fields):
        return NotImplemented


def test_from_the_first_stage_without_columns_on_samples_are_made(directory):
    """A stage may decline; what follows gets samples, then batches one by one."""
    expected = epoch(directory)
    assert same(expected, epoch(directory, pipeline_wds=[Untuple(), Declines()]))
    assert same(expected, epoch(directory, pipeline_wds=[Declines(), Untuple()]))
    double = epoch(directory, pipeline_prebatch_wld=["batch", Use("map", function=torch.neg)])
    assert same([-batch for batch in expected], double)


class Broken(twins.TwinColumn):
    """A column that cannot be stacked."""

    def stack(self):
        raise RuntimeError("no such luck")

    def values(self):
        return list(map(twins.TwinNpy().decode, self.views))


class BrokenNpy(twins.TwinNpy):
    """A codec whose fields decode one by one only."""

    def column(self, views):
        return Broken(views)


def test_fields_that_decode_one_by_one_and_do_not_stack_are_said(directory):
    """The error is not blamed on a sample."""
    with pytest.raises(DecodeError, match="7 samples do not fit into one batch: no such luck"):
        epoch(directory, codecs={"x.npy": BrokenNpy()})
