"""What is behind a URL: the shards of a manifest, or tars that another tool wrote, listed and indexed."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from concurrent import futures
from dataclasses import replace

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.manifest import Manifest, ShardEntry, journal_path, manifest_path
from bionemo.webdatamodule._engine.format.shard_files import choose_shards
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.range_walk import walked_index
from bionemo.webdatamodule._engine.storage.remote.shards import Remote, RemoteShard
from bionemo.webdatamodule._engine.storage.remote.urls import split_query
from bionemo.webdatamodule._engine.storage.shard_cache import Cache
from bionemo.webdatamodule.components import StoredFile
from bionemo.webdatamodule.errors import ConfigError, ManifestError, NoShardsError, RemoteError, count
from bionemo.webdatamodule.plugins import Registered

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_AT_ONCE = 16  # shards that are walked over at the same time


def open_remote(
    url: str,
    prefix: str,
    *,
    store: Registered | None = None,
    cache_dir: str | None = None,
    cache_size: int | None = None,
) -> tuple[Remote, str, tuple[str, ...]]:
    """Look behind a URL.

    Args:
        url: URL of a directory, or a pattern of shards such as ``https://host/data/t-{000000..000023}.tar``.
        prefix: Beginning of the shards' names, where it is a directory.
        store: The store that serves the URL; by default the one that the installed plugins have for it.
        cache_dir: Where to keep indexes and pieces; by default in the user's cache directory.
        cache_size: Bytes that they may take there, about.

    Returns:
        The shards, their digest and their suffixes.

    Raises:
        NoShardsError: If there are none.
        ManifestError: If the manifest cannot be used, or a conversion is being published.
        CorruptShardError: If a shard without a manifest is not a valid tar.
        ChangedDataError: If one was replaced while it was indexed.
        RemoteError: If it cannot be fetched.
        ConfigError: If no store serves the URL, or it cannot list.
    """
    directory, names = source_at(url, store)
    manifest = None if names else read_manifest(directory, prefix)
    if manifest is None:
        return _unlisted(directory, _unmentioned(directory, names, prefix), cache_dir, cache_size)
    cache = Cache.of(f"{url.rstrip('/')}\0{manifest.digest}", root=cache_dir, size=cache_size)
    decided("pieces of %s are kept in %s, which may take %d bytes", directory, cache.root, cache.size)
    remote = Remote(directory=directory, shards=_shards(manifest.shards), cache=cache, manifest=manifest)
    return remote, manifest.digest, manifest.suffixes


def find_remote_shards(directory: RemoteDirectory, names: Sequence[str], prefix: str) -> list[StoredFile]:
    """Return the shards in a directory, whether there is a manifest or not.

    Args:
        directory: The directory.
        names: Names of the shards; where there are none, all of a prefix.
        prefix: That prefix.

    Raises:
        NoShardsError: If there are none.
        RemoteError: If they cannot be asked for.
        ConfigError: If the directory cannot be listed.
    """
    if names:
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(directory.stat, names))
    by_name = {file.name: file for file in directory.list()}
    return [by_name[name] for name in choose_shards(by_name, str(directory), prefix)]


def parent_of_pattern(url: str) -> str | None:
    """Return the URL of the directory that a pattern of shards is of; ``None`` where a URL is no pattern."""
    path, query = split_query(url)
    parent, _, last = path.rpartition("/")
    return parent + query if _RANGE.search(last) else None


def source_at(url: str, store: Registered | None = None) -> tuple[RemoteDirectory, list[str]]:
    """Return the directory at a URL, and the names of the shards where the URL is a pattern of them.

    Raises:
        ConfigError: If no store serves the URL.
    """
    parent = parent_of_pattern(url)
    names = [] if parent is None else expanded(split_query(url)[0].rpartition("/")[2])
    return RemoteDirectory.at(parent if parent and names else url, store), names


def read_manifest(directory: RemoteDirectory, prefix: str) -> Manifest | None:
    """Read the manifest behind a URL.

    Raises:
        ManifestError: If it cannot be used, or a conversion is being published.
        RemoteError: If it cannot be fetched.
    """
    name = manifest_path("", prefix)
    with futures.ThreadPoolExecutor(2) as pool:
        text, journal = pool.map(directory.get_if_permitted, (name, journal_path("", prefix)))
    if isinstance(text, RemoteError):
        raise RemoteError(
            f"{text.message}; a server that does not permit listing says so of a missing file as well: correct the "
            "URL, or ask for the right to read and to list",
            **text.where,
        ) from text.__cause__
    if isinstance(journal, bytes):
        raise ManifestError(f"a conversion into {directory} is being published; wait for it or run it again")
    if text is None:
        if journal is not None:
            raise journal
        return None
    source = f"{directory}/{name}"
    try:
        return Manifest.from_json(text, source=source, prefix=prefix)
    except ManifestError:  # perhaps the answer was cut short
        return Manifest.from_json(directory.get(name) or b"", source=source, prefix=prefix)


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern with ranges such as ``{000000..000023}`` stands for; none where it has none."""
    parts = _RANGE.split(pattern)
    if len(parts) == 1:
        return []
    ranges = [
        [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    return [
        "".join(itertools.chain(*itertools.zip_longest(parts[::3], chosen, fillvalue="")))
        for chosen in itertools.product(*ranges)
    ]


def _shards(entries: Iterable[ShardEntry]) -> tuple[RemoteShard, ...]:
    return tuple(RemoteShard(name=e.name, bytes=e.bytes, samples=e.samples, listed=e) for e in entries)


def _unmentioned(directory: RemoteDirectory, names: Sequence[str], prefix: str) -> list[StoredFile]:
    """Return the shards of a directory that has no manifest."""
    try:
        found = find_remote_shards(directory, names, prefix)
    except ConfigError as error:
        raise NoShardsError(
            f"there is no manifest at {directory}/{manifest_path('', prefix)}, and {error.message}"
        ) from error
    if names or directory.stat(found[0].name).version == found[0].version:
        return found
    # listings of this store write versions in another way than what is asked for when shards are read
    return find_remote_shards(directory, [file.name for file in found], prefix)


def _unlisted(
    directory: RemoteDirectory, files: Sequence[StoredFile], cache_dir: str | None, cache_size: int | None
) -> tuple[Remote, str, tuple[str, ...]]:
    """Return shards without a manifest, whose headers are walked over where that was not done before."""
    known = "\0".join(f"{file.name}\0{file.size}\0{file.version}" for file in files)
    cache = Cache.of(f"{directory.url}\0{known}", root=cache_dir, size=cache_size)
    decided("%s has no manifest; an index of %s is kept in %s", directory, count(len(files), "shard"), cache.root)

    def index_of(file: StoredFile) -> ShardIndex:
        return walked_index(directory, cache, file.name, file.size, file.version)

    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        indexes = list(pool.map(index_of, files))
    digest = hashlib.sha256()
    for file, index in zip(files, indexes, strict=True):
        content = hashlib.sha256(replace(index, crcs=None).to_bytes()).hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode("utf-8", "surrogateescape"))
    shards = tuple(
        RemoteShard(name=file.name, bytes=file.size, samples=index.n_samples, version=file.version)
        for file, index in zip(files, indexes, strict=True)
    )
    suffixes = tuple(sorted({suffix for index in indexes for suffix in index.suffixes}))
    return Remote(directory=directory, shards=shards, cache=cache), digest.hexdigest(), suffixes
