"""The targets of conversions: a directory of this machine, or a URL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    journal_path,
    lease_path,
    manifest_path,
    read_manifest,
    staging_path,
)
from bionemo.webdatamodule._engine.format.tar_write import file_sha256
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.target import RemoteTarget
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule._engine.storage.target import Target, shard_pattern
from bionemo.webdatamodule.errors import ManifestError
from bionemo.webdatamodule.plugins import Registered


def target_of(directory: str, prefix: str, store: Registered | None = None) -> Target:
    """Return the target that a user's path or URL means.

    Args:
        directory: The path or URL.
        prefix: Beginning of the shards' names.
        store: The store that serves a URL; by default the one that the installed plugins have for it.

    Raises:
        ConfigError: If no store serves the URL.
    """
    if is_url(directory):
        return RemoteTarget(directory=RemoteDirectory.at(directory, store), prefix=prefix)
    return LocalTarget(directory=os.path.expanduser(directory), prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class LocalTarget:
    """A directory: staged files lie in a hidden one inside of it and are renamed into place."""

    directory: str
    prefix: str

    def __str__(self) -> str:
        return self.directory

    @property
    def staging(self) -> str:
        """A hidden directory in the directory itself, so that renaming never copies."""
        return staging_path(self.directory, self.prefix)

    @property
    def lease(self) -> str:
        """A hidden link in the directory."""
        return lease_path(self.directory, self.prefix)

    @property
    def at_once(self) -> int:
        """One: renaming takes no time."""
        return 1

    def problems(self) -> Iterator[str]:
        """Yield why files cannot be made here: a file in the way, or no right to write."""
        existing = os.path.abspath(self.directory)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            yield f"{existing} is not a directory, so shards cannot go to {self.directory}"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{existing} is read-only, so shards cannot go to {self.directory}"

    def prepare(self) -> None:
        """Make the directory."""
        filesystem.make_directories(self.directory)

    def manifest(self) -> Manifest | None:
        """Return the manifest as readers see it."""
        return read_manifest(self.directory, self.prefix)

    def sizes(self) -> Mapping[str, int]:
        """Return the sizes of shards and indices, by one scan of the directory."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.directory) as entries:
            pattern = shard_pattern(self.prefix)
            for entry in entries:
                if pattern.fullmatch(entry.name):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def read(self, name: str) -> bytes | None:
        """Return a small file."""
        path = os.path.join(self.directory, name)
        try:
            with open(path, "rb") as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}", file=path) from error

    def sha256(self, name: str) -> str | None:
        """Return the hash of a file."""
        try:
            return file_sha256(os.path.join(self.directory, name))
        except FileNotFoundError:
            return None

    def announce(self, manifest: Manifest) -> None:
        """Rename the synced manifest to be the journal, after all staged names are on the disk."""
        draft = os.path.join(self.staging, "manifest.json")
        filesystem.write_whole(draft, manifest.to_json().encode())
        filesystem.sync_directory(self.staging)
        filesystem.replace(draft, journal_path(self.directory, self.prefix))
        filesystem.sync_directory(self.directory)

    def put(self, path: str, name: str) -> None:
        """Rename a staged file into place."""
        filesystem.replace(path, os.path.join(self.directory, name))

    def remove(self, name: str) -> None:
        """Remove a file."""
        filesystem.remove(os.path.join(self.directory, name))

    def commit(self, manifest: Manifest) -> None:  # noqa: ARG002 - the journal holds it already
        """Rename the journal to be the manifest, after all names in the directory are on the disk."""
        filesystem.sync_directory(self.directory)
        filesystem.replace(journal_path(self.directory, self.prefix), manifest_path(self.directory, self.prefix))
        filesystem.sync_directory(self.directory)

    def retract(self) -> None:
        """Remove the manifest, and only then the journal."""
        self.remove(manifest_path("", self.prefix))
        filesystem.sync_directory(self.directory)
        self.remove(journal_path("", self.prefix))
        filesystem.sync_directory(self.directory)
