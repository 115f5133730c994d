"""A hint to the system to start writing a file to disk before ``fsync``."""

from __future__ import annotations

import ctypes
import sys

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of <linux/fs.h>


def start_writing(descriptor: int) -> None:
    """Start to write a file to disk, without waiting; do nothing if the system cannot.

    This makes nothing durable (``sync_file_range(2)``): a caller that needs that syncs the file, and then waits less.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)


_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
