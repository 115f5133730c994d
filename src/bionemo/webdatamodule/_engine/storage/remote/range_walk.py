"""The index of a remote shard that has none: its headers are walked by ranges, and the index is kept in the cache."""

from __future__ import annotations

import os
import struct
import tempfile

from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index, index_name
from bionemo.webdatamodule._engine.format.tar_headers import BLOCK, EXTENDING, number, padded
from bionemo.webdatamodule._engine.storage.remote.cached_files import fetched, is_index
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.pieces import write_at
from bionemo.webdatamodule._engine.storage.shard_cache import Cache
from bionemo.webdatamodule.errors import CorruptShardError, RemoteError

_SMALL, _LARGE = 1 << 16, 1 << 22  # bytes of a request where payloads are passed over, and where they are not
_FAR = 1 << 21  # bytes to pass over for which a request of its own is cheaper


def walked_index(directory: RemoteDirectory, cache: Cache, name: str, size: int, version: str) -> ShardIndex:
    """Return the index of a remote tar, after walking over its headers and keeping the index in the cache.

    Args:
        directory: Where the shard is.
        cache: Where to keep the index.
        name: The shard's file name.
        size: The shard's size in bytes.
        version: The shard's version; empty if the store has none.

    Raises:
        CorruptShardError: If it is not a valid tar.
        ChangedDataError: If it has another version by then.
        RemoteError: If it cannot be read.
    """

    def make() -> bytes:
        with directory.unchanged(name, version):
            return _walked(directory, name, size)

    data = fetched(cache, index_name(name), make, is_index)
    return ShardIndex.from_buffer(data)


def _walked(directory: RemoteDirectory, name: str, size: int) -> bytes:
    url = f"{directory}/{name}"
    try:
        with tempfile.NamedTemporaryFile() as file:  # sparse: it holds what was fetched where it is in the tar
            os.truncate(file.fileno(), size)
            _fetch_headers(directory, name, size, file.fileno())
            return build_index(file.name).to_bytes()
    except CorruptShardError as error:
        error.where["shard"] = url
        raise
    except (struct.error, ValueError) as error:
        raise CorruptShardError(f"{url} cannot be read as a tar: {error}", shard=url) from error
    except OSError as error:
        if isinstance(error, RemoteError):
            raise
        raise RemoteError(f"no room for the headers of {url}: {error.strerror or error}; set TMPDIR") from error


def _fetch_headers(directory: RemoteDirectory, name: str, size: int, descriptor: int) -> None:
    """Fetch everything of a tar but long payloads into a file."""
    begin, window = 0, memoryview(b"")  # what was fetched last
    position, step = 0, _SMALL

    def fetch(first: int, length: int) -> None:
        nonlocal begin, window
        last = min(size, first + length)
        data = memoryview(bytearray(last - first))
        directory.read(name, [(first, last)], [data])
        write_at(descriptor, data, first)
        begin, window = first, data

    while position + BLOCK <= size:
        if not begin <= position <= begin + len(window) - BLOCK:
            near = 0 <= position - begin - len(window) < _FAR
            step = _LARGE if near and window else _SMALL
            fetch(begin + len(window) if near and position > begin + len(window) else position, step)
            continue
        header = bytes(window[position - begin : position - begin + BLOCK])
        if not any(header):
            if begin + len(window) < size:
                fetch(position, size - position)
            return
        length = number(header[124:136], position)
        if header[156:157] in EXTENDING and position + BLOCK + length > begin + len(window):
            fetch(position, max(step, BLOCK + length))
            continue
        position += BLOCK + padded(length)
