"""Sends any Python value from a worker to the main process: one small pickle and one shared-memory block."""

from __future__ import annotations

import ctypes
import io
import math
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch._utils import _validate_loaded_sparse_tensors
from torch.multiprocessing.reductions import reduce_typed_storage

from bionemo.webdatamodule import recycling
from bionemo.webdatamodule.blocks import Block, Place, aligned, attach, release_idle
from bionemo.webdatamodule.errors import UsageError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Memory: TypeAlias = "bytearray | NDArray[np.uint8]"

__all__ = ["Block", "Packed", "empty", "pack", "pack_all", "release_idle"]

SMALL = 32 * 1024  # bytes; less than this goes through the pipe faster than through a block
IN_PICKLE = 512  # bytes; arrays smaller than this stay inside the pickle
LONG_PICKLE = 4 * 1024  # bytes; a longer pickle rides in the block too
GRAIN = 16  # bytes; a stretch of a storage begins at a multiple of it, the largest element of torch


class Part(NamedTuple):
    """Where a piece of memory lies in the block, and what it was in the worker.

    Attributes:
        offset: Bytes from the start of the payload.
        nbytes: Its length.
        low: For a storage, bytes before it that were left out.
        uses: For a storage, how many tensors of the value lie in it.
    """

    offset: int
    nbytes: int
    low: int
    uses: int


def pack(value: Any, block: Block | None = None) -> Packed:
    """Pack a value, in a worker, to be sent to the main process.

    Args:
        value: Anything that pickles. The contents of CPU tensors, numpy arrays and whatever else offers
            out-of-band buffers are copied once, into one shared block. Tensors that share memory still do
            on the other side; of a storage, only the stretch that they span is sent.
        block: The block whose :meth:`Block.empty` made tensors of the value: those are not copied at all.
            It must not be used afterwards.

    Raises:
        WorkerError: If the value does not pickle.
    """
    stream = io.BytesIO()
    collected = _Collected()
    try:
        _Pickler(stream, collected).dump(value)
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
    if block is not None and (packed := _pack_into(block, program, pieces)) is not None:
        return packed
    parts = _copied(pieces, memory := bytearray(sum(aligned(p.nbytes) for p in pieces)))
    return Packed(program=program, parts=parts, memory=memory)


_next_block: Block | None = None  # where empty() puts tensors; a Block only while pack_all() makes an item


def pack_all(values: Iterable[Any]) -> Iterator[Packed]:
    """Pack values one by one, in a worker; what :func:`empty` made for one of them is not copied again."""
    global _next_block  # noqa: PLW0603 - one stream a worker; decoders may not thread it through users' stages
    source, hint = iter(values), 0
    while True:
        _next_block = Block(hint)
        try:
            value = next(source)
        except StopIteration:
            return
        finally:
            block, _next_block = _next_block, None
        packed = pack(value, block)
        hint = block.used
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
        return recycling.empty(shape, dtype)
    return _next_block.empty(shape, dtype)


class Packed:
    """A value on its way from a worker to the main process; made by :func:`pack`.

    It is sent by pickling it, once, and the value is had by :meth:`unpack`, once.
    """

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
        value = _Unpickler(self._program, self._parts, memory, pin=pin).load()
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


class _Piece(NamedTuple):
    """A stretch of memory to be sent, with what keeps it alive."""

    address: int
    nbytes: int
    low: int
    uses: int
    owner: object


@dataclass(slots=True)
class _Span:
    """The part of a storage that the tensors seen so far cover, in bytes."""

    number: int
    storage: torch.UntypedStorage
    uses: int = 0
    start: int = -1
    stop: int = -1

    def cover(self, start: int, stop: int) -> None:
        self.uses += 1
        if start < stop:
            self.start = start if self.start < 0 else min(start, self.start)
            self.stop = max(stop, self.stop)


class _Collected:
    """What one value's pickle leaves out: stretches of storages, and buffers."""

    def __init__(self) -> None:
        self._spans: dict[int, _Span] = {}
        self._buffers: list[_Piece] = []

    def span(self, storage: torch.UntypedStorage) -> _Span:
        key = storage._cdata  # noqa: SLF001 - Python's view of a storage may come and go; this is its identity
        if (span := self._spans.get(key)) is None:
            span = self._spans[key] = _Span(len(self._spans), storage)
        return span

    def buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer, or tell the pickler to keep it."""
        raw = buffer.raw()
        if raw.nbytes < IN_PICKLE:
            return True
        view = np.frombuffer(raw, np.uint8)
        self._buffers.append(_Piece(_address(view), raw.nbytes, 0, 0, view))
        return False

    def pieces(self) -> list[_Piece]:
        """Return what there is to copy: storages by number, then buffers in their order."""
        pieces = []
        for span in self._spans.values():
            low = max(span.start, 0) // GRAIN * GRAIN
            nbytes = max(span.stop - low, 0)
            pieces.append(_Piece(span.storage.data_ptr() + low, nbytes, low, span.uses, span.storage))
        return pieces + self._buffers


class _Pickler(pickle.Pickler):
    """Pickles everything but the contents of storages and buffers."""

    # The collection is an object of its own: a pickler that knew its own methods would be a cycle,
    # and the tensors of each chunk would stay until the garbage collector comes.
    def __init__(self, stream: io.BytesIO, collected: _Collected) -> None:
        super().__init__(stream, protocol=5, buffer_callback=collected.buffer)
        self._collected = collected

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor and _is_plain(obj):
            return self._reduce_tensor(obj)
        # Parameters, subclasses, sparse and quantized tensors: torch knows how, down to their storages.
        if type(obj) is torch.UntypedStorage and obj.device.type == "cpu":
            span = self._collected.span(obj)
            span.cover(0, obj.nbytes())
            return _storage, (span.number,)
        if isinstance(obj, torch.storage.TypedStorage):
            return reduce_typed_storage(obj)
        return NotImplemented

    def _reduce_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        if tensor.requires_grad and not tensor.is_leaf:
            raise TypeError("a tensor that is part of a gradient graph cannot leave its process; detach() it")
        span = self._collected.span(tensor.untyped_storage())
        size, stride, itemsize = tuple(tensor.shape), None, tensor.itemsize
        if tensor.is_contiguous():
            length = tensor.numel()
        else:
            stride = tensor.stride()
            length = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        offset = int(tensor.storage_offset())
        span.cover(offset * itemsize, (offset + length) * itemsize)
        return _tensor, (span.number, tensor.dtype, offset, size, stride, tensor.requires_grad)


def _is_plain(tensor: torch.Tensor) -> bool:
    return not (
        tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor._backward_hooks  # noqa: SLF001 - as torch.multiprocessing does
        or tensor.__dict__
    )


def _pack_into(block: Block, program: bytes, pieces: Sequence[_Piece]) -> Packed | None:
    """Copy what is not there yet into the block; ``None`` if there is no room."""
    placed = [block.offset(piece.address - piece.low) for piece in pieces]
    sizes = [0 if at is not None else aligned(p.nbytes) for p, at in zip(pieces, placed, strict=True)]
    inside = len(program) > LONG_PICKLE
    start = block.allocate(sum(sizes) + (len(program) if inside else 0))
    if start is None:
        return None
    memory = block.memory
    base = _address(memory)
    parts = np.empty((len(pieces) + inside, 4), np.int64)
    for row, (piece, at, size) in enumerate(zip(pieces, placed, sizes, strict=True)):
        if at is None:
            parts[row] = start, piece.nbytes, piece.low, piece.uses
            ctypes.memmove(base + start, piece.address, piece.nbytes)
            start += size
        else:
            parts[row] = at + piece.low, piece.nbytes, piece.low, piece.uses
    stop = start
    if inside:
        parts[-1] = start, len(program), 0, 0
        ctypes.memmove(base + start, program, len(program))
        stop += len(program)
    return Packed(program=None if inside else program, parts=parts, memory=memory[:stop], block=block)


def _copied(pieces: Sequence[_Piece], memory: bytearray) -> NDArray[np.int64]:
    """Copy every piece to ordinary memory and return where it lies there."""
    parts = np.empty((len(pieces), 4), np.int64)
    view, start = np.frombuffer(memory, np.uint8), 0
    base = _address(view)
    for row, piece in enumerate(pieces):
        parts[row] = start, piece.nbytes, piece.low, piece.uses
        ctypes.memmove(base + start, piece.address, piece.nbytes)
        start += aligned(piece.nbytes)
    return parts


def _tensor(*_: Any) -> torch.Tensor:
    """Name what :class:`_Unpickler` does for a tensor."""
    raise UsageError("a packed value is read by Packed.unpack only")


def _storage(*_: Any) -> torch.UntypedStorage:
    """Name what :class:`_Unpickler` does for a storage."""
    raise UsageError("a packed value is read by Packed.unpack only")


class _Contents:
    """Makes tensors and storages of the memory that came with a pickle."""

    def __init__(self, parts: Sequence[Part], memory: Memory, *, pin: bool) -> None:
        self._parts = parts
        self._memory = memory
        self._pin = pin
        self._storages: dict[int, torch.UntypedStorage] = {}

    def storage(self, number: int) -> torch.UntypedStorage:
        if (storage := self._storages.get(number)) is None:
            part = self._parts[number]
            if part.nbytes == 0:
                return torch.UntypedStorage(0)
            view = torch.frombuffer(self._memory, dtype=torch.uint8, count=part.nbytes, offset=part.offset)
            storage = (view.pin_memory() if self._pin else view).untyped_storage()
            self._storages[number] = storage
        return storage

    def tensor(  # noqa: PLR0917 - called by the pickle machine
        self,
        number: int,
        dtype: torch.dtype,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...] | None,
        requires_grad: bool,
    ) -> torch.Tensor:
        part = self._parts[number]
        if part.nbytes == 0:
            tensor = torch.empty(size, dtype=dtype)
        elif part.uses == 1 and stride is None and not self._pin:
            start = part.offset + offset * dtype.itemsize - part.low
            tensor = torch.frombuffer(self._memory, dtype=dtype, count=math.prod(size), offset=start)
            tensor = tensor if len(size) == 1 else tensor.view(size)
        else:
            start = offset - part.low // dtype.itemsize
            tensor = torch.empty(0, dtype=dtype)
            tensor.set_(self.storage(number), start, size, stride or _strides(size))
        return tensor.requires_grad_() if requires_grad else tensor


class _Unpickler(pickle.Unpickler):
    """Rebuilds a value around views of the memory that holds its contents."""

    def __init__(self, program: bytes | None, parts: NDArray[np.int64], memory: Memory, *, pin: bool) -> None:
        rows = [Part(*row) for row in parts.tolist()]
        buffer: Any = memory  # an array is a buffer, which its annotations say from Python 3.12 on
        view = memoryview(buffer)
        if program is None:
            last = rows.pop()
            program = bytes(view[last.offset : last.offset + last.nbytes])
        buffers = [view[part.offset : part.offset + part.nbytes] for part in rows if not part.uses]
        super().__init__(io.BytesIO(program), buffers=buffers)
        self._contents = _Contents(rows, memory, pin=pin)

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__:
            return self._contents.tensor if name == "_tensor" else self._contents.storage
        return super().find_class(module, name)


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def _strides(size: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))
