"""Shards behind a URL: the manifest is read there, and each shard comes down once into a bounded local store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bionemo.webdatamodule._engine.format.index import index_name
from bionemo.webdatamodule._engine.format.manifest import Manifest, journal_path, manifest_path
from bionemo.webdatamodule._engine.format.tar_write import file_sha256
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.remote_directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.shard_cache import Store
from bionemo.webdatamodule.errors import ManifestError, NoShardsError, RemoteError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.format.manifest import ShardEntry

_log = logging.getLogger("bionemo.webdatamodule")

AT_ONCE = 4
"""Shards that one process fetches at the same time, at most."""

_BLOCK = 1 << 23  # bytes of one request


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The shards behind a URL that a manifest lists.

    Attributes:
        directory: Where they are.
        manifest: The manifest there.
        store: Where shards are kept.
    """

    directory: RemoteDirectory
    manifest: Manifest
    store: Store

    def path(self, number: int) -> str:
        """Return where a shard is kept, or will be."""
        return self.store.path(self.manifest.shards[number].name)

    def fetch(self, number: int) -> str:
        """Return the local path of a shard that is there and verified, after fetching it where needed.

        Raises:
            RemoteError: If it cannot be fetched, or is not what the manifest says.
        """
        entry = self.manifest.shards[number]
        sidecar = index_name(entry.name)
        try:
            self.store.fetch(sidecar, None, lambda path: self._download(sidecar, path, entry.index_sha256))
        except RemoteError as error:
            decided("the index is made from the shard instead: %s", error)
        return self.store.fetch(entry.name, entry.bytes, lambda path: self._download(entry.name, path, entry.sha256))

    def fetch_all(self, numbers: Iterable[int]) -> None:
        """Fetch several shards, a few at the same time."""
        missing = [number for number in numbers if not self._is_here(self.manifest.shards[number])]
        if len(missing) > 1:
            with futures.ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self.fetch, missing))

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Start to fetch shards in the background, one after another; what goes wrong is tried again when needed."""
        missing = [number for number in numbers if not self._is_here(self.manifest.shards[number])]
        if missing:
            threading.Thread(
                target=self._fetch_quietly, args=(missing,), name="webdatamodule-ahead", daemon=True
            ).start()

    def _is_here(self, entry: ShardEntry) -> bool:
        return self.store.has(entry.name, entry.bytes)

    def _fetch_quietly(self, numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                self.fetch(number)
        except Exception as error:  # noqa: BLE001 - whoever needs the shard tries again, and says what is wrong
            _log.debug("fetching ahead: %s", error)

    def _download(self, name: str, path: str, sha256: str) -> None:
        started = time.monotonic()
        size = self.directory.stat(name).size
        for attempt in range(2):
            with open(path, "r+b") as file:
                file.truncate(size)
                for begin in range(0, size, _BLOCK):
                    block = bytearray(min(_BLOCK, size - begin))
                    self.directory.read(name, [(begin, begin + len(block))], [memoryview(block)])
                    file.write(block)
            if file_sha256(path) == sha256:
                break
            if attempt:
                raise RemoteError(f"{size} bytes came of {self.directory}/{name}, whose hash is not in the manifest")
        _log.debug("fetched %s/%s, %d bytes in %.1f s", self.directory, name, size, time.monotonic() - started)


def open_remote(url: str, prefix: str, *, cache_dir: str | None = None, cache_size: int | None = None) -> Remote:
    """Read the manifest behind a URL.

    Args:
        url: URL of a directory.
        prefix: Beginning of the shards' names.
        cache_dir: Where to keep shards; by default in the user's cache directory.
        cache_size: Bytes that they may take there, at most.

    Raises:
        NoShardsError: If there is no manifest.
        ManifestError: If it cannot be used, or a conversion is being published.
        RemoteError: If it cannot be fetched.
        ConfigError: If the kind of URL is not known, or the package for it is not installed.
    """
    directory = RemoteDirectory.at(url)
    name = manifest_path("", prefix)
    text = directory.get(name)
    if text is None:
        raise NoShardsError(
            f"there is no manifest at {directory}/{name}; remote shards need one: convert the data to this place, "
            "or run `webdatamodule index` on a local copy and upload what it writes"
        )
    if directory.get(journal_path("", prefix)) is not None:
        raise ManifestError(f"a conversion into {directory} is being published; wait for it or run it again")
    manifest = Manifest.from_json(text, source=f"{directory}/{name}", prefix=prefix)
    store = Store.of(f"{url.rstrip('/')}\0{manifest.digest}", root=cache_dir, size=cache_size)
    decided("shards of %s are kept in %s, which may take %d bytes", directory, store.root, store.size)
    return Remote(directory=directory, manifest=manifest, store=store)
