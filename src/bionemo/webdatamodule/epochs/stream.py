"""Datasets and loaders in shards order: webdataset's own way of dealing and streaming shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import webdataset as wds
from torch.utils.data import get_worker_info
from webdataset.compat import FluidInterface
from webdataset.shardlists import split_by_node, split_by_worker

from bionemo.webdatamodule.default_plugins.stages import Shuffle
from bionemo.webdatamodule.epochs import context
from bionemo.webdatamodule.epochs.dataset import ALONE, Item, Items, Position, Topology
from bionemo.webdatamodule.epochs.loader import close, keeps_workers, torch_loader
from bionemo.webdatamodule.epochs.plan import Cursor
from bionemo.webdatamodule.epochs.progress import Progress
from bionemo.webdatamodule.errors import PlanError, ResumeError
from bionemo.webdatamodule.pipelines import chain

if TYPE_CHECKING:
    from bionemo.webdatamodule.components import LoaderFunction
    from bionemo.webdatamodule.epochs.clock import Clock
    from bionemo.webdatamodule.shards.read import SampleReader

Splitter = Callable[[Iterable[Any]], Iterable[Any]]

LARGEST_ITEM = 64
"""Samples that cross to the main process together, at most."""

_REPETITIONS = 1_000_003  # so that a pass of the loader and a repetition of the dataset give no number twice


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How shards are dealt, in the words of ``webdataset.WebDataset``.

    Unlike there, shards are shuffled before they are dealt to nodes and workers, so a rank does not see the same
    shards for ever; the order is new in each epoch and repeats between runs; and ``resampled`` heeds the seed.

    Attributes:
        nodesplitter: Picks this rank's shards; ``None`` leaves all of them to every rank.
        workersplitter: Picks this worker's shards; ``None`` leaves all of them to every worker.
        shardshuffle: Shards in the shuffle's buffer; 0 for the order of their names.
        resampled: Draw shards with replacement, without end.
        empty_check: Whether a worker without shards is an error.
        seed: Where all randomness comes from.
    """

    nodesplitter: Splitter | None = split_by_node
    workersplitter: Splitter | None = split_by_worker
    shardshuffle: int = 0
    resampled: bool = False
    empty_check: bool = True
    seed: int = 0


PLAIN = Dealing()
"""Shards in their order, dealt to ranks and workers in turn."""


class StreamDataset(wds.DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset is not typed
    """A split in shards order, as a webdataset pipeline: shards, splitters, samples, the user's stages.

    Args:
        reader: Reads the samples of a shard.
        shards: The shards' paths, in the reader's order.
        stages: Run on the stream of samples, in workers.
        dealing: How shards are dealt to ranks and workers.
        topology: This process's place.
        split: The split's name, for messages.
        batch_size: Samples of a batch of this rank, for the ``batch`` stage.
    """

    def __init__(
        self,
        *,
        reader: SampleReader,
        shards: Sequence[str],
        stages: Sequence[Any] = (),
        dealing: Dealing = PLAIN,
        topology: Topology = ALONE,
        split: str = "train",
        batch_size: int = 1,
    ) -> None:
        super().__init__(_source, *stages)
        self.reader = reader
        self.shards = tuple(shards)
        self.dealing = dealing
        self.topology = topology
        self.split = split
        self.batch_size = batch_size
        self.position = Position()

    def __iter__(self) -> Iterator[Any]:
        source = self.iterator()
        if self.repetitions != 1 and self.nsamples > 0:  # with_epoch: so many samples a rank, not a worker
            worker, workers = _worker()
            return itertools.islice(source, (self.nsamples - worker + workers - 1) // workers)
        return source

    def iterator(self) -> Iterator[Any]:
        """Yield the samples of as many passes as were asked for, each in an order of its own."""
        for repetition in range(self.repetitions):
            count = 0
            for sample in self._pass(repetition):
                yield sample
                count += 1
            if not count:
                return

    def items(self) -> Iterator[Item]:
        """Yield this worker's samples in items that grow from 1 to :data:`LARGEST_ITEM` samples."""
        epoch, start = self.position.get()
        worker = _worker()[0]
        samples = iter(self)
        size = 1
        while values := list(itertools.islice(samples, size)):
            yield Item(epoch=epoch, start=start, worker=worker, values=values)
            size = min(2 * size, LARGEST_ITEM)

    def place(self, epoch: int, passed: int, worker: int) -> context.Context:
        """Return the place of a pass for stages that draw random numbers."""
        return context.Context(
            order="shards",
            seed=self.dealing.seed,
            epoch=epoch,
            first=passed,
            rank=self.topology.rank,
            worker=worker,
            batch_size=self.batch_size,
        )

    def check(self, num_workers: int) -> None:
        """Refuse fewer shards than workers before any of them starts.

        Raises:
            PlanError: If a worker would have nothing to read.
        """
        dealt = self.dealing
        usual = dealt.nodesplitter is split_by_node and dealt.workersplitter is split_by_worker
        needed = self.topology.world_size * max(1, num_workers)
        if usual and dealt.empty_check and not dealt.resampled and len(self.shards) < needed:
            raise PlanError(
                f"fewer shards than workers: {len(self.shards)} shards for {self.topology.world_size} ranks of "
                f"{max(1, num_workers)} workers; convert into at least {needed} shards, take fewer workers, or leave "
                "the shard arguments out of kwargs_wds, since order='global' needs no shard for each worker",
                split=self.split,
            )

    def _pass(self, repetition: int) -> Iterator[Any]:
        """Return one pass over this worker's samples, after all stages."""
        epoch, passed = self.position.get()
        place = self.place(epoch, passed * _REPETITIONS + repetition, _worker()[0])
        with context.at(place):
            return chain(self.pipeline[1:], self._samples(place))

    def _samples(self, place: context.Context) -> Iterator[Any]:
        """Yield the samples of the shards dealt to this worker."""
        numbers = {path: number for number, path in enumerate(self.shards)}
        dealt = 0
        for shard in self._dealt(place):
            dealt += 1
            yield from self.reader.shard(numbers[shard["url"]])
        if not dealt and self.dealing.empty_check:
            worker, workers = _worker()
            raise PlanError(
                f"fewer shards than workers: {len(self.shards)} shards, and none for this one of {workers} workers "
                f"of {self.topology.world_size} ranks; convert into more shards or take fewer workers",
                split=self.split,
                rank=self.topology.rank,
                worker=worker,
            )

    def _dealt(self, at: context.Context) -> Iterable[dict[str, str]]:
        shards: Iterator[Any] = ({"url": path} for path in self.shards)
        if self.dealing.resampled:
            choose = at.rng("resampled").choice
            urls = list(shards)
            return (choose(urls) for _ in itertools.count())
        if self.dealing.shardshuffle:
            # the same on every rank and worker, so that what one of them leaves another takes
            with context.at(replace(at, rank=0, worker=0)):
                shards = Shuffle(size=self.dealing.shardshuffle)(shards)
        place, worker = self.topology, _worker()
        # webdataset's own splitters ask the environment, which knows no model-parallel ranks
        for splitter, own, (number, count) in (
            (self.dealing.nodesplitter, split_by_node, (place.rank, place.world_size)),
            (self.dealing.workersplitter, split_by_worker, worker),
        ):
            if splitter is own:
                shards = itertools.islice(shards, number, None, count)
            elif splitter is not None:
                shards = iter(splitter(shards))
        return shards


class StreamLoader(wds.WebLoader):  # type: ignore[misc]  # webdataset is not typed
    """The loader of a split in shards order, as a webdataset pipeline.

    It yields a fixed number of batches an epoch on every rank, and begins the data again where they are too few:
    the documented pseudo-epoch.

    Args:
        dataset: The split's dataset.
        loader: Makes an iterable of the dataset's items, from worker processes or not.
        stages: Run on the stream of samples, in this process.
        n_batches: Batches of an epoch on this rank.
        num_workers: Worker processes, which the order of samples depends on.
        clock: Tells the trainer's epoch and how many steps ran.
        cursor: A cursor at the start of the data, with the identity of the data.
    """

    def __init__(
        self,
        *,
        dataset: StreamDataset,
        loader: LoaderFunction,
        stages: Sequence[Any],
        n_batches: int,
        num_workers: int,
        clock: Clock,
        cursor: Cursor,
    ) -> None:
        wds.DataPipeline.__init__(self, loader(Items(dataset)), *stages)  # WebLoader's own makes a torch DataLoader
        self._data = dataset
        self._num_workers = num_workers
        self._progress = Progress(cursor, clock)
        self.n_batches = 0
        self.with_epoch(nbatches=n_batches)
        if keeps_workers(self.pipeline[0]):
            dataset.position.share()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        return self._epoch()

    def with_epoch(self, nsamples: int = -1, nbatches: int = -1) -> StreamLoader:
        """Set the number of batches in an epoch."""
        self.n_batches = max(nsamples, nbatches)
        cursor = self._progress.cursor
        self._progress.cursor = replace(cursor, n_samples=self.n_batches * cursor.global_batch_size)
        return self

    def with_length(self, n: int, silent: bool = False) -> StreamLoader:  # noqa: ARG002 - webdataset's signature
        """Set the number of batches in an epoch, so that the length is true."""
        return self.with_epoch(n)

    def repeat(self, nepochs: int = -1, nbatches: int = -1) -> StreamLoader:  # noqa: ARG002 - webdataset's signature
        """Set the number of batches in an epoch if one is given; the data are always begun again."""
        return self.with_epoch(nbatches) if nbatches > 0 else self

    @property
    def resumed(self) -> bool:
        """Whether the next iteration begins where a state says."""
        return self._progress.resumed

    @property
    def cursor(self) -> Cursor:
        """The place in the epoch after the last batch whose step ran."""
        began = self._progress.cursor
        return replace(began, samples=began.samples + self._progress.stepped * began.global_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor, and the ranks and workers that the order depends on."""
        return {**self.cursor.to_state(), **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration at a state, by running through the epoch so far once more.

        Raises:
            ResumeError: If the state is of other data or another seed, or of other ranks or workers.
        """
        order = {name: state.get(name) for name in self._order()}
        if order != self._order():
            raise ResumeError(
                f"in shards order the order of samples depends on ranks and workers, and the checkpoint was written "
                f"with {order}, not {self._order()}; take the same, or read in order='global'",
                split=self._data.split,
            )
        cursor = Cursor.from_state(state)
        cursor.check(self._progress.cursor)
        if cursor.global_batch_size != self._progress.cursor.global_batch_size:
            raise ResumeError(
                "in shards order a run cannot go on with another global batch size: the checkpoint was written with "
                f"{cursor.global_batch_size}, not {self._progress.cursor.global_batch_size}",
                split=self._data.split,
            )
        self.seek(cursor)

    def seek(self, cursor: Cursor) -> None:
        """Begin the next iteration at a cursor."""
        self._progress.seek(cursor)

    @property
    def _iterator(self) -> Any:
        # Lightning shuts persistent workers down through this attribute of torch's DataLoader.
        return getattr(torch_loader(self.pipeline[0]), "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        torch_loader(self.pipeline[0])._iterator = value  # noqa: SLF001 - as Lightning does

    def _order(self) -> dict[str, Any]:
        return {"order": "shards", "ranks": self._data.topology.world_size, "workers": self._num_workers}

    def _epoch(self) -> Iterator[Any]:
        size = self._progress.cursor.global_batch_size
        cursor = self._progress.begin(lambda cursor: cursor.samples >= cursor.n_samples)
        if cursor is None:
            return
        done = cursor.samples // size
        for index, batch in enumerate(itertools.islice(self._batches(cursor.epoch), done, self.n_batches)):
            self._progress.delivered = index + 1  # before it is yielded: Lightning may never ask again
            yield batch

    def _batches(self, epoch: int) -> Iterator[Any]:
        """Yield batches without end: one pass over the data after the other."""
        for passed in itertools.count():
            place = self._data.place(epoch, passed, -1)
            with context.at(place):
                batches = chain(self.pipeline[1:], self._samples(epoch, passed))
            empty = True
            for batch in batches:
                empty = False
                yield batch
            if empty:
                raise PlanError(
                    "a whole pass over the data gave no batch; look at the stages and at the number of samples",
                    split=self._data.split,
                    rank=self._data.topology.rank,
                )

    def _samples(self, epoch: int, passed: int) -> Iterator[Any]:
        self._data.position.set(epoch, passed)
        source = iter(self.pipeline[0])
        try:
            yield from interleave(source, max(1, self._num_workers))
        finally:
            close(source)


def interleave(items: Iterable[Item], workers: int) -> Iterator[Any]:
    """Yield the samples of items as if workers had sent them one by one, in turn: webdataset's order.

    Args:
        items: Items of all workers, in turn; each worker's last one may be shorter.
        workers: How many workers there are.
    """
    turn: list[Item] = []
    for item in items:
        if turn and item.worker <= turn[-1].worker:
            yield from _in_turn(turn)
            turn = []
        turn.append(item)
        if item.worker == workers - 1:
            yield from _in_turn(turn)
            turn = []
    yield from _in_turn(turn)


def _in_turn(items: Sequence[Item]) -> Iterator[Any]:
    for index in range(max((len(item.values) for item in items), default=0)):
        for item in items:
            if index < len(item.values):
                yield item.values[index]


def _source() -> Iterator[Any]:
    """Stand for the source in a dataset's list of stages; the dataset reads its shards itself."""
    return iter(())


def _worker() -> tuple[int, int]:
    """Return this worker's number and how many there are; 0 and 1 in the main process."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
