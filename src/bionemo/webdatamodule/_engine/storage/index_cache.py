"""The user's cache directory: derived data that may be deleted at any time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import time
from dataclasses import dataclass, field

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.mapping import content
from bionemo.webdatamodule.errors import ChangedDataError, CorruptShardError

_STAMP = struct.Struct("<8sqqq32s")  # magic, size, times and hash of the tar; 64 bytes keep arrays aligned
_MAGIC = b"WDMCACHE"
_SETTLED_NS = 2_000_000_000  # file systems may give two changes within this time one modification time


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What distinguishes one state of a file from another.

    Attributes:
        size: Its bytes.
        mtime_ns: Time of its modification, in nanoseconds.
        ctime_ns: Time of the last change of the file or its inode, in nanoseconds. Programs that copy a file with its
            times cannot set it; but a new name, link, owner or time of access changes it as well.
            So it says that an index may be stale and not that the data changed: stamps that differ in it are equal.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = field(compare=False)

    @classmethod
    def of(cls, path: str | int) -> Stamp:
        """Return the stamp of a file, by its path or descriptor, as it is now."""
        found = os.stat(path)
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns)


def check_stamp(path: str, stamp: Stamp, descriptor: int | None = None) -> None:
    """Check that a shard is still in the state in which it was found.

    Args:
        path: The tar.
        stamp: The state that it was in.
        descriptor: The tar where it is open already, so that no other file can take its place.

    Raises:
        ChangedDataError: If it was changed or removed.
    """
    try:
        now = Stamp.of(path if descriptor is None else descriptor)
    except OSError as error:
        raise ChangedDataError(
            f"{path} is gone since the data were set up ({error.strerror}); start again", shard=path
        ) from error
    if now != stamp:
        how = (
            "its modification time is another"
            if now.size == stamp.size
            else f"it has {now.size} bytes, had {stamp.size}"
        )
        raise ChangedDataError(f"{path} was changed since the data were set up: {how}; start again", shard=path)


def cache_directory() -> str:
    """Return this package's cache directory: ``bionemo-webdatamodule`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Who has no home directory has no cache either: the path that is returned then cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG base directory specification says to ignore relative ones
        home = os.path.expanduser("~")
        base = os.path.join(home if os.path.isabs(home) else os.devnull, ".cache")
    return os.path.join(base, "bionemo-webdatamodule")


def cached_index(path: str, stamp: Stamp, sha256: str = "") -> ShardIndex | None:
    """Return the index of a tar from the cache, or ``None`` where the cache has none for this state of it.

    An index of a tar whose hash is not known must be of the very file that is there now: another one may have its
    size and modification time, which reading would not notice in all cases.

    Args:
        path: The tar.
        stamp: Its state.
        sha256: Its hash, if a manifest gives it.
    """
    try:
        data = content(_index_path(path))
        magic, size, modified, changed, hashed = _STAMP.unpack_from(data)
        if (magic, size, modified, hashed) != (_MAGIC, stamp.size, stamp.mtime_ns, _packed(sha256)):
            return None
        index = ShardIndex.from_buffer(data[_STAMP.size :])
        if not sha256 and changed != Stamp.of(path).ctime_ns:
            return None
    except (OSError, ValueError, struct.error, CorruptShardError):
        return None
    return index if is_within(index, stamp.size) else None


def store_index(path: str, stamp: Stamp, index: ShardIndex, sha256: str = "") -> ShardIndex | None:
    """Put the index of a tar into the cache.

    Args:
        path: The tar.
        stamp: Its state before the index was made.
        index: Its index.
        sha256: Its hash, if a manifest gives it.

    Returns:
        The index as a map of the cache, or ``None`` where it cannot be kept there: the cache is not writable,
        or the tar is so young that another change might not show in its stamp.
    """
    latest = stamp.mtime_ns if sha256 else max(stamp.mtime_ns, stamp.ctime_ns)
    if time.time_ns() - latest < _SETTLED_NS:
        return None
    target = _index_path(path)
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        head = _STAMP.pack(_MAGIC, stamp.size, stamp.mtime_ns, stamp.ctime_ns, _packed(sha256))
        write_atomically(target, head + index.to_bytes())
    except OSError:
        return None
    return cached_index(path, stamp, sha256)


def write_atomically(target: str, data: bytes) -> None:
    """Write a file of the cache so that other processes see all of it or nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def is_within(index: ShardIndex, tar_bytes: int) -> bool:
    """Return whether everything an index points to lies inside a tar of this size."""
    if index.tar_bytes != tar_bytes or not len(index.headers):
        return False
    sizes, offsets, headers = index.sizes, index.offsets, index.headers
    if not sizes.size:
        return bool(headers.min() >= 0 and headers.max() < tar_bytes)
    inside = sizes.min() >= 0 and offsets.min() >= -1 and offsets.max() <= tar_bytes
    inside = inside and (sizes <= tar_bytes - offsets).all()  # a sum could overflow
    return bool(inside and headers.min() >= 0 and headers.max() < tar_bytes)


def _packed(sha256: str) -> bytes:
    return bytes.fromhex(sha256).ljust(32, b"\0")


def _index_path(path: str) -> str:
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()
    return os.path.join(cache_directory(), "indexes", f"{name}.idx")
