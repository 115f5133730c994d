"""Small files of the cache: bytes and indexes, as maps."""

from __future__ import annotations

from collections.abc import Callable

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.mapping import mapped
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.shard_cache import Cache, UnusableCacheError, remove
from bionemo.webdatamodule.errors import CorruptShardError


def read_index(path: str) -> ShardIndex | None:
    """Return an index from the cache, or ``None`` where there is no whole one."""
    data = cached_bytes(path)
    try:
        return None if data is None else ShardIndex.from_buffer(data)
    except CorruptShardError:
        return None


def is_index(data: memoryview) -> bool:
    """Return whether bytes are a whole index."""
    try:
        ShardIndex.from_buffer(data)
    except CorruptShardError:
        return False
    return True


def cached_bytes(path: str) -> memoryview | None:
    """Return a map of a file of the cache, or ``None`` where it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            return mapped(file.fileno())
    except (OSError, ValueError):
        return None


def fetched(cache: Cache, name: str, make: Callable[[], bytes], is_sound: Callable[[memoryview], bool]) -> memoryview:
    """Return a small file of the cache, which one process makes where it is not there or damaged.

    Args:
        cache: The cache. Where it cannot be written, the bytes are returned as they were made.
        name: Name of the file.
        make: Returns its content, which is sound.
        is_sound: Returns whether the content of a file is sound.
    """
    path = cache.path(name)
    made = b""

    def write(path: str) -> None:
        nonlocal made
        made = make()
        with open(path, "wb") as file:
            file.write(made)

    for _ in range(2):
        found = cached_bytes(path)
        if found is not None and is_sound(found):
            return found
        try:
            if found is not None:
                with cache.writing():
                    remove(path)
            cache.fetch(name, None, write)
        except UnusableCacheError as error:
            decided("%s is not kept: %s", name, error)
            break
    return memoryview(made or make())
