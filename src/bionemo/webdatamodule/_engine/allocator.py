"""What the C library does with the memory of batches that are gone."""

from __future__ import annotations

import functools

import torch

_LARGEST = (32 << 20) - 4096  # bytes; glibc learns from blocks of up to 32 MiB, its own overhead included


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep the memory of a batch for the next one, as it does in any process that once freed a large block.

    Memory that goes back to the system costs a page fault for each 4 kB when it is used again, which is more time than
    copying the data into it. glibc gives back what is free at the end of its heap, beyond twice the size of the largest
    block that it saw freed (``M_MMAP_THRESHOLD`` in mallopt(3)). So one block is freed here that was never touched:
    this takes no memory, and settings in the environment stay in force. Other allocators do not mind.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
