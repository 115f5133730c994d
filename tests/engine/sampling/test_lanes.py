"""Pieces and lanes: an order for data that are far away, which any number of nodes fetches once."""

import itertools
import json
import pickle
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.lanes import Line, listed
from bionemo.webdatamodule._engine.sampling.permutation import key
from bionemo.webdatamodule._engine.sampling.pieces import MOST_LANES, OPEN_BYTES, Pieces, choose
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule._engine.sampling.summary import fetched
from bionemo.webdatamodule.errors import ResumeError


def source_of(counts, *, sample_bytes=20_000, weight=None):
    """Return a source of shards with so many samples each."""
    sizes = tuple(int(count) * sample_bytes for count in counts)
    return Source(samples=int(sum(counts)), weight=weight, shards=tuple(map(int, counts)), sizes=sizes)


def plan_of(*sources, size, lanes=None, **options):
    """Return a plan in lanes; by default those that suit the data."""
    total = sum(sum(source.sizes) for source in sources)
    chosen, piece_bytes = choose(total, sum(source.samples for source in sources), size)
    options = {"piece_bytes": piece_bytes, **options}
    return Plan(sources=sources, global_batch_size=size, lanes=lanes or chosen, **options)


def batches_of(plan, ranks, *, epoch=0, start=0):
    """Return the samples of each global batch."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    by_rank = [plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)]
    return [np.concatenate(shares).tolist() for shares in zip(*by_rank, strict=True)]


def uneven(shards=200, seed=0):
    """Return samples of shards of very different lengths."""
    return np.random.default_rng(seed).integers(1, 999, shards)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5000)), min_size=1, max_size=20),
    st.integers(0, 3000),
    st.integers(1, 30),
    st.integers(0, 29),
)
def test_a_line_is_a_permutation(shards, piece_bytes, lanes, shift):
    """Every sample has one place, whatever the shards, their bytes, the pieces and the lanes."""
    samples = [count for count, _ in shards]
    if not sum(samples):
        return
    line = Line(Pieces.of(samples, [size for _, size in shards], piece_bytes), lanes, key("x"), shift=shift % lanes)
    places = [
        (lane, position)
        for lane in range(lanes)
        for position in range(sum(samples) // lanes + ((lane - shift) % lanes < sum(samples) % lanes))
    ]

    assert list(range(sum(samples))) == sorted(line(*np.array(places).T).tolist())


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 90), st.integers(0, 40), st.integers(1, 9))
def test_a_batch_is_listed_lane_by_lane(first, length, lanes, ranks):
    """Each place comes once, each lane is a run, and parts of the list are what they are in the whole."""
    whole = listed(first, first + length, 0, length, lanes).tolist()
    parts = [
        listed(first, first + length, *map(int, cut), lanes).tolist()
        for cut in itertools.pairwise(np.linspace(0, length, ranks + 1).astype(int))
    ]

    assert list(range(first, first + length)) == sorted(whole)
    assert whole == list(itertools.chain(*parts))
    runs = [lane for lane, _ in itertools.groupby(place % lanes if lanes else 0 for place in whole)]
    assert len(runs) == len(set(runs))


def test_an_epoch_takes_every_sample_once_in_another_order_each_time():
    """Uneven shards, a batch that is not a divisor of anything, shards without samples."""
    counts = [0, *uneven(30), 0, 7]
    plan = plan_of(source_of(counts), size=96)
    epochs = [list(itertools.chain(*batches_of(plan, 1, epoch=epoch))) for epoch in range(3)]

    assert [list(range(sum(counts)))] * 3 == list(map(sorted, epochs))
    assert 3 == len(set(map(tuple, epochs)))


def test_batches_are_the_same_for_every_number_of_ranks():
    """The same samples in the same order, so that only the number of ranks says which of them a rank reads."""
    plan = plan_of(source_of(uneven(20)), size=64)
    alone = batches_of(plan, 1, epoch=3)

    assert [alone] * 4 == [batches_of(plan, ranks, epoch=3) for ranks in (2, 3, 8, 32)]


@pytest.mark.parametrize("lanes", [5, 64])
def test_every_batch_boundary_goes_on_as_if_nothing_had_happened(lanes):
    """Also with virtual epochs, on other ranks, and with another global batch size afterwards."""
    plan = plan_of(source_of([50] * 8), size=24, lanes=lanes, n_samples=150)
    whole = batches_of(plan, 3, epoch=1)
    order = list(itertools.chain(*[sorted(batch) for batch in whole]))
    for done in range(len(whole)):
        start = plan.consumed(done, 3)
        assert whole[done:] == batches_of(plan, 2, epoch=1, start=start)
        other = Plan(**{**vars_of(plan), "global_batch_size": 10})
        rest = batches_of(other, 2, epoch=1, start=start)
        assert sorted(order[start:]) == sorted(itertools.chain(*rest))


def vars_of(plan):
    """Return the arguments of a plan."""
    names = "sources global_batch_size n_samples seed shuffle tail lanes piece_bytes"
    return {name: getattr(plan, name) for name in names.split()}


def test_virtual_epochs_go_on_where_the_last_one_stopped():
    """Five epochs of a fifth of the data are one pass."""
    plan = plan_of(source_of([50] * 10), size=20, n_samples=100)
    epochs = [list(itertools.chain(*batches_of(plan, 2, epoch=epoch))) for epoch in range(5)]

    assert list(range(500)) == sorted(itertools.chain(*epochs))


def test_mixtures_draw_each_source_in_proportion_and_to_its_end():
    """Each lane is a mixture; over an epoch counts are exact, and a source of its own length comes once."""
    sources = source_of([100] * 10, weight=3), source_of([111] * 3, weight=1)
    plan = plan_of(*sources, size=32, n_samples=1332, lanes=32, piece_bytes=200_000)
    batches = batches_of(plan, 4)
    drawn = [sample for batch in batches for sample in batch]
    longer = plan_of(*sources, size=32, n_samples=2664, lanes=32, piece_bytes=200_000)

    assert (999, 333) == plan.order.counts
    assert list(range(1000, 1333)) == sorted(sample for sample in drawn if sample >= 1000)
    assert 999 == len({sample for sample in drawn if sample < 1000})
    assert all(16 <= sum(sample < 1000 for sample in batch) < 32 for batch in batches)
    assert batches == batches_of(plan, 2)
    twice = np.bincount([s - 1000 for b in batches_of(longer, 1) for s in b if s >= 1000])
    assert (1, 3, 666) == (twice.min(), twice.max(), twice.sum())  # lanes differ by one sample and one draw


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_ranks_fetch_each_byte_once(nodes):
    """With 64 lanes, one, eight and 64 ranks together fetch the data, and no byte twice."""
    plan = plan_of(source_of([480] * 400), size=256, lanes=64, piece_bytes=2 << 20)
    everything = [
        (piece.shard, sample)
        for rank in range(nodes)
        for piece in plan.pieces(1, range(plan.n_batches(nodes)), [rank], nodes)
        for sample in range(piece.first, piece.stop)
    ]

    assert 400 * 480 == len(set(everything))
    assert len(everything) == pytest.approx(400 * 480, rel=0.005)


@pytest.mark.parametrize(("nodes", "size"), [(64, 512), (64, 2048), (1000, 8000), (1000, 16000)])
def test_large_clusters_fetch_the_data_once(nodes, size):
    """64 and 1,000 nodes of 8 ranks fetch at most 1.05 times the data."""
    plan = plan_of(source_of([500] * 3000, sample_bytes=1_000_000), size=size)

    assert fetched(plan, nodes, 8) <= 1.05


def test_pieces_come_in_the_order_of_need_and_serve_what_ranks_take():
    """Each piece once, by the first batch that needs it; pieces overlap nowhere and hold all samples of the shares."""
    counts = uneven(30)
    plan, begins = plan_of(source_of(counts), size=48), np.cumsum(counts) - counts
    steps, ranks = range(3, 40), [2, 3]
    pieces = plan.pieces(2, steps, ranks, 6)
    held = [begins[p.shard] + sample for p in pieces for sample in range(p.first, p.stop)]

    assert [piece.batch for piece in pieces] == sorted(piece.batch for piece in pieces)
    assert len(held) == len(set(held))
    assert all(0 <= piece.first < piece.stop <= counts[piece.shard] for piece in pieces)
    for rank in ranks:
        for step, share in zip(steps, plan.shares(2, steps, rank, 6), strict=True):
            here = {begins[p.shard] + s for p in pieces if p.batch <= step for s in range(p.first, p.stop)}
            assert set(share.tolist()) <= here


def test_without_lanes_a_piece_is_a_shard():
    """Evaluation reads in order, shard after shard."""
    plan = Plan(sources=(Source(samples=30, shards=(10, 0, 20)),), global_batch_size=5, shuffle=False)

    assert [(0, 0, 10, 0), (2, 0, 20, 2)] == plan.pieces(0, range(6), [0], 1)


def test_new_pieces_are_wanted_evenly_and_a_first_batch_needs_little():
    """Lanes cross borders of pieces at different steps, and begin with small pieces."""
    plan = plan_of(source_of([1000] * 200), size=64, lanes=64, piece_bytes=2_000_000)
    wanted = np.zeros(1000)
    for piece in plan.pieces(0, range(1000), [0], 1):
        wanted[piece.batch] += piece.stop - piece.first
    settled = wanted[200:].reshape(-1, 20).sum(axis=1)  # in twenty steps, which use 1,280 samples

    assert wanted[0] <= 64 * 100 / 16 + 64
    assert 900 <= settled.min()
    assert settled.max() <= 1700


def test_a_batch_draws_from_as_many_pieces_as_there_are_lanes():
    """From all over the data set: 64 samples of a batch lie in 64 pieces, of nearly as many shards."""
    counts = [1000] * 200
    plan = plan_of(source_of(counts), size=64, lanes=64, piece_bytes=2_000_000)
    for batch in batches_of(plan, 1)[:50]:
        assert len({sample // 100 for sample in batch}) >= 60
        assert len({sample // 1000 for sample in batch}) >= 40


@pytest.mark.parametrize("size", [1, 4, 7, 64, 256, 1000, 4096, 8000, 8192])
@pytest.mark.parametrize("total", [3_000, 758_000_000, 10**12, 10**14])
def test_lanes_suit_batch_and_data(size, total):
    """As many lanes as samples in a batch, a multiple or a divisor; bounded memory, several pieces to a lane."""
    n_samples = max(40, total // 100_000)
    lanes, piece_bytes = choose(total, n_samples, size)

    assert 0 in (lanes % size, size % lanes)
    assert 1 <= lanes <= MOST_LANES
    assert lanes * piece_bytes <= max(OPEN_BYTES, 64 * total // 10**5)
    assert total / piece_bytes / lanes >= 3.9


def test_a_run_goes_on_in_its_lanes_with_another_batch_size():
    """The lanes of a cursor are those of the batch size that it was made with."""
    source = source_of(uneven(50))
    plan, other = plan_of(source, size=64), plan_of(source, size=48)
    state = Cursor.of(plan, "data", epoch=1, samples=plan.consumed(5, 1)).to_state()
    cursor = Cursor.from_state(json.loads(json.dumps(state)))
    continued = other.continued(cursor.order)
    cursor.check(Cursor.of(continued, "data"))
    rest = list(itertools.chain(*batches_of(continued, 2, epoch=1, start=cursor.samples)))
    again = Cursor.of(continued, "data", epoch=1, samples=cursor.samples + 48)

    assert plan.lanes != other.lanes
    assert 48 == continued.global_batch_size
    assert sorted(itertools.chain(*batches_of(plan, 1, epoch=1)[5:])) == sorted(rest)
    assert plan.lanes == other.continued(again.order).lanes


def test_a_run_with_windows_of_shards_is_refused_by_name():
    """Version 0.1 shuffled windows of 16 remote shards; its place in an epoch means nothing here."""
    source = Source(samples=120, shards=(10,) * 12, sizes=(1000,) * 12)
    plan = Plan(sources=(source,), global_batch_size=10, lanes=10, piece_bytes=300)

    with pytest.raises(ResumeError, match=r"windows of shards.*resume='next_epoch'"):
        plan.continued(plan.order.windowed(16))


def test_state_and_steps_stay_small_with_a_hundred_thousand_shards():
    """10^5 shards of 10^9 samples: setup, a step at any place, and a cursor."""
    counts = [10_000] * 100_000
    tracemalloc.start()
    plan = plan_of(source_of(counts, sample_bytes=1000), size=4096)
    share = plan.shares(3, [plan.n_batches(512) // 2], 511, 512)[0]
    plan.pieces(3, range(100), range(8), 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (8, 8) == (len(share), len(set(share.tolist())))
    assert peak < 200e6
    assert len(json.dumps(Cursor.of(plan, "f" * 64, epoch=3, samples=10**8).to_state())) < 300
    assert len(pickle.dumps(plan)) < 2_000_000
