"""Shards of another tool get what conversion writes beside its own: an index each, and a manifest."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import warnings
from importlib import metadata

from tqdm import tqdm

from bionemo.webdatamodule._engine.format.index import build_index, index_name
from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    ShardEntry,
    journal_path,
    lease_path,
    manifest_path,
    staging_path,
)
from bionemo.webdatamodule._engine.format.shard_files import find_shards
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, check_stamp
from bionemo.webdatamodule._engine.storage.sidecars import with_crcs
from bionemo.webdatamodule.errors import ConversionError, CorruptShardError, DataWarning, ManifestError, NoShardsError

_MANY_SUFFIXES = 50


def adopt(directory: str, prefix: str, *, again: bool = False, progress: bool = False) -> Manifest:
    """Index the foreign shards of a directory and list them in a manifest.

    The shards stay as they are. From then on they are read as the manifest lists them: what is added, missing or
    changed is noticed, and fields are compared with their checksums.

    Args:
        directory: A local directory.
        prefix: Beginning of the shards' names (see :func:`.find_shards`).
        again: Take the shards as they are now, although there is a manifest.
        progress: Show a progress bar on standard error.

    Returns:
        The manifest.

    Raises:
        NoShardsError: If there are none.
        ManifestError: If there is a manifest, or a conversion is at work or never finished.
        CorruptShardError: If a shard is no good tar; nothing was written for it, and no manifest.
        ConversionError: If the directory cannot be written.
    """
    _check(directory, prefix, again=again)
    paths = find_shards(directory, prefix)
    entries: list[ShardEntry] = []
    suffixes: set[str] = set()
    bar = tqdm(total=sum(map(os.path.getsize, paths)), unit="B", unit_scale=True, desc="indexing", disable=not progress)
    try:
        with bar:
            for path in paths:
                entry, found = _adopt_shard(path)
                entries.append(entry)
                suffixes.update(found)
                bar.update(entry.bytes)
        manifest = Manifest(
            prefix=prefix,
            suffixes=tuple(sorted(suffixes)),
            codecs=dict.fromkeys(sorted(suffixes), "bytes"),
            shards=tuple(entries),
            writer={"name": "adopted"},
            versions={
                "bionemo-webdatamodule": metadata.version("bionemo-webdatamodule"),
                "python": platform.python_version(),
            },
        )
        if len(suffixes) > _MANY_SUFFIXES:
            warnings.warn(
                f"{directory} has {len(suffixes)} different suffixes, such as {manifest.suffixes[0]!r}; a suffix "
                "begins at the first dot of a name, so keys that have dots are cut short there",
                DataWarning,
                stacklevel=2,
            )
        filesystem.write_whole(manifest_path(directory, prefix), manifest.to_json().encode())
        filesystem.sync_directory(directory)
    except OSError as error:
        raise ConversionError(
            f"the disk refused: {error.strerror or error}; correct this and run it again", file=error.filename
        ) from error
    return manifest


def _check(directory: str, prefix: str, *, again: bool) -> None:
    if not os.path.isdir(directory):
        raise NoShardsError(f"{directory} is no local directory")
    if os.path.lexists(manifest_path(directory, prefix)) and not again:
        raise ManifestError(
            f"{directory} has a manifest of the prefix {prefix!r} already; "
            "`webdatamodule verify` says whether the shards are still what it lists, --again takes them as they are"
        )
    for path in (journal_path(directory, prefix), lease_path(directory, prefix), staging_path(directory, prefix)):
        if os.path.lexists(path):
            raise ManifestError(
                f"a conversion into {directory} is at work, or was stopped; wait for it or run it again", file=path
            )


def _adopt_shard(path: str) -> tuple[ShardEntry, tuple[str, ...]]:
    """Write the index of a shard beside it, and return its entry in the manifest and its suffixes."""
    stamp = Stamp.of(path)
    index = build_index(path)
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(data) != index.tar_bytes:
        raise CorruptShardError(f"{path} is being written; wait until it is whole", shard=path)
    sha256 = hashlib.sha256(data).hexdigest()
    sidecar = with_crcs(index, data).to_bytes(adopted=True)
    check_stamp(path, stamp)
    filesystem.write_whole(index_name(path), sidecar)
    entry = ShardEntry(
        name=os.path.basename(path),
        bytes=stamp.size,
        samples=index.n_samples,
        sha256=sha256,
        index_sha256=hashlib.sha256(sidecar).hexdigest(),
    )
    return entry, index.suffixes
