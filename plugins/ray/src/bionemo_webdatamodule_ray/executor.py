"""A standard executor over a connection to Ray."""

from __future__ import annotations

import itertools
import logging
import queue
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import ray
from ray import cloudpickle, exceptions

from bionemo.webdatamodule.errors import ConversionError, count

_T = TypeVar("_T")
_LOGGER = logging.getLogger("bionemo.webdatamodule")
_GRACE = 10.0  # seconds that a cancelled task has for tidying up

_LOST = (
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
)
"""Ray's errors for a task whose worker or node was lost, or was stopped for lack of memory."""


class RemoteTraceback(Exception):  # noqa: N818 - the cause of an error, never raised by itself
    """Where on the cluster an error was raised, as text."""


@dataclass(kw_only=True, eq=False)
class _Task:
    """A call, and how often it was lost."""

    number: int
    payload: bytes
    future: futures.Future[Any]
    losses: int = 0
    ref: Any = None


class RayExecutor(futures.Executor):
    """Runs calls as Ray tasks.

    At most twice as many as fit the cluster are with Ray at a time; these count as running, and cannot be
    cancelled one by one, as in a pool of processes. The rest wait here.
    Calls go by Ray's cloudpickle, so functions of ``__main__`` and lambdas work, too.

    Ray's own retries are off, since those for lack of memory may never end. Lost tasks are run again from here.

    All state belongs to one thread, which does what it finds in its inbox: Ray reports finished tasks in
    a thread of its own, which must not block.

    Args:
        cpus: CPUs that a task reserves.
        resources: Further resources that a task reserves.
        retries: How often a lost task is run again.
    """

    def __init__(self, *, cpus: float, resources: Mapping[str, float], retries: int) -> None:
        self._cpus = cpus
        self._retries = retries
        extra = dict(resources)
        memory = {"memory": extra.pop("memory")} if "memory" in extra else {}
        self._remote = ray.remote(_call).options(num_cpus=cpus, resources=extra, max_retries=0, **memory)
        self._lock = threading.Lock()
        self._closed = False
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[_Task] = deque()
        self._running: set[_Task] = set()
        self._closing = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="webdatamodule-ray", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> futures.Future[_T]:
        """Run a call on the cluster.

        Raises:
            RuntimeError: If the executor was shut down.
        """
        future: futures.Future[_T] = futures.Future()
        try:
            payload = cloudpickle.dumps((function, args, kwargs))
        except Exception as error:  # noqa: BLE001 - a future holds whatever pickling raised
            future.set_exception(error)
            return future
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            task = _Task(number=next(self._numbers), payload=payload, future=future)
            self._inbox.put(partial(self._waiting.append, task))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and wait for those there are.

        Args:
            wait: Return when all futures are done.
            cancel_futures: Cancel the calls that are not with Ray yet.
        """
        with self._lock:
            self._closed = True
            self._inbox.put(partial(self._close, cancel_futures))
        if wait:
            self._thread.join()

    def stop(self) -> None:
        """Cancel all calls, also those that run, and wait until they have stopped."""
        self.shutdown(wait=False, cancel_futures=True)
        self._inbox.put(partial(self._interrupt, force=False))
        self._thread.join(_GRACE)
        self._inbox.put(partial(self._interrupt, force=True))
        self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all calls, or stop them if an error is on its way."""
        if kind is None:
            self.shutdown(wait=True)
        else:
            self.stop()

    def _work(self) -> None:
        while not self._closing or self._waiting or self._running:
            try:
                self._inbox.get()()
                self._hand_over()
            except Exception as error:  # noqa: BLE001, PERF203 - a cluster that went away may raise
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """End all tasks, so that nothing waits for a cluster that is gone."""
        for task in (*self._waiting, *self._running):
            if not task.future.done():
                task.future.set_exception(_failed(f"Ray failed: {type(error).__name__}: {error}", error))
        self._waiting.clear()
        self._running.clear()

    def _close(self, cancel: bool) -> None:
        self._closing = True
        if cancel:
            for task in self._waiting:
                task.future.cancel()

    def _interrupt(self, *, force: bool) -> None:
        self._stopping = True
        for task in self._running:
            ray.cancel(task.ref, force=force)

    def _hand_over(self) -> None:
        """Give waiting tasks to Ray while there is room, and drop cancelled ones."""
        room = self._room() if self._waiting else 0
        while self._waiting and (len(self._running) < room or self._waiting[0].future.cancelled()):
            task = self._waiting.popleft()
            if task.future.set_running_or_notify_cancel():
                self._start(task)

    def _room(self) -> int:
        """Return how many tasks Ray may have: twice those that fit, so that no worker waits for the next."""
        return 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / self._cpus))

    def _start(self, task: _Task) -> None:
        try:
            task.ref = self._remote.remote(task.payload)
            self._running.add(task)
            task.ref.future().add_done_callback(lambda done: self._inbox.put(partial(self._finish, task, done)))
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds; each ends this task and no other
            self._running.discard(task)
            task.future.set_exception(_failed(f"a task cannot be given to Ray: {error}", error))

    def _finish(self, task: _Task, done: futures.Future[bytes]) -> None:
        """Give a task's outcome to its future, or start it again if it was lost."""
        self._running.discard(task)
        if task.future.done():  # given up
            return
        error = done.exception()
        if error is None:
            _settle(task.future, done.result())
        elif self._stopping or isinstance(error, exceptions.TaskCancelledError):
            task.future.set_exception(futures.CancelledError())
        elif not isinstance(error, _LOST):
            task.future.set_exception(_failed(f"a task failed on Ray: {error}", error))
        elif task.losses < self._retries:
            task.losses += 1
            _LOGGER.warning(
                "Ray lost task %d (%s); it runs again, %d of %d",
                task.number,
                type(error).__name__,
                task.losses,
                self._retries,
            )
            self._start(task)
        else:
            message = (
                f"a task keeps dying on Ray, {count(task.losses + 1, 'time')} now; last {type(error).__name__}: {error}"
            )
            advice = "look for memory and disk on the nodes, and run it again, finished shards are kept"
            task.future.set_exception(_failed(f"{message}; {advice}", error))


def _call(payload: bytes) -> bytes:
    """Make a call on a node of the cluster, and return its pickled outcome: a result, or an error and where."""
    try:
        function, args, kwargs = cloudpickle.loads(payload)
    except Exception as error:  # noqa: BLE001 - unpickling imports the user's modules
        message = f"{socket.gethostname()} cannot load a task ({type(error).__name__}: {error})"
        return _outcome(error=ConversionError(f"{message}; install there what is installed here"))
    try:
        return _outcome(result=function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - what a task raises is its outcome
        return _outcome(error=error)


def _outcome(*, result: Any = None, error: Exception | None = None) -> bytes:
    where = "".join(traceback.format_exception(error)) if error else ""
    try:
        dumped: bytes = cloudpickle.dumps((result, error, where))
        cloudpickle.loads(dumped)  # some errors pickle, but do not load again
    except Exception:
        if error is None:
            raise
        return _outcome(error=ConversionError(f"a task failed: {type(error).__name__}: {error}"))
    return dumped


def _settle(future: futures.Future[Any], dumped: bytes) -> None:
    try:
        result, error, where = cloudpickle.loads(dumped)
    except Exception as broken:  # noqa: BLE001 - unpickling imports the user's modules
        future.set_exception(_failed(f"the outcome of a task cannot be loaded: {broken}", broken))
        return
    if error is None:
        future.set_result(result)
    else:
        error.__cause__ = RemoteTraceback(where)
        future.set_exception(error)


def _failed(message: str, cause: BaseException) -> ConversionError:
    error = ConversionError(message)
    error.__cause__ = cause
    return error
