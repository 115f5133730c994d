"""Stages as users write them: batches of their own, random numbers of their own, and failures."""

import pickle
import random
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds

from bionemo.webdatamodule import PickledDataWDS, Use, context
from bionemo.webdatamodule.errors import ConfigError, DataWarning, DecodeError, PlanError

N = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a directory of numbered tensors in pickles."""
    base = tmp_path_factory.mktemp("stages")
    for number in range(N):
        (base / f"s{number:02d}.x.pyd").write_bytes(pickle.dumps(torch.full((3,), number)))
    return base


def batches(base, pipeline, *, size=4, **kwargs):
    """Return the batches of an epoch."""
    kwargs = {name: value if name in ("order", "seed") else {"train": value} for name, value in kwargs.items()}
    module = PickledDataWDS(
        base, "x.pyd", {"train": [f"s{number:02d}" for number in range(N)]}, {"train": base / "shards"}, size,
        pipeline_wds=None if pipeline is None else {"train": pipeline}, n_tars_wds=2, executor="serial", **kwargs,
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    return list(module.train_dataloader())


def stacked(samples):
    """Batch four samples, as a stage of one's own."""
    some = []
    for (sample,) in samples:
        some.append(sample)
        if len(some) == 4:
            yield torch.stack(some)
            some = []


def pairs(samples):
    """Join samples in pairs: samples of two fields."""
    for (one,) in samples:
        yield one, next(samples)[0]


FIRST = [(0, (4, 3)), (4, (4, 3)), (8, (4, 3)), (12, (4, 3))]


def shapes(found):
    """Return the sum of the samples' numbers, and the shapes."""
    return sum(int(batch[:, 0].sum()) for batch in found), [tuple(batch.shape) for batch in found]


@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize(
    ("pipeline", "calls"),
    [
        (["untuple", Use("batch", size=4)], []),
        (["untuple", wds.batched(4, collation_fn=torch.stack)], []),
        ("untuple", [("batched", {"batchsize": 4, "collation_fn": torch.stack})]),
    ],
    ids=["batch", "webdataset", "invoke"],
)
def test_batches_of_pipeline_wds_are_passed_on(base, pipeline, calls, order):
    """No dimension is added, and each sample comes once an epoch."""
    found = batches(base, pipeline, order=order, invoke_wds=calls)

    assert (sum(range(N)), [(4, 3)] * 4) == shapes(found)


def test_batches_taken_apart_again_are_samples(base):
    """`unbatch` behind `batch` leaves samples, which are joined."""
    assert [(4, 3)] * 4 == shapes(batches(base, ["untuple", Use("batch", size=2), "unbatch"]))[1]


@pytest.mark.parametrize("order", ["global", "shards"])
def test_batches_of_a_stage_of_ones_own_are_noticed(base, order):
    """The error names both remedies, and both work."""
    with pytest.raises(ConfigError, match=r"stacked.* makes batches.*") as caught:
        batches(base, stacked, order=order)
    assert "pipeline_prebatch_wld={'train': []}" in caught.value.message
    found = batches(base, stacked, order=order, pipeline_prebatch_wld=[])
    assert (sum(range(N)), [(4, 3)] * 4) == shapes(found)
    assert "pipeline_prebatch_wld={'train': 'batch'}" in caught.value.message
    size = 4 if order == "global" else 16
    joined = batches(base, stacked, order=order, size=size, pipeline_prebatch_wld="batch")
    assert (1 if order == "global" else 4, 4, 3) == tuple(joined[0].shape)


@pytest.mark.parametrize("order", ["global", "shards"])
def test_samples_made_of_several_are_joined(base, order):
    """Pairs are not batches."""
    one, other = batches(base, pairs, order=order)[0]

    assert ((2, 3) if order == "global" else (4, 3)) == tuple(one.shape) == tuple(other.shape)


def test_batches_of_pipeline_wds_must_be_whole_shares(base):
    """In global order a share is one batch; the message names the argument that made several."""
    with pytest.raises(ConfigError, match=r"pipeline_wds \(.*Batch.*\) makes several batches of a share of 4 samples"):
        batches(base, ["untuple", Use("batch", size=2)])


class Poses:
    """Draws a pose for each sample, from a generator made at every call."""

    def __init__(self, make):
        self.make = make

    def __call__(self, samples):
        draw = self.make()
        return ((sample, draw()) for (sample,) in samples)


def seeded_by_random(samples):
    """Draw with random's functions, seeded first."""
    random.seed(3)
    return ((sample, random.random()) for (sample,) in samples)


def seeded_by_numpy(samples):
    """Draw from numpy's generator."""
    rng = np.random.default_rng(3)
    for (sample,) in samples:
        yield sample, rng.random()


class SeededByTorch:
    """Draws from torch's generator, seeded at every call."""

    def __call__(self, samples):
        generator = torch.Generator().manual_seed(3)
        for (sample,) in samples:
            yield sample, torch.rand((), generator=generator)


def from_the_context(samples):
    """Draw from the place's generator, and seed another one with it."""
    rng = random.Random(context.current().rng("pose").random())
    return ((sample, rng.random()) for (sample,) in samples)


def by_sample(samples):
    """Draw from a generator that the sample seeds."""
    for (sample,) in samples:
        yield sample, np.random.default_rng(int(sample[0])).random()


@pytest.mark.parametrize("stage", [seeded_by_random, seeded_by_numpy, SeededByTorch()])
def test_a_stage_that_reseeds_at_every_call_is_named(base, stage):
    """In global order it would draw the same numbers for every batch."""
    name = getattr(stage, "__name__", type(stage).__name__)
    with pytest.warns(DataWarning, match=rf"{name}.* draws the same random numbers whenever it is called"):
        found = batches(base, stage, order="global")
    assert 1 == len({tuple(poses.tolist()) for _, poses in found})


def test_the_remedies_for_a_stage_that_reseeds_work(base):
    """Numbers from the context differ from batch to batch; shards order calls the stage once for a pass."""
    for stage, order in ((from_the_context, "global"), (seeded_by_numpy, "shards")):
        assert N == len({float(pose) for _, poses in batches(base, stage, order=order) for pose in poses})


@pytest.mark.parametrize("stage", [from_the_context, by_sample, Use("shuffle", size=4)], ids=str)
def test_stages_that_do_not_repeat_are_not_named(base, stage):
    """A generator seeded by the place or by each sample is right, and the default stages are."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 4 == len(batches(base, stage))


def test_looking_for_repetition_costs_no_random_number(base):
    """The functions of random, numpy and torch go on as if no stage had been tried."""

    def drawn():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        with pytest.warns(DataWarning):
            batches(base, seeded_by_numpy)
        return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002

    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    assert expected == (random.random(), np.random.random(), float(torch.rand(())))  # noqa: NPY002


def test_samples_that_a_stage_made_unlike_are_named(base):
    """Where samples do not fit into a batch behind a stage, the message says so and names them."""
    with pytest.raises(DecodeError, match=r"these 4 samples do not fit into one batch.*make them alike") as caught:
        batches(base, lambda samples: (sample[: int(sample[0])] for (sample,) in samples))
    assert "and 1 more" in caught.value.where["samples"]


UNJOINED = {
    "gradients": (
        lambda x: x.float().requires_grad_(),
        torch.Tensor.detach,
        "require gradients, and torch joins such tensors in no worker; in a stage, pass on tensor.detach()",
    ),
    "conjugate": (
        lambda x: torch.complex(x.float(), x.float()).conj(),
        torch.Tensor.resolve_conj,
        "are conjugate views, and torch joins those in no worker; in a stage, pass on tensor.resolve_conj()",
    ),
    "quantized": (
        lambda x: torch.quantize_per_tensor(x.float(), 1.0, 0, torch.qint8),
        torch.Tensor.dequantize,
        "are quantized, and torch joins those in no worker; in a stage, pass on tensor.dequantize()",
    ),
}


@pytest.mark.parametrize(("make", "remedy", "words"), UNJOINED.values(), ids=UNJOINED)
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor.*", "ignore::DeprecationWarning")
def test_tensors_that_only_the_main_process_joins_are_named_in_a_worker(base, make, remedy, words):
    """The message has their place and a remedy, which works; without workers there is nothing to correct."""
    workers = {"num_workers": 1}
    made, corrected = {"a": make}, {"a": lambda x: remedy(make(x))}

    def stage(parts):
        return lambda samples: ({name: part(x) for name, part in parts.items()} for (x,) in samples)

    with pytest.raises(DecodeError) as caught:
        batches(base, stage(made), kwargs_wld=workers)
    assert f"these 4 samples do not fit into one batch: the values at sample['a'] {words}" == caught.value.message
    assert 4 == len(batches(base, stage(made))) == len(batches(base, stage(corrected), kwargs_wld=workers))


def test_tensors_of_other_shapes_are_not_blamed_on_gradients(base):
    """Without workers torch says what does not fit."""
    with pytest.raises(DecodeError, match=r"one batch: stack expects each tensor to be equal size.*make them alike"):
        batches(base, lambda samples: (x[: int(x[0])].float().requires_grad_() for (x,) in samples))


def test_a_size_that_fails_is_named(base):
    """The function's error is the cause, and the sample's key is said."""
    with pytest.raises(PlanError, match="for the size of a sample fails with ZeroDivisionError") as caught:
        batches(base, None, pipeline_prebatch_wld=Use("batch_by_size", size=lambda value: 1 // 0, max_total=9))
    assert ("train", "s00") == (caught.value.where["split"], caught.value.where["key"])
