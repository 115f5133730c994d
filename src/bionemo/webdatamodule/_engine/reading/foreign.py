"""Shards that another tool wrote: found by name, checked header by header, and indexed once."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, cached_index, check_stamp, store_index
from bionemo.webdatamodule.errors import NoShardsError


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
        prefix: See :func:`find_foreign`.

    Raises:
        NoShardsError: If there are none.
        CorruptShardError: If one is no good tar.
        ChangedDataError: If one changed meanwhile.
    """
    paths = find_foreign(directory, prefix)
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


def find_foreign(directory: str, prefix: str) -> list[str]:
    """Return the foreign shards of a directory in their order.

    These are ``{prefix}-<digits>.tar`` by number where there are any, so that prefix ``t`` does not take
    the shards of prefix ``t-val``, and else ``{prefix}-*.tar`` by name.

    Raises:
        NoShardsError: If there are none.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(prefix)}-*.tar")))
    start = len(prefix) + 1
    numbers = [os.path.basename(path)[start:-4] for path in found]
    numbered = [(int(number), path) for number, path in zip(numbers, found, strict=True) if _is_number(number)]
    if numbered:
        if len(numbered) < len(found):
            decided("%s: %d tars are not numbered and left out", directory, len(found) - len(numbered))
        return [path for _, path in sorted(numbered)]
    if not found:
        others = sorted(os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(directory), "*.tar")))
        if not others:
            raise NoShardsError(
                f"{directory} has no {prefix}-*.tar and no manifest; no tar at all. Convert the data first"
            )
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise NoShardsError(
            f"{directory} has no {prefix}-*.tar and no manifest; it has {others[0]}{more}. "
            f"Choose their prefix, or rename or link them as {prefix}-000000.tar and so on"
        )
    return found


def unlisted(directory: str, prefix: str, listed: Iterable[str]) -> list[str]:
    """Return the names of files that look like shards of a prefix and are not among those listed, sorted."""
    start = f"{prefix}-"
    known = set(listed)
    return sorted(
        name
        for name in os.listdir(directory)
        if name.startswith(start) and name.endswith(".tar") and _is_number(name[len(start) : -4]) and name not in known
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
