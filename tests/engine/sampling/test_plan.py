import itertools
import json
import pickle
import random
import subprocess
import sys
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bionemo.webdatamodule._engine.sampling.cursor import VERSION, Cursor
from bionemo.webdatamodule._engine.sampling.partition import chunks, n_batches, part
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule.errors import PlanError, ResumeError
from bionemo.webdatamodule.planning import EpochPlan


def plan_of(n, size, **options):
    """Return a plan over one source of n samples."""
    return Plan(sources=(Source(samples=n),), global_batch_size=size, **options)


def batches_of(plan, ranks, *, epoch=0, start=0):
    """Return the shares of all ranks, a list of lists: one for each global batch after the start."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    by_rank = [plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)]
    return [[share.tolist() for share in shares] for shares in zip(*by_rank, strict=True)]


def joined(batches):
    """Return the samples of batches in the order of batches and ranks."""
    return [sample for shares in batches for share in shares for sample in share]


def global_batches(plan, ranks, *, epoch=0, start=0):
    """Return the samples of each global batch."""
    return [joined([shares]) for shares in batches_of(plan, ranks, epoch=epoch, start=start)]


def epoch_of(plan, epoch=0):
    """Return the samples of an epoch in order."""
    return joined(batches_of(plan, 1, epoch=epoch))


def test_ten_thousand_shapes_lose_and_repeat_nothing():
    """For every shape that is served, ranks take equal steps, none is empty, and every sample comes as promised."""
    rng = random.Random(1)
    served = refused = 0
    for _ in range(12_000):
        n, size, ranks = rng.randint(1, 90), rng.randint(1, 24), rng.randint(1, 9)
        tail = rng.choice(["share", "share", "drop", "fill"])
        plan = plan_of(n, size, tail=tail, shuffle=False)
        try:
            plan.check(ranks)
        except PlanError:
            refused += 1
            assert size < ranks or n < ranks or (tail == "drop" and n < size)
            continue
        served += 1
        batches = batches_of(plan, ranks)
        samples, lengths = joined(batches), [sum(map(len, shares)) for shares in batches]
        expected = {"share": n, "drop": n // size * size, "fill": -(-n // size) * size}[tail]
        assert [place % n for place in range(expected)] == samples
        assert all(max(map(len, shares)) - min(map(len, shares)) <= 1 for shares in batches)
        assert min(map(len, itertools.chain(*batches))) >= 1
        assert [size] * len(lengths[:-2]) == lengths[:-2]
        assert max(lengths) <= (size if tail != "share" or size >= 2 * ranks else 2 * size - 1)
        assert max(0, n - expected) == plan.unserved(ranks)
    assert served > 6_000
    assert refused > 1_000


def test_global_batches_are_the_same_for_every_number_of_ranks():
    """With at least two samples a rank and batch, neither the ranks nor how they are asked change a global batch."""
    rng = random.Random(2)
    for number in range(600):
        n, size = rng.randint(1, 120), rng.randint(2, 20)
        plan = plan_of(n, size, tail=rng.choice(["share", "drop", "fill"]), seed=number)
        alone = global_batches(plan, 1, epoch=number)
        for ranks in range(2, min(n, size // 2) + 1):
            assert alone == global_batches(plan, ranks, epoch=number)


def test_every_batch_boundary_goes_on_as_if_nothing_had_happened():
    """Planning anew from any boundary gives the batches that were to come, from any boundary of those too."""
    rng = random.Random(3)
    for number in range(800):
        n, size, ranks = rng.randint(1, 90), rng.randint(1, 16), rng.randint(1, 6)
        plan = plan_of(n, size, tail=rng.choice(["share", "drop", "fill"]), seed=number)
        if size < ranks or n < ranks:
            continue
        whole = batches_of(plan, ranks)
        for done in range(len(whole) + 1):
            start = plan.consumed(done, ranks)
            assert whole[done:] == batches_of(plan, ranks, start=start)
            if done < len(whole):
                assert plan.consumed(done + 1, ranks) == plan.consumed(1, ranks, start=start)
        if whole:
            assert n == plan.consumed(len(whole), ranks)


def test_every_place_is_restored_to_every_other_topology():
    """The unseen rest of an epoch comes once each after any change of ranks and batch size, and after a second one."""
    plans = {size: plan_of(37, size, seed=5) for size in (4, 5, 8, 12, 37, 50)}
    order = epoch_of(plans[4], 3)
    topologies = [(size, ranks) for size in plans for ranks in (1, 2, 3, 4)]
    checked = 0
    for (size, ranks), (new_size, new_ranks) in itertools.product(topologies, topologies):
        for done in range(plans[size].n_batches(ranks) + 1):
            start = plans[size].consumed(done, ranks)
            rest = joined(batches_of(plans[new_size], new_ranks, epoch=3, start=start))
            lost = plans[new_size].unserved(new_ranks, start=start)
            assert order[start : len(order) - lost] == rest
            assert lost == 0 or (lost < new_ranks and not rest)
            checked += 1
    assert checked > 3_000


def test_changes_in_a_row_cover_the_epoch():
    """A run that changes ranks and batch size again and again still sees every sample once."""
    rng = random.Random(4)
    for seed in range(300):
        seen, start = [], 0
        while start < 101:
            size = rng.randint(4, 30)
            ranks = rng.randint(1, size // 2)
            plan = plan_of(101, size, seed=seed)
            steps = rng.randint(1, 4)
            batches = batches_of(plan, ranks, start=start)[:steps]
            if not batches:
                break
            seen += joined(batches)
            start = plan.consumed(len(batches), ranks, start=start)
        assert epoch_of(plan_of(101, 1, seed=seed))[: len(seen)] == seen
        assert len(seen) > 101 - 15


@settings(deadline=None)
@given(
    n=st.integers(1, 10**12),
    size=st.integers(1, 10**6),
    ranks=st.integers(1, 5000),
    place=st.floats(0, 1),
    tail=st.sampled_from(["share", "drop", "fill"]),
)
def test_batches_of_any_length_adjoin(n, size, ranks, place, tail):
    """At any size batches follow each other without gap, and a rank's share is a near-equal part of each."""
    plan = plan_of(n, size, tail=tail, shuffle=False)
    if size < ranks:
        with pytest.raises(PlanError, match=str(ranks)):
            plan.n_batches(ranks)
        return
    count = plan.n_batches(ranks)
    assert n_batches(n, size, ranks, tail) == count
    if not count:
        return
    batch = min(count - 1, int(place * count))
    first, stop = plan.batch_bounds(batch, ranks)
    assert stop - first >= ranks
    assert first == (plan.batch_bounds(batch - 1, ranks)[1] if batch else 0)
    assert plan.consumed(batch, ranks) == first
    edges = [part(stop - first, rank, ranks) for rank in range(ranks)]
    assert [0, *(high for _, high in edges)] == [*(low for low, _ in edges), stop - first]
    assert {high - low for low, high in edges} <= {(stop - first) // ranks, (stop - first) // ranks + 1}


def test_the_last_two_batches_share_what_is_left():
    """10 samples in batches of 4 are 4, 3 and 3; one leftover makes 3 and 2, not 4 and 1."""
    assert [4, 3, 3] == [len(batch) for batch in global_batches(plan_of(10, 4), 2)]
    assert [4, 3, 2] == [len(batch) for batch in global_batches(plan_of(9, 4), 2)]
    assert [3] == [len(batch) for batch in global_batches(plan_of(3, 4), 2)]


def test_a_leftover_joins_the_last_batch_where_ranks_have_one_sample_each():
    """With fewer than two samples a rank and batch, sharing could leave a rank without any."""
    assert [3, 3, 5] == [len(batch) for batch in global_batches(plan_of(11, 3), 2)]
    assert [2, 2, 3] == [len(batch) for batch in global_batches(plan_of(7, 2), 2)]


def test_shares_differ_by_one_where_ranks_do_not_divide_the_batch():
    """A global batch of 7 gives three ranks 3, 2 and 2 samples, every time."""
    assert [[3, 2, 2]] * 4 == [[len(share) for share in shares] for shares in batches_of(plan_of(28, 7), 3)]


def test_filled_batches_take_the_first_samples_of_the_next_epoch():
    """With tail="fill" all batches have one size, and what fills the last one comes again in the next epoch."""
    plan = plan_of(10, 4, tail="fill")
    batches = global_batches(plan, 2)

    assert [4, 4, 4] == [len(batch) for batch in batches]
    assert epoch_of(plan_of(10, 10), 0) == joined([batches])[:10]
    assert epoch_of(plan_of(10, 10), 1)[:2] == batches[-1][2:]
    assert [25] == [len(batch) for batch in global_batches(plan_of(10, 25, tail="fill"), 2)]


def test_a_dropped_tail_is_counted_and_used_up():
    """With tail="drop" the epoch ends after the last full batch, and other samples are dropped in the next epoch."""
    plan = plan_of(11, 4, tail="drop")

    assert 3 == plan.unserved(2)
    assert [4, 8 + 3] == [plan.consumed(batches, 2) for batches in (1, 2)]
    assert 1 < len({frozenset(range(11)) - frozenset(joined(batches_of(plan, 2, epoch=epoch))) for epoch in range(9)})


def test_orders_differ_between_epochs_and_seeds_and_repeat():
    """A new order in every epoch, the same order on every rerun."""
    orders = [epoch_of(plan_of(50, 8, seed=seed), epoch) for seed in (0, 1, -1, 2**70) for epoch in range(5)]

    assert 20 == len({tuple(order) for order in orders})
    assert [list(range(50))] * 20 == [sorted(order) for order in orders]
    assert orders[7] == epoch_of(plan_of(50, 8, seed=1), 2)


def test_virtual_epochs_see_all_samples_before_any_comes_again():
    """Epochs of 7 out of 24 samples go on where the last one stopped, through one pass after the other."""
    plan = plan_of(24, 4, n_samples=7)
    stream = list(itertools.chain(*(epoch_of(plan, epoch) for epoch in range(24))))
    passes = [stream[first : first + 24] for first in range(0, len(stream), 24)]

    assert [list(range(24))] * 7 == [sorted(one) for one in passes]
    assert 7 == len({tuple(one) for one in passes})
    assert passes == [epoch_of(plan_of(24, 24), number) for number in range(7)]


def test_evaluation_reads_the_first_samples_in_order():
    """Without shuffling every epoch is the same: ids in order, the first n_samples of them."""
    plan = plan_of(24, 4, n_samples=10, shuffle=False)

    assert [list(range(10))] * 3 == [epoch_of(plan, epoch) for epoch in range(3)]


def test_sources_without_weights_are_one_data_set():
    """Several directories of a split count through, and are shuffled together."""
    plan = Plan(sources=(Source(samples=30), Source(samples=0), Source(samples=20)), global_batch_size=10)

    assert epoch_of(plan_of(50, 10)) == epoch_of(plan)


def test_shards_side_by_side_are_planned_like_a_full_shuffle():
    """With lanes of whole shards, an epoch is another permutation, whose batches come from a few shards each."""
    plan = Plan(sources=(Source(samples=120, shards=(10,) * 12),), global_batch_size=10, lanes=2, n_samples=60)
    batches = [batch for epoch in range(4) for batch in global_batches(plan, 2, epoch=epoch)]

    assert [list(range(120))] * 2 == [sorted(itertools.chain(*half)) for half in (batches[:12], batches[12:])]
    assert all(2 <= len({sample // 10 for sample in batch}) <= 4 for batch in batches)
    assert batches[:12] != batches[12:]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"n": 10, "size": 4, "n_samples": 11}, "11.* 10"),
        ({"n": 10, "size": 4, "n_samples": 11, "shuffle": False}, "11.* 10"),
        ({"n": 0, "size": 4}, "no samples"),
        ({"n": 10, "size": 0}, "global_batch_size.*0"),
        ({"n": 10, "size": 4, "tail": "pad"}, "pad"),
        ({"n": 10, "size": 4, "lanes": 2}, "0 shards"),
        ({"n": 10, "size": 4, "lanes": -1}, "-1"),
    ],
)
def test_impossible_epochs_are_refused_with_the_numbers(arguments, numbers):
    """A plan that cannot be made says which number is wrong."""
    with pytest.raises(PlanError, match=numbers):
        plan_of(**arguments)


@pytest.mark.parametrize(
    ("n", "size", "ranks", "tail", "numbers"),
    [
        (3, 8, 4, "share", "3 samples.*4 ranks"),
        (100, 3, 4, "share", "3 samples.*4 ranks"),
        (7, 8, 4, "drop", "7 samples.*8"),
        (3, 8, 4, "fill", "3 samples.*4 ranks"),
        (3, 8, 0, "share", "0 ranks"),
    ],
)
def test_too_few_samples_for_the_ranks_are_refused_on_every_rank(n, size, ranks, tail, numbers):
    """What would leave a rank without samples is an error before the run, the same wherever it is asked."""
    with pytest.raises(PlanError, match=numbers):
        plan_of(n, size, tail=tail).check(ranks)


def test_batches_that_are_not_there_are_refused():
    """Asking beyond the epoch is an error, not an empty share."""
    for batch in (-1, 3):
        with pytest.raises(IndexError, match=f"batch {batch}"):
            plan_of(10, 4).shares(0, [batch], 0, 1)


def test_a_rest_with_fewer_samples_than_ranks_ends_the_epoch_and_is_counted():
    """After a change of ranks near the end there may be too few for all: no batch, and the number is known."""
    plan = plan_of(10, 4, tail="share")

    assert 0 == plan.n_batches(4, start=7)
    assert 3 == plan.unserved(4, start=7)
    assert 7 == plan.consumed(0, 4, start=7)


def test_plans_are_constant_in_size_and_pickle():
    """A plan over 10**12 samples takes no memory, gives shares anywhere, and is the same after pickling."""
    tracemalloc.start()
    plan = plan_of(10**12, 512, seed=3)
    share = plan.shares(5, [plan.n_batches(8) - 1], 7, 8)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    again = pickle.loads(pickle.dumps(plan))

    assert peak < 1_000_000
    assert share.tolist() == again.shares(5, [plan.n_batches(8) - 1], 7, 8)[0].tolist()
    assert plan == again
    assert isinstance(plan, EpochPlan)


def test_the_order_is_the_same_in_every_process_and_needs_no_torch():
    """Neither hash seed, time, process nor WDS_ variables come in, and the plan imports without torch."""
    script = (
        "import sys; from bionemo.webdatamodule._engine.sampling.plan import Plan, Source; "
        "sources = Source(samples=9000, weight=3), Source(samples=100, weight=1); "
        "p = Plan(sources=sources, global_batch_size=8, seed=7); "
        "assert 'torch' not in sys.modules; print(p.shares(2, [100], 1, 2)[0].tolist())"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "WDS_SEED": seed, "RANK": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    ]

    assert ["[3330, 1994, 7606, 5065]"] * 2 == printed


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_workers_asked_in_turn_bring_all_batches_in_order(workers, length):
    """Round robin over the workers' chunks gives the batches in order."""
    for batches in (0, 1, 4, 17, 30):
        taken = [list(chunks(batches, worker, workers, length=length)) for worker in range(max(1, workers))]
        in_turn = [run for turn in itertools.zip_longest(*taken) for run in turn if run is not None]
        assert list(range(batches)) == list(itertools.chain(*in_turn))


def test_cursors_are_small_and_plain():
    """The state is JSON of less than 1 kB and comes back equal."""
    cursor = Cursor.of(plan_of(10**12, 512, seed=2**64), "f" * 64, epoch=10**6, samples=np.int64(10**12))
    text = json.dumps(cursor.to_state())

    assert len(text) < 1000
    assert cursor == Cursor.from_state(json.loads(text))
    assert {int, str} == {type(value) for value in cursor.to_state().values()}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Cursor.of(plan_of(37, 4, seed=1), "data"), "seed=0.*seed=0 to resume"),
        (Cursor.of(plan_of(37, 4, n_samples=36), "data"), "n_samples=37.* 36"),
        (Cursor.of(plan_of(37, 4), "other"), "other data.*data.*other"),
        (Cursor.of(plan_of(37, 4, shuffle=False), "data"), "order"),
        (
            Cursor.of(
                Plan(sources=(Source(samples=20, weight=1), Source(samples=17, weight=2)), global_batch_size=4), "data"
            ),
            "order",
        ),
    ],
)
def test_a_cursor_of_something_else_is_refused_by_name(other, reason):
    """Going on with another seed, length, order or other data would repeat and lose samples."""
    state = Cursor.of(plan_of(37, 4), "data", samples=8).to_state()

    with pytest.raises(ResumeError, match=reason):
        Cursor.from_state(state, expected=other)


def test_a_cursor_of_another_batch_size_or_tail_is_accepted():
    """How the rest of the epoch is cut is free to change."""
    state = Cursor.of(plan_of(37, 4), "data", epoch=2, samples=8).to_state()
    now = Cursor.of(plan_of(37, 6, tail="drop"), "data")

    assert (2, 8) == (Cursor.from_state(state, expected=now).epoch, Cursor.from_state(state, expected=now).samples)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": VERSION + 1}, "upgrade"),
        ({"version": 0}, "nowhere"),
        ({"epoch": -1}, "nowhere"),
        ({"samples": 38}, "nowhere"),
        ({"samples": 1.0}, "samples"),
        ({"samples": True}, "samples"),
        ({"digest": 5}, "digest"),
        ({"seed": None}, "seed"),
    ],
)
def test_damaged_states_are_refused_by_name(change, reason):
    """A state that is newer, incomplete or nonsense names what is wrong with it."""
    with pytest.raises(ResumeError, match=reason):
        Cursor.from_state({**Cursor.of(plan_of(37, 4), "data").to_state(), **change})


def test_states_of_other_loaders_are_refused():
    """What is no state of ours at all says so, naming what is missing."""
    with pytest.raises(ResumeError, match="'epoch'"):
        Cursor.from_state({"version": 1})
    with pytest.raises(ResumeError, match="mapping"):
        Cursor.from_state([1])
