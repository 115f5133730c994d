"""Memory maps of files that keep no descriptor open, unlike Python's ``mmap``."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


class _Map:
    """Memory of a file, unmapped when its last view is gone."""

    __slots__ = ("_place", "_writable")

    def __init__(self, descriptor: int, size: int, offset: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _mmap(None, size, protection, mmap.MAP_SHARED, descriptor, offset)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._place, self._writable = (address, size), writable

    @property
    def __array_interface__(self) -> dict[str, Any]:
        address, size = self._place
        return {"version": 3, "data": (address, not self._writable), "shape": (size,), "typestr": "|u1"}

    def __del__(self, unmap: Any = _munmap) -> None:
        if hasattr(self, "_place"):
            unmap(*self._place)


def mapped(descriptor: int, *, size: int | None = None, offset: int = 0, writable: bool = False) -> memoryview:
    """Return a file as memory that stays when the file is closed.

    Args:
        descriptor: The open file.
        size: Bytes to map; by default all from the offset on.
        offset: Where they begin, a multiple of ``mmap.ALLOCATIONGRANULARITY``.
        writable: Whether what is written goes to the file, which must be open for writing.

    Raises:
        OSError: If it cannot be mapped.
        ValueError: If there is nothing to map.
    """
    size = os.fstat(descriptor).st_size - offset if size is None else size
    if size <= 0:
        raise ValueError("an empty file cannot be mapped")
    found = np.asarray(_Map(descriptor, size, offset, writable=writable))
    return memoryview(found)  # type: ignore[arg-type]  # arrays have the buffer protocol in every Python


def content(path: str) -> bytes | memoryview:
    """Return a whole file as memory: its bytes where they take less than a page, otherwise a map.

    All processes of a machine share a map, which matters for indexes of many millions of samples. Reading it ends the
    process if the file was cut in place meanwhile: asking for the size before each sample would take as long as
    reading a small one.

    Raises:
        OSError: If it cannot be opened, read or mapped.
    """
    descriptor = os.open(path, os.O_RDONLY)  # a quarter of the time that open() takes, which many shards show
    try:
        data = os.read(descriptor, mmap.PAGESIZE)
        return data if len(data) < mmap.PAGESIZE else mapped(descriptor)
    finally:
        os.close(descriptor)


def release(memory: memoryview) -> None:
    """Let the pages of part of a mapped file go; they are read from the file again where they are needed.

    Args:
        memory: The part; pages that are only partly in it stay.
    """
    address = _address(memory)
    start, stop = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + len(memory)) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop:
        _libc.madvise(start, stop - start, mmap.MADV_DONTNEED)


def expect(memory: memoryview) -> None:
    """Have the pages of part of a mapped file read from its disk, all of them at once and without waiting for them.

    Args:
        memory: The part; pages that are only partly in it are read as well.
    """
    address = _address(memory)
    start = address & -mmap.PAGESIZE
    _libc.madvise(start, address + len(memory) - start, mmap.MADV_WILLNEED)


def _address(memory: memoryview) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data
