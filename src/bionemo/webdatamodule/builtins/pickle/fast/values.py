"""Make the values of streams that follow one program: what a template does with the data of its holes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.match import NOWHERE, Number, Span
from bionemo.webdatamodule.builtins.pickle.fast.program import Block, Items, Mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.match import Streams
    from bionemo.webdatamodule.builtins.pickle.fast.program import Leaf, Node

Values: TypeAlias = "Callable[[Streams], list[Any]]"
"""Makes a part of the value, or the whole, for each of some streams."""


@dataclass(frozen=True, eq=False)
class Slot:
    """How one part of the value is made.

    Attributes:
        values: Makes it.
        memory: Where the memory of an array or tensor lies.
        shape: The shape of an array or tensor; what is no part of the program is read from rows.
    """

    values: Values
    memory: Span = NOWHERE
    shape: Sequence[int | Number] = ()

    def shapes(self, streams: Streams) -> NDArray[np.int64]:
        """Return the shape of an array or tensor in each stream, one in a row."""
        shapes = np.empty((len(streams.places), len(self.shape)), np.int64)
        for axis, length in enumerate(self.shape):
            shapes[:, axis] = length if isinstance(length, int) else length.of(streams.rows)
        return shapes


NUMBERS: Final = {("unsigned", 1): "u1", ("unsigned", 2): "<u2", ("int", 4): "<i4", ("float", 8): ">f8"}
"""For the kind and width of an operand its type for numpy."""


def number_in(leaf: Leaf, column: int) -> Number | None:
    """Return a number that begins at a column of every row, if numpy has such numbers."""
    code = NUMBERS.get((leaf.kind, leaf.stop - leaf.start))
    return None if code is None else Number(column, code)


def constant(value: Any) -> Values:
    """Return what gives a part that is the same in every stream; it is immutable."""
    return lambda streams: [value] * len(streams.views)


def operand(leaf: Leaf, column: int) -> Values:
    """Return what reads a number or a bool that begins at a column of every row."""
    if leaf.kind == "bool":
        return lambda streams: (streams.rows[:, column] == pickle.NEWTRUE[0]).tolist()
    number = number_in(leaf, column)
    if number is not None:
        return lambda streams: number.of(streams.rows).tolist()
    stop = column + leaf.stop - leaf.start
    return lambda streams: [int.from_bytes(row[column:stop], "little", signed=True) for row in streams.rows]


def counted(kind: str, span: Span) -> Values:
    """Return what makes text or bytes of a memory."""
    makes: dict[str, Callable[[memoryview], Any]] = {"text": _text, "bytearray": bytearray, "bytes": bytes}
    make = makes[kind]
    return lambda streams: [make(memory) for memory in streams.memory(span)]


def scalar(dtype: np.dtype[Any], column: int) -> Values:
    """Return what makes a numpy scalar that begins at a column of every row."""
    return lambda streams: list(Number(column, dtype).of(streams.rows))


def array(block: Block, span: Span, shape: Sequence[int | Number]) -> Slot:
    """Return how an array or tensor is made, in memory of its own."""
    fresh = _fresh(block)

    def values(streams: Streams) -> list[Any]:
        shapes = slot.shapes(streams).tolist()
        return [fresh(bytearray(memory), shape) for memory, shape in zip(streams.memory(span), shapes, strict=True)]

    def vectors(streams: Streams) -> list[Any]:  # whose only length follows from the memory
        return [fresh(bytearray(memory), None) for memory in streams.memory(span)]

    slot = Slot(vectors if block.tensor and len(shape) == 1 else values, span, shape)
    return slot


def itemsize_of(block: Block) -> int:
    """Return the bytes of an element."""
    return int(_dtype_of(block).itemsize)


def whole(root: Node, slots: Iterator[Slot]) -> Values:
    """Return what makes the whole value."""
    if isinstance(root, Mapping):
        keys, makes = list(root.items), [whole(item, slots) for item in root.items.values()]
        if not keys:
            return lambda streams: [{} for _ in streams.views]
        return lambda streams: [dict(zip(keys, parts, strict=True)) for parts in _rows(makes, streams)]
    if isinstance(root, Items):
        kind, makes = root.kind, [whole(item, slots) for item in root.items]
        if not makes:
            return lambda streams: [kind() for _ in streams.views]
        return lambda streams: list(map(kind, _rows(makes, streams)))
    return next(slots).values


def kind_of(root: Node) -> Any:
    """Return what two templates have in common whose streams fit into one batch."""
    if isinstance(root, Mapping):
        return "dict", tuple((type(key), key, kind_of(item)) for key, item in root.items.items())
    if isinstance(root, Items):
        return root.kind, tuple(map(kind_of, root.items))
    return ("block", str(_dtype_of(root)), root.tensor is None) if isinstance(root, Block) else "other"


def _rows(makes: Sequence[Values], streams: Streams) -> Iterator[tuple[Any, ...]]:
    return zip(*[make(streams) for make in makes], strict=True)


def _text(view: memoryview) -> str:
    return str(view, "utf-8", "surrogatepass")


def _dtype_of(block: Block) -> Any:
    return block.tensor or block.dtype


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
