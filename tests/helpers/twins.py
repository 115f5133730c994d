"""Third-party twins of default components, written against the public files alone.

They refuse to be used for samples, so a run with them shows that the fast path was taken.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bionemo.webdatamodule import Codec, Stage, context, hookimpl
from bionemo.webdatamodule.columns import Fields, pad_fields, stack_fields


@dataclass(frozen=True, kw_only=True)
class TwinUntuple:
    """Does what ``untuple`` does."""

    anywhere = True

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Refuse samples."""
        raise AssertionError("samples were made")

    def columns(self, fields: Fields) -> Any:
        """Return the only column."""
        (column,) = fields
        return column


@dataclass(frozen=True, kw_only=True)
class TwinBatch:
    """Does what ``batch`` does."""

    collate: str = "default"
    anywhere = True

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Refuse samples."""
        raise AssertionError("samples were made")

    def columns(self, fields: Fields) -> Any:
        """Return the batch."""
        return pad_fields(fields) if self.collate == "pad" else stack_fields(fields)


@dataclass(frozen=True, kw_only=True)
class TwinNpy:
    """Does what the codec ``npy`` does, for arrays of one shape."""

    def decode(self, view: memoryview) -> Any:
        """Return the array."""
        return np.load(io.BytesIO(view), allow_pickle=False)

    def column(self, views: Sequence[memoryview]) -> TwinColumn:
        """Return the column."""
        return TwinColumn(views)


@dataclass(frozen=True)
class TwinColumn:
    """Arrays of one shape."""

    views: Sequence[memoryview]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, where: slice) -> TwinColumn:
        return type(self)(self.views[where])

    def values(self) -> list[Any]:
        """Refuse, since batches need none."""
        raise AssertionError("values were made")

    def stack(self) -> torch.Tensor:
        """Copy the arrays into the batch."""
        first = self.views[0]
        length = 10 + int.from_bytes(first[8:10], "little")
        header = bytes(first[:length])
        shape, dtype = _header(header)
        made = context.worker().empty((len(self.views), *shape), dtype)
        memory, width, begin = made.view(-1).view(torch.uint8).numpy().data, len(first) - length, 0
        for view in self.views:
            if bytes(view[:length]) != header:
                raise ValueError("arrays differ")
            memory[begin : begin + width] = view[length:]
            begin += width
        return made

    def pad(self) -> torch.Tensor:
        """Return the stack, as all are of one length."""
        return self.stack()


@functools.cache
def _header(header: bytes) -> tuple[tuple[int, ...], torch.dtype]:
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, torch.from_numpy(np.empty(0, dtype)).dtype


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stages."""
    yield Stage(name="twin_untuple", summary="untuple of a third party", factory=TwinUntuple)
    yield Stage(name="twin_batch", summary="batch of a third party", factory=TwinBatch)


@hookimpl
def webdatamodule_codecs() -> Iterable[Codec]:
    """Register the codec."""
    yield Codec(name="twin_npy", summary="npy of a third party", factory=TwinNpy)
