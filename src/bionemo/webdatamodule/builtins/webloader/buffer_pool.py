"""Memory of large batches in the process that reads them, reused once nothing refers to it.

Pages that were never touched cost more than the copy into them; worker processes have their blocks for that reason,
see :mod:`~bionemo.webdatamodule.builtins.webloader.shared_blocks`.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

LEAST: Final = 1 << 20
"""Bytes from which on memory is kept; an allocator keeps smaller pieces by itself."""

KEPT: Final = 2
"""Pieces that wait for use at a time: what a loop lets go of while the next batch is made, and one more."""


class Recycler:
    """Makes tensors in memory that earlier ones have left."""

    def __init__(self) -> None:
        self._idle: deque[torch.Tensor] = deque(maxlen=KEPT)  # whose operations need no lock; the oldest falls out

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised contiguous tensor.

        Args:
            shape: Sizes of the tensor.
            dtype: Type of its elements.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < LEAST:
            return torch.empty(tuple(shape), dtype=dtype)
        memory = self._take(nbytes)
        # Everything that shows the memory holds this array, by way of the tensor's storage.
        buffer: Any = memory.numpy()
        window = np.frombuffer(memoryview(buffer), np.uint8, nbytes)
        weakref.finalize(window, self._idle.append, memory).atexit = False
        return torch.frombuffer(window, dtype=dtype).view(tuple(shape))

    def _take(self, nbytes: int) -> torch.Tensor:
        try:
            memory = self._idle.pop()
        except IndexError:
            pass
        else:
            if nbytes <= len(memory) <= 2 * nbytes:
                return memory
        return torch.empty(nbytes + nbytes // 8, dtype=torch.uint8)  # the next batch may be a little longer


empty = Recycler().empty
"""Makes tensors in this process's memory."""
