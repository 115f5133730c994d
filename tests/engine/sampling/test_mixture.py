import itertools
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bionemo.webdatamodule._engine.sampling.mixture import apportion, draws
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule.errors import PlanError


def mixture(*pairs, size=8, **options):
    """Return a plan over sources given as (samples, weight)."""
    sources = tuple(Source(samples=samples, weight=weight) for samples, weight in pairs)
    return Plan(sources=sources, global_batch_size=size, **options)


def epoch_of(plan, epoch=0, ranks=1, start=0):
    """Return the samples of an epoch in the order of batches and ranks."""
    steps = range(plan.n_batches(ranks, start=start))
    shares = zip(*(plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)), strict=True)
    return [sample for share in itertools.chain(*shares) for sample in share.tolist()]


@pytest.mark.parametrize(
    ("total", "weights", "counts"),
    [
        (10, [0.7, 0.3], (7, 3)),
        (10, [1, 1, 1], (4, 3, 3)),
        (7, [3, 2, 1], (4, 2, 1)),
        (100, [1e-2, 1e6], None),
        (10**12, [1, 2], (333333333333, 666666666667)),
        (5, [5], (5,)),
    ],
)
def test_counts_follow_the_largest_remainders(total, weights, counts):
    """Each source gives its quota rounded down, and one more where the remainder is largest; none gives nothing."""
    if counts is None:
        with pytest.raises(PlanError, match=r"source 0.*0\.01.*100"):
            apportion(total, weights)
    else:
        assert counts == apportion(total, weights)


@settings(deadline=None)
@given(total=st.integers(1000, 10**12), weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_counts_are_within_one_of_the_quota(total, weights):
    """The counts sum to the whole and differ from the exact proportion by less than one."""
    counts = apportion(total, weights)

    assert total == sum(counts)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + total * 1e-12


@pytest.mark.parametrize(
    "counts", [(1, 1), (700, 300), (1, 999), (300, 300, 400), (5, 1, 2000, 51, 1), (10**12, 10**9)]
)
def test_draws_are_numbered_in_order(counts):
    """Every stretch of an epoch numbers each source's draws one by one, in the order of the places."""
    total = sum(counts)
    if total < 10_000:
        sources, numbers = draws(counts, np.arange(total), "0/0")
        by_source = [numbers[sources == source].tolist() for source in range(len(counts))]
        assert [list(range(count)) for count in counts] == by_source
    for first in (0, total // 3, max(0, total - 600)):
        places = np.arange(first, min(total, first + 600))
        sources, numbers = draws(counts, places, "0/0")
        for source, count in enumerate(counts):
            drawn = numbers[sources == source]
            assert [1] * (len(drawn) - 1) == np.diff(drawn).tolist()
            if len(drawn):
                assert abs(drawn[0] - first * count / total) <= 256 * count / total + len(counts)
            assert drawn.max(initial=0) < count


def test_any_stretch_holds_the_sources_in_proportion():
    """256 places in a row have each source's part, give or take a few, and where they stand is shuffled."""
    sources, _ = draws((6000, 3000, 1000), np.arange(10_000), "0/0")
    parts = [np.bincount(sources[first : first + 256], minlength=3) for first in range(0, 9_728, 256)]

    assert max(abs(part - 256 * np.array([0.6, 0.3, 0.1])).max() for part in parts) <= 2
    assert 30 < len({tuple(sources[first : first + 16]) for first in range(0, 9_728, 256)})
    assert sources.tolist() != draws((6000, 3000, 1000), np.arange(10_000), "0/1")[0].tolist()


def test_every_epoch_has_the_promised_counts():
    """Sources of 100, 40 and 7 samples with weights 5, 3 and 2 give 500, 300 and 200 of 1000, every time."""
    plan = mixture((100, 5), (40, 3), (7, 2), n_samples=1000)
    owners = [Counter(np.searchsorted([100, 140], epoch_of(plan, epoch), side="right").tolist()) for epoch in range(5)]

    assert [{0: 500, 1: 300, 2: 200}] * 5 == owners


def test_a_source_is_exhausted_before_anything_of_it_comes_again():
    """Within a source, samples come in passes, each a new permutation, across the ends of epochs."""
    plan = mixture((100, 0.5), (40, 0.3), (7, 0.2), n_samples=90)
    stream = np.concatenate([epoch_of(plan, epoch) for epoch in range(30)])
    for low, high in ((0, 100), (100, 140), (140, 147)):
        drawn = stream[(stream >= low) & (stream < high)]
        whole = len(drawn) // (high - low)
        passes = drawn[: whole * (high - low)].reshape(whole, high - low)

        assert [list(range(low, high))] * whole == np.sort(passes, axis=1).tolist()
        assert whole == len({tuple(one) for one in passes.tolist()})


def test_mixtures_are_the_same_for_all_ranks_and_resume_anywhere():
    """Neither ranks nor where the epoch is entered change the order, also with another batch size."""
    plan = mixture((50, 2), (31, 1), n_samples=100, seed=9)
    whole = epoch_of(plan, 3)

    assert [whole] * 3 == [epoch_of(plan, 3, ranks) for ranks in (2, 3, 4)]
    for done in range(plan.n_batches(2) + 1):
        start = plan.consumed(done, 2)
        for size, ranks in ((8, 4), (10, 1), (3, 1), (25, 5)):
            other = mixture((50, 2), (31, 1), n_samples=100, seed=9, size=size)
            assert len(whole) - start - other.unserved(ranks, start=start) == len(epoch_of(other, 3, ranks, start))
            assert epoch_of(other, 3, ranks, start) == whole[start : len(whole) - other.unserved(ranks, start=start)]


def test_mixtures_fill_their_last_batch_from_the_next_epoch():
    """With tail="fill" the places behind an epoch are the first of the next one."""
    plan = mixture((50, 2), (31, 1), n_samples=20, tail="fill")

    assert epoch_of(plan, 1)[:4] == epoch_of(plan, 0)[20:]


def test_by_default_an_epoch_is_as_long_as_all_sources_and_evaluation_reads_each_once():
    """Weights decide what training sees; evaluation reads every sample once, in order."""
    assert 81 == mixture((50, 2), (31, 1)).n_samples
    assert list(range(81)) == epoch_of(mixture((50, 2), (31, 1), shuffle=False), 4)


def test_one_weighted_source_is_an_ordinary_plan():
    """A mixture of one is not a mixture."""
    ordinary = Plan(sources=(Source(samples=50),), global_batch_size=8, n_samples=20)

    assert epoch_of(ordinary, 7) == epoch_of(mixture((50, 3.5), n_samples=20), 7)


def test_one_weighted_source_may_repeat_as_several_may():
    """An epoch that is longer than it takes every sample again."""
    drawn = epoch_of(mixture((50, 3.5), n_samples=120), 0)

    assert {2, 3} == {drawn.count(sample) for sample in range(50)}
    assert list(range(50)) == sorted(drawn[:50])


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (((10, 1), (10, None)), "1 of 2"),
        (((10, 1), (0, 1)), "source 1 has 0"),
        (((10, 1), (10, 0)), "source 1 has the weight 0"),
        (((10, 1), (10, -1)), "source 1 has the weight -1"),
        (((10, 1), (10, float("nan"))), "source 1 has the weight nan"),
        (((10, 1), (10, float("inf"))), "source 1 has the weight inf"),
    ],
)
def test_impossible_mixtures_are_refused_by_source(pairs, reason):
    """Weights must be positive numbers and sources must have samples."""
    with pytest.raises(PlanError, match=reason):
        mixture(*pairs)
