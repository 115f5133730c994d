"""What an accepted pickle does, written down as a tree.

The tree says which bytes of the stream end up as which part of the value.
:mod:`.trace` makes it and :mod:`~bionemo.webdatamodule.builtins.pickle.fast.template` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import torch


@dataclass(eq=False)
class Leaf:
    """An operand in the stream: a number, or bytes that a count announces.

    Attributes:
        kind: How the bytes are read: ``int`` and ``unsigned`` (little-endian), ``float`` (big-endian), ``bool`` (the
            opcode itself), ``text``, ``bytes``, ``bytearray``.
        value: What it is in this stream.
        start: Where its bytes begin.
        stop: Where they end.
        count: Where the count is that announces them, if there is one; it lies just before ``start``.
        unit: Bytes for each one that the count counts.
        shared: The memo handed it out again, so two parts of the value are one object.
    """

    kind: str
    value: Any
    start: int
    stop: int
    count: tuple[int, int] | None = None
    unit: int = 1
    shared: bool = False


@dataclass(eq=False)
class Const:
    """Something immutable that is the same in every stream of the program."""

    value: Any


@dataclass(eq=False)
class Items:
    """A list or a tuple; ``known`` is what it is where it serves as a key or a name, one object in all places."""

    kind: type
    items: list[Any] = field(default_factory=list)
    known: Any = None


@dataclass(eq=False)
class Mapping:
    """A dict with constant keys."""

    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Scalar:
    """A numpy scalar."""

    dtype: np.dtype[Any]
    data: Leaf


@dataclass(eq=False)
class Block:
    """A C-contiguous array or tensor that shows all of its data.

    Attributes:
        shape: The sizes, each an integer operand.
        data: Its memory.
        dtype: Of numpy, where numpy has it.
        tensor: Of torch, if this is a tensor.
        strides: Integer operands that are the contiguous strides, all but the last.
        numels: Integer operands that are the number of elements.
        keys: Two text operands with the same digits: the address that torch uses as a name.
    """

    shape: list[Leaf]
    data: Leaf
    dtype: np.dtype[Any] | None
    tensor: torch.dtype | None = None
    strides: list[Leaf] = field(default_factory=list)
    numels: list[Leaf] = field(default_factory=list)
    keys: list[Leaf] = field(default_factory=list)


@dataclass(eq=False)
class Made:
    """An object of a class that the user allowed.

    Attributes:
        make: Makes it of its arguments.
        args: The arguments, a tuple.
        states: What BUILD gives it, if anything.
    """

    make: Callable[..., Any]
    args: Items
    states: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Again:
    """An object that the memo handed out again."""

    made: Made


Node: TypeAlias = Any
Region: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Program:
    """A traced stream.

    Attributes:
        root: The value as a tree.
        regions: ``(position, width, start, stop)`` of every integer that says how long a part of the stream is.
        users: Whether code of the user's runs: it makes objects of classes that the user allowed.
    """

    root: Node
    regions: list[Region]
    users: bool = False


def parts(root: Node) -> Iterator[Node]:
    """Yield the leaves of a tree in the order in which the value holds them."""
    if isinstance(root, Items):
        for item in root.items:
            yield from parts(item)
    elif isinstance(root, Mapping):
        for item in root.items.values():
            yield from parts(item)
    elif isinstance(root, Made):
        for item in (root.args, *root.states):
            yield from parts(item)
    elif not isinstance(root, Again):
        yield root
