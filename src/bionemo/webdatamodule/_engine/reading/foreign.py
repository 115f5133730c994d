"""Shards that another tool wrote: checked header by header, and indexed once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index
from bionemo.webdatamodule._engine.format.shard_files import find_shards
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, cached_index, check_stamp, store_index


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What the foreign shards of a directory hold; see :class:`.ShardSet`."""

    paths: tuple[str, ...]
    samples: tuple[int, ...]
    suffixes: tuple[str, ...]
    digest: str
    stamps: tuple[Stamp, ...]
    kept: Mapping[int, ShardIndex]


def index_foreign(directory: str, prefix: str) -> Foreign:
    """Check and index the foreign shards of a directory, or take their indexes from the user's cache.

    Args:
        directory: A local directory.
        prefix: See :func:`.find_shards`.

    Raises:
        NoShardsError: If there are none.
        CorruptShardError: If one is not a valid tar.
        ChangedDataError: If one changed meanwhile.
    """
    paths = find_shards(directory, prefix)
    samples: list[int] = []
    stamps: list[Stamp] = []
    suffixes: set[str] = set()
    kept: dict[int, ShardIndex] = {}
    digest = hashlib.sha256()
    for number, path in enumerate(paths):
        stamp = Stamp.of(path)
        index = cached_index(path, stamp)
        if index is None:
            index = build_index(path)
            check_stamp(path, stamp)
            stored = store_index(path, stamp, index)
            if stored is None:
                kept[number] = index
        samples.append(index.n_samples)
        stamps.append(stamp)
        suffixes.update(index.suffixes)
        content = hashlib.sha256(replace(index, crcs=None).to_bytes()).hexdigest()
        digest.update(f"{os.path.basename(path)}\0{content}\n".encode("utf-8", "surrogateescape"))
    return Foreign(
        paths=tuple(paths),
        samples=tuple(samples),
        suffixes=tuple(sorted(suffixes)),
        digest=digest.hexdigest(),
        stamps=tuple(stamps),
        kept=kept,
    )
