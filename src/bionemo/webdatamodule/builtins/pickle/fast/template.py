"""Compile a traced program into a template: which bytes have to be equal, and what becomes of the others."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.program import Block, Const, Leaf, Scalar, parts
from bionemo.webdatamodule.builtins.pickle.fast.rows import (
    IN_ROW,
    Chunk,
    Distance,
    Number,
    RowLayout,
    Sizes,
    Span,
    Stretch,
    padded,
    runs,
)
from bionemo.webdatamodule.builtins.pickle.fast.values import (
    Slot,
    array,
    constant,
    counted,
    itemsize_of,
    kind_of,
    number_in,
    objects,
    operand,
    scalar,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bionemo.webdatamodule.builtins.pickle.fast.program import Node, Program
    from bionemo.webdatamodule.builtins.pickle.fast.values import Values


@dataclass(frozen=True, eq=False)
class Template:
    """A program whose data may differ.

    Attributes:
        layout: How streams become rows and are compared.
        root: The value as a tree, of the stream that was traced.
        slots: How to make the leaves of the tree, in their order.
        values: Makes the values of rows.
        kind: What the value is like; equal for templates that differ in lengths and operand sizes only.
    """

    layout: RowLayout
    root: Node
    slots: tuple[Slot, ...]
    values: Values
    kind: Any


def memories(program: Program) -> list[Leaf]:
    """Return the parts of a stream that may be of any length: text, bytes, and the memory of arrays and tensors."""
    found = []
    for part in parts(program.root):
        if isinstance(part, Block):
            found.append(part.data)
        elif isinstance(part, Leaf) and part.count and not part.shared:
            found.append(part)
    return found


def signature(data: bytes, program: Program) -> tuple[bytes, ...]:
    """Return what streams have in common that differ in their data and in the lengths of memories only.

    Raises:
        ValueError: As :func:`compile_template`.
    """
    return _Compiler(data, program, memories(program)).program()


def compile_template(data: bytes, program: Program, opened: frozenset[int]) -> Template:
    """Make a template of a traced stream.

    Args:
        data: The stream.
        program: What :func:`~bionemo.webdatamodule.builtins.pickle.fast.trace.trace` says of it.
        opened: Numbers of the :func:`memories` that may have another length in other streams.

    Raises:
        ValueError: If numbers or lengths are of a kind that rows cannot hold.
    """
    compiler = _Compiler(data, program, [leaf for n, leaf in enumerate(memories(program)) if n in opened])
    nodes = list(parts(program.root))
    slots = tuple(map(compiler.slot, nodes))
    return Template(
        layout=compiler.layout(nodes),
        root=program.root,
        slots=slots,
        values=objects(program.root, slots) if program.users else whole(program.root, iter(slots)),
        kind=kind_of(program.root),
    )


class _Compiler:
    """Finds where everything lies: in which chunk, and in rows.

    Positions are those of the stream that was traced.
    """

    def __init__(self, data: bytes, program: Program, opened: list[Leaf]) -> None:
        opened = sorted(opened, key=lambda leaf: leaf.start)
        self.data = data
        self.opened = {leaf.start: chunk for chunk, leaf in enumerate(opened)}  # each ends a chunk
        self.counts = [*opened, None]  # what ends each chunk
        self.starts = [0, *(leaf.stop for leaf in opened)]  # of the chunks
        self.ends = [*(leaf.start for leaf in opened), len(data)]
        self.regions = [r for r in program.regions if any(r[2] <= leaf.start < r[3] for leaf in opened)]
        self.varying = sorted(self.find_varying(program))
        large = [m for m in memories(program) if m.start not in self.opened and m.stop - m.start > IN_ROW]
        self.stretches, self.width = self.rows([(m.start, m.stop) for m in large])

    def find_varying(self, program: Program) -> Iterator[tuple[int, int]]:
        """Yield the position and width of all bytes that may differ."""
        for position, width, _, _ in self.regions:
            yield position, width
        for part in parts(program.root):
            if isinstance(part, Scalar):
                yield _extent(part.data)
            elif isinstance(part, Block):
                yield from self.memory(part.data)
                yield from map(_extent, part.keys)
                if part.data.start in self.opened:
                    yield from map(_extent, (*part.shape, *part.strides, *part.numels))
            elif isinstance(part, Leaf) and _varies(part):
                yield from self.memory(part) if part.count else [_extent(part)]

    def memory(self, leaf: Leaf) -> Iterator[tuple[int, int]]:
        """Yield what may differ of a memory: itself, or its count."""
        if leaf.start not in self.opened:
            yield _extent(leaf)
        elif leaf.count:
            yield leaf.count

    def program(self) -> tuple[bytes, ...]:
        """Return the bytes that have to be equal: those between varying parts and open memories."""
        extents = sorted(
            [*self.varying, *((end, start - end) for end, start in zip(self.ends, self.starts[1:], strict=False))]
        )
        begins = [0, *(position + width for position, width in extents)]
        ends = [*(position for position, _ in extents), len(self.data)]
        return tuple(self.data[begin:end] for begin, end in zip(begins, ends, strict=True))

    def locate(self, position: int) -> tuple[int, int]:
        """Return the chunk of a position, and how far into the chunk it is."""
        chunk = bisect_right(self.starts, position) - 1
        if position > self.ends[chunk]:
            raise ValueError("a length ends inside a memory")
        return chunk, position - self.starts[chunk]

    def slot(self, part: Node) -> Slot:
        """Return how a part of the value is made."""
        if isinstance(part, Const) or (isinstance(part, Leaf) and not _varies(part)):
            return Slot(constant(part.value))
        if isinstance(part, Scalar):
            return Slot(scalar(part.dtype, self.column(part.data.start)))
        if isinstance(part, Leaf):
            return Slot(counted(part.kind, self.span(part)) if part.count else operand(part, self.column(part.start)))
        varies = part.data.start in self.opened
        shape = [self.number(size) if varies else size.value for size in part.shape]
        return array(part, self.span(part.data), shape)

    def span(self, data: Leaf) -> Span:
        """Return where a memory lies."""
        if data.start in self.opened:
            chunk = self.opened[data.start]
            return Span(chunk, self.ends[chunk] - self.starts[chunk], chunk + 1, 0)
        chunk, low = self.locate(data.start)
        return Span(chunk, low, chunk, low + data.stop - data.start, self.column(data.start))

    def rows(self, skipped: Sequence[tuple[int, int]]) -> tuple[list[Stretch], int]:
        """Return what of the stream is in a row, and the length of a row."""
        gaps = [*skipped, *zip(self.ends, self.starts[1:], strict=False)]
        begins = [0, *sorted(stop for _, stop in gaps)]
        ends = [*sorted(start for start, _ in gaps), len(self.data)]
        stretches = []
        at = 0
        for start, stop in zip(begins, ends, strict=True):
            stretches.append(Stretch(start, stop, at))
            at += stop - start
        return stretches, padded(at)

    def column(self, position: int) -> int:
        """Return where a byte of the stream is in a row; -1 if it is not."""
        return next((at + position - start for start, stop, at in self.stretches if start <= position < stop), -1)

    def number(self, leaf: Leaf) -> Number:
        """Return where rows have a number."""
        number = number_in(leaf, self.column(leaf.start))
        if number is None:
            raise ValueError("a length of more than four bytes")
        return number

    def count(self, position: int, width: int) -> Number:
        """Return where rows have the number that announces some bytes."""
        return Number(self.column(position), _COUNTS[width])

    def chunk(self, number: int) -> Chunk:
        """Return a chunk."""
        first, end, leaf = self.starts[number], self.ends[number], self.counts[number]
        expected, counting = np.zeros(self.width, np.uint8), np.zeros(self.width, np.bool_)
        stretches = [stretch for stretch in self.stretches if first <= stretch.low < end]
        for low, high, at in stretches:
            expected[at : at + high - low] = np.frombuffer(self.data, np.uint8, high - low, low)
            counting[at : at + high - low] = True
        for position, width in self.varying:
            if first <= position < end and (at := self.column(position)) >= 0:
                counting[at : at + width] = False
        return Chunk(
            end - first,
            [Stretch(low - first, high - first, at) for low, high, at in stretches],
            runs(expected, counting),
            self.count(*leaf.count) if leaf and leaf.count else None,
            leaf.unit if leaf else 0,
        )

    def distance(self, position: int, width: int, start: int, stop: int) -> Distance:
        """Return where rows say how far two positions are apart."""
        (first, low), (last, high) = self.locate(start), self.locate(stop)
        return Distance(self.count(position, width), high - low, first, last)

    def layout(self, nodes: Iterable[Node]) -> RowLayout:
        """Return how streams are compared."""
        blocks = [part for part in nodes if isinstance(part, Block)]
        return RowLayout(
            width=self.width,
            size=None if self.opened else len(self.data),
            chunks=[self.chunk(number) for number in range(len(self.starts))],
            distances=[self.distance(*region) for region in self.regions],
            digits=[
                (self.column(one.start), self.column(other.start), one.stop - one.start)
                for one, other in (block.keys for block in blocks if block.keys)
            ],
            bools=[
                self.column(part.start)
                for part in nodes
                if isinstance(part, Leaf) and part.kind == "bool" and _varies(part)
            ],
            sizes=[
                Sizes(
                    self.span(block.data),
                    itemsize_of(block),
                    *([self.number(leaf) for leaf in leaves] for leaves in (block.shape, block.strides, block.numels)),
                )
                for block in blocks
                if block.data.start in self.opened
            ],
        )


_COUNTS: Final = {1: "u1", 4: "<u4", 8: "<u8"}


def _varies(leaf: Leaf) -> bool:
    return not leaf.shared and (leaf.count is not None or leaf.stop > leaf.start)


def _extent(leaf: Leaf) -> tuple[int, int]:
    return leaf.start, leaf.stop - leaf.start
