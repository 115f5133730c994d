"""Many streams of one program at once: rows of bytes that numpy compares and takes apart.

A stream's row holds all of its chunks but the memory of large arrays, which goes straight to where it is wanted.
:meth:`Grid.fit` compares rows with the program bytes, lengths and digits of a
:class:`~bionemo.webdatamodule.builtins.pickle.fast.template.Template`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.template import Template

    Rows = NDArray[np.uint8]

IN_ROW: Final = 2048
"""Bytes of an array or tensor up to which it is a part of the row; copying more than once would show."""

_WORD: Final = 8  # bytes compared at a time
_NEAR: Final = 8  # words without program bytes that are rather compared than left out
_LARGEST: Final = 1 << 31  # bytes of a stream; products of two lengths fit into int64


class Number(NamedTuple):
    """A number in every row: where it begins, and its type for numpy."""

    at: int
    code: str | np.dtype[Any]

    def of(self, rows: Rows) -> NDArray[Any]:
        """Return it for each row, without copying."""
        numbers: NDArray[Any] = np.ndarray(len(rows), self.code, rows, self.at, rows.strides[:1])
        return numbers

    def int64(self, rows: Rows) -> NDArray[np.int64]:
        """Return it for each row; what is too large becomes negative."""
        numbers: NDArray[np.int64] = self.of(rows).astype(np.int64)
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

    def agree(self, rows: Rows, bases: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Tell for each row whether it all says the same."""
        span = self.span
        nbytes = bases[span.last] + span.high - bases[span.first] - span.low
        product = np.full(len(rows), self.itemsize, np.int64)
        good = np.ones(len(rows), np.bool_)
        steps = [*self.strides, None] if self.strides else [None] * len(self.shape)
        for number, step in zip(reversed(self.shape), reversed(steps), strict=True):
            if step is not None:
                good &= step.int64(rows) * self.itemsize == product
            length = number.int64(rows)
            good &= (length > 0) & (length <= nbytes)
            product *= np.where(good, length, 1)  # both are below 2**31 as long as all is good
            good &= product <= nbytes
        good &= product == nbytes
        for numel in self.numels:
            good &= numel.int64(rows) * self.itemsize == product
        return good


class Run(NamedTuple):
    """Words of a row, what they should be, and which of their bits count."""

    low: int
    high: int
    expected: NDArray[np.uint64]
    mask: NDArray[np.uint64]


class Part(NamedTuple):
    """A chunk as rows see it.

    Attributes:
        length: Its length in bytes.
        stretches: What of it is in a row.
        runs: Its program bytes.
        counter: What says how long the memory behind it is, if there is one.
        unit: Bytes of that memory for each one that is counted.
    """

    length: int
    stretches: Sequence[Stretch]
    runs: Sequence[Run]
    counter: Number | None
    unit: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """How the streams of a template become rows.

    Attributes:
        width: Bytes of a row.
        size: Bytes of a stream, or ``None`` where they vary.
        parts: Its chunks.
        ties: ``(number, constant, first chunk, last chunk)``: a number that says how far two places are apart.
        twins: Begin of two stretches of a row that hold the same digits, and their length.
        bools: Where a row has the opcode of a bool.
        sizes: What streams say of shapes.
    """

    width: int
    size: int | None
    parts: Sequence[Part]
    ties: Sequence[tuple[Number, int, int, int]]
    twins: Sequence[tuple[int, int, int]]
    bools: Sequence[int]
    sizes: Sequence[Sizes]

    def fit(self, template: Template, views: Sequence[memoryview], places: NDArray[np.intp]) -> Streams | None:
        """Return those streams that follow the program, if any do.

        Args:
            template: The template that this grid is of.
            views: Streams.
            places: Where in its batch each of them belongs, in ascending order.
        """
        sizes = np.fromiter(map(len, views), np.int64, len(views))
        if self.size is None:
            good = (sizes >= sum(part.length for part in self.parts)) & (sizes < _LARGEST)
        else:
            good = sizes == self.size
        if not good.any():
            return None
        rows = np.empty((len(views), self.width), np.uint8)
        base = np.zeros(len(views), np.int64)
        streams = Streams(template, places, views, sizes, rows, [base]).only(good)
        for number, part in enumerate(self.parts):
            if number:
                streams = streams.only(streams.bases[-1] + part.length <= streams.sizes)
            streams.stage(part.stretches)
            streams = streams.only(_follow(part.runs, streams.rows))
            if not len(streams.places):
                return None
            if part.counter is None:
                streams.bases.append(streams.bases[-1] + part.length)
                continue
            count = part.counter.int64(streams.rows)
            possible = (count >= 0) & (count <= streams.sizes)  # so that no product below can overflow
            streams.bases.append(streams.bases[-1] + part.length + np.where(possible, count, 0) * part.unit)
            streams = streams.only(possible)
        streams = streams.only(self._agree(streams))
        return streams if len(streams.places) else None

    def _agree(self, streams: Streams) -> NDArray[np.bool_]:
        """Tell for each stream whether all that it says of lengths and names goes together."""
        rows, bases = streams.rows, streams.bases
        good: NDArray[np.bool_] = bases[-1] == streams.sizes
        for number, constant, first, last in self.ties:
            good &= number.int64(rows) == bases[last] - bases[first] + constant
        for one, other, length in self.twins:
            digits = rows[:, one : one + length]
            good &= (digits == rows[:, other : other + length]).all(axis=1)
            good &= ((digits >= ord("0")) & (digits <= ord("9"))).all(axis=1)
        for at in self.bools:
            good &= (rows[:, at] & 0xFE) == 0x88  # pickle.NEWTRUE and NEWFALSE are 0x88 and 0x89
        for size in self.sizes:
            good &= size.agree(rows, bases)
        return good


def _follow(runs: Sequence[Run], rows: Rows) -> NDArray[np.bool_]:
    """Tell for each row whether its program bytes are as they should be."""
    words = rows.view(np.uint64)
    differing = np.zeros(len(rows), np.uint64)
    for low, high, expected, mask in runs:
        differs = words[:, low:high] ^ expected
        differs &= mask
        differing |= np.bitwise_or.reduce(differs, axis=1)
    good: NDArray[np.bool_] = differing == 0
    return good


@dataclass(slots=True, eq=False)
class Streams:
    """Streams that follow one template, as far as it is known.

    Attributes:
        template: The template.
        places: Where in its batch each stream belongs, in ascending order.
        views: The streams.
        sizes: Their lengths in bytes.
        rows: Their rows.
        bases: Where each chunk begins in each stream; at last the end.
    """

    template: Template
    places: NDArray[np.intp]
    views: Sequence[memoryview]
    sizes: NDArray[np.int64]
    rows: Rows
    bases: list[NDArray[np.int64]]

    def only(self, good: NDArray[np.bool_]) -> Streams:
        """Return some of the streams."""
        if good.all():
            return self
        views = list(compress(self.views, good.tolist()))
        bases = [base[good] for base in self.bases]
        return Streams(self.template, self.places[good], views, self.sizes[good], self.rows[good], bases)

    def stage(self, stretches: Sequence[Stretch]) -> None:
        """Copy stretches of the latest chunk to the rows."""
        memory, width = self.rows.reshape(-1).data, self.rows.shape[1]
        begins = self.bases[-1].tolist()
        for low, high, at in stretches:
            length = high - low
            for view, begin in zip(self.views, begins, strict=True):
                memory[at : at + length] = view[begin + low : begin + high]
                at += width  # noqa: PLW2901 - from row to row

    def put(self, parts: Sequence[Any], whole: list[Any]) -> None:
        """Put what belongs to the streams at their places."""
        if len(parts) == len(whole):
            whole[:] = parts
            return
        for place, part in zip(self.places.tolist(), parts, strict=True):
            whole[place] = part

    def memory(self, span: Span) -> Iterator[memoryview]:
        """Yield a memory of each stream."""
        starts, stops = self.bounds(span)
        for view, start, stop in zip(self.views, starts.tolist(), stops.tolist(), strict=True):
            yield view[start:stop]

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
