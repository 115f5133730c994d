"""A traced program as a template: the bytes that have to be equal, and how to fill in the others.

A template cuts the stream into chunks of fixed length.
Most templates have one; a memory of varying length (:func:`compile_template`, ``opened``) ends a chunk, and the
last field of the chunk says how long it is.
:mod:`struct` takes a chunk apart in one call: program bytes, fields, and data of fixed length, which it skips.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.pickling.builders import (
    Slot,
    block_maker,
    builder,
    code_of,
    column_of,
    counted_maker,
    kind_of,
    number_maker,
    scalar_maker,
    sizes_reader,
)
from bionemo.webdatamodule.pickling.programs import Block, Const, Leaf, Scalar, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bionemo.webdatamodule.pickling.builders import Bases, Column, Fields, Make, Match
    from bionemo.webdatamodule.pickling.programs import Node, Program


@dataclass(frozen=True, eq=False)
class _Chunk:
    """A part of the stream with a fixed length, up to a memory whose length the stream says."""

    layout: struct.Struct
    program: Callable[[Fields], Any]  # takes the program bytes out of what the layout unpacks
    expected: Any
    unit: int  # bytes of the memory behind this chunk for each one that the last field counts; 0 at the end


@dataclass(frozen=True, eq=False)
class Template:
    """A program with holes.

    Attributes:
        size: Length of the whole stream, or None where it varies.
        chunks: What to compare.
        ties: ``(field, constant, first chunk, last chunk)``: a field that says how far two places are apart.
        twins: Fields that hold the same digits.
        slots: How to make the parts of the value.
        build: Makes the value from a stream, its fields and its chunks.
        column: Makes one batch of several streams, whose templates are of one kind.
        kind: What the value is like; equal for templates that differ in lengths and operand sizes only.
    """

    size: int | None
    chunks: tuple[_Chunk, ...]
    ties: tuple[tuple[int, int, int, int], ...]
    twins: tuple[tuple[int, int], ...]
    slots: tuple[Slot, ...]
    build: Make
    column: Column
    kind: Any

    @property
    def program(self) -> tuple[Any, ...]:
        """The bytes that have to be equal."""
        return tuple(chunk.expected for chunk in self.chunks)

    def match(self, view: Any) -> Match | None:
        """Compare a stream (of the right size, if there is one) with the program.

        Returns:
            This template, the fields and where the chunks begin; None for another program.

        Raises:
            struct.error, OverflowError: The stream is too short.
        """
        bases: Bases = (0,)
        if self.size is not None:
            chunk = self.chunks[0]
            fields: Fields = chunk.layout.unpack_from(view)
            if chunk.program(fields) != chunk.expected:
                return None
        else:
            found = self._match_chunks(view)
            if found is None:
                return None
            fields, bases = found
        for one, other in self.twins:
            if fields[one] != fields[other] or not fields[one].isdigit():
                return None
        return self, fields, bases

    def _match_chunks(self, view: Any) -> tuple[Fields, Bases] | None:
        position = 0
        fields: list[Any] = []
        bases: list[int] = []
        for chunk in self.chunks:
            found = chunk.layout.unpack_from(view, position)
            if chunk.program(found) != chunk.expected:
                return None
            fields += found
            bases.append(position)
            position += chunk.layout.size
            if chunk.unit:
                position += found[-1] * chunk.unit
        if position != len(view):
            return None
        for number, constant, first, last in self.ties:
            if fields[number] != bases[last] - bases[first] + constant:
                return None
        return fields, bases


def memories(program: Program) -> list[Leaf]:
    """Return the parts of a stream that may be of any length: text, bytes, and the memory of arrays and tensors."""
    found = []
    for part in parts(program.root):
        if isinstance(part, Block):
            found.append(part.data)
        elif isinstance(part, Leaf) and part.count and not part.shared:
            found.append(part)
    return found


def compile_template(data: bytes, program: Program, opened: frozenset[int]) -> Template:
    """Make a template of a traced stream.

    Args:
        data: The stream.
        program: What :func:`~bionemo.webdatamodule.pickling.programs.trace` says of it.
        opened: Numbers of the :func:`memories` that may have another length in other streams.
    """
    layout = _Layout(data, program, [leaf for n, leaf in enumerate(memories(program)) if n in opened])
    nodes = list(parts(program.root))
    slots = tuple(map(layout.slot, nodes))
    return Template(
        size=None if opened else len(data),
        chunks=layout.chunks,
        ties=tuple(layout.ties()),
        twins=tuple(
            (layout.numbers[node.keys[0].start], layout.numbers[node.keys[1].start])
            for node in nodes
            if isinstance(node, Block) and node.keys
        ),
        slots=slots,
        build=builder(program.root, iter(slots)),
        column=column_of(program.root, iter(range(len(nodes)))),
        kind=kind_of(program.root),
    )


class _Layout:
    """Where fields and memories lie: in which chunk, and in what :mod:`struct` unpacks.

    Positions are those of the stream that was traced.
    """

    def __init__(self, data: bytes, program: Program, opened: list[Leaf]) -> None:
        opened = sorted(opened, key=lambda leaf: leaf.start)
        self.opened = {leaf.start: chunk for chunk, leaf in enumerate(opened)}  # each ends a chunk
        self.starts = [0, *(leaf.stop for leaf in opened)]  # of the chunks
        self.numbers: dict[int, int] = {}  # of the field at a position
        self.regions = [r for r in program.regions if any(r[2] <= leaf.start < r[3] for leaf in opened)]
        holes = sorted(self.holes(program))
        stops = [*(leaf.start for leaf in opened), len(data)]
        units = [*(leaf.unit for leaf in opened), 0]
        chunks = []
        fields = 0
        for start, stop, unit in zip(self.starts, stops, units, strict=True):
            formats, own, count, position = ["<"], [], 0, start
            inside = [hole for hole in holes if start <= hole[0] < stop]
            for hole, width, code in (*inside, (stop, 0, "0x")):
                if hole > position:
                    formats.append(f"{hole - position}s")
                    own.append(count)
                    count += 1
                formats.append(code)
                if "x" not in code:
                    self.numbers[hole] = fields + count
                    count += 1
                position = hole + width
            layout = struct.Struct("".join(formats))
            program_bytes = itemgetter(*own)
            chunks.append(_Chunk(layout, program_bytes, program_bytes(layout.unpack_from(data, start)), unit))
            fields += count
        self.chunks = tuple(chunks)

    def holes(self, program: Program) -> Iterator[tuple[int, int, str]]:
        """Yield the position, width and :mod:`struct` code of every byte that may differ."""
        for position, width, _, _ in self.regions:
            yield position, width, _COUNTS[width]
        for part in parts(program.root):
            if isinstance(part, Scalar):
                yield _hole(part.data, "x")
            elif isinstance(part, Block):
                yield from self.memory(part.data)
                yield from (_hole(key, "s") for key in part.keys)
                if part.data.start in self.opened:
                    yield from (_hole(leaf, code_of(leaf)) for leaf in (*part.shape, *part.strides, *part.numels))
            elif isinstance(part, Leaf) and _varies(part):
                yield from self.memory(part) if part.count else [_hole(part, code_of(part))]

    def memory(self, leaf: Leaf) -> Iterator[tuple[int, int, str]]:
        """Yield what may differ of a memory: itself, or its count."""
        if leaf.start not in self.opened:
            yield _hole(leaf, "x")
        elif leaf.count:
            yield leaf.count[0], leaf.count[1], _COUNTS[leaf.count[1]]

    def place(self, position: int) -> tuple[int, int]:
        """Return the chunk of a position, and how far into the chunk it is."""
        chunk = bisect_right(self.starts, position) - 1
        within = position - self.starts[chunk]
        if within > self.chunks[chunk].layout.size:
            raise ValueError("a length ends inside a memory")
        return chunk, within

    def ties(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield what is known of every length that a region of the stream has."""
        for position, _, start, stop in self.regions:
            (first, low), (last, high) = self.place(start), self.place(stop)
            yield self.numbers[position], high - low, first, last

    def slot(self, part: Node) -> Slot:
        """Say how a part of the value is made."""
        if isinstance(part, Const) or (isinstance(part, Leaf) and not _varies(part)):
            value = part.value
            return Slot(lambda _view, _fields, _bases: value)
        if isinstance(part, Leaf) and not part.count:
            return Slot(number_maker(part, self.numbers[part.start]))
        data = part if isinstance(part, Leaf) else part.data
        if data.start in self.opened:
            chunk = self.opened[data.start]
            where = (chunk, self.chunks[chunk].layout.size, chunk + 1, 0)
        else:
            chunk, low = self.place(data.start)
            where = (chunk, low, chunk, low + data.stop - data.start)
        if isinstance(part, Leaf):
            return Slot(counted_maker(part.kind, *where), *where)
        if isinstance(part, Scalar):
            return Slot(scalar_maker(part.dtype, *where), *where)
        if data.start not in self.opened:
            shape = tuple(size.value for size in part.shape)
            return Slot(block_maker(part, where, shape, None), *where, shape)
        sizes = sizes_reader(part, self.numbers)
        return Slot(block_maker(part, where, None, sizes), *where, None, sizes)


_COUNTS: Final = {1: "B", 4: "I", 8: "Q"}


def _varies(leaf: Leaf) -> bool:
    return not leaf.shared and (leaf.count is not None or leaf.stop > leaf.start)


def _hole(leaf: Leaf, code: str) -> tuple[int, int, str]:
    width = leaf.stop - leaf.start
    return leaf.start, width, f"{width}{code}" if code in "sx" else code
