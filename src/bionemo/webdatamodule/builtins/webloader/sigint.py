"""Ctrl-C while worker processes start waits until they have: in the middle of a fork Python forgets it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Here:
    """What a forked process knows of its parent."""

    handler: Callable[..., Any] | None = None  # of SIGINT, while the one that waits is in its place


@contextmanager
def postponed() -> Iterator[None]:
    """Let an interrupt wait for the end of the block.

    Right after a fork Python runs hooks, those of ``logging`` for example, whose exceptions it ignores: a
    ``KeyboardInterrupt`` that is raised there is printed, and the run continues.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, Any]] = []
    _Here.handler = handler
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        _Here.handler = None
        if came:
            handler(*came[0])


def restore() -> None:
    """Take interrupts as the parent does otherwise, in a process that it forked within :func:`postponed`."""
    if _Here.handler is not None:
        signal.signal(signal.SIGINT, _Here.handler)
        _Here.handler = None
