"""The indexes of shards that a manifest lists: beside the shard, or rebuilt after checking all of it."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule._engine.format.checksum import crc32
from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index, index_name
from bionemo.webdatamodule._engine.format.mapping import content
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, cached_index, check_stamp, store_index
from bionemo.webdatamodule.errors import CorruptShardError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.format.manifest import ShardEntry


def listed_index(path: str, entry: ShardEntry, stamp: Stamp) -> ShardIndex:
    """Return the index of a listed shard: its sidecar, if that has the hash in the manifest.

    Where it is missing or was changed, the shard itself is hashed and a new index is made of it.
    A shard whose hash is the manifest's has the bytes that conversion wrote,
    so checksums taken from it now are those that conversion wrote too.

    Args:
        path: The shard.
        entry: What the manifest says of it.
        stamp: The state that it is in.

    Raises:
        CorruptShardError: If the shard is not the one in the manifest.
        ChangedDataError: If an index has to be made of it, and it is in another state.
    """
    return _sidecar(path, entry) or cached_index(path, stamp, entry.sha256) or _rebuilt(path, entry, stamp)


def _sidecar(path: str, entry: ShardEntry) -> ShardIndex | None:
    """Return the index beside a shard, if it is the one that the manifest knows."""
    try:
        data = content(index_name(path))
        return ShardIndex.from_buffer(data) if hashlib.sha256(data).hexdigest() == entry.index_sha256 else None
    except (OSError, CorruptShardError):  # missing, not readable, or written by something that does it wrong
        return None


def _rebuilt(path: str, entry: ShardEntry, stamp: Stamp) -> ShardIndex:
    """Return a new index of a listed shard, after checking the shard's hash."""
    check_stamp(path, stamp)
    decided("%s is missing or changed, so the whole shard is checked", index_name(path))
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptShardError(
            f"{path} is not the shard in the manifest, its hash differs; restore it, run `webdatamodule convert` "
            "with --check, or remove the shard and run the conversion again",
            shard=path,
        )
    index = with_crcs(build_index(path), data)
    return store_index(path, stamp, index, entry.sha256) or index


def with_crcs(index: ShardIndex, data: mmap.mmap) -> ShardIndex:
    """Return an index with the checksums of what the tar holds now."""
    view = memoryview(data)
    crcs = [
        crc32(view[offset : offset + size]) if offset >= 0 else 0
        for offset, size in zip(index.offsets.ravel().tolist(), index.sizes.ravel().tolist(), strict=True)
    ]
    return replace(index, crcs=np.array(crcs, np.uint32).reshape(index.offsets.shape))
