"""The codec of NumPy's ``npy`` files, which copies arrays of one shape straight into a batch."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import pad_values
from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_USUAL = 128
"""Bytes of the header of most arrays, which NumPy fills up to a multiple of 64."""

_SMALL = 4096
"""Bytes of a file up to which copying it twice takes less time than one more operation."""

_LENGTHS = {b"\x01\x00": slice(8, 10), b"\x02\x00": slice(8, 12)}
"""Where a header says how long it is, by version."""


@dataclass(frozen=True)
class Layout:
    """What the header of a file says.

    Attributes:
        shape: Shape of the array.
        fortran: Whether its memory is in Fortran's order.
        dtype: Type of its elements.
        start: Where the memory begins.
        nbytes: Size of the memory.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int
    nbytes: int

    @functools.cached_property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype of a tensor of it; ``None`` if torch has none."""
        import torch

        try:
            return torch.from_numpy(np.empty(0, self.dtype)).dtype
        except (TypeError, ValueError):
            return None


@dataclass(frozen=True, kw_only=True)
class NpyCodec:
    """Arrays of plain numbers."""

    def decode(self, view: memoryview) -> NDArray[Any]:
        """Return the array.

        Raises:
            DecodeError: If it holds objects, is cut short, or is no ``npy`` file.
        """
        layout = layout_of(view)
        if not layout.nbytes:
            return np.empty(layout.shape, layout.dtype, order="F" if layout.fortran else "C")
        memory = bytearray(view[layout.start :])
        made: NDArray[Any] = np.ndarray(layout.shape, layout.dtype, memory, order="F" if layout.fortran else "C")
        return made

    def column(self, views: Sequence[memoryview]) -> NpyColumn:
        """Return the column of these fields."""
        return NpyColumn(views)

    def encode(self, value: NDArray[Any]) -> bytes:
        """Return the array as a ``npy`` file.

        Raises:
            ValueError: If it holds objects.
        """
        return npy_bytes(value)


@dataclass(frozen=True)
class NpyColumn:
    """Arrays that are not decoded yet.

    Attributes:
        views: The files.
    """

    views: Sequence[memoryview]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, where: slice) -> NpyColumn:
        return NpyColumn(self.views[where])

    def values(self) -> list[Any]:
        """Return the arrays."""
        return list(map(NpyCodec().decode, self.views))

    def stack(self) -> Any:
        """Return what torch's ``default_collate`` makes of the arrays."""
        together = self._together()
        if together is not None:
            return together
        layouts = list(map(layout_of, self.views))
        if layouts and layouts.count(layouts[0]) == len(layouts) and _are_alike(layouts[:1]):
            return self._copied(layouts, layouts[0].shape)
        from torch.utils.data import default_collate

        return default_collate(self.values())

    def pad(self) -> Any:
        """Return the same after filling the arrays with zeros to the longest."""
        layouts = list(map(layout_of, self.views))
        different = list({id(layout): layout for layout in layouts}.values())
        if _are_alike(different) and layouts[0].shape and len({layout.shape[1:] for layout in different}) == 1:
            longest = max(layout.shape[0] for layout in different)
            return self._copied(layouts, (longest, *layouts[0].shape[1:]))
        return pad_values(self.values())

    def _together(self) -> torch.Tensor | None:
        """Return the batch of small arrays whose headers are the same, by few operations; ``None`` of others."""
        sizes = set(map(len, self.views))
        if len(sizes) != 1 or max(sizes) > _SMALL:
            return None
        layout, files = layout_of(self.views[0]), np.frombuffer(b"".join(self.views), np.uint8)
        table = files.reshape(len(self.views), -1)
        if (
            not layout.nbytes
            or not _are_alike([layout])
            or (table[:, : layout.start] != table[0, : layout.start]).any()
        ):
            return None
        made = _empty(layout, (len(table), *layout.shape))
        np.copyto(_bytes_of(made).reshape(len(table), -1), table[:, layout.start :])
        return made

    def _copied(self, layouts: Sequence[Layout], shape: tuple[int, ...]) -> torch.Tensor:
        made = _empty(layouts[0], (len(layouts), *shape))
        width = math.prod(shape) * layouts[0].dtype.itemsize
        if not width:
            return made
        memory = _bytes_of(made).data
        begin = 0
        for view, layout in zip(self.views, layouts, strict=True):
            end = begin + layout.nbytes
            memory[begin:end] = view[layout.start :]
            begin += width
            if end < begin:
                memory[end:begin] = bytes(begin - end)
        return made


def _empty(layout: Layout, shape: tuple[int, ...]) -> torch.Tensor:
    """Return memory for a batch of arrays of a type that torch knows."""
    assert layout.torch_dtype is not None  # noqa: S101 - _are_alike looked
    return context.worker().empty(shape, layout.torch_dtype)


def _bytes_of(made: torch.Tensor) -> NDArray[np.uint8]:
    """Return the memory of a contiguous tensor."""
    import torch

    found: NDArray[np.uint8] = made.view(-1).view(torch.uint8).numpy()
    return found


def _are_alike(layouts: Sequence[Layout]) -> bool:
    """Return whether arrays have one type that torch knows, and memory in C's order."""
    if not layouts:
        return False
    dtype = layouts[0].dtype
    return layouts[0].torch_dtype is not None and all(
        layout.dtype == dtype and not layout.fortran for layout in layouts
    )


def layout_of(view: memoryview) -> Layout:
    """Return what the header of a ``npy`` file says, after checking that it claims no more than there is.

    Raises:
        DecodeError: If the array holds objects, the file is cut short, or it is no ``npy`` file.
    """
    layout = _usual(bytes(view[:_USUAL])) or _parsed(bytes(view[: min(_header_size(view), 1 << 16)]))
    if layout.nbytes != len(view) - layout.start:
        raise DecodeError(
            f"an array of shape {layout.shape} and type {layout.dtype} has {layout.nbytes} bytes, "
            f"not {len(view) - layout.start}"
        )
    return layout


@functools.lru_cache(maxsize=256)
def _usual(header: bytes) -> Layout | None:
    """Return what a header of the usual size says; ``None`` where it is of another size."""
    return _parsed(header) if _header_size(memoryview(header)) == _USUAL else None


def _header_size(view: memoryview) -> int:
    length = _LENGTHS.get(bytes(view[6:8]))
    return 0 if length is None else length.stop + int.from_bytes(view[length], "little")


@functools.lru_cache(maxsize=256)
def _parsed(header: bytes) -> Layout:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version not in _READ:
        raise DecodeError(f"npy version {version} is not known")
    shape, fortran, dtype = _READ[version](stream)
    if dtype.hasobject:
        raise DecodeError("the array holds Python objects, which are pickles in disguise; store plain numbers")
    count = math.prod(shape)
    if count and not dtype.itemsize:  # numpy gives text of no width a width
        raise DecodeError(f"an array of shape {shape} has elements of size 0")
    return Layout(shape=shape, fortran=bool(fortran), dtype=dtype, start=stream.tell(), nbytes=count * dtype.itemsize)


_READ = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as a ``npy`` file.

    Raises:
        ValueError: If it holds objects.
    """
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
