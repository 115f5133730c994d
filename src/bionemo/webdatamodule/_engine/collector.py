"""The garbage collector while an epoch runs: it does not look through what was there before.

Stages that hold many samples, such as a shuffle, make the collector look through all objects of the process again and
again, of which torch and lightning alone make 400,000.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_running: set[object] = set()
"""One object for each epoch that runs now. No lock: an epoch may end where the collector itself closes it."""


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Take what exists now from the collector's sight (:func:`gc.freeze`) until all such blocks have ended.

    Where the user froze objects before, nothing changes: only all of them can be given back.
    """
    if not _running and gc.get_freeze_count():
        yield
        return
    own = object()
    _running.add(own)
    if len(_running) == 1:
        gc.freeze()
    try:
        yield
    finally:
        _running.discard(own)
        if not _running:
            gc.unfreeze()
