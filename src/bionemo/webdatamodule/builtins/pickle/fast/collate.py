"""Make batches of streams that follow templates of one kind: their memory is copied straight into the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.pickle.fast.program import Again, Block, Items, Made, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.program import Node
    from bionemo.webdatamodule.builtins.pickle.fast.rows import Rows
    from bionemo.webdatamodule.builtins.pickle.fast.template import Template
    from bionemo.webdatamodule.builtins.pickle.fast.values import Slot

Collate: TypeAlias = "Callable[[slice, bool], Any]"
"""Makes a batch of consecutive streams; the second argument says whether tensors are padded to the longest."""


class DiffersError(Exception):
    """The streams of a batch do not fit together."""


class Match(NamedTuple):
    """Streams and the template that they follow."""

    template: Template
    rows: Rows


def collate(matches: Sequence[Match], views: Sequence[memoryview]) -> Collate:
    """Return what makes batches of streams as :func:`torch.utils.data.default_collate` makes them of the values.

    Args:
        matches: All of the streams, by template; the templates are of one kind.
        views: The streams in their order.
    """
    root = matches[0].template.root
    return _node(root, iter(range(len(matches[0].template.slots))), matches, views, list)


def _node(
    root: Node, numbers: Iterator[int], matches: Sequence[Match], views: Sequence[memoryview], rows: type
) -> Collate:
    """Return what makes batches of one node of the tree.

    Args:
        root: The node.
        numbers: The numbers of its slots.
        matches: As in :func:`collate`.
        views: As in :func:`collate`.
        rows: What ``default_collate`` gets the values in: below lists and tuples it makes tuples, except for padding.
    """
    if isinstance(root, Mapping):
        named = [(key, _node(item, numbers, matches, views, list)) for key, item in root.items.items()]
        return lambda where, pad: {key: make(where, pad) for key, make in named}
    if isinstance(root, Items):
        makes = [_node(item, numbers, matches, views, tuple) for item in root.items]
        return lambda where, pad: [make(where, pad) for make in makes]
    if isinstance(root, (Made, Again)):
        raise DiffersError
    number = next(numbers)
    dtype = _batched(root) if isinstance(root, Block) else None
    return _collated(number, matches, views, rows) if dtype is None else _stacked(number, matches, views, dtype)


def _batched(block: Block) -> torch.dtype | None:
    if block.tensor is not None:
        return block.tensor
    import torch

    try:
        return torch.from_numpy(np.empty(0, block.dtype)).dtype
    except (TypeError, ValueError):  # default_collate says what is wrong with it
        return None


def _collated(number: int, matches: Sequence[Match], views: Sequence[memoryview], rows: type) -> Collate:
    from torch.utils.data import default_collate

    values: list[Any] = [None] * len(views)
    for match in matches:
        match.rows.put(match.template.slots[number].values(match.rows), values)
    return lambda where, pad: default_collate((list if pad else rows)(values[where]))


def _stacked(number: int, matches: Sequence[Match], views: Sequence[memoryview], dtype: torch.dtype) -> Collate:

    slots = [match.template.slots[number] for match in matches]
    if any(len(slot.shape) != len(slots[0].shape) for slot in slots):
        raise DiffersError
    shapes = _in_order([slot.shapes(match.rows) for slot, match in zip(slots, matches, strict=True)], matches)
    copy, in_bytes = _copier(slots, matches, views), _bytes_of(dtype)
    common = shapes[0].tolist() if (shapes == shapes[0]).all() else None

    def batch(where: slice, pad: bool) -> torch.Tensor:
        shape = _shape(shapes[where], pad=pad) if common is None else common
        made = context.worker().empty((where.stop - where.start, *shape), dtype)
        copy(where, in_bytes(made))
        return made

    return batch


def _shape(shapes: NDArray[np.int64], *, pad: bool) -> list[int]:
    """Return the shape of each sample in a batch of samples of these shapes."""
    shape: list[int] = shapes[0].tolist()
    if not (shapes == shapes[0]).all():
        if not pad or (shapes[:, 1:] != shapes[0, 1:]).any():
            raise DiffersError
        shape[0] = int(shapes[:, 0].max())
    return shape


def _bytes_of(dtype: torch.dtype) -> Callable[[torch.Tensor], NDArray[np.uint8]]:
    """Return what gives the memory of a contiguous tensor, a row for each sample."""
    import torch

    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:  # NumPy has no bfloat16
        return lambda made: made.view(-1).view(torch.uint8).numpy().reshape(len(made), -1)
    return lambda made: made.numpy().reshape(len(made), -1).view(np.uint8)


def _copier(
    slots: Sequence[Slot], matches: Sequence[Match], views: Sequence[memoryview]
) -> Callable[[slice, NDArray[np.uint8]], None]:
    """Return what copies the memory of an array in each stream to a row of a table, and fills the row with zeros."""
    memories = [slot.memory for slot in slots]
    if all(span.at >= 0 for span in memories) and len({span.high - span.low for span in memories}) == 1:
        table = _in_order(
            [
                match.rows.table[:, at : at + high - low]
                for match, (_, low, _, high, at) in zip(matches, memories, strict=True)
            ],
            matches,
        )
        return lambda where, target: np.copyto(target, table[where])
    bounds = [match.rows.bounds(slot.memory) for slot, match in zip(slots, matches, strict=True)]
    starts, stops = (_in_order(parts, matches) for parts in zip(*bounds, strict=True))

    def copy(where: slice, target: NDArray[np.uint8]) -> None:
        memory, width = target.reshape(-1).data, target.shape[1]
        lengths = stops[where] - starts[where]
        if (shortest := int(lengths.min())) < width:
            target[:, shortest:] = 0
        begins = np.arange(len(target)) * width
        ends = begins + lengths
        for view, start, stop, begin, end in zip(
            views[where], starts[where].tolist(), stops[where].tolist(), begins.tolist(), ends.tolist(), strict=True
        ):
            memory[begin:end] = view[start:stop]

    return copy


def _in_order(parts: Sequence[NDArray[Any]], matches: Sequence[Match]) -> NDArray[Any]:
    """Return what belongs to the streams in the order of the column."""
    if len(parts) == 1:
        return parts[0]
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, match in zip(parts, matches, strict=True):
        whole[match.rows.indices] = part
    return whole
