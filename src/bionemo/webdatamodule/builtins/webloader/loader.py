"""Torch's worker processes around a dataset: how they start, what crosses to the main process, how they fail."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data._utils.pin_memory import pin_memory

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule.builtins.webloader import sigint
from bionemo.webdatamodule.builtins.webloader import status as boards
from bionemo.webdatamodule.builtins.webloader.start_method import check_pickles, start_context
from bionemo.webdatamodule.builtins.webloader.status import Board
from bionemo.webdatamodule.builtins.webloader.transport import Packed, pack, pack_all, release_idle
from bionemo.webdatamodule.builtins.webloader.worker_errors import Failure, explained, wait_for

DEFAULT_TIMEOUT = 540.0  # seconds; NCCL gives up after 600, with an error that names nobody

_POLL = 0.5  # seconds between looks at whether all workers live
_KILL_WAIT = 5.0  # seconds that killed workers get to be gone
_TIMED_OUT = "timed out"  # in what torch says when a moment has passed


class LoaderOptions(Protocol):
    """What :func:`make_loader` asks for; the ``webloader`` component has these fields."""

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
        """Seconds to wait for an item; ``None`` for the default, 0 for ever."""
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

    board: Board
    then: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        sigint.restore()
        boards.join(self.board, worker)
        if self.then is not None:
            self.then(worker)


class _Sending(IterableDataset):  # type: ignore[type-arg]  # torch's class is generic in its stub alone
    """A dataset as a worker iterates it: items leave packed, and an exception leaves as an item."""

    def __init__(self, dataset: Iterable[Any], where: Mapping[str, object]) -> None:
        super().__init__()
        self._dataset = dataset
        self._where = where

    def __iter__(self) -> Iterator[Packed]:
        info = get_worker_info()
        try:
            boards.doing("preparing its first data")
            for packed in pack_all(self._dataset):
                boards.doing("waiting for the main process")
                yield packed
                boards.doing("preparing data")
        except Exception as error:  # noqa: BLE001 - it is raised again in the main process
            yield pack(Failure.of(error, {"worker": info.id if info else None, **self._where}))


class _Receiving:
    """One iteration of a :class:`WorkerLoader`: items arrive as the dataset made them, errors too."""

    def __init__(self, loader: WorkerLoader, source: Any, board: Board) -> None:
        self._loader = loader
        self._source = source
        self._board = board

    def __iter__(self) -> _Receiving:
        return self

    def __next__(self) -> Any:
        value = self._next().unpack()
        if isinstance(value, Failure):
            if not self._loader.persistent_workers:
                self._shutdown_workers()
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
        told = explained(error, self._workers, self._board, self._awaited(), self._loader.where)
        if told is error:
            raise error
        self._give_up()
        raise told from told.__cause__ or error

    @property
    def _workers(self) -> Sequence[Any]:
        return self._source._workers  # type: ignore[no-any-return]  # noqa: SLF001 - torch has no public way

    @property
    def _persistent_workers(self) -> bool:
        return self._loader.persistent_workers

    def _shutdown_workers(self) -> None:
        """End the workers; torch's loaders are closed by this name."""
        self._source._shutdown_workers()  # noqa: SLF001 - torch's own would wait for the garbage collector
        release_idle(all_workers=False)

    def _awaited(self) -> int | None:
        """Return the worker whose item is next."""
        tasks, next_task = getattr(self._source, "_task_info", {}), getattr(self._source, "_rcvd_idx", -1)
        return tasks[next_task][0] if next_task in tasks else None

    def _give_up(self) -> None:
        """Kill the workers, since one is dead or stuck, so that nobody waits for them."""
        for worker in self._workers:
            worker.kill()
        wait_for(lambda: not any(worker.is_alive() for worker in self._workers), _KILL_WAIT)
        self._shutdown_workers()
        self._loader._iterator = None  # noqa: SLF001 - where torch keeps persistent workers


class WorkerLoader(DataLoader):  # type: ignore[type-arg]  # torch's class is generic in its stub alone
    """Torch's loader for a dataset whose items are of any kind, with our transport and errors.

    Args:
        dataset: Iterated in every worker, which yields its own part of the items.
        options: How many workers, and how they are kept.

    Raises:
        ConfigError: If the dataset must pickle and does not.
    """

    def __init__(self, dataset: Iterable[Any], options: LoaderOptions) -> None:
        self.where: Mapping[str, object] = getattr(dataset, "where", {})
        context = start_context(options.multiprocessing_context)
        check_pickles(dataset, context.get_start_method(), self.where)
        self._user_init = options.worker_init_fn
        decided(
            "%s: %d workers, started by %s",
            self.where.get("split", "data"),
            options.num_workers,
            context.get_start_method(),
        )
        super().__init__(
            _Sending(dataset, self.where),
            batch_size=None,
            num_workers=options.num_workers,
            pin_memory=options.pin_memory,
            prefetch_factor=options.prefetch_factor,
            persistent_workers=options.persistent_workers,
            timeout=DEFAULT_TIMEOUT if options.timeout is None else options.timeout,
            multiprocessing_context=context,
            generator=options.generator or _generator(),
            in_order=options.in_order,
        )

    def __iter__(self) -> Any:
        kept: Any = self._iterator
        if kept is None:
            # Its own for each set of workers: two iterations may be alive at once.
            self._board = Board(self.num_workers)
            self.worker_init_fn = _Init(self._board, self._user_init)
        else:
            kept._timeout = self.timeout or sys.maxsize  # noqa: SLF001 - for the wait until the workers are ready
        with sigint.postponed():
            source: Any = super().__iter__()
        # Torch tells of a dead worker by an exception in whatever the main process happens to do.
        # Here it is told where the data are awaited, and torch only waits for a moment at a time.
        if source._worker_pids_set:  # noqa: SLF001
            signal_handling._remove_worker_pids(id(source))  # type: ignore[attr-defined]  # noqa: SLF001
            source._worker_pids_set = False  # noqa: SLF001
        source._timeout = _POLL  # noqa: SLF001
        return _Receiving(self, source, self._board)


class InProcessLoader:
    """The loader without workers: the dataset itself, as torch's would cost 10 µs an item.

    Args:
        dataset: What to iterate.
        pin_memory: Copy tensors to page-locked memory where there is an accelerator.
    """

    num_workers = 0
    persistent_workers = False

    def __init__(self, dataset: Iterable[Any], *, pin_memory: bool) -> None:
        self.dataset = dataset
        self.pin_memory = pin_memory
        self._iterator: Any = None  # Lightning sets it to None after use

    def __iter__(self) -> Iterator[Any]:
        if self.pin_memory and torch.accelerator.is_available():
            return map(pin_memory, self.dataset)
        return iter(self.dataset)


def make_loader(dataset: Iterable[Any], options: LoaderOptions) -> WorkerLoader | InProcessLoader:
    """Return an iterable of a dataset's items, read in worker processes if there are any.

    Args:
        dataset: An iterable; in a worker it yields that worker's part of the items.
            Its attribute ``where``, a mapping such as ``{"split": "train", "rank": 0}``, is shown in errors.
        options: Those of the ``webloader`` component.

    Raises:
        ConfigError: If an option cannot be served, or the dataset must pickle and does not.
    """
    if options.num_workers == 0:
        return InProcessLoader(dataset, pin_memory=options.pin_memory)
    return WorkerLoader(dataset, options)


def _generator() -> torch.Generator:
    """Return a generator for workers' seeds that depends on torch's seed and leaves torch's own alone."""
    return torch.Generator().manual_seed(torch.initial_seed())
