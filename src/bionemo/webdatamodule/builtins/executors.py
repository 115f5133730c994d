"""The default executors: what runs the tasks of a conversion."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent import futures
from contextlib import AbstractContextManager
from multiprocessing import connection
from types import TracebackType
from typing import Any, TypeVar

from bionemo.webdatamodule.components import Executor
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.hookspecs import hookimpl

_T = TypeVar("_T")

_GRACE = 10.0  # seconds that a worker may take to end


class Processes:
    """A pool of processes of this machine, alive between ``with`` and its end.

    Its workers end with it, also when this process is killed, and when the ``with`` block is left by an
    exception they stop in the middle of what they do.

    Args:
        workers: How many; by default one for each core that this process may use.
        start_method: ``"fork"``, ``"forkserver"`` or ``"spawn"``. The default on Linux is ``"fork"``: workers start
            in milliseconds and scripts need no ``__main__`` guard. Elsewhere it is Python's, ``"spawn"``.

    Raises:
        ConfigError: If ``workers`` is not a positive number or there is no such start method.
    """

    def __init__(self, *, workers: int | None = None, start_method: str | None = None) -> None:
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise ConfigError(f"workers must be a positive number, not {workers!r}")
        methods = multiprocessing.get_all_start_methods()
        if start_method is not None and start_method not in methods:
            raise ConfigError(f"start_method is {start_method!r}; this system has {', '.join(methods)}")
        self.workers = workers
        self.start_method = start_method or ("fork" if sys.platform == "linux" else methods[0])
        self._pool: futures.ProcessPoolExecutor | None = None
        self._stop: connection.Connection | None = None

    def __repr__(self) -> str:
        return f"Processes(workers={self.workers}, start_method={self.start_method!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _processes, (self.workers, self.start_method)

    @property
    def for_tasks(self) -> Callable[[int], AbstractContextManager[futures.Executor]] | None:
        """Returns an executor for so many tasks at a time, and serial for one; ``None`` where ``workers`` is given."""
        return self._for_tasks if self.workers is None else None

    def _for_tasks(self, n_tasks: int) -> AbstractContextManager[futures.Executor]:
        if n_tasks == 1:
            return Serial()
        return Processes(workers=min(_cores(), n_tasks), start_method=self.start_method)

    def __enter__(self) -> futures.Executor:
        context = multiprocessing.get_context(self.start_method)
        stopped, self._stop = context.Pipe(duplex=False)
        self._pool = futures.ProcessPoolExecutor(
            self.workers or _cores(), mp_context=context, initializer=_start_worker, initargs=(stopped,)
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of fork where threads run; the workers touch none of them.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            self._pool.submit(os.getpid)  # starts the workers
        return _Pool(self._pool)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, stop = self._pool, self._stop
        self._pool = self._stop = None
        if pool is None or stop is None:
            return
        if kind is not None:
            stop.send_bytes(b"stop")  # it is never read: every worker sees that there is something to read
            _unblock(pool)
        pool.shutdown(wait=True, cancel_futures=True)
        stop.close()


def _unblock(pool: futures.ProcessPoolExecutor) -> None:
    """Unblock a pool whose workers ended, one perhaps in the middle of a message.

    The pool waits for the rest of the message while any process, itself included, could write it.
    """
    for process in list((pool._processes or {}).values()):  # noqa: SLF001 - there is no public way
        with contextlib.suppress(ValueError):  # closed already
            connection.wait([process.sentinel], _GRACE)
    pool._result_queue._writer.close()  # type: ignore[attr-defined]  # noqa: SLF001 - nor is there one here


class _Pool(futures.Executor):
    """The standard pool, but safe for tasks that cannot be pickled and for cancelled tasks.

    The standard pool pickles what workers are about to take in a thread of its own. Where that fails, it races with
    one that clears up after dead workers, so here it never fails: the worker raises the error.
    Up to Python 3.12 the latter also fails on cancelled tasks.
    """

    def __init__(self, pool: futures.Executor) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> futures.Future[_T]:
        """Let a worker call the function."""
        outer: futures.Future[_T] = futures.Future()
        call: Any = _Pickled((function, args, kwargs))  # which arrives as bytes or text
        inner = self._pool.submit(_call, call)
        inner.add_done_callback(functools.partial(_pass_on, outer))
        return outer


class Serial(futures.Executor):
    """An executor that does each task at once, in the calling thread."""

    def submit(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> futures.Future[_T]:
        """Call the function and return its result as a future."""
        future: futures.Future[_T] = futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a future holds whatever was raised
            future.set_exception(error)
        return future


class _Pickled:
    """A call, which is pickled only when a worker is about to take it, so that memory holds few of them as bytes."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return bytes, (pickle.dumps(self._call),)
        except Exception as error:  # noqa: BLE001 - pickling runs the objects' own code
            return str, (f"{type(error).__name__}: {error}",)


def _call(pickled: bytes | str) -> Any:
    if isinstance(pickled, str):
        raise pickle.PicklingError(pickled)
    function, args, kwargs = pickle.loads(pickled)
    return function(*args, **kwargs)


def _pass_on(outer: futures.Future[Any], inner: futures.Future[Any]) -> None:
    if inner.cancelled():
        outer.cancel()
    if not outer.set_running_or_notify_cancel():
        return
    error = inner.exception()
    if error is None:
        outer.set_result(inner.result())
    else:
        outer.set_exception(error)


def _processes(workers: int | None, start_method: str) -> Processes:
    return Processes(workers=workers, start_method=start_method)


def _start_worker(stopped: connection.Connection) -> None:
    """Let a worker ignore Ctrl-C, which is for its parent, and end with its parent or on request."""
    gc.freeze()  # the garbage collector no longer visits what a fork inherits, so those pages are not copied
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    events = [stopped] if parent is None else [stopped, parent.sentinel]
    threading.Thread(target=_end_on, args=(events,), name="webdatamodule-end", daemon=True).start()


def _end_on(events: list[Any]) -> None:
    connection.wait(events)
    os._exit(1)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@hookimpl
def webdatamodule_executors() -> Iterable[Executor]:
    """Register the executors ``processes`` and ``serial``."""
    yield Executor(name="processes", summary="a process for each core of this machine", factory=Processes)
    yield Executor(name="serial", summary="one task after the other, in this process", factory=Serial)
