"""Loaders in shards order: they take samples from workers in webdataset's order, for a fixed number of batches."""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.loading.dataset import MEASURED
from bionemo.webdatamodule._engine.loading.loader import SplitLoader
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.taken import Groups, Taken, interleave
from bionemo.webdatamodule._engine.sampling.tally import Tally
from bionemo.webdatamodule._engine.stages import chain, describe
from bionemo.webdatamodule._engine.stopwatch import Stopwatch
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PlanError, ResumeError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.loading.stream_dataset import StreamDataset
    from bionemo.webdatamodule.components import LoaderFunction

_log = logging.getLogger("bionemo.webdatamodule")
_WAIT = "wait"  # the part of the work here that takes samples from workers
_OVER = object()


class StreamLoader(SplitLoader):
    """The loader of a split in shards order, as a webdataset pipeline.

    It yields a fixed number of batches an epoch on every rank, and begins the data again where they are too few:
    the documented pseudo-epoch.

    Args:
        dataset: The split's dataset.
        loader: Makes an iterable of the dataset's items, from worker processes or not.
        stages: Run on the stream of samples, in this process.
        n_batches: Batches of an epoch on this rank.
        num_workers: Worker processes, which the order of samples depends on.
        options: The other arguments of :class:`.SplitLoader`.
    """

    _data: StreamDataset

    def __init__(
        self,
        *,
        dataset: StreamDataset,
        loader: LoaderFunction,
        stages: Sequence[Any],
        n_batches: int,
        num_workers: int,
        **options: Any,
    ) -> None:
        super().__init__(dataset=dataset, loader=loader, pipeline=stages, **options)
        self.num_workers = num_workers
        self._taken = Taken()
        self._watch = Stopwatch()
        self.n_batches = 0
        self.with_epoch(nbatches=n_batches)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        return self._epoch()

    def with_epoch(self, nsamples: int = -1, nbatches: int = -1) -> StreamLoader:
        """Set the number of batches in an epoch.

        Raises:
            ConfigError: If it is below 1.
        """
        batches = max(nsamples, nbatches)
        if batches < 1:
            raise ConfigError(f"with_epoch takes a number of batches from 1 on, not {batches}", split=self.split)
        self.n_batches = batches
        cursor = self.progress.cursor
        self.progress.cursor = replace(cursor, n_samples=self.n_batches * cursor.global_batch_size)
        return self

    def with_length(self, n: int, silent: bool = False) -> StreamLoader:  # noqa: ARG002 - webdataset's signature
        """Set the number of batches in an epoch, so that the length is true."""
        return self.with_epoch(n)

    def slice(self, *args: int) -> StreamLoader:
        """Set the number of batches in an epoch, if that is all that is asked."""
        if len(args) != 1:
            raise ConfigError(
                f"slice{args} leaves out batches at the beginning, which come again in the next pass; "
                "give one number, the length of an epoch",
                split=self.split,
            )
        return self.with_epoch(args[0])

    def repeat(self, nepochs: int = -1, nbatches: int = -1) -> StreamLoader:  # noqa: ARG002 - webdataset's signature
        """Set the number of batches in an epoch if one is given; the data are always begun again."""
        return self.with_epoch(nbatches) if nbatches > 0 else self

    @property
    def cursor(self) -> Cursor:
        """The place in the epoch after the last batch whose step ran."""
        began = self.progress.cursor
        return replace(began, samples=began.samples + self.progress.stepped * began.global_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor, and the ranks and workers that the order depends on."""
        return {**self.cursor.to_state(), **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration at a state, by running through the epoch so far once more.

        Raises:
            ResumeError: If the state is of other data or another seed, or of other ranks or workers.
        """
        cursor = Cursor.from_state(state)
        if not self.progress.fits(cursor, lambda: self.progress.cursor, self.split):
            return
        order = {name: state.get(name) for name in self._order()}
        if order != self._order():
            raise ResumeError(
                f"in shards order the order of samples depends on ranks and workers, and the checkpoint was written "
                f"with {order}, not {self._order()}; take the same, or read in order='global'",
                split=self.split,
            )
        foreign = [stage for stage in (*self._data.pipeline[1:], *self.pipeline[1:]) if not _seeded(stage)]
        if cursor.samples and foreign:
            _log.warning(
                "%s: resuming in shards order runs through the epoch so far again, which is exact only if the stages "
                "%s draw their random numbers from bionemo.webdatamodule.context, or none",
                self.split,
                ", ".join(map(describe, foreign)),
            )
        self.seek(cursor)

    def seek(self, cursor: Cursor) -> None:
        """Begin the next iteration at a cursor."""
        self.progress.seek(cursor)

    def _order(self) -> dict[str, Any]:
        return {"order": "shards", "ranks": self._data.topology.world_size, "workers": self.num_workers}

    def _epoch(self) -> Iterator[Any]:
        size = self.progress.cursor.global_batch_size
        cursor = self.progress.begin(lambda cursor: cursor.samples >= cursor.n_samples)
        if cursor is None:
            return
        done, taken = cursor.samples // size, 0
        self._taken.clear()
        for index, batch in enumerate(itertools.islice(self._batches(cursor.epoch), self.n_batches)):
            tally = self._tally()
            taken += tally.samples + sum((tally.skipped or {}).values())
            if index < done:
                continue
            if self._peers is not None:
                self._peers.check(batch, f"{tally.hash:016x}")
            self.progress.deliver(tally)
            if index + 1 == self.n_batches:
                self._data.reader.log_skipped()
                self._warn_of_evaluation(taken)
            yield batch

    def _warn_of_evaluation(self, taken: int) -> None:
        """Say where an epoch of evaluation took fewer or more samples than there are, on one rank."""
        due = min(self.n_batches * self.progress.cursor.global_batch_size, self._data.reader.n_samples)
        if self.split != "train" and self._data.topology.world_size == 1 and taken != due:
            warnings.warn(
                f"{self.split}: in shards order this epoch of evaluation took {taken} samples, and {due} are due, "
                "since the stages do not make batches of global_batch_size samples; make such batches, or leave "
                "webdataset's shard arguments out of this split's kwargs_wds",
                DataWarning,
                stacklevel=2,
            )

    def _tally(self) -> Tally:
        """Return which samples stages took since the last batch."""
        parts = self._taken.take()
        if self._data.reader.on_error == "raise":
            return Tally.of_sums(parts)
        ids = np.concatenate([np.array([], np.int64), *(ids for ids, _ in parts)])  # a stage may take none for a batch
        return Tally.of(ids, self._data.reader.left_out(ids))

    def _batches(self, epoch: int) -> Iterator[Any]:
        """Yield batches without end: one pass over the data after the other."""
        count = 0
        for passed in itertools.count():
            watch = self._watch if self._data.measures else None
            source = self._samples(epoch, passed)
            place = self._data.place(epoch, passed, -1)
            with context.at(place):
                batches = chain(self.pipeline[1:], watch.each(_WAIT, source) if watch else source, self._where, watch)
            empty = True
            while True:
                self._watch.running = not count % MEASURED
                batch = next(batches, _OVER)
                if batch is _OVER:
                    break
                spent = self._watch.take()
                spent.pop(_WAIT, None)
                self.own_work.add(1, spent if self._watch.running else None)
                count += 1
                empty = False
                yield batch
            if empty:
                raise PlanError(
                    "a whole pass over the data gave no batch; look at the stages and at the number of samples",
                    split=self.split,
                    rank=self._data.topology.rank,
                )

    def _samples(self, epoch: int, passed: int) -> Iterator[Any]:
        with contextlib.closing(self._items.begin(epoch, passed)) as items:
            for values, groups in interleave(self._checked(items), max(1, self.num_workers)):
                self._taken.begin(groups, left := iter(values))
                yield from left

    def _checked(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass on items, each of which must be its worker's next."""
        due = dict.fromkeys(range(max(1, self.num_workers)), 0)
        left = set(due)
        for item in items:
            self._items.check(item, due.setdefault(item.worker, 0), of=f" of worker {item.worker}")
            values = list(item.values)
            due[item.worker] += len(values)
            self.work.add(len(values), item.spent)
            groups = item.delivered if isinstance(item.delivered, Groups) else Groups.of(item.delivered)
            if values:
                self._items.delivered(item, len(values) - 1)
                groups = groups if len(groups) == len(values) else groups[: len(values)]
            else:
                left.discard(item.worker)
                self._taken.also(groups.numbers)
                groups = Groups([], [])
            yield replace(item, values=values, delivered=groups)
        if left:
            worker = min(left)
            raise self._items.out_of_turn(
                f"stopped after {count(due[worker], 'sample')} of worker {worker}, which has more"
            )


def _seeded(stage: object) -> bool:
    """Return whether a stage is one of this package, which draw random numbers from the run's seed alone."""
    return (type(stage).__module__ or "").startswith("bionemo.webdatamodule.")
