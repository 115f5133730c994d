"""Sends any Python value from a worker to the main process: one small pickle and one shared-memory block."""

from __future__ import annotations

import ctypes
import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
from torch._utils import _validate_loaded_sparse_tensors

from bionemo.webdatamodule.builtins.webloader import buffer_pool
from bionemo.webdatamodule.builtins.webloader.out_of_band import (
    BytesPickler,
    Collected,
    Memory,
    Pickler,
    Piece,
    Unpickler,
    address,
)
from bionemo.webdatamodule.builtins.webloader.shared_blocks import Block, Place, aligned, attach, release_idle
from bionemo.webdatamodule.errors import UsageError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

__all__ = ["Block", "Packed", "empty", "pack", "pack_all", "release_idle"]

SMALL = 32 * 1024  # bytes; less than this goes through the pipe faster than through a block
LONG_PICKLE = 4 * 1024  # bytes; a longer pickle rides in the block too
LARGE_PICKLE = 64 * 1024  # bytes; a larger one may be so because of the bytes objects in it


def pack(value: Any, block: Block | None = None, *, bytes_apart: bool = False) -> Packed:
    """Pack a value, in a worker, to be sent to the main process.

    Args:
        value: Anything that pickles. The contents of CPU tensors, numpy arrays and whatever else offers
            out-of-band buffers are copied once, into one shared block. Tensors that share memory still do
            on the other side; of a storage, only the stretch that they span is sent.
        block: The block whose :meth:`Block.empty` made tensors of the value: those are not copied at all.
            It must not be used afterwards.
        bytes_apart: Whether the contents of bytes objects are copied in the same way, once instead of four times.

    Raises:
        WorkerError: If the value does not pickle.
    """
    stream = io.BytesIO()
    collected = Collected()
    try:
        (BytesPickler if bytes_apart else Pickler)(stream, collected).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise WorkerError(
            f"what the pipeline yields cannot be sent to the main process: {error}; "
            "turn it into tensors, arrays or plain objects in pipeline_wds, or set num_workers=0"
        ) from error
    program = stream.getvalue()
    pieces = collected.pieces()
    if block is None or not block.used:
        need = sum(aligned(p.nbytes) for p in pieces) + len(program)
        block = Block(need) if need > SMALL else None
    packed = None if block is None else _pack_into(block, program, pieces)
    if packed is None:
        parts = _copied(pieces, memory := bytearray(sum(aligned(p.nbytes) for p in pieces)))
        packed = Packed(program=program, parts=parts, memory=memory)
    packed.n_pickled, packed.n_apart = len(program), collected.n_bytes
    return packed


_next_block: Block | None = None  # where empty() puts tensors; a Block only while pack_all() makes an item


def pack_all(values: Iterable[Any]) -> Iterator[Packed]:
    """Pack values one by one, in a worker; what :func:`empty` made for one of them is not copied again.

    After the first large pickle, bytes objects are left out of the next one, and of those after it if that was most of
    it.
    """
    global _next_block  # noqa: PLW0603 - one stream a worker; decoders may not thread it through users' stages
    source, hint = iter(values), 0
    tried = bytes_apart = False
    while True:
        _next_block = Block(hint)
        try:
            value = next(source)
        except StopIteration:
            return
        finally:
            block, _next_block = _next_block, None
        packed = pack(value, block, bytes_apart=bytes_apart)
        hint = block.used
        if bytes_apart:
            bytes_apart = packed.n_apart > packed.n_pickled
        elif not tried:
            tried = bytes_apart = packed.n_pickled > LARGE_PICKLE
        del value, block  # while the consumer is busy, the value's memory is of use to others
        yield packed


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised tensor for the value that is being made.

    In a worker of our loader it lies in the block that the value is sent in, so that data decoded into it
    reach the main process without another copy; anywhere else it is an ordinary tensor, in memory that an earlier
    one may have left.

    Args:
        shape: Sizes of the tensor.
        dtype: Type of its elements.
    """
    if _next_block is None:
        return buffer_pool.empty(shape, dtype)
    return _next_block.empty(shape, dtype)


class Packed:
    """A value on its way from a worker to the main process; made by :func:`pack`.

    It is pickled once to send it, and :meth:`unpack` returns the value, once.

    Attributes:
        n_pickled: In the worker, bytes of its pickle.
        n_apart: In the worker, bytes of the objects of type bytes that were left out of it.
    """

    n_pickled = n_apart = 0

    def __init__(
        self,
        *,
        program: bytes | None,
        parts: NDArray[np.int64],
        memory: Memory,
        block: Block | None = None,
    ) -> None:
        self._program = program
        self._parts = parts
        self._memory: Memory | None = memory
        self._block = block
        self._pinned: tuple[Any, ...] = ()

    def unpack(self) -> Any:
        """Return the value, in the main process.

        Tensors and arrays in it are writable views of the block, which lives as long as any of them.

        Raises:
            UsageError: If it was unpacked before.
        """
        if self._pinned:
            (value,), self._pinned = self._pinned, ()
            return value
        return self._load(pin=False)

    def pin_memory(self) -> Packed:
        """Copy the contents of all tensors to page-locked memory; torch's DataLoader calls this.

        Unlike torch's own function this reaches tensors inside any object, not in containers alone,
        and tensors that share memory still do.
        """
        if not self._pinned:
            self._pinned = (self._load(pin=True),)
        return self

    def _load(self, *, pin: bool) -> Any:
        if self._memory is None:
            raise UsageError("a packed value was unpacked twice; keep what unpack() returned")
        memory, self._memory, self._block = self._memory, None, None
        value = Unpickler(self._program, self._parts, memory, pin=pin).load()
        # torch keeps every sparse tensor that was unpickled in a list until this is called.
        _validate_loaded_sparse_tensors()
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        if self._memory is None:
            raise UsageError("an unpacked value cannot be sent again; pack what unpack() returned")
        source = bytes(self._memory) if self._block is None else (self._block.send(), len(self._memory))
        return _receive, (self._program, self._parts.tobytes(), source)


def _receive(program: bytes | None, parts: bytes, source: bytes | tuple[Place, int]) -> Packed:
    """Rebuild a :class:`Packed`; a block is attached at once, while its worker surely lives."""
    memory = bytearray(source) if isinstance(source, bytes) else attach(*source)
    return Packed(program=program, parts=np.frombuffer(parts, np.int64).reshape(-1, 4), memory=memory)


def _pack_into(block: Block, program: bytes, pieces: Sequence[Piece]) -> Packed | None:
    """Copy what is not there yet into the block; ``None`` if there is no room."""
    placed = [block.offset(piece.address - piece.low) for piece in pieces]
    sizes = [0 if at is not None else aligned(p.nbytes) for p, at in zip(pieces, placed, strict=True)]
    inside = len(program) > LONG_PICKLE
    start = block.allocate(sum(sizes) + (len(program) if inside else 0))
    if start is None:
        return None
    memory = block.memory
    base = address(memory)
    move = ctypes.memmove
    rows: list[tuple[int, int, int, int]] = []
    for (source, nbytes, low, uses, _), at, size in zip(pieces, placed, sizes, strict=True):
        if at is None:
            rows.append((start, nbytes, low, uses))
            move(base + start, source, nbytes)
            start += size
        else:
            rows.append((at + low, nbytes, low, uses))
    stop = start
    if inside:
        rows.append((start, len(program), 0, 0))
        move(base + start, program, len(program))
        stop += len(program)
    parts = np.array(rows, np.int64).reshape(-1, 4)
    return Packed(program=None if inside else program, parts=parts, memory=memory[:stop], block=block)


def _copied(pieces: Sequence[Piece], memory: bytearray) -> NDArray[np.int64]:
    """Copy every piece to ordinary memory and return where it lies there."""
    view, start = np.frombuffer(memory, np.uint8), 0
    base = address(view)
    rows: list[tuple[int, int, int, int]] = []
    for piece in pieces:
        rows.append((start, piece.nbytes, piece.low, piece.uses))
        ctypes.memmove(base + start, piece.address, piece.nbytes)
        start += aligned(piece.nbytes)
    return np.array(rows, np.int64).reshape(-1, 4)
