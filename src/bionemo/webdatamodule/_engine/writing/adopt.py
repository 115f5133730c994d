"""Adoption of shards of another tool: an index for each, and a manifest."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from concurrent import futures
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
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.listing import find_remote_shards, source_at
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule._engine.storage.sidecars import with_crcs
from bionemo.webdatamodule._engine.storage.targets import target_of
from bionemo.webdatamodule.components import StoredFile
from bionemo.webdatamodule.errors import (
    ConversionError,
    CorruptShardError,
    DataWarning,
    ManifestError,
    NoShardsError,
    RemoteError,
    count,
)

_MANY_SUFFIXES = 50
_AT_ONCE = 4  # remote shards that are fetched and indexed at the same time
_BLOCK = 1 << 23  # bytes of one request


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
        CorruptShardError: If a shard is not a valid tar; nothing was written for it, and no manifest.
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
                entry, found, sidecar = _adopt_shard(path)
                filesystem.write_whole(index_name(path), sidecar)
                entries.append(entry)
                suffixes.update(found)
                bar.update(entry.bytes)
        manifest = _manifest(directory, prefix, entries, suffixes)
        filesystem.write_whole(manifest_path(directory, prefix), manifest.to_json().encode())
        filesystem.sync_directory(directory)
    except OSError as error:
        raise ConversionError(
            f"the disk refused: {error.strerror or error}; correct this and run it again", file=error.filename
        ) from error
    return manifest


def adopt_remote(
    url: str, prefix: str, *, again: bool = False, output: str | None = None, progress: bool = False
) -> Manifest:
    """Do the same for shards behind a URL, each of which is fetched once and not kept.

    Args:
        url: URL of the directory; for a web server with a pattern such as ``t-{000000..000023}.tar`` at its end.
        prefix: Beginning of the shards' names.
        again: Take the shards as they are now, although there is a manifest.
        output: Another directory, or URL of one, for indexes and manifest; by default they go beside the shards.
        progress: Show a progress bar on standard error.

    Returns:
        The manifest.

    Raises:
        NoShardsError: If there are none.
        ManifestError: If there is a manifest where it is to go, or a conversion is at work or never finished.
        CorruptShardError: If a shard is not a good tar; no manifest was written.
        RemoteError: If the store refuses.
        ConfigError: If no store serves the URL, or it cannot list.
        ConversionError: If the disk refuses.
    """
    source, names = source_at(url)
    target = target_of(output or source.url, prefix)
    if target.manifest() is not None and not again:
        raise ManifestError(
            f"{target} has a manifest of the prefix {prefix!r} already; "
            "`webdatamodule verify` says whether the shards are still what it lists, --again takes them as they are"
        )
    files = find_remote_shards(source, names, prefix)
    bar = tqdm(total=sum(file.size for file in files), unit="B", unit_scale=True, desc="indexing", disable=not progress)
    try:
        with bar, tempfile.TemporaryDirectory() as scratch, futures.ThreadPoolExecutor(_AT_ONCE) as pool:

            def adopt_one(file: StoredFile) -> tuple[ShardEntry, tuple[str, ...]]:
                path = os.path.join(scratch, file.name)
                with open(path, "wb") as made:
                    for begin in range(0, file.size, _BLOCK):
                        block = bytearray(min(_BLOCK, file.size - begin))
                        source.read(file.name, [(begin, begin + len(block))], [memoryview(block)])
                        made.write(block)
                        bar.update(len(block))
                entry, suffixes, sidecar = _adopt_shard(path)
                os.unlink(path)
                _put(output or source, index_name(file.name), sidecar)
                return entry, suffixes

            done = list(pool.map(adopt_one, files))
        manifest = _manifest(url, prefix, [entry for entry, _ in done], {name for _, names in done for name in names})
        _put(output or source, manifest_path("", prefix), manifest.to_json().encode())
    except OSError as error:
        if isinstance(error, RemoteError):
            raise
        raise ConversionError(
            f"the disk refused: {error.strerror or error}; correct this, or set TMPDIR, and run it again",
            file=error.filename,
        ) from error
    return manifest


def _put(directory: str | RemoteDirectory, name: str, data: bytes) -> None:
    """Write a small file into a directory, or to a URL of one."""
    if isinstance(directory, RemoteDirectory) or is_url(directory):
        (directory if isinstance(directory, RemoteDirectory) else RemoteDirectory.at(directory)).put(data, name)
    else:
        filesystem.make_directories(directory)
        filesystem.write_whole(os.path.join(directory, name), data)


def _manifest(directory: str, prefix: str, entries: Sequence[ShardEntry], suffixes: Iterable[str]) -> Manifest:
    names = tuple(sorted(suffixes))
    if len(names) > _MANY_SUFFIXES:
        warnings.warn(
            f"{directory} has {count(len(names), 'different suffix', 'different suffixes')}, such as {names[0]!r}; "
            "a suffix begins at the first dot of a name, so keys that have dots are cut short there",
            DataWarning,
            stacklevel=3,
        )
    return Manifest(
        prefix=prefix,
        suffixes=names,
        codecs=dict.fromkeys(names, "bytes"),
        shards=tuple(entries),
        writer={"name": "adopted"},
        versions={
            "bionemo-webdatamodule": metadata.version("bionemo-webdatamodule"),
            "python": platform.python_version(),
        },
    )


def _check(directory: str, prefix: str, *, again: bool) -> None:
    if not os.path.isdir(directory):
        raise NoShardsError(f"{directory} is not a local directory; correct the path")
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


def _adopt_shard(path: str) -> tuple[ShardEntry, tuple[str, ...], bytes]:
    """Return the entry of a shard in the manifest, its suffixes, and the content of its index."""
    stamp = Stamp.of(path)
    index = build_index(path)
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(data) != index.tar_bytes:
        raise CorruptShardError(f"{path} is being written; wait until it is whole", shard=path)
    sha256 = hashlib.sha256(data).hexdigest()
    sidecar = with_crcs(index, data).to_bytes(adopted=True)
    check_stamp(path, stamp)
    entry = ShardEntry(
        name=os.path.basename(path),
        bytes=stamp.size,
        samples=index.n_samples,
        sha256=sha256,
        index_sha256=hashlib.sha256(sidecar).hexdigest(),
    )
    return entry, index.suffixes, sidecar
