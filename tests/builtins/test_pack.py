"""Packs: plans whose batches have a sum of sizes within a limit, and how a pack is joined."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch

from bionemo.webdatamodule.builtins.pack import Pack
from bionemo.webdatamodule.errors import ConfigError, PlanError
from bionemo.webdatamodule.planning import EpochPlan, PlanRequest


def packed(sizes, *, seed=0, shuffle=True, **options):
    """Return the plan of the stage for these sizes."""
    request = PlanRequest(seed=seed, shuffle=shuffle, global_batch_size=1)
    return Pack(size="x", **options).plan(np.asarray(sizes), request)


def packs_of(plan, ranks, *, epoch=0, start=0):
    """Return the ranks' packs in the order of steps and ranks."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    dealt = zip(*[plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)], strict=True)
    return [share.tolist() for step in dealt for share in step]


@pytest.mark.parametrize(("ranks", "used"), [(1, 0.97), (2, 0.97), (4, 0.96), (8, 0.95)])
def test_packs_are_full_and_steps_are_equal_in_every_epoch(ranks, used):
    """Lengths from 50 to 1,000 fill 8,192 tokens; every sample comes once, in other packs in each epoch."""
    sizes = np.random.default_rng(0).integers(50, 1001, 4000)
    plan = packed(sizes, max_total=8192)
    epochs = [packs_of(plan, ranks, epoch=epoch) for epoch in range(3)]

    assert isinstance(plan, EpochPlan)
    assert [plan.n_batches(ranks) * ranks] * 3 == list(map(len, epochs))
    assert [list(range(4000))] * 3 == [sorted(itertools.chain(*packs)) for packs in epochs]
    assert max(int(sizes[pack].sum()) for packs in epochs for pack in packs) <= 8192
    assert int(sizes.sum()) / (len(epochs[0]) * 8192) >= used
    together = [set(map(frozenset, packs)) for packs in epochs]
    assert len(together[0] & together[1]) < 0.05 * len(together[0])
    assert epochs[2] == packs_of(pickle.loads(pickle.dumps(plan)), ranks, epoch=2)


def test_hundreds_of_shapes_lose_and_repeat_nothing():
    """Whatever the sizes and limits, and from any boundary on any other number of ranks."""
    rng = random.Random(1)
    for number in range(150):
        n = rng.randint(1, 60)
        sizes = np.array([rng.choice([0, 1, 5, rng.randint(1, 100)]) for _ in range(n)])
        limit, most = max(int(sizes.max()), rng.randint(1, 300)), rng.choice([0, 0, 1, 3])
        plan = packed(sizes, max_total=limit, max_samples=most, seed=number, shuffle=rng.random() < 0.8)
        whole = packs_of(plan, 1, epoch=number)
        assert list(range(n)) == sorted(itertools.chain(*whole))
        assert all(sizes[pack].sum() <= limit and len(pack) <= (most or n) for pack in whole)
        assert plan.n_batches(1, epoch=0) == plan.n_batches(1, epoch=7)
        order = list(itertools.chain(*whole))
        for done in (0, len(whole) // 2, len(whole)):
            start = plan.consumed(done, 1, epoch=number)
            assert whole[done:] == packs_of(plan, 1, epoch=number, start=start)
            lost = plan.unserved(3, start=start, epoch=number)
            assert order[start : n - lost] == list(itertools.chain(*packs_of(plan, 3, epoch=number, start=start)))


def test_evaluation_takes_the_same_packs_every_time():
    """Without shuffling packs do not depend on the epoch."""
    plan = packed([3, 9, 1, 9, 5, 4], max_total=13, shuffle=False)

    assert packs_of(plan, 1) == packs_of(plan, 1, epoch=5)
    assert list(range(6)) == sorted(itertools.chain(*packs_of(plan, 1)))


def test_filling_to_a_multiple_counts():
    """Sequences of 5 that are filled to 8 fit twice into 16, not three times."""
    assert 3 == packed([5] * 6, max_total=16, multiple_of=8).n_batches(1)
    assert 2 == packed([5] * 6, max_total=16).n_batches(1)


def test_a_sample_that_is_too_large_is_named():
    """Nothing is cut or left out silently."""
    with pytest.raises(PlanError, match=r"sample 1 has size 30, more than the 10 of a whole pack; raise max_total"):
        packed([3, 30, 4], max_total=10)
    assert 3 == packed([3, 30, 4], max_total=30, max_samples=1).n_batches(1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_total": 0}, "max_total"),
        ({"max_samples": -1}, "max_samples"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"pad_to": "longest"}, "pad_to"),
        ({"collate": "list", "multiple_of": 2}, "need collate='thd'"),
        ({"collate": "rows"}, "collate"),
        ({"size": 3}, "size is a suffix"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    """By the name of the option."""
    with pytest.raises(ConfigError, match=reason):
        Pack(**{"size": "x", "max_total": 10, **options})


def one(samples, **options):
    """Return the pack of a stream that fits into one."""
    (pack,) = Pack(**{"size": lambda sample: len(sample["x"]), "max_total": 16, **options})(iter(samples))
    return pack


SAMPLES = [
    {"x": torch.arange(3), "y": np.array([0.5, 1.5, 2.5]), "label": 7, "wide": torch.ones(2)},
    {"x": torch.arange(2), "y": np.array([3.5, 4.5]), "label": 8, "wide": torch.zeros(2)},
]


def test_a_pack_is_a_row_of_tokens():
    """Fields as long as the first are concatenated, others are stacked."""
    pack = one(SAMPLES)

    assert {"x", "y", "label", "wide", "cu_seqlens", "max_seqlen"} == set(pack)
    assert [0, 1, 2, 0, 1] == pack["x"].tolist()
    assert [0.5, 1.5, 2.5, 3.5, 4.5] == pack["y"].tolist()
    assert [7, 8] == pack["label"].tolist()
    assert [[1, 1], [0, 0]] == pack["wide"].tolist()
    assert ([0, 3, 5], torch.int32) == (pack["cu_seqlens"].tolist(), pack["cu_seqlens"].dtype)
    assert (3, int) == (pack["max_seqlen"], type(pack["max_seqlen"]))


def test_sequences_are_filled_to_a_multiple_and_packs_to_the_limit():
    """Zeros stand behind each sequence and behind the last; where samples begin is said of the filled ones."""
    pack = one(SAMPLES, multiple_of=4, pad_to="max_total", fields=["x", "y"], collate="thd")

    assert [0, 1, 2, 0, 0, 1, 0, 0, *[0] * 8] == pack["x"].tolist()
    assert [0, 4, 8] == pack["cu_seqlens"].tolist()
    assert (4, [3, 2]) == (pack["max_seqlen"], pack["lengths"].tolist())


def test_values_and_tuples_are_packed_too():
    """A single value is called ``values``, those of a tuple by their numbers."""
    assert [0, 1, 2, 0, 1] == one([s["x"] for s in SAMPLES], size=len)["values"].tolist()
    pack = one([(s["label"], s["x"]) for s in SAMPLES], size=lambda sample: len(sample[1]))
    assert ([7, 8], [0, 1, 2, 0, 1]) == (pack["0"].tolist(), pack["1"].tolist())
    assert SAMPLES == one(SAMPLES, collate="list")


def test_what_cannot_be_concatenated_is_an_error_with_a_remedy():
    """A field of another length, or none with a dimension."""
    with pytest.raises(ConfigError, match="'wide' is not as long as the first field"):
        one(SAMPLES, fields=["x", "y", "wide"])
    with pytest.raises(ConfigError, match=r"no field of label is a tensor.*collate='list' passes samples on"):
        one([{"label": 1}], size=lambda sample: 1)
    with pytest.raises(ConfigError, match=r"'y' cannot be stacked.*name it in fields"):
        one(SAMPLES, fields=["x"])
    with pytest.raises(ConfigError, match="fields are z, samples have x, y, label, wide"):
        one(SAMPLES, fields=["z"])


def test_streams_are_packed_window_by_window():
    """In shards order every sample comes once, packs are within the limit and nearly full."""
    sizes = np.random.default_rng(0).integers(50, 1001, 3000).tolist()
    packs = list(Pack(size=int, max_total=8192, collate="list")(iter(sizes)))

    assert sorted(sizes) == sorted(itertools.chain(*packs))
    assert max(map(sum, packs)) <= 8192
    assert sum(sizes) / (8192 * len(packs)) > 0.95
    with pytest.raises(PlanError, match="size 50, more than the 10"):
        list(Pack(size=int, max_total=10, collate="list")(iter([1, 50])))
