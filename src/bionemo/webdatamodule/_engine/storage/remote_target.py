"""A URL as the target of a conversion: shards are made on this machine and uploaded, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    journal_path,
    lease_path,
    manifest_path,
    staging_path,
)
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.download import join, open_filesystem, read, retried, shown
from bionemo.webdatamodule._engine.storage.index_cache import cache_directory
from bionemo.webdatamodule._engine.storage.targets import shard_pattern
from bionemo.webdatamodule.errors import ConversionError, ManifestError


@dataclass(frozen=True, kw_only=True)
class RemoteTarget:
    """A URL of any file system of fsspec: shards are made in the user's cache directory and uploaded.

    Two conversions of one machine wait for each other. Of two machines the one that announced itself last wins,
    and the other one stops, since there is nothing atomic to build on but putting one object.
    """

    url: str
    prefix: str

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def staging(self) -> str:
        """A directory in the user's cache directory, one for each URL."""
        return staging_path(os.path.join(cache_directory(), "outgoing", self._local), self.prefix)

    @property
    def lease(self) -> str:
        """A link beside the staging directory."""
        return lease_path(os.path.join(cache_directory(), "outgoing", self._local), self.prefix)

    @property
    def _local(self) -> str:
        return hashlib.sha256(self.url.rstrip("/").encode()).hexdigest()[:32]

    def problems(self) -> Iterator[str]:
        """Yield nothing: whether a URL can be written shows when it is."""
        return iter(())

    def prepare(self) -> None:
        """Make the local directory."""
        filesystem.make_directories(os.path.dirname(self.staging))

    def manifest(self) -> Manifest | None:
        """Return the manifest as readers see it."""
        text = self.read(manifest_path("", self.prefix))
        if self.read(journal_path("", self.prefix)) is not None:
            raise ManifestError(f"a conversion into {self} is being published, or was stopped; run it again")
        return None if text is None else Manifest.from_json(text, source=f"the manifest of {self}", prefix=self.prefix)

    def sizes(self) -> Mapping[str, int]:
        """Return the sizes of shards and indices, by one listing."""
        filesystem, path = open_filesystem(self.url)

        def listing() -> list[dict[str, Any]]:
            filesystem.invalidate_cache()
            try:
                return list(filesystem.ls(path, detail=True))
            except FileNotFoundError:
                return []

        pattern = shard_pattern(self.prefix)
        entries = {os.path.basename(entry["name"]): entry["size"] for entry in retried(listing, self.url)}
        return {name: size for name, size in entries.items() if pattern.fullmatch(name)}

    def read(self, name: str) -> bytes | None:
        """Return a small object."""
        return read(join(self.url, name))

    def sha256(self, name: str) -> str | None:
        """Return the hash of an object, which is fetched for it."""
        filesystem, path = open_filesystem(join(self.url, name))

        def digest() -> str | None:
            found = hashlib.sha256()
            try:
                with filesystem.open(path, "rb") as file:
                    while block := file.read(1 << 22):
                        found.update(block)
            except FileNotFoundError:
                return None
            return found.hexdigest()

        return retried(digest, self.url)

    def announce(self, manifest: Manifest) -> None:
        """Put the journal."""
        filesystem, path = open_filesystem(self.url)
        retried(lambda: filesystem.makedirs(path, exist_ok=True), self.url)
        self._write(journal_path("", self.prefix), manifest)

    def put(self, path: str, name: str) -> None:
        """Upload a staged file, which stays here until all is published."""
        filesystem, target = open_filesystem(join(self.url, name))
        retried(lambda: filesystem.put_file(path, target), join(self.url, name))

    def remove(self, name: str) -> None:
        """Remove an object."""
        filesystem, path = open_filesystem(join(self.url, name))

        def attempt() -> None:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)

        retried(attempt, join(self.url, name))

    def commit(self, manifest: Manifest) -> None:
        """Put the manifest and remove the journal, if that is still this conversion's."""
        if self.read(journal_path("", self.prefix)) != manifest.to_json().encode():
            raise ConversionError(f"another machine is converting into {self}; let one do it and run it again")
        self._write(manifest_path("", self.prefix), manifest)
        self.remove(journal_path("", self.prefix))

    def retract(self) -> None:
        """Remove the manifest, and only then the journal."""
        self.remove(manifest_path("", self.prefix))
        self.remove(journal_path("", self.prefix))

    def _write(self, name: str, manifest: Manifest) -> None:
        filesystem, path = open_filesystem(join(self.url, name))
        retried(lambda: filesystem.pipe_file(path, manifest.to_json().encode()), join(self.url, name))
