"""Shared-memory blocks that worker processes fill and the main process reads, without a file that could be left over.

A block is anonymous memory (``memfd_create``) that one worker owns.
The main process maps it through ``/proc/<worker>/fd/<number>`` and keeps no descriptor, so the kernel frees
it when the last of the two lets go, whatever dies when; the size of ``/dev/shm`` does not matter.

Pages that were never touched are what makes shared memory slow, so a worker uses its blocks again.
The first 64 bytes of each block say whose turn it is::

    FREE ──worker sends──▶ SENT ──main maps──▶ HELD ──last view in main dies──▶ FREE

Only the worker leaves FREE and only the main process leaves SENT and HELD, so no lock is needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import weakref
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from bionemo.webdatamodule.errors import UsageError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

ALIGNMENT = 64  # bytes; what vector instructions and numpy's own large arrays use
HEADER = 64  # bytes before the payload, as four int64: state, retired, token, pid of the worker
FREE, SENT, HELD = 0, 1, 2
STATE, RETIRED, TOKEN, PID = 0, 1, 2, 3
BLOCKS_PER_WORKER = 8  # kept for use again; more exist only while the main process holds more
GRAIN = 1 << 16  # bytes; capacities are multiples of it, so that slowly growing chunks seldom grow a block
MOST_MAPS = 16  # blocks held at once; who holds more (a shuffle buffer) gets copies, which cost less than new blocks


class Place(NamedTuple):
    """Where the main process finds a block: the worker's descriptor, and a token that identifies it."""

    pid: int
    fd: int
    token: int


def aligned(nbytes: int) -> int:
    """Return the next multiple of :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Block:
    """Memory for one chunk, to be filled in a worker and sent with ``pack(value, block)``.

    Args:
        nbytes: Bytes that will be needed, as far as known. A block grows as it must.

    Where the system has no room or no way to share memory, :meth:`empty` gives ordinary tensors and
    ``pack`` sends the bytes through the pipe: slower, with the same result.
    """

    def __init__(self, nbytes: int = 0) -> None:
        self.used = 0  # bytes of the payload so far
        self._expected = nbytes
        self._placed: dict[int, int] = {}
        self._slot: _Slot | None = None  # taken when the first bytes are asked for
        self._views: list[Bytes] = []  # while any of them is alive, the slot is not used again

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised contiguous tensor that lies in the block, so that ``pack`` need not copy it.

        Args:
            shape: Sizes of the tensor.
            dtype: Type of its elements.
        """
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0 or (offset := self.allocate(count * dtype.itemsize)) is None:
            return torch.empty(tuple(shape), dtype=dtype)
        tensor = torch.frombuffer(self._views[-1], dtype=dtype, count=count, offset=offset)
        self._placed[tensor.data_ptr()] = offset
        return tensor.view(tuple(shape))

    def allocate(self, nbytes: int) -> int | None:
        """Reserve bytes and return their aligned offset in :attr:`memory`; ``None`` if there is no room."""
        offset = aligned(self.used)
        try:
            self._reserve(offset + nbytes)
        except OSError:
            return None
        return offset

    def offset(self, address: int) -> int | None:
        """Return the offset of the storage that :meth:`empty` placed at this address, if it did."""
        return self._placed.get(address)

    @property
    def memory(self) -> Bytes:
        """The payload's bytes, writable."""
        return self._views[-1]

    def send(self) -> Place:
        """Hand the block to the main process, which must attach it exactly once."""
        if self._slot is None:
            raise UsageError("an empty block cannot be sent; use pack()")
        return self._slot.send()

    def _reserve(self, nbytes: int) -> None:
        if self._slot is None:
            self._slot = _pool().take(max(nbytes, self._expected))
            self._views.append(self._slot.lease())
        if self._slot.reserve(nbytes):
            self._views.append(self._slot.lease())
        self.used = nbytes


class _Slot:
    """A block's memory as its worker keeps it."""

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("webdatamodule-block", os.MFD_CLOEXEC)
        self._capacity = 0
        self._token = secrets.randbits(62)
        self._leases: list[weakref.ref[Bytes]] = []
        self._fields: NDArray[np.int64]
        self._bytes: Bytes
        try:
            self.reserve(nbytes)
        except OSError:
            os.close(self._fd)
            raise
        self._fields[TOKEN] = self._token
        self._fields[PID] = os.getpid()

    def reserve(self, nbytes: int) -> bool:
        """Make room for a number of bytes of payload; return whether new memory was mapped."""
        if self._capacity and HEADER + nbytes <= self._capacity:
            return False
        capacity = -(-(HEADER + nbytes + nbytes // 8) // GRAIN) * GRAIN
        # Without this, memory that runs out later would be a SIGBUS in the middle of a copy.
        os.posix_fallocate(self._fd, 0, capacity)
        self._bytes = _map(f"/proc/self/fd/{self._fd}", capacity)
        self._fields = self._bytes[:HEADER].view(np.int64)
        self._capacity = capacity
        return True

    def lease(self) -> Bytes:
        view = _window(self._bytes, self._capacity - HEADER)
        self._leases.append(weakref.ref(view))
        return view

    def send(self) -> Place:
        self._fields[STATE] = SENT
        return Place(os.getpid(), self._fd, self._token)

    @property
    def state(self) -> int:
        return int(self._fields[STATE])

    @property
    def free(self) -> bool:
        if self._fields[STATE] != FREE:
            return False
        self._leases = [lease for lease in self._leases if lease() is not None]
        return not self._leases

    def retire(self) -> None:
        self._fields[RETIRED] = 1
        os.close(self._fd)


class _Pool:
    """The blocks of this worker, the one used last at the end."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        parent = parent_process()
        # What this process may not see of its parent, the parent may not see of this process.
        self._usable = hasattr(os, "memfd_create") and _sees_descriptors(parent.pid if parent else os.getpid())

    def take(self, nbytes: int) -> _Slot:
        """Return a block that is free, growing it if it must, or a new one."""
        if not self._usable:
            raise OSError("this system cannot share memory between processes by descriptor")
        for number in reversed(range(len(self._slots))):
            if self._slots[number].free:
                slot = self._slots.pop(number)
                self._slots.append(slot)
                slot.reserve(nbytes)
                return slot
        if len(self._slots) >= BLOCKS_PER_WORKER:
            self._retire_one()
        self._slots.append(_Slot(nbytes))
        return self._slots[-1]

    def _retire_one(self) -> None:
        """Give up the block that the main process has held longest; it lives until its last view dies."""
        for number, slot in enumerate(self._slots):
            if slot.state == HELD:
                self._slots.pop(number).retire()
                return


class _Here:
    """What this process knows; everything is forgotten in a forked child."""

    pid: int = 0
    pool: _Pool | None = None
    idle: dict[int, Bytes] = {}  # noqa: RUF012  # blocks that are mapped and not looked at, by token
    held: int = 0


def _here() -> type[_Here]:
    if _Here.pid != os.getpid():
        _Here.pid, _Here.pool, _Here.idle, _Here.held = os.getpid(), None, {}, 0
    return _Here


def _pool() -> _Pool:
    here = _here()
    if here.pool is None:
        here.pool = _Pool()
    return here.pool


def _sees_descriptors(pid: int | None) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                return bool(descriptor.readlink())
    return False


def _map(path: str, nbytes: int) -> Bytes:
    # mmap.mmap would keep a descriptor open for as long as the map lives; torch's does not.
    try:
        storage: Any = torch.UntypedStorage.from_file(path, shared=True, nbytes=nbytes)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    array: Bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return array


def _window(block: Bytes, nbytes: int) -> Bytes:
    """Return the payload as an array of its own: everything made of it keeps it, not just the block, alive.

    (The base of numpy's view of a view is the array at the bottom, unless another type lies between.)
    """
    buffer: Any = block  # an array is a buffer, which its annotations say from Python 3.12 on
    return np.frombuffer(memoryview(buffer), np.uint8, nbytes, HEADER)


def attach(place: Place, nbytes: int) -> Bytes:
    """Return the payload of a block that a worker sent, in the main process.

    Args:
        place: What :meth:`Block.send` returned.
        nbytes: Length of the payload.

    Returns:
        A writable array. When it and everything made of it are gone, the worker may use the block again.

    Raises:
        WorkerError: If the worker died in the meantime, or the block was attached before.
    """
    here = _here()
    block = here.idle.pop(place.token, None)
    if block is None or len(block) < HEADER + nbytes:
        release_idle(all_workers=False)
        path = f"/proc/{place.pid}/fd/{place.fd}"
        try:
            block = _map(path, Path(path).stat().st_size)
        except OSError as error:
            raise WorkerError(
                f"worker process {place.pid} was gone before its last data were read; "
                "look above for why it ended, often a lack of memory"
            ) from error
    fields = block[:HEADER].view(np.int64)
    if (fields[TOKEN], fields[STATE]) != (place.token, SENT):
        raise WorkerError(
            f"a chunk of worker process {place.pid} came twice; a chunk can be sent and unpacked only once"
        )
    if here.held >= MOST_MAPS:
        copy: Bytes = block[HEADER : HEADER + nbytes].copy()
        here.idle[place.token] = block
        fields[STATE] = FREE
        return copy
    fields[STATE] = HELD
    view = _window(block, nbytes)
    here.held += 1
    weakref.finalize(view, _released, block, os.getpid()).atexit = False
    return view


def _released(block: Bytes, pid: int) -> None:
    if os.getpid() != pid:  # a forked child lets go of its copy of the view, which says nothing about ours
        return
    _Here.held -= 1
    fields = block[:HEADER].view(np.int64)
    if not fields[RETIRED]:
        _Here.idle[int(fields[TOKEN])] = block
    fields[STATE] = FREE  # last: from here on the worker may send it again


def release_idle(*, all_workers: bool = True) -> None:
    """Unmap blocks that nothing refers to, in the main process.

    Args:
        all_workers: Also those whose worker may send them again, in which case they are mapped again.
    """
    idle = _here().idle
    for token, block in list(idle.items()):
        fields = block[:HEADER].view(np.int64)
        if all_workers or fields[RETIRED] or not Path(f"/proc/{fields[PID]}").exists():
            idle.pop(token, None)
