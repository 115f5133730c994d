"""Where a split's shards go: a directory of this machine, or a URL to which they are uploaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bionemo.webdatamodule.errors import ConversionError, ManifestError
from bionemo.webdatamodule.shards import files
from bionemo.webdatamodule.shards.cache import cache_directory
from bionemo.webdatamodule.shards.index import index_name
from bionemo.webdatamodule.shards.manifest import (
    Manifest,
    journal_path,
    lease_path,
    manifest_path,
    read_manifest,
    staging_path,
)
from bionemo.webdatamodule.shards.remote import is_url, join, open_filesystem, read, retried, shown
from bionemo.webdatamodule.shards.write import file_sha256


class Target(Protocol):
    """What a conversion does with the place that it writes to; names are those of files in it."""

    @property
    def prefix(self) -> str:
        """Beginning of the shards' names."""
        ...

    @property
    def staging(self) -> str:
        """Local directory in which shards are made."""
        ...

    @property
    def lease(self) -> str:
        """Local link by which a conversion tells others that it is at work."""
        ...

    def problems(self) -> Iterator[str]:
        """Yield why nothing can be written here, a sentence each."""
        ...

    def prepare(self) -> None:
        """Make the directories that are needed."""
        ...

    def manifest(self) -> Manifest | None:
        """Return the manifest as readers see it, or ``None`` where there is none.

        Raises:
            ManifestError: If it cannot be read, or a publication is at work or was stopped.
        """
        ...

    def sizes(self) -> Mapping[str, int]:
        """Return the size of each file that looks like a shard of the prefix, or the index of one."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a small file, or ``None`` where there is none."""
        ...

    def sha256(self, name: str) -> str | None:
        """Return the hash of a file, or ``None`` where there is none."""
        ...

    def announce(self, manifest: Manifest) -> None:
        """Put the next manifest there as the journal."""
        ...

    def put(self, path: str, name: str) -> None:
        """Move a staged file into place."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def commit(self, manifest: Manifest) -> None:
        """Make the journal the manifest."""
        ...

    def retract(self) -> None:
        """Remove manifest and journal."""
        ...


def target_of(directory: str, prefix: str) -> Target:
    """Return the place that a user's path or URL means."""
    if is_url(directory):
        return RemoteTarget(url=directory, prefix=prefix)
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
        return staging_path(self.directory, self.prefix)

    @property
    def lease(self) -> str:
        return lease_path(self.directory, self.prefix)

    def problems(self) -> Iterator[str]:
        existing = os.path.abspath(self.directory)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            yield f"{existing} is no directory, so shards cannot go to {self.directory}"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{existing} is read-only, so shards cannot go to {self.directory}"

    def prepare(self) -> None:
        files.make_directories(self.directory)

    def manifest(self) -> Manifest | None:
        return read_manifest(self.directory, self.prefix)

    def sizes(self) -> Mapping[str, int]:
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.directory) as entries:
            pattern = _shard_pattern(self.prefix)
            for entry in entries:
                if pattern.fullmatch(entry.name):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.directory, name), "rb") as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def sha256(self, name: str) -> str | None:
        try:
            return file_sha256(os.path.join(self.directory, name))
        except FileNotFoundError:
            return None

    def announce(self, manifest: Manifest) -> None:
        draft = os.path.join(self.staging, "manifest.json")
        files.write_whole(draft, manifest.to_json().encode())
        files.sync_directory(self.staging)
        files.replace(draft, journal_path(self.directory, self.prefix))
        files.sync_directory(self.directory)

    def put(self, path: str, name: str) -> None:
        files.replace(path, os.path.join(self.directory, name))

    def remove(self, name: str) -> None:
        files.remove(os.path.join(self.directory, name))

    def commit(self, manifest: Manifest) -> None:  # noqa: ARG002 - the journal holds it already
        files.sync_directory(self.directory)
        files.replace(journal_path(self.directory, self.prefix), manifest_path(self.directory, self.prefix))
        files.sync_directory(self.directory)

    def retract(self) -> None:
        self.remove(manifest_path("", self.prefix))
        files.sync_directory(self.directory)
        self.remove(journal_path("", self.prefix))
        files.sync_directory(self.directory)


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
        return staging_path(os.path.join(cache_directory(), "outgoing", self._local), self.prefix)

    @property
    def lease(self) -> str:
        return lease_path(os.path.join(cache_directory(), "outgoing", self._local), self.prefix)

    @property
    def _local(self) -> str:
        return hashlib.sha256(self.url.rstrip("/").encode()).hexdigest()[:32]

    def problems(self) -> Iterator[str]:
        return iter(())

    def prepare(self) -> None:
        files.make_directories(os.path.dirname(self.staging))

    def manifest(self) -> Manifest | None:
        text = self.read(manifest_path("", self.prefix))
        if self.read(journal_path("", self.prefix)) is not None:
            raise ManifestError(f"a conversion into {self} is being published, or was stopped; run it again")
        return None if text is None else Manifest.from_json(text, source=f"the manifest of {self}")

    def sizes(self) -> Mapping[str, int]:
        filesystem, path = open_filesystem(self.url)

        def listing() -> list[dict[str, Any]]:
            filesystem.invalidate_cache()
            try:
                return list(filesystem.ls(path, detail=True))
            except FileNotFoundError:
                return []

        pattern = _shard_pattern(self.prefix)
        entries = {os.path.basename(entry["name"]): entry["size"] for entry in retried(listing, self.url)}
        return {name: size for name, size in entries.items() if pattern.fullmatch(name)}

    def read(self, name: str) -> bytes | None:
        return read(join(self.url, name))

    def sha256(self, name: str) -> str | None:
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
        filesystem, path = open_filesystem(self.url)
        retried(lambda: filesystem.makedirs(path, exist_ok=True), self.url)
        self._write(journal_path("", self.prefix), manifest)

    def put(self, path: str, name: str) -> None:
        filesystem, target = open_filesystem(join(self.url, name))
        retried(lambda: filesystem.put_file(path, target), join(self.url, name))

    def remove(self, name: str) -> None:
        filesystem, path = open_filesystem(join(self.url, name))

        def attempt() -> None:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)

        retried(attempt, join(self.url, name))

    def commit(self, manifest: Manifest) -> None:
        if self.read(journal_path("", self.prefix)) != manifest.to_json().encode():
            raise ConversionError(f"another machine is converting into {self}; let one do it and run it again")
        self._write(manifest_path("", self.prefix), manifest)
        self.remove(journal_path("", self.prefix))

    def retract(self) -> None:
        self.remove(manifest_path("", self.prefix))
        self.remove(journal_path("", self.prefix))

    def _write(self, name: str, manifest: Manifest) -> None:
        filesystem, path = open_filesystem(join(self.url, name))
        retried(lambda: filesystem.pipe_file(path, manifest.to_json().encode()), join(self.url, name))


def _shard_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(prefix)}-\d{{6,}}\.tar({re.escape(index_name(''))})?")
