"""Compare many streams with one program at once: they become rows of bytes, which numpy compares and reads.

A program cuts its streams into chunks of fixed length; memory of varying length lies between them.
The row of a stream holds all of its chunks, without the memory of large arrays, which is copied only once, to its
destination. :meth:`RowLayout.match` returns the :class:`Rows` of those streams that follow the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Table = NDArray[np.uint8]

IN_ROW: Final = 2048
"""Bytes of an array or tensor up to which it is a part of the row; copying more than once would show."""

_WORD: Final = 8  # bytes compared at a time
_NEAR: Final = 8  # words without program bytes that are rather compared than left out
_LARGEST: Final = 1 << 31  # bytes of a stream; products of two lengths fit into int64


class Number(NamedTuple):
    """A number in every row: where it begins, and its type for numpy."""

    at: int
    code: str | np.dtype[Any]

    def of(self, table: Table) -> NDArray[Any]:
        """Return it for each row, without copying."""
        numbers: NDArray[Any] = np.ndarray(len(table), self.code, table, self.at, table.strides[:1])
        return numbers

    def int64(self, table: Table) -> NDArray[np.int64]:
        """Return it for each row; what is too large becomes negative."""
        numbers: NDArray[np.int64] = self.of(table).astype(np.int64)
        return numbers


class Stretch(NamedTuple):
    """Bytes of a chunk that are copied to a row, from ``low`` to ``high``, and where they go."""

    low: int
    high: int
    at: int


class Span(NamedTuple):
    """Where the memory of an array or tensor lies: begin and end, each from the beginning of a chunk.

    Attributes:
        at: Where it is in a row; -1 if it is not.
    """

    first: int
    low: int
    last: int
    high: int
    at: int = -1


NOWHERE: Final = Span(0, 0, 0, 0)
"""The span of what has no memory of its own."""


class Sizes(NamedTuple):
    """All that a stream says about the shape of an array or tensor whose memory may be of any length."""

    span: Span
    itemsize: int
    shape: Sequence[Number]
    strides: Sequence[Number]  # all but the last, which is 1; none for arrays
    numels: Sequence[Number]

    def agree(self, table: Table, bases: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Return for each row whether all of it says the same."""
        span = self.span
        nbytes = bases[span.last] + span.high - bases[span.first] - span.low
        product = np.full(len(table), self.itemsize, np.int64)
        good = np.ones(len(table), np.bool_)
        steps = [*self.strides, None] if self.strides else [None] * len(self.shape)
        for number, step in zip(reversed(self.shape), reversed(steps), strict=True):
            if step is not None:
                good &= step.int64(table) * self.itemsize == product
            length = number.int64(table)
            good &= (length > 0) & (length <= nbytes)
            product *= np.where(good, length, 1)  # both are below 2**31 as long as all is good
            good &= product <= nbytes
        good &= product == nbytes
        for numel in self.numels:
            good &= numel.int64(table) * self.itemsize == product
        return good


class Run(NamedTuple):
    """Words of a row, what they should be, and which of their bits count."""

    low: int
    high: int
    expected: NDArray[np.uint64]
    mask: NDArray[np.uint64]


class Chunk(NamedTuple):
    """A part of the stream whose length is fixed.

    Attributes:
        length: Its length in bytes.
        stretches: What of it is in a row.
        runs: Its program bytes.
        counter: The number that gives the length of the memory behind it, if there is one.
        unit: Bytes of that memory for each one that is counted.
    """

    length: int
    stretches: Sequence[Stretch]
    runs: Sequence[Run]
    counter: Number | None
    unit: int


class Distance(NamedTuple):
    """A number that gives the distance of two positions: ``constant`` plus that of the begins of two chunks."""

    number: Number
    constant: int
    first: int
    last: int


@dataclass(frozen=True, eq=False, kw_only=True)
class RowLayout:
    """How the streams of one program become rows, and what rows of the program have in common.

    Attributes:
        width: Bytes of a row.
        size: Bytes of a stream, or ``None`` where they vary.
        chunks: The chunks of a stream.
        distances: Numbers that give how far two positions are apart.
        digits: Begin of two stretches of a row that hold the same digits, and their length.
        bools: Where a row has the opcode of a bool.
        sizes: What streams say of shapes.
    """

    width: int
    size: int | None
    chunks: Sequence[Chunk]
    distances: Sequence[Distance]
    digits: Sequence[tuple[int, int, int]]
    bools: Sequence[int]
    sizes: Sequence[Sizes]

    @cached_property
    def whole(self) -> bool:
        """Whether a row is the whole stream."""
        return self.size is not None and [list(chunk.stretches) for chunk in self.chunks] == [[(0, self.size, 0)]]

    def match(self, views: Sequence[memoryview], indices: NDArray[np.intp]) -> Rows | None:
        """Return the rows of those streams that follow the program; ``None`` if there are none.

        Args:
            views: Streams.
            indices: The index of each of them in its column, ascending.
        """
        sizes = np.fromiter(map(len, views), np.int64, len(views))
        if self.size is None:
            good = (sizes >= sum(chunk.length for chunk in self.chunks)) & (sizes < _LARGEST)
        else:
            good = sizes == self.size
        if not good.all():
            indices, views, sizes = indices[good], list(compress(views, good.tolist())), sizes[good]
        if not len(indices):
            return None
        table = _table_of(views, self.width) if self.whole else np.empty((len(views), self.width), np.uint8)
        rows = Rows(indices, views, sizes, table, [np.zeros(len(views), np.int64)])
        for number, chunk in enumerate(self.chunks):
            if number:
                rows = rows.only(rows.bases[-1] + chunk.length <= rows.sizes)
            if not self.whole:
                rows.copy_in(chunk.stretches)
            rows = rows.only(_have(rows.table, chunk.runs))
            if not len(rows):
                return None
            if chunk.counter is None:
                rows.bases.append(rows.bases[-1] + chunk.length)
                continue
            count = chunk.counter.int64(rows.table)
            possible = (count >= 0) & (count <= rows.sizes)  # so that no product below can overflow
            rows.bases.append(rows.bases[-1] + chunk.length + np.where(possible, count, 0) * chunk.unit)
            rows = rows.only(possible)
        rows = rows.only(self._agree(rows))
        return rows if len(rows) else None

    def _agree(self, rows: Rows) -> NDArray[np.bool_]:
        """Return for each stream whether all that it says of lengths and names agrees."""
        table, bases = rows.table, rows.bases
        good: NDArray[np.bool_] = bases[-1] == rows.sizes
        for number, constant, first, last in self.distances:
            good &= number.int64(table) == bases[last] - bases[first] + constant
        for one, other, length in self.digits:
            digits = table[:, one : one + length]
            good &= (digits == table[:, other : other + length]).all(axis=1)
            good &= ((digits >= ord("0")) & (digits <= ord("9"))).all(axis=1)
        for at in self.bools:
            good &= (table[:, at] & 0xFE) == 0x88  # pickle.NEWTRUE and NEWFALSE are 0x88 and 0x89
        for size in self.sizes:
            good &= size.agree(table, bases)
        return good


def _table_of(views: Sequence[memoryview], width: int) -> Table:
    """Return a table of whole streams of one size: one call in place of one for each."""
    gap = bytearray(width - len(views[0]))
    return np.frombuffer(gap.join([*views, b""]), np.uint8).reshape(len(views), width)


def _have(table: Table, runs: Sequence[Run]) -> NDArray[np.bool_]:
    """Return for each row whether it has the expected bytes."""
    words = table.view(np.uint64)
    differing = np.zeros(len(table), np.uint64)
    for low, high, expected, mask in runs:
        differs = words[:, low:high] ^ expected
        differs &= mask
        differing |= np.bitwise_or.reduce(differs, axis=1)
    good: NDArray[np.bool_] = differing == 0
    return good


@dataclass(slots=True, eq=False)
class Rows:
    """Streams that follow one program, as far as they were compared.

    Attributes:
        indices: The index of each stream in its column, ascending.
        views: The streams.
        sizes: Their lengths in bytes.
        table: Their rows.
        bases: Where each chunk begins in each stream; at last the end.
    """

    indices: NDArray[np.intp]
    views: Sequence[memoryview]
    sizes: NDArray[np.int64]
    table: Table
    bases: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.indices)

    def only(self, good: NDArray[np.bool_]) -> Rows:
        """Return some of the streams."""
        if good.all():
            return self
        views = list(compress(self.views, good.tolist()))
        return Rows(self.indices[good], views, self.sizes[good], self.table[good], [base[good] for base in self.bases])

    def between(self, start: int, stop: int) -> Rows:
        """Return the streams from one index of the column up to another, with indices from 0."""
        if start == 0 and (not len(self) or self.indices[-1] < stop):
            return self
        low, high = np.searchsorted(self.indices, (start, stop)).tolist()
        here = slice(low, high)
        bases = [base[here] for base in self.bases]
        return Rows(self.indices[here] - start, self.views[here], self.sizes[here], self.table[here], bases)

    def copy_in(self, stretches: Sequence[Stretch]) -> None:
        """Copy stretches of the latest chunk to the table."""
        begins = self.bases[-1].tolist()
        for low, high, at in stretches:
            copied = b"".join(
                [view[begin + low : begin + high] for view, begin in zip(self.views, begins, strict=True)]
            )
            self.table[:, at : at + high - low] = np.frombuffer(copied, np.uint8).reshape(len(self.views), high - low)

    def put(self, parts: Sequence[Any], column: list[Any]) -> None:
        """Put one object for each stream at its index."""
        if len(parts) == len(column):
            column[:] = parts
            return
        for index, part in zip(self.indices.tolist(), parts, strict=True):
            column[index] = part

    def memory(self, span: Span) -> Iterator[memoryview]:
        """Return a memory of each stream."""
        if span.first == span.last == 0:  # the first chunk begins where the stream does
            return map(itemgetter(slice(span.low, span.high)), self.views)
        starts, stops = self.bounds(span)
        return map(memoryview.__getitem__, self.views, map(slice, starts.tolist(), stops.tolist()))

    def bounds(self, span: Span) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where a memory begins and ends in each stream."""
        return self.bases[span.first] + span.low, self.bases[span.last] + span.high


def runs(expected: NDArray[np.uint8], counting: NDArray[np.bool_]) -> list[Run]:
    """Return what is to be compared of rows.

    Args:
        expected: What a row should be, as long as a row.
        counting: Which of its bytes count.
    """
    wanted, mask = expected.view(np.uint64), (counting * np.uint8(0xFF)).view(np.uint64)
    found: list[tuple[int, int]] = []
    for word in np.flatnonzero(mask).tolist():
        if found and word - found[-1][1] < _NEAR:
            found[-1] = (found[-1][0], word + 1)
        else:
            found.append((word, word + 1))
    return [Run(low, high, wanted[low:high] & mask[low:high], mask[low:high]) for low, high in found]


def padded(width: int) -> int:
    """Return the next multiple of a word."""
    return -(-width // _WORD) * _WORD
