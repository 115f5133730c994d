"""Torch's worker processes around a dataset: how they start, what crosses to the main process, how they fail."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import signal_handling

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.webloader import sigint, status, transport
from bionemo.webdatamodule.builtins.webloader.start_method import check_pickles, start_context
from bionemo.webdatamodule.builtins.webloader.status import StatusTable
from bionemo.webdatamodule.builtins.webloader.transport import Packed, pack, pack_all, release_idle
from bionemo.webdatamodule.builtins.webloader.worker_errors import Failure, explained, wait_for
from bionemo.webdatamodule.components import ItemDataset
from bionemo.webdatamodule.errors import count

_log = logging.getLogger("bionemo.webdatamodule")

DEFAULT_TIMEOUT = 540.0  # seconds; NCCL gives up after 600, with an error without rank or place

_SEEDS = 1 << 63  # of a generator
_POLL = 0.5  # seconds between looks at whether all workers live
_KILL_WAIT = 5.0  # seconds that killed workers get to be gone
_TIMED_OUT = "timed out"  # in what torch says when a moment has passed


class LoaderOptions(Protocol):
    """What :class:`WorkerLoader` asks for; the ``webloader`` component has these fields."""

    @property
    def num_workers(self) -> int:
        """Worker processes; 0 for none."""
        ...

    @property
    def pin_memory(self) -> bool:
        """Whether tensors are copied to page-locked memory."""
        ...

    @property
    def prefetch_factor(self) -> int | None:
        """Items that each worker prepares ahead."""
        ...

    @property
    def persistent_workers(self) -> bool:
        """Whether workers outlive an iteration."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for an item; ``None`` for the default, 0 for no limit."""
        ...

    @property
    def multiprocessing_context(self) -> Any:
        """How workers start."""
        ...

    @property
    def worker_init_fn(self) -> Callable[[int], None] | None:
        """Called in each worker with its number."""
        ...

    @property
    def generator(self) -> Any:
        """Torch's generator for the workers' seeds."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether items are taken from the workers in turn."""
        ...


@dataclass(frozen=True)
class _Init:
    """What a worker does first."""

    table: StatusTable
    count: int
    then: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        sigint.restore()
        note = status.writer(self.table, number)
        context.join(context.Worker(number=number, count=self.count, empty=transport.empty, note=note))
        note("starting")
        if self.then is not None:
            self.then(number)
        gc.freeze()  # what a worker begins with lives as long as it does, so no collection needs to look through it


class _Sending(IterableDataset):  # type: ignore[type-arg]  # torch's class is generic in its stub alone
    """A dataset as a worker iterates it: items leave packed, and an exception leaves as an item."""

    def __init__(self, dataset: Iterable[Any], where: Mapping[str, object]) -> None:
        super().__init__()
        self._dataset = dataset
        self._where = where

    def __iter__(self) -> Iterator[Packed]:
        worker = context.worker()
        try:
            worker.note("preparing its first data")
            for packed in pack_all(self._dataset):
                worker.note("waiting for the main process")
                yield packed
                worker.note("preparing data")
        except Exception as error:  # noqa: BLE001 - it is raised again in the main process
            yield pack(Failure.of(error, {"worker": worker.number, **self._where}))


class _Receiving:
    """One iteration of a :class:`WorkerLoader`: items arrive as the dataset made them, errors too."""

    def __init__(self, loader: WorkerLoader, source: Any, table: StatusTable) -> None:
        self._loader = loader
        self._source = source
        self._table = table
        self._process = os.getpid()

    def __iter__(self) -> _Receiving:
        return self

    def __next__(self) -> Any:
        value = self._next().unpack()
        if isinstance(value, Failure):
            self.close()
            value.throw()
        return value

    def _next(self) -> Packed:
        began = time.monotonic()
        while True:
            try:
                packed: Packed = next(self._source)
            except RuntimeError as error:  # noqa: PERF203 - also the end of each moment of waiting
                self._look_into(error, waited=time.monotonic() - began)
            else:
                return packed

    def _look_into(self, error: RuntimeError, waited: float) -> None:
        """Return if it is too early to worry, or raise what is the matter."""
        if _TIMED_OUT in str(error) and not 0 < self._loader.timeout <= waited:
            return
        explanation = explained(error, self._workers, self._table, self._awaited(), self._loader.where)
        if explanation is error:
            raise error
        self._give_up()
        raise explanation from explanation.__cause__ or error

    @property
    def _workers(self) -> Sequence[Any]:
        return self._source._workers  # type: ignore[no-any-return]  # noqa: SLF001 - torch has no public way

    def close(self) -> None:
        """End the workers, unless they are kept for the next iteration."""
        if not self._loader.persistent_workers and os.getpid() == self._process:  # not in a fork of this process
            self._end_workers()

    def _end_workers(self) -> None:
        self._source._shutdown_workers()  # noqa: SLF001 - torch's own would wait for the garbage collector
        release_idle(all_workers=False)

    def _awaited(self) -> int | None:
        """Return the worker whose item is next."""
        tasks, next_task = getattr(self._source, "_task_info", {}), getattr(self._source, "_rcvd_idx", -1)
        return tasks[next_task][0] if next_task in tasks else None

    def _give_up(self) -> None:
        """Kill the workers, since one is dead or stuck, and the others would wait for it."""
        for worker in self._workers:
            worker.kill()
        wait_for(lambda: not any(worker.is_alive() for worker in self._workers), _KILL_WAIT)
        self._end_workers()
        self._loader._iterator = None  # noqa: SLF001 - where torch keeps persistent workers


class WorkerLoader(DataLoader):  # type: ignore[type-arg]  # torch's class is generic in its stub alone
    """Torch's loader for a dataset whose items are of any kind, with our transport and errors.

    Args:
        dataset: Iterated in every worker, which yields its own part of the items.
        options: How many workers, and how they are kept.

    Raises:
        ConfigError: If the dataset must pickle and does not.
    """

    def __init__(self, dataset: ItemDataset, options: LoaderOptions) -> None:
        self.where = dataset.where
        start = start_context(options.multiprocessing_context)
        check_pickles(dataset, start.get_start_method(), self.where)
        self._user_init = options.worker_init_fn
        _log.log(
            logging.DEBUG if self.where.get("rank") else logging.INFO,  # the same on all ranks
            "%s: %s, started by %s",
            self.where.get("split", "data"),
            count(options.num_workers, "worker"),
            start.get_start_method(),
        )
        # Torch's generators do not get to spawned processes, so none is kept that the user did not give.
        self._seed = itertools.count(torch.initial_seed()) if options.generator is None else None
        super().__init__(
            _Sending(dataset, self.where),
            batch_size=None,
            num_workers=options.num_workers,
            pin_memory=options.pin_memory,
            prefetch_factor=options.prefetch_factor,
            persistent_workers=options.persistent_workers,
            timeout=DEFAULT_TIMEOUT if options.timeout is None else options.timeout,
            multiprocessing_context=start,
            generator=options.generator,
            in_order=options.in_order,
        )

    def __iter__(self) -> Any:
        kept: Any = self._iterator
        if kept is None:
            # Its own for each set of workers: two iterations may be alive at once.
            self._table = StatusTable(self.num_workers)
            self.worker_init_fn = _Init(self._table, self.num_workers, self._user_init)
        else:
            kept._timeout = self.timeout or sys.maxsize  # noqa: SLF001 - for the wait until the workers are ready
        if self._seed is not None:
            self.generator = torch.Generator().manual_seed(next(self._seed) % _SEEDS)
        with sigint.postponed():
            source: Any = super().__iter__()
        if self._seed is not None:
            self.generator = None
        # Torch raises the error of a dead worker in whatever the main process happens to do.
        # Here it is raised where the data are awaited, and torch only waits for a moment at a time.
        if source._worker_pids_set:  # noqa: SLF001 - torch has no public way, here and below
            signal_handling._remove_worker_pids(id(source))  # type: ignore[attr-defined]  # noqa: SLF001 - as above
            source._worker_pids_set = False  # noqa: SLF001 - as above
        source._timeout = _POLL  # noqa: SLF001 - as above
        return _Receiving(self, source, self._table)

    def close(self) -> None:
        """End the workers that were kept."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined]  # noqa: SLF001 - torch has no public way
            self._iterator = None
            release_idle(all_workers=False)
