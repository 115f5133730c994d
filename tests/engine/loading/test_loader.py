"""Loaders in global order: exact sequences, epochs, state, and what they refuse; no shards and no Trainer."""

import json
import multiprocessing
from dataclasses import dataclass, replace

import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.loading.dataset import PlannedDataset
from bionemo.webdatamodule._engine.loading.loader import PlannedLoader
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule.builtins.batching import Batch
from bionemo.webdatamodule.builtins.stages import Untuple
from bionemo.webdatamodule.builtins.webloader.plugin import WebLoader
from bionemo.webdatamodule.columns import ValueColumn
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError, ResumeError, UsageError


class Numbers:
    """A reader whose sample is its own id."""

    digest = "numbers"
    is_remote = False

    def columns(self, shares, use, *, lazily=False):
        """Yield what is made of a column of the ids."""
        for number, ids in enumerate(shares):
            yield use(number, (ValueColumn([int(i) for i in ids]),))

    def ahead(self, runs, ids):
        """Return the runs: no disk is read."""
        return runs

    def left_out(self, ids):
        """Return nothing: no number is left out."""
        return {}

    def log_skipped(self):
        """Do nothing: no number is left out."""


@dataclass
class HandClock:
    """A trainer's clock, set by hand."""

    now: int | None = None
    ran: int | None = None
    any_number: bool = False

    def epoch(self):
        """Return the epoch."""
        return self.now

    def steps(self):
        """Return the steps."""
        return self.ran

    def takes_any_number(self):
        """Return whether a step takes its batches itself."""
        return self.any_number


def make(
    n=37,
    size=4,
    *,
    rank=0,
    ranks=1,
    workers=0,
    stages=(),
    loader_stages=None,
    seed=0,
    clock=None,
    loader=None,
    digest="numbers",
    **options,
):
    """Return a loader over numbers, of batches or, with stages, of lists."""
    plan = Plan(sources=(Source(samples=n),), global_batch_size=size, seed=seed)
    dataset = PlannedDataset(
        reader=Numbers(),
        plan=plan,
        stages=stages if loader_stages is not None else [Untuple()],
        ahead=() if loader_stages is not None else [Batch()],
        batches=loader_stages is None,
        topology=Topology(rank=rank, world_size=ranks),
        seed=seed,
    )
    return PlannedLoader(
        dataset=dataset,
        loader=loader or WebLoader(num_workers=workers, **options),
        stages=loader_stages or (),
        clock=clock or HandClock(),
        cursor=Cursor.of(plan, digest),
    )


def batches(loader):
    """Return the batches of one iteration as lists."""
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in loader]


def test_an_epoch_has_every_sample_once_and_a_true_length():
    """One rank without workers sees all samples in batches of the global size."""
    loader = make()
    seen = batches(loader)

    assert len(loader) == len(seen) == 10
    assert [4] * 8 + [3, 2] == [len(batch) for batch in seen]
    assert list(range(37)) == sorted(sum(seen, []))


def test_each_epoch_has_another_order_and_reruns_repeat_it():
    """Iterating again is the next epoch; a new loader begins at the first."""
    loader = make()
    first, second = batches(loader), batches(loader)

    assert first != second
    again = make()
    assert [first, second] == [batches(again), batches(again)]
    assert first != batches(make(seed=1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("n", [37, 500])
def test_workers_do_not_change_the_sequence(workers, n):
    """Any number of workers gives the same batches in the same order, whether items hold one batch or several."""
    loader, plain = make(n, workers=workers), make(n)

    assert [batches(plain), batches(plain)] == [batches(loader), batches(loader)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_follow_the_epoch(method):
    """Workers that live on see the new epoch, and end with the loader."""
    loader = make(workers=2, persistent_workers=True, multiprocessing_context=method)
    plain = make()

    assert [batches(plain) for _ in range(3)] == [batches(loader) for _ in range(3)]
    loader._iterator = None  # as Lightning does
    assert [] == multiprocessing.active_children()


def test_ranks_split_each_global_batch():
    """The shares of two ranks, side by side, are the global batches of one."""
    two = [batches(make(rank=rank, ranks=2)) for rank in range(2)]

    assert batches(make()) == [a + b for a, b in zip(*two, strict=True)]


def test_stages_run_on_each_share():
    """Users' stages on both sides see a share at a time and make one batch of it."""
    seen = batches(make(stages=[Untuple()], loader_stages=[wds.batched(4, collation_fn=list)]))

    assert batches(make()) == seen


def test_stages_know_their_place():
    """A stage that draws random numbers gets the same ones on any number of workers."""

    def noisy(samples):
        rng = context.current().rng("noise")
        return ((sample, rng.random()) for (sample,) in samples)

    sequences = [
        batches(make(stages=[noisy], loader_stages=[Batch(collate="list")], workers=workers)) for workers in (0, 1, 2)
    ]

    assert sequences[0] == sequences[1] == sequences[2]
    assert 37 == len({noise for batch in sequences[0] for _, noise in batch})


@pytest.mark.parametrize("at", range(11))
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_at_any_batch_brings_back_the_exact_rest(at, workers):
    """Saved after any batch and restored in a new object, the rest of this epoch and the next are the same."""
    loader = make(workers=workers)
    iterator = iter(loader)
    for _ in range(at):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    rest, following = [batch.tolist() for batch in iterator], batches(loader)
    torch.manual_seed(99)
    again = make(workers=workers)
    again.load_state_dict(state)

    assert (rest or following) == batches(again)
    if rest:
        assert following == batches(again)
    assert len(json.dumps(state)) < 1000


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_state_of_one_topology_serves_every_other(ranks):
    """The global batches go on identically with another number of ranks."""
    one = make()
    iterator = iter(one)
    for _ in range(3):
        next(iterator)
    rest = [batch.tolist() for batch in iterator]
    shares = []
    for rank in range(ranks):
        other = make(rank=rank, ranks=ranks)
        other.load_state_dict({**one.state_dict(), "samples": 12, "epoch": 0})
        shares.append(batches(other))

    assert rest == [sum(parts, []) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 16, 37])
def test_another_global_batch_size_serves_the_rest_once(size):
    """What is left of an epoch comes once, in batches of the new size, and the next epoch is whole."""
    loader = make()
    iterator = iter(loader)
    done = [next(iterator).tolist() for _ in range(3)]
    other = make(size=size)
    other.load_state_dict(loader.state_dict())

    assert list(range(37)) == sorted(sum(done + batches(other), []))
    assert list(range(37)) == sorted(sum(batches(other), []))


def test_an_early_break_ends_the_epoch():
    """Leaving a loop early means that the next one is a new epoch, from its beginning."""
    loader, plain = make(workers=2), make()
    for _ in loader:
        break
    batches(plain)

    assert batches(plain) == batches(loader)


def test_two_iterations_side_by_side_do_not_disturb_each_other():
    """Two live iterators of one loader are two epochs."""
    for workers in (0, 2):
        loader = make(workers=workers)
        pairs = [(a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)]
        plain = make()

        assert [batches(plain), batches(plain)] == [list(side) for side in zip(*pairs, strict=True)]


def test_an_iteration_whose_workers_serve_another_says_so():
    """Workers that are kept serve one iteration; the later one is not disturbed when the first is asked again."""
    plain, loader = make(), make(workers=2, persistent_workers=True)
    first = iter(loader)
    begun = [next(first).tolist()]
    second = iter(loader)
    began = [next(second).tolist()]
    with pytest.raises(UsageError, match="another iteration of this loader began, and its workers"):
        next(first)

    epochs = [batches(plain) for _ in range(3)]
    assert epochs[0][:1] == begun
    assert epochs[1] == began + [batch.tolist() for batch in second]
    assert epochs[2] == batches(loader)
    loader._iterator = None


def test_the_trainers_epoch_decides():
    """Under a trainer an iteration is the trainer's epoch, whatever came before."""
    clock = HandClock(now=3, ran=0)
    plain = make()
    epochs = [batches(plain) for _ in range(4)]
    loader = make(clock=clock)

    assert [epochs[3], epochs[3]] == [batches(loader), batches(loader)]


def test_a_batch_whose_step_did_not_run_is_not_counted():
    """A checkpoint written while a step runs goes on with that batch."""
    clock = HandClock(now=0, ran=0)
    loader = make(clock=clock)
    iterator = iter(loader)
    next(iterator)
    assert 0 == loader.state_dict()["samples"]
    clock.ran = 1
    assert 4 == loader.state_dict()["samples"]
    next(iterator)
    assert 4 == loader.state_dict()["samples"]


def test_a_step_that_takes_several_batches_counts_them_all():
    """A checkpoint written while a step runs goes on with the first batch that the step took."""
    clock = HandClock(now=0, ran=0, any_number=True)
    loader = make(clock=clock)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    assert 0 == loader.state_dict()["samples"]
    clock.ran = 1
    assert 8 == loader.state_dict()["samples"]
    next(iterator)
    assert 8 == loader.state_dict()["samples"]
    clock.ran = 2
    assert 12 == loader.state_dict()["samples"]


def test_a_finished_epoch_has_nothing_for_a_trainer_that_asks_again():
    """With max_steps a trainer asks an epoch that it resumed at its end for one more batch."""
    clock = HandClock(now=0, ran=10)
    loader = make(clock=clock)
    loader.load_state_dict({**make().state_dict(), "samples": 37})

    assert [] == batches(loader)
    clock.now = 1
    assert 10 == len(batches(loader))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed"),
        ({"digest": "other/x"}, "other data"),
        ({"n_samples": 38}, "n_samples"),
        ({"version": 99}, "version 99"),
        ({"epoch": "1"}, "epoch"),
    ],
)
def test_a_state_of_something_else_is_refused(change, message):
    """Other data, another seed, another length or a newer version would repeat or lose samples."""
    loader = make()

    with pytest.raises(ResumeError, match=message):
        loader.load_state_dict({**loader.state_dict(), **change})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([wds.batched(3, collation_fn=list)], "makes several batches of a share of 4 samples"),
        ([wds.select(lambda x: False)], "makes no batch of a share of 4 samples"),
        ([wds.batched(4, collation_fn=lambda samples: None)], "makes no batch of a share of 4 samples"),
    ],
)
def test_stages_that_would_make_ranks_unequal_are_refused(stages, message):
    """A share must become one batch; the message says how to get there."""
    with pytest.raises(ConfigError, match=message):
        batches(make(stages=[Untuple()], loader_stages=stages))


def test_a_share_that_loses_all_samples_is_an_error():
    """A worker stage that leaves nothing of a share is named."""
    with pytest.raises(ConfigError, match="left nothing of a share of 4 samples"):
        batches(make(stages=[wds.select(lambda x: False)], loader_stages=[Batch()]))


@pytest.mark.parametrize("method", ["with_epoch", "with_length", "repeat", "slice"])
def test_webdatasets_ways_to_change_the_length_are_refused(method):
    """The plan decides the length of an epoch; the message says what to set in its place."""
    for target in (make(), make()._data):
        with pytest.raises(ConfigError, match=f"{method}.*would make ranks unequal"):
            getattr(target, method)(5)


def test_fluid_stages_run_on_each_share():
    """The fluid methods add stages to a copy, and the length stays true."""
    loader = make()
    mapped = loader.map(lambda batch: batch + 100).map(torch.Tensor.tolist)
    seen = list(mapped)

    assert len(mapped) == len(seen) == 10
    assert [[i + 100 for i in batch] for batch in batches(make())] == seen
    assert 10 == len(list(loader))


def test_a_dataset_yields_samples():
    """Iterating the dataset itself gives this rank's samples after its stages."""
    dataset = make(stages=[Untuple()], loader_stages=[Batch()])._data

    assert sum(batches(make()), []) == list(dataset)
    assert [i + 1 for i in dataset] == list(dataset.map(lambda i: i + 1))


def test_a_loader_that_loses_items_is_named():
    """A third party's loader must pass on every item."""

    class Lossy:
        def __init__(self, dataset):
            self.dataset = dataset

        def __iter__(self):
            return iter(list(self.dataset)[:3])

    with pytest.raises(UsageError, match="stopped after 6 of 10 batches"):
        batches(make(loader=Lossy))


def test_a_loader_that_makes_items_of_its_own_is_named():
    """What says which samples a batch was made of must cross with it, or no receipt is true."""

    def rebuilt(dataset):
        for item in dataset:
            where = {"epoch": item.epoch, "start": item.start, "worker": item.worker, "number": item.number}
            yield Item(**where, values=item.values)

    with pytest.raises(UsageError, match=r"item 0 without what the dataset put into Item.delivered.*dataclasses.rep"):
        batches(make(loader=rebuilt))


def test_a_plain_torch_loader_will_do():
    """Any callable from a dataset to an iterable of its items is a loader."""
    loader = make(loader=lambda dataset: DataLoader(dataset, batch_size=None, num_workers=2))

    assert batches(make()) == batches(loader)


def test_without_workers_a_large_batch_is_made_and_pinned_when_it_is_asked_for(monkeypatch):
    """Memory holds one batch at a time, though many are looked at together; pinning does not change that."""
    made = []

    class Lazy(Numbers):
        def columns(self, shares, use, *, lazily=False):
            for batch in super().columns(shares, use):
                made.append(batch)
                yield batch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, _=None: tensor + 100)
    expected = [[number + 100 for number in batch] for batch in batches(make())]
    for pin, wanted in ((False, batches(make())), (True, expected)):
        loader = make(loader=WebLoader(pin_memory=pin))
        loader._data.reader, loader._data.sample_bytes = Lazy(), 10_000
        made.clear()
        for number, batch in enumerate(loader):
            assert wanted[number] == batch.tolist()
            assert number + 1 == len(made)


def test_the_state_counts_samples_of_the_whole_run():
    """The cursor is the same on every rank."""
    states = []
    for rank in range(2):
        loader = make(rank=rank, ranks=2)
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        states.append(loader.state_dict())

    assert states[0] == states[1]
    assert replace(make().cursor, samples=8).to_state() == states[0]


def test_resuming_seeks_and_reads_nothing_before():
    """At sample 10⁸ of 10⁹ the first batch asks the reader for it and those that are made with it."""
    asked = []

    class Counting(Numbers):
        def columns(self, shares, use, *, lazily=False):
            asked.extend(map(len, shares))
            return super().columns(shares, use)

    loader = make(10**9, 64)
    loader._data.reader = Counting()
    loader.load_state_dict({**loader.state_dict(), "samples": 10**8 - 10**8 % 64, "epoch": 7})
    next(iter(loader))

    assert sum(asked) <= 1024
