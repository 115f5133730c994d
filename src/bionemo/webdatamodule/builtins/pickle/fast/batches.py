"""Make batches of streams that follow one program, or several of one kind: their memory goes straight into a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.program import Block, Items, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.match import Streams
    from bionemo.webdatamodule.builtins.pickle.fast.program import Node
    from bionemo.webdatamodule.builtins.pickle.fast.values import Slot

Empty: TypeAlias = "Callable[[tuple[int, ...], torch.dtype], torch.Tensor]"
Batch: TypeAlias = "Callable[[slice, Into, type], Any]"
"""Makes a batch of the streams at some places."""
Column: TypeAlias = "Callable[[Sequence[Streams], Sequence[memoryview]], Batch]"
"""Looks at all streams, sorted by template and as they came, and says how to make batches of them."""


class DiffersError(Exception):
    """The streams of a batch do not fit together."""


class Into(NamedTuple):
    """What a batch becomes.

    Attributes:
        empty: Makes the contiguous memory of a batched tensor from its shape and dtype.
        pad: Whether tensors are filled up with zeros to the longest, see :func:`.fill`.
    """

    empty: Empty
    pad: bool = False


def column_of(root: Node, numbers: Iterator[int]) -> Column:
    """Return what batches streams as ``torch.utils.data.default_collate``, or ``pad``, batches the values."""
    if isinstance(root, Mapping):
        named = [(key, column_of(item, numbers)) for key, item in root.items.items()]

        def mapping(found: Sequence[Streams], views: Sequence[memoryview]) -> Batch:
            batches = [(key, column(found, views)) for key, column in named]
            return lambda here, into, _rows: {key: batch(here, into, list) for key, batch in batches}

        return mapping
    if isinstance(root, Items):
        columns = [column_of(item, numbers) for item in root.items]

        def items(found: Sequence[Streams], views: Sequence[memoryview]) -> Batch:
            batches = [column(found, views) for column in columns]
            # default_collate makes lists of lists and of tuples, over columns that are tuples
            return lambda here, into, _rows: [batch(here, into, list if into.pad else tuple) for batch in batches]

        return items
    number = next(numbers)
    dtype = _batched(root) if isinstance(root, Block) else None
    return _collated(number) if dtype is None else _stacked(number, dtype)


def _batched(block: Block) -> torch.dtype | None:
    if block.tensor is not None:
        return block.tensor
    import torch

    try:
        return torch.from_numpy(np.empty(0, block.dtype)).dtype
    except (TypeError, ValueError):  # default_collate says what is wrong with it
        return None


def _collated(number: int) -> Column:
    def column(found: Sequence[Streams], views: Sequence[memoryview]) -> Batch:
        from torch.utils.data import default_collate

        values: list[Any] = [None] * len(views)
        for streams in found:
            streams.put(streams.template.slots[number].values(streams), values)
        return lambda here, _into, rows: default_collate(rows(values[here]))

    return column


def _stacked(number: int, dtype: torch.dtype) -> Column:
    def column(found: Sequence[Streams], views: Sequence[memoryview]) -> Batch:
        import torch

        slots = [streams.template.slots[number] for streams in found]
        if any(len(slot.shape) != len(slots[0].shape) for slot in slots):
            raise DiffersError
        shapes = _merged([slot.shapes(streams) for slot, streams in zip(slots, found, strict=True)], found)
        copy = _copier(slots, found, views)

        def batch(here: slice, into: Into, _rows: type) -> torch.Tensor:
            some = shapes[here]
            shape = some[0].tolist()
            if not (some == some[0]).all():
                if not into.pad or (some[:, 1:] != some[0, 1:]).any():
                    raise DiffersError
                shape[0] = int(some[:, 0].max())
            made = into.empty((len(some), *shape), dtype)
            copy(here, made.view(-1).view(torch.uint8).numpy().reshape(len(some), -1))
            return made

        return batch

    return column


def _copier(
    slots: Sequence[Slot], found: Sequence[Streams], views: Sequence[memoryview]
) -> Callable[[slice, NDArray[np.uint8]], None]:
    """Return what copies the memory of an array in each stream to a row of a table, and fills the row with zeros."""
    (_, low, _, high, at), rows = slots[0].memory, found[0].rows
    if len(found) == 1 and at >= 0:
        return lambda here, table: np.copyto(table, rows[here, at : at + high - low])
    bounds = [streams.bounds(slot.memory) for slot, streams in zip(slots, found, strict=True)]
    starts, stops = (_merged(parts, found) for parts in zip(*bounds, strict=True))

    def copy(here: slice, table: NDArray[np.uint8]) -> None:
        memory, width = table.reshape(-1).data, table.shape[1]
        begins = np.arange(len(table)) * width
        ends = begins + stops[here] - starts[here]
        for view, start, stop, begin, end in zip(
            views[here], starts[here].tolist(), stops[here].tolist(), begins.tolist(), ends.tolist(), strict=True
        ):
            memory[begin:end] = view[start:stop]
        short = np.flatnonzero(ends < begins + width)
        zeros = memoryview(bytes(width if short.size else 0))
        for end, stop in zip(ends[short].tolist(), (begins[short] + width).tolist(), strict=True):
            memory[end:stop] = zeros[: stop - end]

    return copy


def _merged(parts: Sequence[NDArray[Any]], found: Sequence[Streams]) -> NDArray[Any]:
    """Return what belongs to the streams in the order of their places."""
    if len(parts) == 1:
        return parts[0]
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, streams in zip(parts, found, strict=True):
        whole[streams.places] = part
    return whole
