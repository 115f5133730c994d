"""Attempts at something that another machine does, within one budget of time."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import TypeVar

from bionemo.webdatamodule._engine.storage.remote.urls import shown
from bionemo.webdatamodule.errors import RemoteError, WebDataModuleError, count

_log = logging.getLogger("bionemo.webdatamodule")
_T = TypeVar("_T")
_SLOWEST = 1 << 18  # bytes a second of a connection that is still waited for


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one operation may take, all its attempts together.

    Attributes:
        seconds: Time for everything.
        attempts: Attempts, at most.
        attempt_seconds: Time after which an attempt without a result has failed; large transfers get more.
        first_wait: Seconds before the second attempt; each further wait is twice as long, and a little random.
            A server that says for how long to wait is obeyed.
    """

    seconds: float = 120
    attempts: int = 8
    attempt_seconds: float = 30
    first_wait: float = 0.5


BUDGET = Budget()
"""The budget of every operation on a store."""

_LAST = 0.5  # seconds for which a process that ends waits for its background threads
_ending = threading.Event()
_background: set[threading.Event] = set()  # one for each thread of in_background; set when it ends
os.register_at_fork(after_in_child=_background.clear)


def notice_exit() -> None:
    """End background work when the interpreter ends. To be called when a client is made: it is closed after that."""
    atexit.unregister(_end)
    atexit.register(_end)


def is_ending() -> bool:
    """Return whether the interpreter ends, so that nothing more should be begun."""
    return _ending.is_set()


def _end() -> None:
    _ending.set()
    deadline = time.monotonic() + _LAST
    for ended in list(_background):  # a thread that is cut off within C++ code may abort the process
        ended.wait(max(0.0, deadline - time.monotonic()))


def in_background(function: Callable[[], None]) -> None:
    """Run a function in a thread of its own. A process that ends waits for it for a moment."""
    ended = threading.Event()

    def run() -> None:
        try:
            function()
        finally:
            _background.discard(ended)
            ended.set()

    _background.add(ended)
    try:
        _thread.start_new_thread(run, ())  # threading's start() waits until the interpreter runs the thread
    except RuntimeError:  # there are too many
        _background.discard(ended)
        raise


def retried(
    attempt: Callable[[], _T],
    url: str,
    *,
    n_bytes: int = 0,
    renew: Callable[[], None] | None = None,
    where: Mapping[str, str] | None = None,
) -> _T:
    """Return what an attempt returns, trying again where waiting may help.

    An attempt that takes too long is left alone in its thread.

    Args:
        attempt: Does one try.
        url: What it is about, for messages.
        n_bytes: Bytes that it moves.
        renew: Called once where something is not permitted, before a second attempt: credentials may be renewed.
        where: Who makes the attempts, for the error of one that raises something else.

    Raises:
        RemoteError: If it is not there, not permitted, or does not work within the budget.
    """
    budget = BUDGET
    started = time.monotonic()
    limit = budget.attempt_seconds + n_bytes / _SLOWEST
    deadline = started + budget.seconds + n_bytes / _SLOWEST
    number = 0
    while True:
        number += 1
        try:
            return _within(attempt, min(limit, max(0.01, deadline - time.monotonic())))
        except (WebDataModuleError, MemoryError, ImportError, NotImplementedError):
            raise
        except FileNotFoundError as error:
            raise RemoteError(f"{shown(url)} is not there") from error
        except PermissionError as error:
            if renew is None:
                raise RemoteError(f"{shown(url)} is not permitted{_because(error, url)}") from error
            renew()
            renew = None
        except Exception as error:
            if is_ending():
                raise RemoteError(f"{shown(url)} is not fetched or stored, since the process ends") from error
            reason = f"{type(error).__name__}{_because(error, url)}"
            wait = max(budget.first_wait * 2 ** (number - 1) * random.uniform(0.5, 1.5), _asked(error))
            now = time.monotonic()
            if number >= budget.attempts or now + wait >= deadline:
                raise RemoteError(
                    f"{shown(url)} cannot be fetched or stored, tried {count(number, 'time')} in "
                    f"{now - started:.0f} s; {reason}",
                    **(where or {}),
                ) from error
            _log.warning("%s: %s; trying again in %.1f s", shown(url), reason, wait)
            time.sleep(wait)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let the attempts of this thread run in one other thread, rather than each in one of its own.

    It ends with the context. An attempt that takes too long keeps it, and the next gets another one.
    """
    _own.keeps = True
    try:
        yield
    finally:
        _own.keeps = False
        if _own.thread is not None:
            _own.thread.end()
            _own.thread = None


class _Attempts:
    """A thread that makes attempts, one after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        _thread.start_new_thread(self._run, ())

    def run(self, attempt: Callable[[], _T]) -> futures.Future[_T]:
        """Make an attempt."""
        result: futures.Future[_T] = futures.Future()

        def call() -> None:
            try:
                result.set_result(attempt())
            except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
                result.set_exception(error)

        self._calls.put(call)
        return result

    def end(self) -> None:
        """End after what it was asked for."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class _Own(threading.local):
    """What belongs to one thread.

    Attributes:
        keeps: Whether one other thread makes all its attempts.
        thread: That one, once there was an attempt.
    """

    keeps = False
    thread: _Attempts | None = None


_own = _Own()


def _within(attempt: Callable[[], _T], seconds: float) -> _T:
    """Return what a call returns in time.

    Raises:
        TimeoutError: If it takes longer.
    """
    thread = _own.thread or _Attempts()
    result = thread.run(attempt)
    try:
        return result.result(seconds)
    except futures.TimeoutError as error:
        if result.done():  # the attempt itself raised it
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error
    finally:
        keeps = _own.keeps and result.done()
        _own.thread = thread if keeps else None
        if not keeps:
            thread.end()


def _because(error: BaseException, url: str) -> str:
    text = str(error).replace(url, shown(url)).strip()
    return f": {text}" if text else ""


def _asked(error: BaseException) -> float:
    """Return for how many seconds a server asked to wait."""
    asked = getattr(error, "retry_after", None)
    return float(asked) if isinstance(asked, (int, float)) and 0 <= asked < 1e6 else 0.0
