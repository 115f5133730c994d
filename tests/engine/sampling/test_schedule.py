"""Mixtures that change while a run trains: shares over time, exact places, any number of ranks."""

import itertools
import pickle

import numpy as np
import pytest

from bionemo.webdatamodule._engine.config import sources
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule._engine.sampling.schedule import block_of, scheduled_draws
from bionemo.webdatamodule.errors import ConfigError, PlanError

POINTS = ((0, (7.0, 3.0)), (4_000, (7.0, 3.0)), (12_000, (0.0, 1.0)))
"""70 % of the first source up to place 4,000, then less and less, none from place 12,000 on."""


def plan_of(*, points=POINTS, size=16, **options):
    """Return a plan over 500 and 300 samples in shards of 50."""
    found = tuple(Source(samples=n, shards=(50,) * (n // 50), sizes=(5000,) * (n // 50)) for n in (500, 300))
    return Plan(**{"sources": found, "global_batch_size": size, "schedule": points, "n_samples": 1000, **options})


def batches_of(plan, ranks, *, epoch=0, start=0):
    """Return the samples of each global batch."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    by_rank = [plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)]
    return [np.concatenate(shares).tolist() for shares in zip(*by_rank, strict=True)]


def epoch_of(plan, epoch):
    """Return the samples of an epoch."""
    return list(itertools.chain(*batches_of(plan, 1, epoch=epoch)))


@pytest.mark.parametrize("options", [{}, {"lanes": 8, "piece_bytes": 1000}], ids=["shuffled", "lanes"])
def test_shares_follow_the_schedule(options):
    """Constant, then linear, then constant for ever; within a percent in an epoch of 1,000."""
    first = [sum(sample < 500 for sample in epoch_of(plan_of(**options), epoch)) for epoch in range(16)]
    middles = np.interp(np.arange(500, 16_000, 1000), [4_000, 12_000], [700, 0])

    assert np.abs(np.array(first) - middles).max() <= 10  # proportions hold in blocks of 256 places
    assert 700 == pytest.approx(first[0], abs=2)
    assert [0, 0, 0] == first[13:]


def test_a_source_is_taken_to_its_end_before_anything_comes_again():
    """Over epochs and changes, the draws of each source are passes of it."""
    drawn = [sample for epoch in range(6) for sample in epoch_of(plan_of(), epoch)]
    for low, high in ((0, 500), (500, 800)):
        mine = [sample for sample in drawn if low <= sample < high]
        for begin in range(0, len(mine) - (high - low), high - low):
            assert list(range(low, high)) == sorted(mine[begin : begin + high - low])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"lanes": 8, "piece_bytes": 1000}], ids=["shuffled", "lanes"])
def test_any_boundary_goes_on_exactly_on_any_number_of_ranks(ranks, options):
    """The same batches on all ranks, and from every fifth step the rest that was to come, also from a pickle."""
    plan = plan_of(**options)
    whole = batches_of(plan, ranks, epoch=5)

    assert whole == batches_of(pickle.loads(pickle.dumps(plan)), 1, epoch=5)
    for done in range(0, len(whole), 5):
        start = plan.consumed(done, ranks)
        assert whole[done:] == batches_of(plan, 3, epoch=5, start=start)


def test_a_long_schedule_is_a_small_table():
    """Places far behind the beginning are found at once, and draws are numbered without gaps."""
    points = ((0, (1.0, 1.0)), (10**9, (1.0, 3.0)))
    far = np.arange(2 * 10**9, 2 * 10**9 + 4096)
    found, numbers = scheduled_draws(points, 1, 0, far, 0)

    assert 3072 == pytest.approx((found == 1).sum(), abs=20)
    for source in (0, 1):
        mine = np.sort(numbers[found == source])
        assert list(range(int(mine[0]), int(mine[0]) + len(mine))) == mine.tolist()


def test_the_schedule_is_part_of_the_order():
    """A cursor of another schedule is refused; evaluation has none."""
    other = plan_of(points=((0, (1.0, 1.0)), (10, (1.0, 2.0))))

    assert plan_of().digest != other.digest
    assert plan_of(shuffle=False, n_samples=800).digest == plan_of(points=(), shuffle=False, n_samples=800).digest
    assert list(range(800)) == epoch_of(plan_of(shuffle=False, n_samples=800), 3)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (((1, (1.0, 1.0)),), "begins at step 0"),
        (((0, (1.0, 1.0)), (0, (1.0, 2.0))), "begins at step 0, and its steps rise"),
        (((0, (1.0,)),), "1 weight for 2 sources"),
        (((0, (0.0, 0.0)),), "not all 0"),
        (((0, (1.0, float("nan"))),), "nan"),
    ],
)
def test_impossible_schedules_are_refused(points, reason):
    """A schedule begins at 0, rises, and has proportions."""
    with pytest.raises(PlanError, match=reason):
        plan_of(points=points)


def test_a_mixture_that_changes_is_given_by_step():
    """Each step names all directories; the keys may be text, as configuration files have them."""
    found = sources("train", {"100": [("a", 1), ("b", 3)], 0: [("a", 2), ("b", 0)]})

    assert [("a", 2.0, ((0, 2.0), (100, 1.0))), ("b", 0.0, ((0, 0.0), (100, 3.0)))] == [
        (source.directory, source.weight, source.schedule) for source in found
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({5: [("a", 1)]}, "begins at step 0, not 5"),
        ({}, "names no directory"),
        ({0: [("a", 1)], 9: [("b", 1)]}, "other directories at step 9.*with weight 0"),
        ({0: [("a", -1), ("b", 2)]}, "weights at step 0"),
        ({0: [("a", 0), ("b", 0)]}, "weights at step 0"),
        ({0: "a"}, "for a mixture that changes"),
        ({"train": [("a", 1)]}, "for a mixture that changes"),
    ],
)
def test_impossible_arguments_are_refused_with_the_step(given, reason):
    """By what is wrong with them."""
    with pytest.raises(ConfigError, match=reason):
        sources("train", given)


@pytest.mark.parametrize(("steps", "size"), [(4, 8), (8, 4), (2, 64), (20, 1)])
def test_a_short_change_is_followed_too(steps, size):
    """From one source alone to the other alone within some small batches, as the weights say, to within two samples."""
    plan = plan_of(points=((0, (1.0, 0.0)), (steps * size, (0.0, 1.0))), size=size)
    found = np.array([sum(sample < 500 for sample in batch) for batch in batches_of(plan, 1)])
    wanted = np.interp(np.arange(len(found)) * size + size / 2, [0, steps * size], [size, 0])

    assert np.abs(found - wanted).max() <= 2
    assert 0 == found[steps + 1 :].sum()


def test_lanes_change_in_blocks_of_their_own():
    """They are as short as the change needs, down to eight places of each lane."""
    slow, fast = ((0, (1.0, 0.0)), (100_000, (0.0, 1.0))), ((0, (1.0, 0.0)), (2_000, (0.0, 1.0)))

    assert [(256, 32 * 8), (250, 31 * 8)] == [(block_of(points, 1), block_of(points, 8)) for points in (slow, fast)]
    assert [1, 8 * 8] == [block_of(((0, (1.0, 0.0)), (4, (0.0, 1.0))), lanes) for lanes in (1, 8)]


def test_what_is_drawn_from_an_empty_source_is_refused():
    """A weight of 0 everywhere is none."""
    found = (Source(samples=0), Source(samples=10))
    with pytest.raises(PlanError, match="source 0 has 0 samples"):
        Plan(sources=found, global_batch_size=2, schedule=((0, (0.0, 1.0)), (4, (1.0, 0.0))))
    alone = Plan(sources=found, global_batch_size=2, schedule=((0, (0.0, 1.0)), (4, (0.0, 1.0))))
    assert list(range(10)) == sorted(epoch_of(alone, 0))
