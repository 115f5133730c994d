"""What each worker is doing, in memory that the main process reads when one hangs or dies."""

from __future__ import annotations

import faulthandler
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RECORD = 512  # bytes a worker: two numbers, then text
_HEAD = struct.Struct("<diH")  # when the text was written, the descriptor for stacks, the length of the text
_STACKS_WAIT = 1.0  # seconds that a worker gets to write its stacks


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a worker wrote last.

    Attributes:
        text: What it was doing; empty if it never said.
        seconds: How long ago it said so.
        stacks_fd: Its descriptor of the file that its stacks go to; -1 if there is none.
    """

    text: str
    seconds: float
    stacks_fd: int


class StatusTable:
    """A few hundred bytes of shared memory for each worker of a loader.

    It goes to the workers as an argument of their process, under any start method.

    Args:
        num_workers: How many workers write to it.
    """

    def __init__(self, num_workers: int) -> None:
        import torch

        # Not multiprocessing's own shared arrays: their heap grows and keeps its descriptors.
        self._records = torch.zeros(num_workers, RECORD, dtype=torch.uint8).share_memory_()

    def write(self, worker: int, text: str, stacks_fd: int) -> None:
        """Write what a worker is doing; text that does not fit is cut."""
        data = text.encode(errors="replace")[: RECORD - _HEAD.size]
        record = _HEAD.pack(time.monotonic(), stacks_fd, len(data)) + data
        memoryview(self._records[worker].numpy())[: len(record)] = record

    def read(self, worker: int) -> Note:
        """Return what a worker wrote last."""
        record = self._records[worker].numpy().tobytes()
        when, stacks_fd, length = _HEAD.unpack_from(record)
        if not when:
            return Note(text="", seconds=0.0, stacks_fd=-1)
        text = record[_HEAD.size :][:length].decode(errors="replace")
        return Note(text=text, seconds=max(0.0, time.monotonic() - when), stacks_fd=stacks_fd)


def writer(table: StatusTable, worker: int) -> Callable[[str], None]:
    """Return a function that writes what this process, a worker, is doing.

    ``SIGUSR1`` from then on writes the stacks to a file of its own, or does nothing where the system has no files in
    memory. Schedulers send that signal to every process of a job; in a worker it would otherwise run the trainer's
    handler, or end the process.
    """
    stacks_fd = -1
    if hasattr(os, "memfd_create"):
        stacks_fd = os.memfd_create("webdatamodule-stacks", os.MFD_CLOEXEC)
        faulthandler.register(signal.SIGUSR1, file=stacks_fd, all_threads=True)
    else:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def note(text: str) -> None:
        table.write(worker, text, stacks_fd)

    return note


def stacks(pid: int, note: Note) -> str:
    """Return the Python stacks of a live worker, in the main process; empty where they cannot be read."""
    if note.stacks_fd < 0:
        return ""
    file = Path(f"/proc/{pid}/fd/{note.stacks_fd}")
    text, deadline = "", time.monotonic() + _STACKS_WAIT
    try:
        before = len(file.read_bytes())
        os.kill(pid, signal.SIGUSR1)
        while time.monotonic() < deadline:
            time.sleep(0.02)
            more = file.read_bytes()[before:].decode(errors="replace")
            if more and more == text:
                break
            text = more
    except OSError:  # it died in the meantime
        return text
    return text
