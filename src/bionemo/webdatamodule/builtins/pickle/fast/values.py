"""Make values of the rows of streams that follow one program."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.program import Again, Block, Items, Made, Mapping
from bionemo.webdatamodule.builtins.pickle.fast.rows import NOWHERE, Number, Span
from bionemo.webdatamodule.builtins.pickle.safe.unpickler import set_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.program import Leaf, Node
    from bionemo.webdatamodule.builtins.pickle.fast.rows import Rows

Values: TypeAlias = "Callable[[Rows], list[Any]]"
"""Makes a part of the value, or the whole, for each of some rows."""

_Build: TypeAlias = "Callable[[tuple[Any, ...], dict[Made, Any]], Any]"
"""Makes a part of a value of its leaves and the objects that were made before, and adds those that it makes."""


@dataclass(frozen=True, eq=False)
class Slot:
    """How one part of the value is made.

    Attributes:
        values: Makes it.
        memory: Where the memory of an array or tensor lies.
        shape: The shape of an array or tensor; what is not a part of the program is read from rows.
    """

    values: Values
    memory: Span = NOWHERE
    shape: Sequence[int | Number] = ()

    def shapes(self, rows: Rows) -> NDArray[np.int64]:
        """Return the shape of an array or tensor in each stream, one in a row."""
        shapes = np.empty((len(rows), len(self.shape)), np.int64)
        for axis, length in enumerate(self.shape):
            shapes[:, axis] = length if isinstance(length, int) else length.of(rows.table)
        return shapes


NUMBERS: Final = {("unsigned", 1): "u1", ("unsigned", 2): "<u2", ("int", 4): "<i4", ("float", 8): ">f8"}
"""For the kind and width of an operand its type for numpy."""


def number_in(leaf: Leaf, column: int) -> Number | None:
    """Return a number that begins at a column of every row, if numpy has such numbers."""
    code = NUMBERS.get((leaf.kind, leaf.stop - leaf.start))
    return None if code is None else Number(column, code)


def constant(value: Any) -> Values:
    """Return what gives a part that is the same in every stream; it is immutable."""
    return lambda rows: [value] * len(rows.views)


def operand(leaf: Leaf, column: int) -> Values:
    """Return what reads a number or a bool that begins at a column of every row."""
    if leaf.kind == "bool":
        return lambda rows: (rows.table[:, column] == pickle.NEWTRUE[0]).tolist()
    number = number_in(leaf, column)
    if number is not None:
        return lambda rows: number.of(rows.table).tolist()
    stop = column + leaf.stop - leaf.start
    return lambda rows: [int.from_bytes(row[column:stop], "little", signed=True) for row in rows.table]


def counted(kind: str, span: Span) -> Values:
    """Return what makes text or bytes of a memory."""
    makes: dict[str, Callable[[memoryview], Any]] = {"text": _text, "bytearray": bytearray, "bytes": bytes}
    make = makes[kind]
    return lambda rows: [make(memory) for memory in rows.memory(span)]


def scalar(dtype: np.dtype[Any], column: int) -> Values:
    """Return what makes a numpy scalar that begins at a column of every row."""
    return lambda rows: list(Number(column, dtype).of(rows.table))


def array(block: Block, span: Span, shape: Sequence[int | Number]) -> Slot:
    """Return how an array or tensor is made, in memory of its own."""
    if block.tensor and len(shape) == 1:  # whose only length follows from the memory
        import torch

        vector = partial(torch.frombuffer, dtype=block.tensor)
        return Slot(lambda rows: list(map(vector, map(bytearray, rows.memory(span)))), span, shape)
    fresh = _fresh(block)

    def values(rows: Rows) -> list[Any]:
        shapes = slot.shapes(rows).tolist()
        return [fresh(bytearray(memory), shape) for memory, shape in zip(rows.memory(span), shapes, strict=True)]

    slot = Slot(values, span, shape)
    return slot


def itemsize_of(block: Block) -> int:
    """Return the bytes of an element."""
    return int(_dtype_of(block).itemsize)


def whole(root: Node, slots: Iterator[Slot]) -> Values:
    """Return what makes the whole value."""
    if isinstance(root, Mapping):
        keys, makes = list(root.items), [whole(item, slots) for item in root.items.values()]
        if not keys:
            return lambda rows: [{} for _ in rows.views]
        return lambda rows: [dict(zip(keys, parts, strict=True)) for parts in _parts(makes, rows)]
    if isinstance(root, Items):
        kind, makes = root.kind, [whole(item, slots) for item in root.items]
        if not makes:
            return lambda rows: [kind() for _ in rows.views]
        return lambda rows: list(map(kind, _parts(makes, rows)))
    return next(slots).values


def objects(root: Node, slots: Sequence[Slot]) -> Values:
    """Return what makes the whole value where objects of the user's classes are in it: one sample after the other."""
    build = _builder(root, iter(range(len(slots))))

    def values(rows: Rows) -> list[Any]:
        leaves = _parts([slot.values for slot in slots], rows) if slots else [()] * len(rows)
        return [build(own, {}) for own in leaves]

    return values


def _builder(root: Node, numbers: Iterator[int]) -> _Build:
    """Return what makes a node, in the order of the stream."""
    if isinstance(root, Mapping):
        named = [(key, _builder(item, numbers)) for key, item in root.items.items()]
        return lambda leaves, made: {key: build(leaves, made) for key, build in named}
    if isinstance(root, Items):
        kind, builds = root.kind, [_builder(item, numbers) for item in root.items]
        return lambda leaves, made: kind([build(leaves, made) for build in builds])
    if isinstance(root, Again):
        return lambda _, made: made[root.made]
    if isinstance(root, Made):
        args, states = _builder(root.args, numbers), [_builder(state, numbers) for state in root.states]

        def build(leaves: tuple[Any, ...], made: dict[Made, Any]) -> Any:
            target = made[root] = root.make(*args(leaves, made))
            for state in states:
                set_state(target, state(leaves, made))
            return target

        return build
    number = next(numbers)
    return lambda leaves, _: leaves[number]


def kind_of(root: Node) -> Any:
    """Return what two templates have in common whose streams fit into one batch."""
    if isinstance(root, Mapping):
        return "dict", tuple((type(key), key, kind_of(item)) for key, item in root.items.items())
    if isinstance(root, Items):
        return root.kind, tuple(map(kind_of, root.items))
    return ("block", str(_dtype_of(root)), root.tensor is None) if isinstance(root, Block) else "other"


def _parts(makes: Sequence[Values], rows: Rows) -> Iterator[tuple[Any, ...]]:
    return zip(*[make(rows) for make in makes], strict=True)


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
    try:
        dtype = torch.empty(0, dtype=kind).numpy().dtype
    except TypeError:  # bfloat16 and other dtypes that numpy lacks
        return lambda memory, shape: frombuffer(memory, dtype=kind).reshape(shape)
    return lambda memory, shape: from_numpy(ndarray(shape, dtype, memory))
