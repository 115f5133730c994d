"""Samples to one tar: plain USTAR, the same bytes for the same samples, hashed and indexed while it is written.

The header fields are those of POSIX.1-2017, ``pax``, "ustar Interchange Format" and "pax Header Block".
"""

from __future__ import annotations

import functools
import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bionemo.webdatamodule._engine.format.checksum import crc32
from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.writeback import start_writing
from bionemo.webdatamodule.errors import ConversionError, InputError

BLOCK = 512
"""Tar headers and payloads start at multiples of this many bytes."""

_NAME, _PREFIX = 100, 155  # bytes for a path in a USTAR header, and for directories split off it
_MAX_SIZE = 8**11  # eleven octal digits
_OWNER = b"0000644\x00" + b"0000000\x00" * 2  # mode 0644, user 0, group 0
_TIME = b"00000000000\x00"
_REST = b"\x00" * 100 + b"ustar\x0000" + b"\x00" * 64 + b"0000000\x00" * 2  # no link, no names, no device
_PADDING = [b"\x00" * (-size % BLOCK) for size in range(BLOCK)]
_END = b"\x00" * (2 * BLOCK)
_CHECKSUM_AS_SPACES = 8 * 0x20
_FLUSH = 1 << 18  # bytes gathered before one hash and write call
_LARGE = 1 << 15  # bytes of a payload that is hashed and written by itself
_AHEAD = 1 << 22  # bytes after which writeback is started, so that the disk works while the next ones are hashed


@dataclass(frozen=True, kw_only=True)
class Written:
    """The result of :meth:`ShardWriter.finish`: size, samples, hash, index and suffixes of the tar."""

    index: bytes
    bytes: int
    samples: int
    sha256: str
    suffixes: tuple[str, ...]


class ShardWriter:
    """Writes samples to an open file as one tar.

    Args:
        descriptor: A file open for writing, at its beginning. The caller syncs and closes it.
        path: The file's path, for messages.
        write: Writes to the file, as ``os.write`` does.
    """

    def __init__(self, descriptor: int, *, path: str, write: Callable[[int, memoryview], int] = os.write) -> None:
        self._descriptor = descriptor
        self._path = path
        self._write_some = write
        self._sha256 = hashlib.sha256()
        self._parts: list[bytes | memoryview] = []
        self._gathered = 0  # bytes in parts
        self._position = 0  # bytes in the file and in parts
        self._written = 0  # bytes in the file
        self._started = 0  # bytes whose writeback was started
        self._suffixes: dict[str, tuple[int, bytes]] = {}  # suffix -> its column in the index, b".suffix"
        self._headers = array("q")  # where each sample begins
        self._members = array("q")  # sample, column, offset, size, crc of each member

    def add(self, key: str, fields: Iterable[tuple[str, bytes | Sequence[bytes | memoryview]]]) -> None:
        """Append one sample.

        Args:
            key: The sample's key.
            fields: Suffix and payload of each field, in the order in which they are to be stored. A payload may be a
                sequence of parts.

        Raises:
            InputError: If a tar cannot hold the key.
            ConversionError: If the file cannot be written.
        """
        sample = len(self._headers)
        self._headers.append(self._position)
        path = _encode(key)
        for suffix, payload in fields:
            column, ending = self._suffixes.get(suffix) or self._new_suffix(suffix)
            parts = (payload,) if isinstance(payload, bytes) else tuple(payload)
            size = sum(map(len, parts))
            head = header(path + ending, size)
            padding = _PADDING[size % BLOCK]
            offset = self._position + len(head)
            crc = 0
            for part in parts:
                crc = crc32(part, crc)
            self._members.extend((sample, column, offset, size, crc))
            self._parts.append(head)
            if size < _LARGE:
                self._parts += (*parts, padding)
                self._gathered += len(head) + size + len(padding)
            else:  # copying it would cost more than two more calls of the system
                self._flush()
                for part in parts:
                    self._write(part)
                self._parts.append(padding)
            self._position = offset + size + len(padding)
        if self._gathered >= _FLUSH:
            self._flush()

    def finish(self) -> Written:
        """Write the end of the archive and return the result; every byte was passed to the system."""
        self._parts.append(_END)
        self._position += len(_END)
        self._flush()
        return Written(
            bytes=self._position,
            samples=len(self._headers),
            sha256=self._sha256.hexdigest(),
            index=self._index().to_bytes(),
            suffixes=tuple(sorted(self._suffixes)),
        )

    def _new_suffix(self, suffix: str) -> tuple[int, bytes]:
        entry = self._suffixes[suffix] = (len(self._suffixes), _encode(f".{suffix}"))
        return entry

    def _flush(self) -> None:
        self._write(b"".join(self._parts))
        self._parts.clear()
        self._gathered = 0

    def _write(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._written += len(data)
        if self._written - self._started >= _AHEAD:
            self._started = self._written
            start_writing(self._descriptor)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._write_some(self._descriptor, rest) :]
        except OSError as error:
            raise ConversionError(
                f"writing {len(data)} bytes after the first {self._written - len(data)} failed: {error.strerror}; "
                "correct this and run it again",
                file=self._path,
            ) from error

    def _index(self) -> ShardIndex:
        names = tuple(sorted(self._suffixes))
        order = np.empty(len(names), np.int64)  # column while writing -> column in the sorted suffixes
        for place, suffix in enumerate(names):
            order[self._suffixes[suffix][0]] = place
        members = np.frombuffer(self._members, np.int64).reshape(-1, 5)
        where = members[:, 0], order[members[:, 1]]
        shape = len(self._headers), len(names)
        offsets, sizes = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        crcs = np.zeros(shape, np.uint32)
        offsets[where], sizes[where], crcs[where] = members[:, 2], members[:, 3], members[:, 4]
        return ShardIndex(
            tar_bytes=self._position,
            suffixes=names,
            offsets=offsets,
            sizes=sizes,
            crcs=crcs,
            headers=np.array(self._headers, np.int64),
        )


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        while block := file.read(_FLUSH):
            digest.update(block)
    return digest.hexdigest()


def header(path: bytes, size: int) -> bytes:
    """Return the header blocks of a member: one USTAR block, after a PAX record only where that needs it.

    Args:
        path: Name of the member, as the bytes of its UTF-8 form.
        size: Bytes of its payload.

    Raises:
        InputError: If no tar holds that name.
    """
    if len(path) <= _NAME and size < _MAX_SIZE and path.isascii():
        return _ustar(path, b"", size)
    return _long_header(path, size)


def _long_header(path: bytes, size: int) -> bytes:
    records = b""
    prefix, name = b"", path
    try:
        path.decode()
    except UnicodeDecodeError:  # a file name that is not text; tar readers return such bytes unchanged
        if len(path) > _NAME:
            raise InputError(
                f"the key in {path!r} is neither text nor short enough for a tar; use key_encoder='escaped'"
            ) from None
    else:
        cut = path.rfind(b"/", 0, _PREFIX + 1)
        if path.isascii() and len(path) <= _NAME:
            pass
        elif path.isascii() and cut > 0 and 0 < len(path) - cut - 1 <= _NAME:
            prefix, name = path[:cut], path[cut + 1 :]
        else:
            records += _record(b"path", path)
            name = path.decode().encode("ascii", "replace")[:_NAME]
    if size >= _MAX_SIZE:
        records += _record(b"size", b"%d" % size)
    plain = _ustar(name, prefix, size if size < _MAX_SIZE else 0)
    if not records:
        return plain
    extended = _ustar(b"PaxHeader/" + name[: _NAME - 10], b"", len(records), b"x")
    return extended + records + _PADDING[len(records) % BLOCK] + plain


def _ustar(name: bytes, prefix: bytes, size: int, kind: bytes = b"0") -> bytes:
    middle, total = _sized(size)
    total += sum(name) + kind[0] + (sum(prefix) if prefix else 0)
    tail = _REST + prefix.ljust(_PREFIX + 12, b"\x00") if prefix else _TAIL
    return b"%b%b%06o\x00 %b%b" % (name.ljust(_NAME, b"\x00"), middle, total, kind, tail)


@functools.lru_cache(maxsize=1024)
def _sized(size: int) -> tuple[bytes, int]:
    """Return the header's fields from the mode to the time, and the sum of all that depends on the size alone."""
    octal = b"%011o\x00" % size
    return _OWNER + octal + _TIME, _CONSTANT_SUM + sum(octal)


_TAIL = _REST + b"\x00" * (_PREFIX + 12)
_CONSTANT_SUM = sum(_OWNER) + sum(_TIME) + _CHECKSUM_AS_SPACES + sum(_REST)


def _record(name: bytes, value: bytes) -> bytes:
    """Return one PAX record: its length, which counts its own digits, a space, ``name=value``, a line end."""
    rest = len(name) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, name, value)


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InputError(f"{text!r} is not text that a tar can hold; use key_encoder='escaped'") from None
