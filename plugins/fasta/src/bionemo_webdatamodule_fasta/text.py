"""The bytes of a sequence file as uncompressed text, read anywhere, through htslib where they are compressed.

BGZF, which ``bgzip`` writes, is gzip in blocks of at most 64 KiB that say their own compressed size (SAM/BAM
specification, section 4.1), so a table of the blocks finds any byte. A plain gzip file has no such way in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError

_CHUNK = 4 << 20
_HEADER = struct.Struct("<4BI2BH2BHH")  # of a BGZF block: fixed gzip header, extra length, the subfield BC
_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")

Kind = Literal["plain", "bgzip", "gzip"]


class Text(Protocol):
    """Open text."""

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to before ``stop``, as counted in the uncompressed text."""
        ...


def kind(path: Path) -> Kind:
    """Return how a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if head[:2] != b"\x1f\x8b":
        return "plain"
    return "bgzip" if _block_size(head) else "gzip"


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the uncompressed text of a file of any kind, piece by piece.

    Raises:
        InputError: If the compressed data are damaged or end too early.
    """
    with _htslib(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def blocks(path: Path) -> NDArray[np.int64]:
    """Return the table of a BGZF file's blocks, two rows: where each begins in the file and in the text.

    Raises:
        InputError: If there is anything else than whole blocks, or the empty block at the end is missing.
    """
    compressed, uncompressed = [0], [0]
    size = path.stat().st_size
    with path.open("rb") as file:
        while compressed[-1] < size:
            file.seek(compressed[-1])
            step = _block_size(file.read(_HEADER.size))
            if not step or compressed[-1] + step > size:
                raise InputError(f"the bgzip file is damaged at byte {compressed[-1]}", file=str(path))
            file.seek(compressed[-1] + step - 4)
            compressed.append(compressed[-1] + step)
            uncompressed.append(uncompressed[-1] + int.from_bytes(file.read(4), "little"))
        file.seek(max(0, size - len(_EOF)))
        if file.read() != _EOF:
            raise InputError("the bgzip file was cut off: its last, empty block is missing", file=str(path))
    return np.array([compressed, uncompressed], np.int64)


@contextmanager
def open_plain(path: Path) -> Iterator[Text]:
    """Open uncompressed text."""
    with path.open("rb", buffering=1 << 16) as file:
        yield _Plain(file, path)


@contextmanager
def open_bgzip(path: Path, table: NDArray[np.int64]) -> Iterator[Text]:
    """Open the text of a BGZF file, given the table of its blocks."""
    with _htslib(path) as file:
        yield _Blocked(file, path, table)


class _Plain:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        return _whole(self._file.read(stop - start), stop - start, self._path)


class _Blocked:
    def __init__(self, file: Any, path: Path, table: NDArray[np.int64]) -> None:
        self._file = file
        self._path = path
        self._compressed, self._uncompressed = table
        self._at = 0

    def read(self, start: int, stop: int) -> bytes:
        if start != self._at:  # seeking lets go of the block that is unpacked already
            block = int(np.searchsorted(self._uncompressed, start, side="right")) - 1
            within = start - int(self._uncompressed[block])
            self._file.seek(int(self._compressed[block]) << 16 | within)
        self._at = stop
        return _whole(self._file.read(stop - start), stop - start, self._path)


@contextmanager
def _htslib(path: Path) -> Iterator[Any]:
    """Open a file of any kind through htslib, whose complaints about damaged data become errors of this package."""
    import pysam

    file = pysam.BGZFile(str(path), "rb")
    try:
        yield file
    except OSError as error:
        raise InputError("the compressed file is damaged or ends too early", file=str(path)) from error
    finally:
        with suppress(OSError):  # said already, when the data were read
            file.close()


def _whole(data: bytes, size: int, path: Path) -> bytes:
    if len(data) != size:
        raise InputError("the file is shorter than when it was indexed; convert again", file=str(path))
    return data


def _block_size(head: bytes) -> int:
    """Return the size of the BGZF block with this header in bytes, or 0 if it is none."""
    if len(head) < _HEADER.size:
        return 0
    magic1, magic2, _, flags, _, _, _, extra, si1, si2, length, size = _HEADER.unpack(head)
    blocked = (magic1, magic2, flags, extra, si1, si2, length) == (0x1F, 0x8B, 4, 6, ord("B"), ord("C"), 2)
    return size + 1 if blocked else 0
