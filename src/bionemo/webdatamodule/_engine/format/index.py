"""The index of a tar shard, which holds the position of every member, and its file format."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.checksum import crc32
from bionemo.webdatamodule._engine.format.grouping import group
from bionemo.webdatamodule._engine.format.tar_scan import walk
from bionemo.webdatamodule.errors import CorruptShardError

Buffer: TypeAlias = "bytes | bytearray | memoryview | mmap.mmap"

_MAGIC = b"WDMINDEX"
_VERSION = 1
_HEAD = struct.Struct("<8sII")  # magic, version, bytes of the JSON that follows
_ALIGNMENT = 64  # of the first array in the file, so that a map of it is aligned as well


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ShardIndex:
    """Where every member of one tar lies; samples are numbered in the order of the tar.

    ``n`` is the number of samples and ``k`` that of suffixes.

    Attributes:
        tar_bytes: Size of the tar in bytes.
        suffixes: Every suffix that occurs in the shard, sorted.
        offsets: int64 of shape ``(n, k)``: where the payload begins in the tar; -1 where the sample has no such field.
        sizes: int64 of shape ``(n, k)``: bytes of the payload; 0 where the sample has no such field.
        crcs: uint32 of shape ``(n, k)``: CRC-32 of the payload, 0 where the sample has no such field.
            ``None`` for shards that another tool wrote.
        headers: int64 of shape ``(n,)``: where the first header block of the sample's first member begins,
            PAX and GNU blocks included. Keys stay in the tar and are read from there.
    """

    tar_bytes: int
    suffixes: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.uint32] | None
    headers: NDArray[np.int64]

    @property
    def n_samples(self) -> int:
        """Number of samples in the shard."""
        return len(self.headers)

    def to_bytes(self, *, adopted: bool = False) -> bytes:
        """Return the content of an index file.

        Args:
            adopted: Whether another tool wrote the shard, and a manifest lists it all the same.

        The file is ``WDMINDEX``, a version and the length of the JSON that follows (both little-endian uint32),
        the JSON padded with spaces so that it ends at a multiple of 64 bytes, and the arrays in the order
        offsets, sizes, headers, crcs, little-endian. Equal indexes give equal bytes.
        """
        arrays = [
            np.ascontiguousarray(self.offsets, "<i8"),
            np.ascontiguousarray(self.sizes, "<i8"),
            np.ascontiguousarray(self.headers, "<i8"),
        ]
        if self.crcs is not None:
            arrays.append(np.ascontiguousarray(self.crcs, "<u4"))
        body = b"".join(array.tobytes() for array in arrays)
        about = {
            "tar_bytes": self.tar_bytes,
            "samples": self.n_samples,
            "suffixes": list(self.suffixes),
            "crcs": self.crcs is not None,
            "crc32": crc32(body),
            **({"adopted": True} if adopted else {}),
        }
        text = json.dumps(about, sort_keys=True).encode()
        text += b" " * (-(_HEAD.size + len(text)) % _ALIGNMENT)
        return _HEAD.pack(_MAGIC, _VERSION, len(text)) + text + body

    @classmethod
    def from_buffer(cls, buffer: Buffer) -> ShardIndex:
        """Return the index in a buffer that :meth:`to_bytes` filled; the arrays are read-only views of it.

        Args:
            buffer: The whole content of an index file, such as a memory map of it.

        Raises:
            CorruptShardError: If it is no index, of another version, cut short or changed.
        """
        view = memoryview(buffer).cast("B").toreadonly()
        try:
            about, body = _open(view)
            suffixes, tar_bytes = _suffixes(about["suffixes"]), _count(about["tar_bytes"])
            shape = _count(about["samples"]), len(suffixes)
            n_fields = math.prod(shape)
            n_numbers = 2 * n_fields + shape[0]
            _check_length(body, 8 * n_numbers + (4 * n_fields if about["crcs"] else 0))
            numbers = np.frombuffer(body, "<i8", n_numbers)
            crcs = np.frombuffer(body, "<u4", n_fields, 8 * n_numbers).reshape(shape) if about["crcs"] else None
        except (struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptShardError(f"a shard's index is cut short, changed or none at all ({error})") from error
        return cls(
            tar_bytes=tar_bytes,
            suffixes=suffixes,
            offsets=numbers[:n_fields].reshape(shape),
            sizes=numbers[n_fields : 2 * n_fields].reshape(shape),
            headers=numbers[2 * n_fields :],
            crcs=crcs,
        )


def made_by_conversion(buffer: Buffer) -> bool:
    """Return whether an index file was written by a conversion."""
    try:
        about, _ = _open(memoryview(buffer).cast("B").toreadonly())
    except (struct.error, ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(about.get("crcs")) and not about.get("adopted")


def _open(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON of an index file, and its arrays as bytes."""
    magic, version, length = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"it begins with {magic!r}, version {version}")
    if (_HEAD.size + length) % _ALIGNMENT:
        raise ValueError(f"its arrays begin at byte {_HEAD.size + length}, not at a multiple of {_ALIGNMENT}")
    about = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    body = view[_HEAD.size + length :]
    if crc32(body) != about["crc32"]:
        raise ValueError("its checksum is wrong")
    return about, body


def _check_length(body: memoryview, length: int) -> None:
    if length != len(body):
        raise ValueError(f"its arrays take {length} bytes, and it has {len(body)}")


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"it has {value!r:.60} where a number of bytes or samples is due")
    return value


def _suffixes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(suffix, str) for suffix in value):
        raise ValueError(f"it has {value!r:.60} where suffixes are due")
    return tuple(value)


def index_name(shard_name: str) -> str:
    """Return the file name of a shard's index: ``wdshards-000000.tar`` has ``wdshards-000000.tar.idx``."""
    return f"{shard_name}.idx"


def build_index(path: str | os.PathLike[str]) -> ShardIndex:
    """Return the index of a tar, by a strict walk over its headers.

    Args:
        path: The tar, as a local file.

    Raises:
        CorruptShardError: If it is damaged, no tar, holds a member twice or the members of one sample apart,
            or has members that are not plain files (see :func:`~bionemo.webdatamodule._engine.format.tar_scan.walk`).
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise CorruptShardError("the file is empty; restore the shard", shard=path)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        grouped = group(walk(data))
    except CorruptShardError as error:
        raise error.located(shard=path) from error.__cause__
    return ShardIndex(
        tar_bytes=len(data),
        suffixes=grouped.suffixes,
        offsets=grouped.offsets,
        sizes=grouped.sizes,
        crcs=None,
        headers=grouped.headers,
    )
