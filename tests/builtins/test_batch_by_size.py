import itertools
import pickle
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule.builtins.batch_by_size import BatchBySize
from bionemo.webdatamodule.errors import ConfigError, PlanError, ResumeError
from bionemo.webdatamodule.planning import EpochPlan, PlanRequest, divide_last, size_of


def lengths(n, seed=0):
    """Return sizes as proteins have them: many short, a few long."""
    return np.clip(np.random.default_rng(seed).lognormal(5.5, 0.7, n).astype(np.int64), 20, 2000)


def sized(sizes, *, seed=0, shuffle=True, **options):
    """Return the plan of the stage for these sizes."""
    request = PlanRequest(seed=seed, shuffle=shuffle, global_batch_size=1)
    return BatchBySize(size="x", **options).plan(np.asarray(sizes), request)


def batch_by_size(samples, size, **options):
    """Return the batches of a stream."""
    return BatchBySize(size=size, collate="list", **options)(iter(samples))


def batches_of(plan, ranks, *, epoch=0, start=0):
    """Return the ranks' batches in the order of steps and ranks."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    dealt = zip(*[plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)], strict=True)
    return [share.tolist() for step in dealt for share in step]


def joined(batches):
    """Return the samples of batches, in order."""
    return list(itertools.chain(*batches))


def test_thousands_of_shapes_lose_and_repeat_nothing():
    """Every sample comes once, every rank takes as many steps, no batch is empty or too large, in every epoch."""
    rng = random.Random(1)
    served = 0
    for number in range(1200):
        n, ranks = rng.randint(1, 80), rng.randint(1, 9)
        sizes = np.array([rng.choice([0, 1, 5, rng.randint(1, 100)]) for _ in range(n)])
        limit, most, alone = rng.randint(1, 300), rng.choice([0, 0, 3]), rng.random() < 0.3
        if not alone:
            limit = max(limit, int(sizes.max()))
        plan = sized(
            sizes,
            max_total=limit,
            max_samples=most,
            oversize="alone" if alone else "error",
            width=rng.choice([0, 0.1, 1]),
            seed=number,
            shuffle=rng.random() < 0.8,
        )
        try:
            plan.check(ranks)
        except PlanError:
            continue
        served += 1
        counts = set()
        for epoch in (0, 1, 5):
            batches = batches_of(plan, ranks, epoch=epoch)
            counts.add(len(batches))
            assert list(range(n)) == sorted(joined(batches))
            assert min(map(len, batches)) >= 1
            assert max(map(len, batches)) <= (most or n)
            assert all(len(batch) == 1 or len(batch) * sizes[batch].max() <= limit for batch in batches)
        assert 1 == len(counts)
    assert served > 900


def test_every_step_boundary_goes_on_as_if_nothing_had_happened():
    """Planning anew from any boundary gives the batches that were to come, also where batches were divided."""
    rng = random.Random(2)
    for number in range(300):
        n, ranks = rng.randint(1, 60), rng.randint(1, 8)
        sizes = np.array([rng.choice([1, 10, 10, 40]) for _ in range(n)])
        plan = sized(sizes, max_total=rng.choice([40, 60, 200]), seed=number)
        whole = batches_of(plan, ranks, epoch=number)
        for done in range(len(whole) // ranks + 1):
            start = plan.consumed(done, ranks, epoch=number)
            assert len(joined(whole[: done * ranks])) == start
            assert whole[done * ranks :] == batches_of(plan, ranks, epoch=number, start=start)


def test_every_place_is_restored_to_every_other_number_of_ranks():
    """The unseen rest of an epoch comes once each after a change of ranks; what cannot be dealt is counted."""
    sizes = lengths(150)
    plan = sized(sizes, max_total=4000, seed=3)
    order = joined(batches_of(plan, 1, epoch=2))
    for ranks, others in itertools.product((1, 2, 3, 8), repeat=2):
        for done in range(plan.n_batches(ranks, epoch=2) + 1):
            start = plan.consumed(done, ranks, epoch=2)
            lost = plan.unserved(others, start=start, epoch=2)
            rest = batches_of(plan, others, epoch=2, start=start)
            assert order[start : len(order) - lost] == joined(rest)
            assert lost < others
            assert 0 == len(rest) % others


def test_batches_are_the_same_for_every_number_of_ranks_but_at_the_end():
    """Where the batches divide by the ranks they are the same list; else the last ones are divided further."""
    plan = sized(lengths(3000), max_total=8000, seed=1)
    alone = batches_of(plan, 1)
    for ranks in (2, 3, 4, 7, 16):
        dealt = batches_of(plan, ranks)
        missing = -len(alone) % ranks
        assert joined(alone) == joined(dealt)
        assert len(alone) + missing == len(dealt)
        assert alone[: len(alone) - missing] == dealt[: len(alone) - missing]


def test_batches_are_of_like_size_and_nearly_full():
    """Padding wastes a few percent, and orders and batches differ from epoch to epoch."""
    sizes = lengths(20_000)
    plan = sized(sizes, max_total=16_384)
    batches = batches_of(plan, 1)
    padded = [len(batch) * int(sizes[batch].max()) for batch in batches]

    assert max(padded) <= 16_384
    assert sum(sizes) / sum(padded) > 0.93
    assert sum(padded) / (16_384 * len(batches)) > 0.93
    again = {frozenset(batch) for batch in batches} & {frozenset(batch) for batch in batches_of(plan, 1, epoch=1)}
    assert len(again) < 0.02 * len(batches)  # rare sizes fill one batch, which is the same in every epoch
    drift = np.corrcoef([sizes[batch].mean() for batch in batches], np.arange(len(batches)))[0, 1]
    assert abs(drift) < 4 / np.sqrt(len(batches))


def test_without_shuffling_the_largest_come_first():
    """Evaluation takes the same batches every time, and meets a lack of memory at once."""
    plan = sized(np.array([3, 9, 1, 9, 5]), max_total=18, shuffle=False, width=0)

    assert [[1, 3], [4, 0, 2]] == batches_of(plan, 1)
    assert [[1, 3], [4, 0, 2]] == batches_of(plan, 1, epoch=8)


def test_a_sample_that_is_too_large_is_named():
    """One sample larger than a whole batch is an error with its number and size, or a batch of its own."""
    sizes = np.array([3, 30, 4])

    with pytest.raises(PlanError, match=r"sample 1 has size 30.*10"):
        sized(sizes, max_total=10)
    assert [[1], [2, 0]] == batches_of(sized(sizes, max_total=10, oversize="alone", shuffle=False), 1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_total": 0}, "max_total"),
        ({"max_samples": -1}, "max_samples"),
        ({"width": float("nan")}, "nan"),
        ({"oversize": "drop"}, "drop"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    """Limits are positive."""
    with pytest.raises(ConfigError, match=reason):
        BatchBySize(**{"size": "x", "max_total": 10, **options})


def test_too_few_samples_for_the_ranks_are_refused():
    """Five batches of one sample each cannot be dealt to four ranks in equal steps."""
    plan = sized(np.full(5, 10), max_total=10)

    with pytest.raises(PlanError, match=r"5 samples in 5 batches.*4 ranks"):
        plan.check(4)
    assert (1, 1) == (plan.n_batches(4), plan.unserved(4))
    with pytest.raises(IndexError, match="batch 1"):
        plan.shares(0, [1], 0, 4)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_division_at_the_end_keeps_the_beginning(sizes, ranks):
    """Dividing adds edges and removes none, from the end on, until the count divides."""
    edges = np.cumsum([0, *sizes])
    divided = divide_last(edges, ranks)

    assert 0 == (len(divided) - 1) % ranks
    assert np.all(np.diff(divided) >= 1)
    if divided[-1] == edges[-1]:
        assert set(edges.tolist()) <= set(divided.tolist())
        assert len(divided) - len(edges) < ranks
    else:
        assert sum(sizes) < -(-len(sizes) // ranks) * ranks


def test_plans_follow_the_protocol_pickle_and_resume_by_cursor():
    """A pickled plan gives the same batches, and a cursor of other limits or sizes is refused."""
    plan = sized(lengths(100), max_total=4000)
    state = Cursor.of(plan, "data", epoch=1, samples=plan.consumed(2, 2, epoch=1)).to_state()
    other = sized(lengths(100), max_total=5000)

    assert isinstance(plan, EpochPlan)
    assert batches_of(plan, 2) == batches_of(pickle.loads(pickle.dumps(plan)), 2)
    assert Cursor.of(plan, "data", epoch=1, samples=state["samples"]) == Cursor.from_state(
        state, expected=Cursor.of(plan, "data")
    )
    with pytest.raises(ResumeError, match="order"):
        Cursor.from_state(state, expected=Cursor.of(other, "data"))


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (7, 7),
        (np.int16(7), 7),
        (torch.tensor(7), 7),
        (7.0, 7),
        ("four", 4),
        (b"four", 4),
        ([1, 2], 2),
        (np.zeros((3, 9)), 3),
        (torch.zeros(3, 9), 3),
    ],
)
def test_sizes_of_fields(value, size):
    """A number is its own size; anything else has the length of its first dimension."""
    assert size == size_of(value)


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ({"a": 1, "b": 2}, "a dictionary with 'a', 'b'"),
        ({1, 2}, "a set"),
        (None, "None"),
        (1.5, "1.5"),
        (torch.tensor(0.5), "a Tensor"),
    ],
)
def test_what_has_no_size_is_an_error(value, described):
    """The length of a dictionary is the number of its keys, which is not the size of a sample."""
    with pytest.raises(PlanError, match=rf"'x.pyd' is {described}, which has no size; give as size a function"):
        size_of(value, "'x.pyd'")


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=200),
    st.integers(60, 300),
    st.integers(0, 5),
    st.integers(1, 50),
)
def test_streams_lose_and_repeat_nothing(sizes, limit, most, window):
    """Every sample of a stream comes once, in batches within the limits."""
    samples = list(enumerate(sizes))
    batches = list(batch_by_size(samples, lambda s: s[1], max_total=limit, max_samples=most, window=window))

    assert samples == sorted(joined(batches))
    assert all(batch and len(batch) * max(size for _, size in batch) <= limit for batch in batches)
    assert not most or all(len(batch) <= most for batch in batches)


def test_streams_are_batched_by_like_size():
    """Padding wastes little, sizes do not drift, and only the last batches may be small."""
    sizes = lengths(20_000).tolist()
    batches = list(batch_by_size(sizes, int, max_total=16_384, window=2048))
    padded = [len(batch) * max(batch) for batch in batches]

    assert sum(sizes) / sum(padded) > 0.85
    assert sum(padded) / (16_384 * len(batches)) > 0.9


def test_streams_are_read_no_further_than_a_window():
    """The first batch comes after one window, whatever follows."""
    read = []
    stream = (read.append(number) or number for number in itertools.count(1))
    next(batch_by_size(stream, lambda _: 10, max_total=100, window=64))

    assert list(range(1, 65)) == read


def test_a_large_sample_of_a_stream_is_named_or_alone():
    """The number in the stream tells which sample is too large."""
    with pytest.raises(PlanError, match="sample 2 of the stream has size 50"):
        list(batch_by_size([1, 2, 50], int, max_total=10))
    assert [[50], [1, 2]] == list(batch_by_size([1, 2, 50], int, max_total=10, oversize="alone"))
