"""Loaders in shards order: webdataset's order of samples, without its defects."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset as wds

from bionemo.webdatamodule._engine.loading.stream_dataset import Dealing, StreamDataset
from bionemo.webdatamodule._engine.loading.stream_loader import StreamLoader
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.tally import Tally, hash_of_all, mixed, total
from bionemo.webdatamodule.builtins.batching import Batch
from bionemo.webdatamodule.builtins.stages import Shuffle, Untuple
from bionemo.webdatamodule.builtins.webloader.plugin import WebLoader
from bionemo.webdatamodule.errors import PlanError, ResumeError


class Reader:
    """A reader of shards of numbers: shard 2 of sizes (3, 4, 5) holds 7 to 11."""

    digest = "numbers"
    is_remote = False
    on_error = "raise"

    def __init__(self, sizes):
        self.sizes = sizes
        self.n_samples = sum(sizes)

    def log_skipped(self):
        """Do nothing: no number is left out."""

    def runs(self, number):
        """Yield the numbers of the samples of a shard, at once."""
        yield np.arange(self.sizes[number]) + sum(self.sizes[:number])

    def read(self, ids, made=None):
        """Return samples."""
        del made
        return [(i,) for i in ids.tolist()]

    def left_out(self, ids):
        """Return nothing: no number is left out."""
        del ids
        return {}


class HandClock:
    """A trainer's clock that says nothing."""

    def epoch(self):
        """Return no epoch."""

    def steps(self):
        """Return no steps."""

    def takes_any_number(self):
        """Return false."""
        return False


def make(
    sizes=(3, 4, 5, 6),
    *,
    workers=0,
    rank=0,
    ranks=1,
    stages=(),
    loader_stages=None,
    size=4,
    n_batches=None,
    seed=0,
    dealing=None,
    loader=None,
    **options,
):
    """Return a loader over shards of numbers that yields lists."""
    dataset = StreamDataset(
        reader=Reader(sizes),
        shards=[f"s{i}" for i in range(len(sizes))],
        stages=[Untuple(), *stages],
        dealing=dealing or Dealing(seed=seed),
        topology=Topology(rank=rank, world_size=ranks),
        batch_size=size // ranks,
    )
    return StreamLoader(
        dataset=dataset,
        loader=loader or WebLoader(num_workers=workers, **options),
        stages=(Batch(collate="list"),) if loader_stages is None else loader_stages,
        n_batches=n_batches or -(-sum(sizes) // size),
        num_workers=workers,
        clock=HandClock(),
        cursor=Cursor(n_samples=sum(sizes), seed=seed, global_batch_size=size, digest="numbers/shards"),
    )


def flat(loader):
    """Return the samples of one epoch."""
    return [sample for batch in loader for sample in batch]


def by_webdataset(sizes, workers, stages=()):
    """Return what webdataset and torch make of the same shards, sample by sample."""
    reader = Reader(sizes)

    def read(shards):
        for shard in shards:
            yield from (value for ids in reader.runs(int(shard["url"][1:])) for (value,) in reader.read(ids))

    source = wds.DataPipeline(
        wds.SimpleShardList([f"s{i}" for i in range(len(sizes))]), wds.split_by_node, wds.split_by_worker, read, *stages
    )
    return list(wds.WebLoader(source, batch_size=None, num_workers=workers))


def test_one_process_reads_the_shards_in_order():
    """Without shuffling the samples come as they lie in the shards."""
    assert list(range(18)) == flat(make())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", [(3, 4, 5, 6), (200, 1, 90), (64, 64, 64, 63), (1, 150, 150)])
def test_samples_come_in_webdatasets_order(workers, sizes):
    """Items of many samples arrive as if workers had sent the samples one by one."""
    assert by_webdataset(sizes, workers) == flat(make(sizes, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_the_documented_number_of_batches(workers):
    """A pseudo-epoch goes on with the data from the start where they are too few, and stops where they are more."""
    long = make(workers=workers, n_batches=7)

    assert [7, 7, 2] == [len(list(long)), len(long), len(list(make(workers=workers, n_batches=2)))]


def test_the_shard_order_changes_with_the_epoch_and_repeats_between_runs():
    """Three epochs differ; three epochs of another object are the same three."""
    dealing = Dealing(shardshuffle=100, seed=3)
    for workers, options in [(0, {}), (2, {}), (2, {"persistent_workers": True})]:
        epochs = [
            [flat(loader) for _ in range(3)]
            for loader in (
                make(dealing=dealing, workers=workers, **options),
                make(dealing=dealing, workers=workers, **options),
            )
        ]

        assert epochs[0] == epochs[1]
        assert [list(range(18))] * 3 == [sorted(epoch) for epoch in epochs[0]]
        assert 3 == len(set(map(tuple, epochs[0])))


def test_shards_are_shuffled_before_they_are_dealt():
    """Over epochs a rank sees all shards, and in each epoch two ranks see each shard once."""
    dealing = Dealing(shardshuffle=100)
    ranks = [make((1,) * 6, dealing=dealing, rank=rank, ranks=2, size=2, n_batches=3) for rank in range(2)]
    epochs = [[flat(loader) for loader in ranks] for _ in range(8)]

    assert [[0, 1, 2, 3, 4, 5]] * 8 == [sorted(first + second) for first, second in epochs]
    assert {0, 1, 2, 3, 4, 5} == {sample for first, _ in epochs for sample in first}


def test_the_shuffle_stage_differs_between_workers_and_epochs():
    """Workers do not share a permutation, and neither do epochs."""
    loader = make((30, 30), workers=2, stages=[Shuffle(size=30)])
    first, second = flat(loader), flat(loader)
    of_worker = [[i % 30 for i in first if i // 30 == worker] for worker in range(2)]

    assert first != second
    assert of_worker[0] != of_worker[1]
    assert first == flat(make((30, 30), workers=2, stages=[Shuffle(size=30)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_resampling_heeds_the_seed(workers):
    """Shards drawn with replacement are the same in a rerun and others with another seed."""
    seen = [flat(make(dealing=Dealing(resampled=True, seed=seed), workers=workers, n_batches=5)) for seed in (1, 1, 2)]

    assert seen[0] == seen[1] != seen[2]


def test_fewer_shards_than_workers_is_said_at_once():
    """Before a worker starts the numbers and the remedy are named; the error is a ValueError."""
    loader = make((5, 5), workers=2, ranks=2)

    with pytest.raises(PlanError, match="fewer shards than workers: 2 shards for 2 ranks of 2 workers") as caught:
        loader._data.check(2)
    assert isinstance(caught.value, ValueError)


def test_a_custom_splitter_that_leaves_a_worker_empty_is_an_error_there():
    """What cannot be known before is said by the worker that has nothing to read."""
    dealing = Dealing(workersplitter=lambda shards: iter(()))

    with pytest.raises(PlanError, match="fewer shards than workers"):
        flat(make(dealing=dealing))


@pytest.mark.parametrize("at", [0, 1, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_brings_back_the_exact_rest_by_replaying(at, workers):
    """On the same ranks and workers the rest of the epoch is the same, also through our shuffle."""
    loader = make(workers=workers, stages=[Shuffle(size=4)], dealing=Dealing(shardshuffle=9))
    iterator = iter(loader)
    for _ in range(at):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    rest, following = list(iterator), list(loader)
    again = make(workers=workers, stages=[Shuffle(size=4)], dealing=Dealing(shardshuffle=9))
    again.load_state_dict(state)

    assert [rest or following] == [list(again)]


def test_a_state_of_other_workers_is_refused():
    """The order depends on ranks and workers, so going on elsewhere would repeat or lose samples."""
    with pytest.raises(ResumeError, match="depends on ranks and workers"):
        make(workers=2).load_state_dict(make().state_dict())


def test_with_epoch_on_the_loader_counts_batches_of_a_rank():
    """webdataset's fluid method sets the length, and the length is true."""
    loader = make(workers=2).with_epoch(nbatches=9)

    assert [9, 9] == [len(loader), len(list(loader))]


def test_with_epoch_on_the_dataset_counts_samples_of_a_rank():
    """The number is a rank's, not a worker's, and repetitions differ."""
    loader = make((4, 4), workers=2, dealing=Dealing(shardshuffle=9), stages=[Shuffle(size=4)], n_batches=4)
    loader._data.with_epoch(16)
    samples = flat(loader)

    assert 16 == len(samples)
    assert [2] * 8 == [samples.count(i) for i in range(8)]
    assert samples[:8] != samples[8:]


@pytest.mark.parametrize("name", ["WDS_SEED", "WDS_EPOCH", "WDS_CACHE", "GOPEN_REWRITE", "USE_AIS_FOR"])
def test_the_environment_has_no_say(name, monkeypatch):
    """webdataset's environment variables change neither order nor source."""
    expected = flat(make(dealing=Dealing(shardshuffle=9)))
    monkeypatch.setitem(os.environ, name, "5")

    assert expected == flat(make(dealing=Dealing(shardshuffle=9)))


def test_a_pipeline_that_yields_nothing_is_an_error():
    """A stage that eats everything does not loop for ever."""
    with pytest.raises(PlanError, match="a whole pass over the data gave no batch"):
        flat(make(stages=[lambda samples: (s for s in samples if False)]))


def test_tensors_cross_from_workers():
    """Values of any kind come out of workers as they went in."""
    loader = make(workers=2, stages=[lambda samples: ({"x": torch.tensor([s])} for s in samples)])

    assert by_webdataset((3, 4, 5, 6), 2) == [int(sample["x"]) for sample in flat(loader)]


def test_stages_of_others_are_said_not_to_replay_exactly(caplog):
    """Resuming with a stage whose randomness is unknown says so, with its name."""
    state = {**make().state_dict(), "samples": 8}
    make(stages=[Shuffle(size=4)]).load_state_dict(state)
    assert not caplog.records
    make(stages=[wds.shuffle(4)]).load_state_dict(state)

    assert "is exact only if the stages" in caplog.text


def tally(loader):
    """Return what an epoch delivered."""
    assert len(loader) == len(list(loader))
    return loader.progress.tally


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_any_ranks_and_workers_that_deliver_each_sample_leave_one_tally(ranks, workers):
    """Each epoch in another order, and through stages that hold samples back."""
    stages = (Shuffle(size=3),)
    loaders = [
        make((4, 4, 4, 4), rank=rank, ranks=ranks, workers=workers, stages=stages, dealing=Dealing(shardshuffle=4))
        for rank in range(ranks)
    ]
    for _ in range(2):
        assert Tally(16, hash_of_all(16)) == total(map(tally, loaders))


def test_a_tally_has_what_was_taken_for_the_batches():
    """Samples that come again count again, those that a stage drops count, and those behind the end do not."""
    short, long = make(n_batches=2), make(n_batches=6)
    assert Tally(8, int(mixed(np.arange(8)).sum())) == tally(short)
    assert 22 == tally(long).samples  # 18, and a batch of the next pass


@pytest.mark.parametrize("rest", [0, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_a_stage_drops_count_once(workers, rest):
    """Also those behind the last sample that it passes on."""
    some = make(stages=(lambda numbers: (number for number in numbers if number % 2 == rest),), n_batches=3)
    assert Tally(18, hash_of_all(18)) == tally(some)


def test_numbers_may_come_as_plain_lists():
    """A loader that brings items from elsewhere need not know what the numbers of samples are kept in."""

    def plainly(items):
        return (replace(item, delivered=list(map(list, item.delivered))) for item in items)

    assert Tally(18, hash_of_all(18)) == tally(make(loader=plainly))


def test_a_tally_goes_on_behind_a_checkpoint():
    """What comes again to reach the place of the checkpoint is not counted again."""
    began, rest = make(workers=2), make(workers=2)
    batches = iter(began)
    next(batches), next(batches)
    before, state = began.progress.tally, began.state_dict()
    rest.load_state_dict(state)
    rest.progress.came_before(before)

    assert 8 == before.samples
    assert 3 == len(list(rest))
    assert Tally(18, hash_of_all(18)) == rest.progress.tally._replace(since=0)
