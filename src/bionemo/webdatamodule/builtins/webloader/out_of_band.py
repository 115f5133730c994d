"""Pickles values without the contents of tensors and buffers, and rebuilds them around memory that has these."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_typed_storage

from bionemo.webdatamodule.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Memory: TypeAlias = "bytearray | NDArray[np.uint8]"

IN_PICKLE = 512  # bytes; arrays and bytes objects smaller than this stay inside the pickle
OF_BYTES = -1  # uses of a piece that is a bytes object
GRAIN = 16  # bytes; a stretch of a storage begins at a multiple of it, the largest element of torch


class Part(NamedTuple):
    """Where a piece of memory lies in the block, and what it was in the worker.

    Attributes:
        offset: Bytes from the start of the payload.
        nbytes: Its length.
        low: For a storage, bytes before it that were left out.
        uses: For a storage, how many tensors of the value lie in it; 0 for a buffer, -1 for a bytes object.
    """

    offset: int
    nbytes: int
    low: int
    uses: int


class Piece(NamedTuple):
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


class Collected:
    """What one value's pickle leaves out: stretches of storages, buffers, and bytes objects if that is wanted."""

    def __init__(self) -> None:
        self._spans: dict[int, _Span] = {}
        self._buffers: list[Piece] = []
        self._bytes: dict[int, tuple[int, Piece]] = {}

    def span(self, storage: torch.UntypedStorage) -> _Span:
        """Return what is known of a storage; its number counts those seen."""
        key = storage._cdata  # noqa: SLF001 - Python's view of a storage may come and go; this is its identity
        if (span := self._spans.get(key)) is None:
            span = self._spans[key] = _Span(len(self._spans), storage)
        return span

    def buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer, and return whether the pickler must keep it instead."""
        raw = buffer.raw()
        if raw.nbytes < IN_PICKLE:
            return True
        self._buffers.append(_piece(raw, uses=0))
        return False

    def number_of(self, obj: bytes) -> int:
        """Take a bytes object, and return its number."""
        if (known := self._bytes.get(id(obj))) is None:  # it lives as long as the view in its piece
            known = self._bytes[id(obj)] = len(self._bytes), _piece(obj, uses=OF_BYTES)
        return known[0]

    @property
    def n_bytes(self) -> int:
        """Size of all bytes objects that were taken."""
        return sum(piece.nbytes for _, piece in self._bytes.values())

    def pieces(self) -> list[Piece]:
        """Return what to copy: storages by number, then buffers in order, then bytes objects by number."""
        pieces = []
        for span in self._spans.values():
            low = max(span.start, 0) // GRAIN * GRAIN
            nbytes = max(span.stop - low, 0)
            pieces.append(Piece(span.storage.data_ptr() + low, nbytes, low, span.uses, span.storage))
        return pieces + self._buffers + [piece for _, piece in self._bytes.values()]


def _piece(buffer: bytes | memoryview, *, uses: int) -> Piece:
    view = np.frombuffer(buffer, np.uint8)
    return Piece(address(view), view.nbytes, 0, uses, view)


class Pickler(pickle.Pickler):
    """Pickles everything but the contents of storages and buffers."""

    # The collection is an object of its own: a pickler that knew its own methods would be a cycle,
    # and the tensors of each chunk would stay until the garbage collector comes.
    def __init__(self, stream: io.BytesIO, collected: Collected) -> None:
        super().__init__(stream, protocol=5, buffer_callback=collected.buffer)
        self._collected = collected

    def reducer_override(self, obj: Any) -> Any:
        """Pickle tensors and storages by number; the pickle module asks for every object that is not a builtin."""
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


class BytesPickler(Pickler):
    """Pickles everything but the contents of storages, buffers and bytes objects.

    The pickle module asks it for every object, which many small ones notice.
    """

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number of a bytes object, ``None`` for what is pickled."""
        return self._collected.number_of(obj) if type(obj) is bytes and len(obj) >= IN_PICKLE else None


def _is_plain(tensor: torch.Tensor) -> bool:
    return not (
        tensor.layout is not torch.strided
        or not tensor.is_cpu
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
        or tensor._backward_hooks  # noqa: SLF001 - as torch.multiprocessing does
        or tensor.__dict__
    )


def _tensor(*_: Any) -> torch.Tensor:
    """Name what :class:`Unpickler` does for a tensor."""
    raise UsageError("a packed value is read by Packed.unpack only")


def _storage(*_: Any) -> torch.UntypedStorage:
    """Name what :class:`Unpickler` does for a storage."""
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

    def tensor(
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


class Unpickler(pickle.Unpickler):
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
        apart = (part for part in rows if part.uses == OF_BYTES)
        self._bytes = [bytes(view[part.offset : part.offset + part.nbytes]) for part in apart]
        self._contents = _Contents(rows, memory, pin=pin)

    def persistent_load(self, pid: int) -> bytes:
        """Return a bytes object by its number."""
        return self._bytes[pid]

    def find_class(self, module: str, name: str) -> Any:
        """Give the functions of this module the memory that they need, and find others as usual."""
        if module == __name__:
            return self._contents.tensor if name == "_tensor" else self._contents.storage
        return super().find_class(module, name)


def address(array: NDArray[np.uint8]) -> int:
    """Return where an array begins in this process's memory."""
    return int(array.__array_interface__["data"][0])


def _strides(size: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))
