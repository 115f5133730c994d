"""The cache of data that set up a run, such as keys of shards, beside the cached indexes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from bionemo.webdatamodule._engine.storage.index_cache import cache_directory, write_atomically

MOST_BYTES = 1 << 28
"""Bytes of one file, at most; more is read again."""


def derived(kind: str, identity: object, count: int, read: Callable[[], Sequence[bytes]]) -> Sequence[bytes]:
    """Return strings of bytes that follow from data, from the cache or else from the data.

    Args:
        kind: What they are; a folder of the cache.
        identity: Whatever they follow from, as text that is the same in every run; ``None`` where nothing is known to
            be so, and they are read each time.
        count: How many there are.
        read: Reads them.
    """
    if identity is None:
        return read()
    name = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()
    path = os.path.join(cache_directory(), kind, name)
    known = _cached(path, count)
    if known is not None:
        return known
    found = read()
    ends = np.cumsum([len(value) for value in found], dtype="<i8")
    if len(found) and ends[-1] <= MOST_BYTES:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_atomically(path, ends.tobytes() + b"".join(found))
    return found


def _cached(path: str, count: int) -> list[bytes] | None:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError:
        return None
    if len(data) < 8 * count or not count:
        return None
    ends = [0, *np.frombuffer(data, "<i8", count).tolist()]
    if len(data) != 8 * count + ends[-1]:
        return None
    values = memoryview(data)[8 * count :]
    return [bytes(values[start:stop]) for start, stop in itertools.pairwise(ends)]
