"""Make values and batches from a stream whose program is known: the small functions that a template is made of."""

from __future__ import annotations

import math
import pickle
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from bionemo.webdatamodule.pickling.programs import Block, Items, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from bionemo.webdatamodule.pickling.holes import Template
    from bionemo.webdatamodule.pickling.programs import Leaf, Node

Fields: TypeAlias = "Sequence[Any]"
Bases: TypeAlias = "Sequence[int]"  # where each chunk begins in the stream at hand
Make: TypeAlias = "Callable[[Any, Fields, Bases], Any]"
Match: TypeAlias = "tuple[Template, Fields, Bases]"
Empty: TypeAlias = "Callable[[tuple[int, ...], torch.dtype], torch.Tensor]"
Column: TypeAlias = "Callable[[Sequence[Any], Sequence[Match], Into, type], Any]"


class Into(NamedTuple):
    """What a batch becomes.

    Attributes:
        empty: Makes the contiguous memory of a batched tensor from its shape and dtype.
        pad: Whether tensors are filled up with zeros to the longest, see :func:`~bionemo.webdatamodule.padding.fill`.
    """

    empty: Empty
    pad: bool = False


class DiffersError(Exception):
    """A length in the stream contradicts another, so the stream is another program."""


@dataclass(frozen=True, eq=False)
class Slot:
    """How one part of the value is made.

    Attributes:
        make: Makes it from a stream, its fields and its chunks.
        first: Chunk in which its memory begins.
        low: Where it begins in that chunk.
        last: Chunk in which its memory ends.
        high: Where it ends in that chunk.
        shape: Of an array or tensor, where it is a part of the program.
        sizes: Reads and checks the shape otherwise, from the fields and the number of bytes.
    """

    make: Make
    first: int = 0
    low: int = 0
    last: int = 0
    high: int = 0
    shape: tuple[int, ...] | None = None
    sizes: Callable[[Fields, int], tuple[int, ...]] | None = None


def code_of(leaf: Leaf) -> str:
    """Return the :mod:`struct` code for an operand: a number, or ``s`` for bytes that a maker reads."""
    width = leaf.stop - leaf.start
    if leaf.kind == "unsigned":
        return "B" if width == 1 else "H"
    return "i" if leaf.kind == "int" and width == 4 else "s"


def number_maker(leaf: Leaf, number: int) -> Make:
    """Return what makes a number or a bool of its field."""
    if code_of(leaf) != "s":
        return lambda _view, fields, _bases: fields[number]
    if leaf.kind == "float":
        unpack = struct.Struct(">d").unpack
        return lambda _view, fields, _bases: unpack(fields[number])[0]
    if leaf.kind == "bool":
        bools = {pickle.NEWTRUE: True, pickle.NEWFALSE: False}  # KeyError: another opcode, another program
        return lambda _view, fields, _bases: bools[fields[number]]
    return lambda _view, fields, _bases: int.from_bytes(fields[number], "little", signed=True)


def counted_maker(kind: str, first: int, low: int, last: int, high: int) -> Make:
    """Return what makes text or bytes of a memory."""
    if kind == "text":
        return lambda view, _fields, bases: str(view[bases[first] + low : bases[last] + high], "utf-8", "surrogatepass")
    make = bytearray if kind == "bytearray" else bytes
    return lambda view, _fields, bases: make(view[bases[first] + low : bases[last] + high])


def scalar_maker(dtype: np.dtype[Any], first: int, low: int, _last: int, _high: int) -> Make:
    """Return what makes a numpy scalar."""
    frombuffer = np.frombuffer
    return lambda view, _fields, bases: frombuffer(view, dtype, 1, bases[first] + low)[0]


def sizes_reader(block: Block, numbers: dict[int, int]) -> Callable[[Fields, int], tuple[int, ...]]:
    """Return what reads a shape from the fields, and checks all that the stream says about it."""
    shape = [numbers[leaf.start] for leaf in block.shape]
    strides = [numbers[leaf.start] for leaf in block.strides]
    numels = [numbers[leaf.start] for leaf in block.numels]
    itemsize = _dtype_of(block).itemsize

    def read_vector(fields: Fields, size: int) -> tuple[int, ...]:
        numel = fields[shape[0]]
        if numel * itemsize != size or numel <= 0:
            raise DiffersError
        return (numel,)

    def read(fields: Fields, size: int) -> tuple[int, ...]:
        found = tuple([fields[number] for number in shape])
        numel = math.prod(found)
        if numel * itemsize != size or min(found) <= 0:
            raise DiffersError
        for number in numels:
            if fields[number] != numel:
                raise DiffersError
        for axis, number in enumerate(strides, 1):
            if fields[number] != math.prod(found[axis:]):
                raise DiffersError
        return found

    return read_vector if len(shape) == 1 and not numels else read


def _dtype_of(block: Block) -> Any:
    return block.tensor or block.dtype


def block_maker(
    block: Block,
    where: tuple[int, int, int, int],
    shape: tuple[int, ...] | None,
    sizes: Callable[[Fields, int], tuple[int, ...]] | None,
) -> Make:
    """Return what makes an array or tensor, in memory of its own."""
    first, low, last, high = where
    fresh = _fresh(block)

    def fixed(view: Any, _fields: Fields, bases: Bases) -> Any:
        return fresh(bytearray(view[bases[first] + low : bases[last] + high]), shape)

    def varying(view: Any, fields: Fields, bases: Bases) -> Any:
        memory = bytearray(view[bases[first] + low : bases[last] + high])
        return fresh(memory, sizes(fields, len(memory)))  # type: ignore[misc]  # given with open memories

    return varying if shape is None else fixed


def _fresh(block: Block) -> Callable[[bytearray, Any], Any]:
    """Return what makes an array or tensor of a memory and a shape, by the cheapest calls there are."""
    dtype, ndarray = block.dtype, np.ndarray
    if block.tensor is None:
        return lambda memory, shape: ndarray(shape, dtype, memory)
    import torch

    kind, frombuffer, from_numpy = block.tensor, torch.frombuffer, torch.from_numpy
    if len(block.shape) == 1:
        return lambda memory, _shape: frombuffer(memory, dtype=kind)
    try:
        dtype = torch.empty(0, dtype=kind).numpy().dtype
    except TypeError:  # bfloat16 and other dtypes that numpy lacks
        return lambda memory, shape: frombuffer(memory, dtype=kind).reshape(shape)
    return lambda memory, shape: from_numpy(ndarray(shape, dtype, memory))


# -- values and batches


def builder(root: Node, slots: Iterator[Slot]) -> Make:
    """Return what makes the whole value."""
    if isinstance(root, Mapping):
        pairs = [(key, builder(item, slots)) for key, item in root.items.items()]
        return lambda view, fields, bases: {key: make(view, fields, bases) for key, make in pairs}
    if isinstance(root, Items):
        makes = [builder(item, slots) for item in root.items]
        if root.kind is tuple:
            return lambda view, fields, bases: tuple([make(view, fields, bases) for make in makes])
        return lambda view, fields, bases: [make(view, fields, bases) for make in makes]
    return next(slots).make


def kind_of(root: Node) -> Any:
    """Return what two templates have in common whose streams fit into one batch."""
    if isinstance(root, Mapping):
        return "dict", tuple((type(key), key, kind_of(item)) for key, item in root.items.items())
    if isinstance(root, Items):
        return root.kind, tuple(map(kind_of, root.items))
    return ("block", str(_dtype_of(root)), root.tensor is None) if isinstance(root, Block) else "other"


def column_of(root: Node, numbers: Iterator[int]) -> Column:
    """Return what batches streams as ``torch.utils.data.default_collate``, or ``pad``, batches the values."""
    if isinstance(root, Mapping):
        pairs = [(key, column_of(item, numbers)) for key, item in root.items.items()]
        return lambda views, found, into, _rows: {key: column(views, found, into, list) for key, column in pairs}
    if isinstance(root, Items):  # default_collate makes lists of lists and of tuples, over columns that are tuples
        columns = [column_of(item, numbers) for item in root.items]
        return lambda views, found, into, _rows: [
            column(views, found, into, list if into.pad else tuple) for column in columns
        ]
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
    def column(views: Sequence[Any], found: Sequence[Match], _into: Into, rows: type) -> Any:
        from torch.utils.data import default_collate

        return default_collate(
            rows(
                template.slots[number].make(view, fields, bases)
                for view, (template, fields, bases) in zip(views, found, strict=True)
            )
        )

    return column


def _stacked(number: int, dtype: torch.dtype) -> Column:
    def column(views: Sequence[Any], found: Sequence[Match], into: Into, _rows: type) -> Any:
        import torch

        spans: list[tuple[int, int]] = []
        shapes: list[tuple[int, ...]] = []
        for template, fields, bases in found:
            slot = template.slots[number]
            start, stop = bases[slot.first] + slot.low, bases[slot.last] + slot.high
            spans.append((start, stop))
            shapes.append(slot.shape if slot.sizes is None else slot.sizes(fields, stop - start))  # type: ignore[arg-type]
        shape = shapes[0]
        same = shapes.count(shape) == len(shapes)
        if not same:
            if not into.pad or any(other[1:] != shape[1:] for other in shapes):
                raise DiffersError
            shape = (max(other[0] for other in shapes), *shape[1:])
        batch = into.empty((len(views), *shape), dtype)
        if not same:
            batch.zero_()
        row = batch[0].nbytes
        memory: Any = batch.view(-1).view(torch.uint8).numpy().data
        position = 0
        for view, (start, stop) in zip(views, spans, strict=True):
            memory[position : position + stop - start] = view[start:stop]
            position += row
        return batch

    return column
