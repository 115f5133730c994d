"""Pieces: runs of neighbouring samples of one remote shard, each kept in a sparse file of its own.

A piece file holds the bytes of its samples where they are relative to the piece's first byte, and behind them, at a
multiple of the page size, one byte for each sample: whether it is there, and in which epoch it was last read.
A byte of a sample is set after its data are written, so a process that is killed leaves nothing half done.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.checksum import crc32
from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.tar_headers import BLOCK, check_header
from bionemo.webdatamodule.errors import CorruptShardError

PIECE_BYTES = 4 << 20
"""Bytes of a piece, about."""

ABSENT, PRESENT = 0, 1
"""States of a sample in a piece file; larger numbers are marks of epochs in which it was read."""

_N_MARKS = 254
WORTH_A_REQUEST = 1 << 18
"""Bytes between two ranges from which on two requests are quicker than one that takes them along."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A piece of a shard.

    Attributes:
        shard: Number of the shard.
        name: File name of the shard.
        first: Number of its first sample in the shard.
        begin: Where it begins in the tar, in bytes.
        path: The piece file; its name ends with the number of samples, see :func:`samples_of`.
        columns: Numbers of the suffixes that it keeps.
        index: Where its members lie, relative to ``begin``; ``index.tar_bytes`` is the length of the piece.
    """

    shard: int
    name: str
    first: int
    begin: int
    path: str
    columns: tuple[int, ...]
    index: ShardIndex

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self.index.n_samples

    @property
    def n_bytes(self) -> int:
        """Length in bytes."""
        return self.index.tar_bytes

    @property
    def states_at(self) -> int:
        """Where the states of the samples begin in the file."""
        return -(-self.n_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    @property
    def file_bytes(self) -> int:
        """Length of the piece file."""
        return self.states_at + self.n_samples

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the bytes that samples ``first`` to ``last - 1`` of the piece take, relative to the piece."""
        headers = self.index.headers
        return int(headers[first]), int(headers[last]) if last < self.n_samples else self.n_bytes


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a shard is cut into pieces, whose numbers of samples differ by one at most.

    The plan of an epoch cuts shards in the same way
    (:class:`~bionemo.webdatamodule._engine.sampling.pieces.Pieces`).

    Attributes:
        samples: Samples of the shard.
        pieces: Number of pieces.
    """

    samples: int
    pieces: int

    @classmethod
    def of(cls, samples: int, n_bytes: int, piece_bytes: int = PIECE_BYTES) -> Cut:
        """Return pieces of about so many bytes."""
        return cls(samples=samples, pieces=max(1, min(-(-n_bytes // piece_bytes), samples)))

    def bounds(self, place: int) -> tuple[int, int]:
        """Return the first sample of a piece and the one behind its last."""
        each, more = divmod(self.samples, self.pieces)
        first = place * each + min(place, more)
        return first, first + each + (place < more)

    def place(self, row: int) -> int:
        """Return the piece of a sample."""
        each, more = divmod(self.samples, self.pieces)
        longer = more * (each + 1)
        return row // (each + 1) if row < longer else more + (row - longer) // each


def cut(index: ShardIndex, first: int, last: int) -> tuple[int, ShardIndex]:
    """Return where samples ``first`` to ``last - 1`` of a shard begin, and their index relative to that."""
    begin = int(index.headers[first])
    end = int(index.headers[last]) if last < index.n_samples else index.tar_bytes
    offsets = index.offsets[first:last]
    return begin, replace(
        index,
        tar_bytes=end - begin,
        offsets=np.where(offsets >= 0, offsets - begin, -1),
        sizes=index.sizes[first:last],
        crcs=None if index.crcs is None else index.crcs[first:last],
        headers=index.headers[first:last] - begin,
    )


def file_name(shard: str, first: int, n_samples: int, fields: str) -> str:
    """Return the name of a piece file, which identifies its samples and fields."""
    return f"{shard}.{first}{fields}-{n_samples}.piece"


def samples_of(path: str) -> int:
    """Return the number of samples in a piece file by its name; 0 where it is another file."""
    count = path.removesuffix(".piece").rpartition("-")[2]
    return int(count) if path.endswith(".piece") and count.isdigit() else 0


def all_read(path: str, mark: int) -> bool:
    """Return whether all samples of a piece file have a state."""
    count = samples_of(path)
    if not count:
        return False
    with open(path, "rb") as file:
        states = os.pread(file.fileno(), count, os.fstat(file.fileno()).st_size - count)
    return states == bytes([mark]) * count


def mark_of(epoch: int) -> int:
    """Return the state of a sample that was read in an epoch."""
    return PRESENT + 1 + epoch % _N_MARKS


def runs_of(rows: Sequence[int] | NDArray[np.int64], piece: Piece) -> list[tuple[int, int]]:
    """Return rows as runs ``(first, last)``; the rows between two near ones come along."""
    runs: list[tuple[int, int]] = []
    headers = piece.index.headers
    for row in np.unique(np.asarray(rows, np.int64)).tolist():
        if runs and headers[row] - piece.span(runs[-1][1] - 1, runs[-1][1])[1] <= WORTH_A_REQUEST:
            runs[-1] = runs[-1][0], row + 1
        else:
            runs.append((row, row + 1))
    return runs


def extents(piece: Piece, first: int, last: int) -> list[tuple[int, int]]:
    """Return the byte ranges to fetch for a run of samples, relative to the piece.

    These are all bytes of the run where the piece keeps all fields; else keys and the fields that it keeps, with what
    lies between near ones.
    """
    index = piece.index
    if len(piece.columns) == len(index.suffixes):
        return [piece.span(first, last)]
    found: list[tuple[int, int]] = []
    for row in range(first, last):
        offsets, ends = index.offsets[row], index.offsets[row] + index.sizes[row]
        there = offsets >= 0
        header = int(index.headers[row])
        wanted = [(header, int(offsets[there].min()))]
        for column in piece.columns:
            if there[column]:  # with the headers before it, which begin where the member before it ends
                before = ends[there & (offsets < offsets[column])]
                start = -(-int(before.max()) // 512) * 512 if len(before) else header
                wanted.append((start, int(ends[column])))
        for begin, end in sorted(wanted):
            if found and begin - found[-1][1] <= WORTH_A_REQUEST:
                found[-1] = found[-1][0], max(found[-1][1], end)
            else:
                found.append((begin, end))
    return found


def are_sound(piece: Piece, first: int, last: int, data: memoryview, start: int) -> bool:
    """Return whether the fields of samples have their checksums; without checksums, whether their headers have.

    Args:
        piece: The piece.
        first: Number of the first sample in it.
        last: The sample behind the last.
        data: Bytes of the piece.
        start: Where these begin in it.
    """
    index, rows = piece.index, slice(first, last)
    for column in piece.columns:
        offsets = (index.offsets[rows, column] - start).tolist()  # below 0 where a sample lacks the field
        if index.crcs is not None:
            sizes, crcs = index.sizes[rows, column].tolist(), index.crcs[rows, column].tolist()
            for offset, size, crc in zip(offsets, sizes, crcs, strict=True):
                if offset >= 0 and crc32(data[offset : offset + size]) != crc:
                    return False
            continue
        try:
            for offset in offsets:
                if offset >= 0:
                    check_header(bytes(data[offset - BLOCK : offset]), offset - BLOCK)
        except CorruptShardError:
            return False
    return True


def read_states(descriptor: int, piece: Piece) -> NDArray[np.uint8]:
    """Return a copy of the states of a piece's samples."""
    return np.frombuffer(os.pread(descriptor, piece.n_samples, piece.states_at).ljust(piece.n_samples, b"\0"), np.uint8)


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of the data to a place in a file."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written
