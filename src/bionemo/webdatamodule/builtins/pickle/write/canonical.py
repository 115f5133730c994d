"""The canonical pickle: plain pickle, read without this package, equal bytes for equal values, fastest to load.

It is protocol 5 with everything in one stream, and differs from ``pickle.dumps(value, protocol=5)`` in three
places only:

* An array of plain numbers is ``numpy.ndarray(shape, "<f4", bytearray)``: one call instead of four, no name that
  differs between numpy 1 and 2, and writable.
* A dense CPU tensor is ``torch.from_numpy`` of such an array, where torch's own form goes through ``torch.load``
  (20 times slower) and writes an address of this process into the file. A dtype that numpy lacks is written as
  integers of its size and taken back with ``torch.view_copy``. Strides other than the contiguous ones, and memory
  that tensors of one dtype share, come back through ``torch.as_strided``; memory that no tensor shows is left out.
* A set inside another container is written in the order of its elements' pickles, not of their hashes.

Everything else is what the standard pickler writes: sparse, quantized, CUDA and subclassed tensors, structured and
object arrays, objects of any class (a set inside which keeps the order of its hashes).
"""

from __future__ import annotations

import itertools
import pickle
import sys
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.budget import MAPPINGS, SEQUENCES
from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

PROTOCOL: Final = 5
_SCALARS: Final = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))


_KINDS: Final = "biufcSUmM"  # dtypes of plain numbers, text and times
_Memory: TypeAlias = "tuple[int, int, torch.dtype]"  # address and size of a storage; dtypes are written apart
_Spans: TypeAlias = "dict[_Memory, list[tuple[int, int]]]"  # runs of elements

_Known: TypeAlias = "dict[int, tuple[Any, bytes]]"  # pickles of elements of sets, by the ids of the elements


def dumps(value: Any) -> bytes:
    """Encode a value as a canonical pickle.

    Raises:
        DecodeError: The value is nested too deeply for any pickler.
        Exception: Whatever its classes raise while they are pickled.
    """
    return b"".join(pieces(value))


def pieces(value: Any) -> list[bytes | memoryview]:
    """Return a canonical pickle in pieces; those that are views show the memory of the value's large arrays.

    Raises:
        DecodeError: The value is nested too deeply for any pickler.
        Exception: Whatever its classes raise while they are pickled.
    """
    try:
        return _pieces(value, {})
    except RecursionError as error:
        raise DecodeError("the value is nested too deeply to be pickled") from error


def _dumps(value: Any, known: _Known) -> bytes:
    return b"".join(_pieces(value, known))


def _pieces(value: Any, known: _Known) -> list[bytes | memoryview]:
    pickler = _CarefulPickler if _has_set(value) else _QuickPickler
    data, spans = _dump(pickler, value, {}, known)
    # Only now is it known which tensors share memory.
    return _dump(pickler, value, spans, known)[0] if spans else data


def _dump(pickler: type[_Pickler], value: Any, spans: _Spans, known: _Known) -> tuple[list[bytes | memoryview], _Spans]:
    stream = _Stream()
    reducer = _Reducer(spans)
    instance: Any = pickler(stream, protocol=PROTOCOL)
    instance.reducer_override = reducer
    instance.known = known
    instance.dump(value)
    return stream.pieces, reducer.shared()


class _Stream:
    """What a pickler writes, in pieces; the memory of large arrays is not copied."""

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview] = []

    def write(self, data: Any) -> int:
        """Take what the pickler writes; large buffers come as they are."""
        piece = data.raw() if type(data) is pickle.PickleBuffer else bytes(data)
        self.pieces.append(piece)
        return len(piece)


def _has_set(value: Any) -> bool:
    """Say whether there is a set with an order to settle inside Python's own containers."""
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind in (set, frozenset):
            if len(item) > 1:
                return True
        elif (kind in MAPPINGS or kind in SEQUENCES) and id(item) not in seen:
            seen.add(id(item))
            parts: Iterable[Any] = itertools.chain(item, item.values()) if kind in MAPPINGS else item
            waiting.extend(part for part in parts if type(part) not in _SCALARS)
    return False


@dataclass(frozen=True, eq=False)
class _Flat:
    """A contiguous tensor on its way into the stream: an array, and the dtype where numpy has none such."""

    array: np.ndarray[Any, Any]
    dtype: torch.dtype | None = None

    def reduce(self) -> tuple[Any, ...]:
        torch = sys.modules["torch"]
        if self.dtype is None:
            return torch.from_numpy, (self.array,)
        return torch.view_copy, (_Flat(self.array), self.dtype)


class _Reducer:
    """Says how arrays and tensors of one stream are written, and which tensors share memory.

    Args:
        spans: For each storage and dtype the runs of elements that several tensors show, as a first pass found.
    """

    def __init__(self, spans: _Spans) -> None:
        self.torch = sys.modules.get("torch")
        self.spans = spans
        self.seen: list[torch.Tensor] = []
        self.bases: dict[tuple[_Memory, int], _Flat] = {}

    def __call__(self, value: Any) -> Any:
        """Return a reduction, the name of a function of torch, or NotImplemented for the standard way."""
        kind = type(value)
        if kind is np.ndarray:
            return _reduce_array(value)
        if self.torch is not None:
            if kind is self.torch.Tensor:
                return self.tensor(value)
            if kind is _Flat:
                return value.reduce()
            if kind is BuiltinFunctionType and value.__module__ == "torch":
                return value.__name__  # the standard way would write getattr(torch._C._VariableFunctions, …)
        return NotImplemented

    def tensor(self, tensor: torch.Tensor) -> Any:
        """Return the reduction of a tensor."""
        if not _is_plain(tensor):
            return NotImplemented
        state: tuple[Any, ...] = ()
        if tensor.requires_grad:
            state = ((True, None, None),)  # see torch.Tensor.__setstate__
            tensor = tensor.detach()
        if tensor.is_conj() or tensor.is_neg():  # bits that numpy does not know
            tensor = tensor.resolve_conj().resolve_neg()
        self.seen.append(tensor)
        if self.spans:
            low, _ = _span(tensor)
            for start, stop in self.spans.get(_memory(tensor), ()):
                if start <= low < stop:
                    return *self.view(tensor, start, stop), *state
        if not tensor.is_contiguous():
            if _is_dense(tensor):
                return *self.view(tensor, *_span(tensor)), *state
            tensor = tensor.contiguous()
        return *_flat(tensor).reduce(), *state

    def view(self, tensor: torch.Tensor, start: int, stop: int) -> tuple[Any, ...]:
        """Return a tensor as a view of the elements from ``start`` to ``stop`` of its storage."""
        torch = sys.modules["torch"]
        key = (_memory(tensor), start)
        if key not in self.bases:
            self.bases[key] = _flat(torch.as_strided(tensor, (stop - start,), (1,), start))
        offset = tensor.storage_offset() - start
        return torch.as_strided, (self.bases[key], tuple(tensor.shape), tensor.stride(), offset)

    def shared(self) -> _Spans:
        """Return the runs of elements that more than one tensor showed."""
        spans: dict[_Memory, list[tuple[int, int]]] = {}
        if len(self.seen) > 1:
            for tensor in self.seen:
                if tensor.numel():
                    spans.setdefault(_memory(tensor), []).append(_span(tensor))
        shared = {memory: _overlaps(sorted(found)) for memory, found in spans.items() if len(found) > 1}
        return {memory: found for memory, found in shared.items() if found}


def _overlaps(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the unions of spans, in order, that overlap with another."""
    runs: list[tuple[int, int, int]] = []
    for low, high in spans:
        if runs and low < runs[-1][1]:
            start, stop, count = runs.pop()
            runs.append((start, max(stop, high), count + 1))
        else:
            runs.append((low, high, 1))
    return [(start, stop) for start, stop, count in runs if count > 1]


def _memory(tensor: torch.Tensor) -> _Memory:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes(), tensor.dtype


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first element of the storage that a tensor shows, and the one behind the last."""
    low = int(tensor.storage_offset())
    return low, low + 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested)
        and not tensor.__dict__  # attributes that a user gave it, which torch pickles too
        and not tensor._backward_hooks  # noqa: SLF001  # as torch's own reduction looks
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Say whether the elements fill their span of memory without gaps or overlaps, in any order."""
    expected = 1
    for step, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1:
            if step != expected:
                return False
            expected *= length
    return True


def _flat(tensor: torch.Tensor) -> _Flat:
    try:
        return _Flat(tensor.numpy())
    except TypeError:  # numpy has no such dtype: bfloat16, float8, complex32 …
        import torch

        size = tensor.dtype.itemsize
        return _Flat(tensor.view(torch.uint8 if size == 1 else getattr(torch, f"int{8 * size}")).numpy(), tensor.dtype)


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    dtype = array.dtype
    plain = dtype.kind in _KINDS and dtype.itemsize and dtype.metadata is None
    if not plain or not array.flags.c_contiguous:
        return NotImplemented
    buffer = array.view(np.int64) if dtype.kind in "mM" else array  # times have no buffer of their own
    if not array.flags.writeable:
        buffer = buffer.copy()  # a read-only buffer would be written as bytes and come back read-only
    return np.ndarray, (array.shape, dtype.str, pickle.PickleBuffer(buffer.data))


class _QuickPickler(pickle.Pickler):
    """The standard pickler in C; a subclass, because only those take a reducer."""


_PythonPickler: Any = pickle._Pickler  # noqa: SLF001  # the documented C one, in Python


class _CarefulPickler(_PythonPickler):  # type: ignore[misc]
    """The standard pickler in Python, ten times slower, with sets in an order that every process agrees on."""

    def save_sorted(self, items: Any) -> None:
        """Write a set or frozenset in the order of its elements' pickles."""
        frozen = type(items) is frozenset
        if not frozen:
            self.write(pickle.EMPTY_SET)
            self.memoize(items)
        self.write(pickle.MARK)
        for item in sorted(items, key=self.pickle_of):
            self.save(item)
        self.write(pickle.FROZENSET if frozen else pickle.ADDITEMS)
        if frozen:
            self.memoize(items)

    def pickle_of(self, item: Any) -> bytes:
        """Return the pickle of an element; of a set in a set in a set it is not made again and again."""
        if type(item) not in (tuple, frozenset):
            return _dumps(item, self.known)
        known: _Known = self.known
        if id(item) not in known:
            known[id(item)] = item, _dumps(item, known)
        return known[id(item)][1]

    def save_buffer(self, buffer: pickle.PickleBuffer) -> None:
        """Write a buffer; the inherited way fails for two empty ones, which are one object to it."""
        self.save_bytearray(bytearray(buffer.raw()))

    dispatch: ClassVar = {
        **_PythonPickler.dispatch,
        set: save_sorted,
        frozenset: save_sorted,
        pickle.PickleBuffer: save_buffer,
    }


_Pickler: TypeAlias = "_QuickPickler | _CarefulPickler"
