"""A URL as the target of a conversion: shards are made on this machine and uploaded, the manifest last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    journal_path,
    lease_path,
    manifest_path,
    staging_path,
)
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.index_cache import cache_directory
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.target import shard_pattern
from bionemo.webdatamodule.errors import ConversionError, ManifestError, RemoteError

_UPLOADS = 8
_BLOCK = 1 << 23  # bytes that are fetched and hashed at a time


@dataclass(frozen=True, kw_only=True)
class RemoteTarget:
    """A directory behind a URL: shards are made in the user's cache directory and uploaded.

    Two conversions of one machine wait for each other. Of two machines the one that announced itself last wins,
    and the other one stops, since there is nothing atomic to build on but putting one object.
    """

    directory: RemoteDirectory
    prefix: str

    def __str__(self) -> str:
        return str(self.directory)

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
        return hashlib.sha256(self.directory.url.rstrip("/").encode()).hexdigest()[:32]

    @property
    def at_once(self) -> int:
        """Several, since each waits for the network."""
        return _UPLOADS

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
        pattern = shard_pattern(self.prefix)
        return {file.name: file.size for file in self.directory.list() if pattern.fullmatch(file.name)}

    def read(self, name: str) -> bytes | None:
        """Return a small object."""
        return self.directory.get(name)

    def sha256(self, name: str) -> str | None:
        """Return the hash of an object, which is fetched for it."""
        digest = hashlib.sha256()
        try:
            size = self.directory.stat(name).size
            memory = memoryview(bytearray(min(size, _BLOCK)))
            for begin in range(0, size, _BLOCK):
                block = memory[: min(_BLOCK, size - begin)]
                self.directory.read(name, [(begin, begin + len(block))], [block])
                digest.update(block)
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return digest.hexdigest()

    def announce(self, manifest: Manifest) -> None:
        """Put the journal."""
        self.directory.put(manifest.to_json().encode(), journal_path("", self.prefix))

    def put(self, path: str, name: str) -> None:
        """Upload a staged file, which stays here until all is published."""
        self.directory.put(path, name)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.directory.delete(name)

    def commit(self, manifest: Manifest) -> None:
        """Put the manifest and remove the journal, if that is still this conversion's."""
        if self.read(journal_path("", self.prefix)) != manifest.to_json().encode():
            raise ConversionError(f"another machine is converting into {self}; let one do it and run it again")
        self.directory.put(manifest.to_json().encode(), manifest_path("", self.prefix))
        self.remove(journal_path("", self.prefix))

    def retract(self) -> None:
        """Remove the manifest, and only then the journal."""
        self.remove(manifest_path("", self.prefix))
        self.remove(journal_path("", self.prefix))
