"""The protocol of the target of a split's shards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from bionemo.webdatamodule._engine.format.index import index_name
from bionemo.webdatamodule._engine.format.manifest import Manifest


class Target(Protocol):
    """The operations of a conversion on its target; names are those of files in it."""

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
        """Local link by which a conversion shows others that it is running."""
        ...

    @property
    def at_once(self) -> int:
        """How many files are put at the same time."""
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
        """Return a small file, or ``None`` where there is none.

        Raises:
            ManifestError: If it is there and cannot be read.
        """
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


def shard_pattern(prefix: str) -> re.Pattern[str]:
    """Return the pattern of the names of a prefix's shards and indexes."""
    return re.compile(rf"{re.escape(prefix)}-\d{{6,}}\.tar({re.escape(index_name(''))})?")
