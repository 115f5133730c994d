"""A kind of pickle that can be recoded by copying: where its data lie before and after.

Of a kind are pickles that differ in their data only, in equally many bytes, and those that also differ in the length
of one vector: what lies behind the vector is then counted from the end, and all numbers that follow from the length
are compared with it and rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from bionemo.webdatamodule.builtins.pickle.fast.program import Block, Leaf, Node, Program, Scalar, parts
from bionemo.webdatamodule.builtins.pickle.fast.values import itemsize_of

_INTEGERS: Final = {ord("K"): range(1 << 8), ord("M"): range(1 << 8, 1 << 16), ord("J"): range(1 << 16, 1 << 32)}
"""For each opcode of an integer the operands, as unsigned numbers, for which the standard pickler chooses it."""

_FRAME: Final = 1 << 16
"""Bytes of a pickle from which on the pickler writes more than one frame."""

_BOOLEANS: Final = range(0x88, 0x8A)  # the opcodes themselves


@dataclass(frozen=True, eq=False)
class _Counted:
    """A number in a stream that follows from the bytes of the open vector: ``(bytes + more) // unit``."""

    span: slice
    unit: int = 1
    more: int = 0

    def of(self, nbytes: int) -> bytes:
        """Return the number as it stands in the stream."""
        return ((nbytes + self.more) // self.unit).to_bytes(self.span.stop - self.span.start, "little")


@dataclass(frozen=True, eq=False)
class _Opened:
    """The vector of a kind that may be of any length.

    Attributes:
        fixed: Bytes of the stream beside the vector.
        itemsize: Bytes of an element.
        lengths: Elements for which the pickler writes the same opcodes.
        most: Bytes of the vector for which it writes a single frame.
        numbers: What the stream says of its length, and where.
    """

    fixed: int
    itemsize: int
    lengths: range
    most: int
    numbers: Sequence[tuple[slice, _Counted]]

    def nbytes(self, data: bytes) -> int | None:
        """Return the bytes of the vector in a stream, or None if the stream contradicts itself."""
        nbytes = len(data) - self.fixed
        length, left = divmod(nbytes, self.itemsize)
        if left or length not in self.lengths or not 1 < nbytes <= self.most:
            return None
        try:
            agree = all(data[span] == number.of(nbytes) for span, number in self.numbers)
        except OverflowError:  # a length that does not fit where it would stand
            return None
        return nbytes if agree else None


@dataclass(frozen=True, eq=False)
class Kind:
    """Pickles of one program, and of one length but for an open vector, and how to recode them.

    Spans behind an open vector are counted from the end of the stream.

    Attributes:
        program: Parts of the stream, and the bytes that they have to be.
        twins: Parts that have to hold the same digits: torch names a storage by its address, in two spans.
        ranges: Parts that are a little-endian number, and the values that they may have.
        texts: Parts that have to be UTF-8.
        result: The canonical pickle: bytes as they are, parts of the stream, and numbers.
        opened: The vector that may be of any length, if there is one.
    """

    program: Sequence[tuple[slice, bytes]]
    twins: Sequence[tuple[slice, slice]]
    ranges: Sequence[tuple[slice, range]]
    texts: Sequence[slice]
    result: Sequence[Any]  # bytes, slice or _Counted
    opened: _Opened | None = None

    def recode(self, data: bytes) -> bytes | None:
        """Return the canonical pickle of a stream, or None if it is of another kind.

        Without an open vector the stream must be as long as the one that the kind was made of.
        """
        for span, expected in self.program:
            if data[span] != expected:
                return None
        for one, other in self.twins:
            if data[one] != data[other] or not data[one].isdigit():
                return None
        for span, allowed in self.ranges:
            if int.from_bytes(data[span], "little") not in allowed:
                return None
        view = memoryview(data)
        for span in self.texts:
            if not _is_text(view[span]):
                return None
        nbytes = 0 if self.opened is None else self.opened.nbytes(data)
        if nbytes is None:
            return None
        return b"".join(
            [
                view[part] if type(part) is slice else part if type(part) is bytes else part.of(nbytes)
                for part in self.result
            ]
        )


def _is_text(view: memoryview) -> bool:
    try:
        str(view, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def make_kind(data: bytes, before: Program, result: bytes, after: Program, opened: Leaf | None) -> Kind | None:
    """Return the kind of a stream that was recoded, with one of its memories open; None where that cannot be."""
    moves = sorted(_moves(data, before, result, after), key=lambda move: move[1].start)
    twins = [tuple(map(_span_of, part.keys)) for part in parts(before.root) if isinstance(part, Block) and part.keys]
    source: list[_Counted] = []
    target: list[_Counted] = []
    vector = None
    if opened is not None:
        old, new = next(pair for pair in _pairs(before, after) if opened in (pair[0], getattr(pair[0], "data", None)))
        vector = _opened(data, old, before, result, new)
        if vector is None:
            return None
        source, target = _counted(old, before), _counted(new, after)
    varying = [move[0] for move in moves] + [span for pair in twins for span in pair]
    varying += [number.span for number in source]

    def at(span: slice) -> slice:
        return span if opened is None else _from_end(span, opened, len(data))

    return Kind(
        program=[(at(span), data[span]) for span in _between(varying, len(data))],
        twins=[(at(one), at(other)) for one, other in twins],
        ranges=[(at(span), allowed) for span, _, allowed in moves if isinstance(allowed, range)],
        texts=[at(span) for span, _, allowed in moves if allowed is str],
        result=_result(result, [(at(old), new) for old, new, _ in moves] + [(each, each.span) for each in target]),
        opened=vector,
    )


def _opened(data: bytes, old: Node, before: Program, result: bytes, new: Node) -> _Opened | None:
    """Return what is known of a vector's length; None if more than numbers would change with it."""
    if not isinstance(old, Block) or len(old.shape) != 1 or old.data.count is None:
        return None
    opcode = result[new.shape[0].start - 1]
    if data[old.shape[0].start - 1] != opcode or opcode not in _INTEGERS or len(result) >= _FRAME:
        return None
    nbytes = old.data.stop - old.data.start
    return _Opened(
        fixed=len(data) - nbytes,
        itemsize=itemsize_of(old),
        lengths=_INTEGERS[opcode],
        most=_FRAME - 1 - (len(result) - nbytes),
        numbers=[(_from_end(number.span, old.data, len(data)), number) for number in _counted(old, before)],
    )


def _pairs(before: Program, after: Program) -> Iterator[tuple[Node, Node]]:
    """Yield the parts of a value with where they are in both streams."""
    return zip(parts(before.root), parts(after.root), strict=True)


def _counted(block: Block, program: Program) -> list[_Counted]:
    """Return all numbers in a stream that follow from the length of a vector."""
    data, nbytes = block.data, block.data.stop - block.data.start
    announced = slice(data.start - data.count[1], data.start) if data.count else slice(0)
    regions = [region for region in program.regions if region[2] <= data.start and data.stop <= region[3]]
    return [
        _Counted(announced, data.unit),
        *(_Counted(_span_of(leaf), itemsize_of(block)) for leaf in (*block.shape, *block.numels)),
        *(_Counted(slice(at, at + width), 1, stop - start - nbytes) for at, width, start, stop in regions),
    ]


def _from_end(span: slice, opened: Leaf, length: int) -> slice:
    """Return a span that is right for any length of a memory: what ends behind it is counted from the end."""
    if span.stop <= opened.start:
        return span
    start = span.start if span.start <= opened.start else span.start - length
    return slice(start, span.stop - length or None)


_Move: TypeAlias = "tuple[slice, slice, Any]"
"""A part of the stream, the same in the result, and what may be there: a range, ``str``, or None for anything."""


def _moves(data: bytes, before: Program, result: bytes, after: Program) -> Iterator[_Move]:
    """Yield the parts of both streams that are the same data."""
    for old, new in _pairs(before, after):
        if isinstance(old, Block):
            yield _span_of(old.data), _span_of(new.data), None
        elif isinstance(old, Scalar):
            # Python has every bytes of length one only once, so whether two are one object depends on the data.
            if old.dtype.itemsize > 1:
                yield _span_of(old.data), _span_of(new.data), None
        elif isinstance(old, Leaf) and not old.shared and old.stop - old.start == new.stop - new.start:
            if old.kind == "bool":
                yield _span_of(old), _span_of(new), _BOOLEANS
            elif old.kind == "float":
                yield _span_of(old), _span_of(new), None
            elif old.kind in ("int", "unsigned"):
                opcode = data[old.start - 1]
                if opcode in _INTEGERS and result[new.start - 1] == opcode:
                    yield _span_of(old), _span_of(new), _INTEGERS[opcode]
            elif old.stop - old.start > 1:
                yield _span_of(old), _span_of(new), str if old.kind == "text" else None


def _span_of(leaf: Leaf) -> slice:
    return slice(leaf.start, leaf.stop)


def _between(spans: Sequence[slice], end: int) -> Iterator[slice]:
    """Yield what lies before, between and behind some parts of a stream."""
    start = 0
    for span in sorted(spans, key=lambda span: span.start):
        yield slice(start, span.start)
        start = span.stop
    yield slice(start, end)


def _result(result: bytes, moves: Sequence[tuple[slice | _Counted, slice]]) -> list[bytes | slice | _Counted]:
    """Return the result in order: constant bytes, and what stands for the others, with its span."""
    pieces: list[bytes | slice | _Counted] = []
    position = 0
    for source, target in sorted(moves, key=lambda move: move[1].start):
        pieces += (result[position : target.start], source)
        position = target.stop
    return [*pieces, result[position:]]
