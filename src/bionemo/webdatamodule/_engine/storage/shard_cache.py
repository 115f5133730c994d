"""The bounded local store of remote files: each comes down once, is verified, and goes when room is needed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bionemo.webdatamodule._engine.storage.index_cache import cache_directory

DEFAULT_SIZE = 100 << 30
"""Bytes that stores in the user's cache directory may take together, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A directory of files that came from elsewhere.

    Any number of processes may use it at once: a file appears whole or not at all, under a name that its content
    decides, and while one process fetches it the others wait for that.
    Files may vanish at any time, also by hand; whoever has one open or mapped keeps it.

    Attributes:
        root: Holds the directories of all data sets that share the bound.
        name: Directory of this data set, below ``root``.
        size: Bytes that all files below ``root`` may take, at most. A single larger file is kept all the same.
    """

    root: str
    name: str
    size: int = DEFAULT_SIZE

    @classmethod
    def of(cls, identity: str, *, root: str | None = None, size: int | None = None) -> Store:
        """Return the store of what a text identifies, such as a full URL and the digest of the data there.

        Args:
            identity: Tells these files from all others.
            root: Where to keep them; by default in the user's cache directory.
            size: See :class:`Store`.
        """
        return cls(
            root=os.path.expanduser(root) if root else os.path.join(cache_directory(), "shards"),
            name=hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40],
            size=DEFAULT_SIZE if size is None else size,
        )

    def path(self, name: str) -> str:
        """Return where a file is or would be."""
        return os.path.join(self.root, self.name, name)

    def has(self, name: str, size: int | None = None) -> bool:
        """Tell whether a file is there, of that size in bytes where it is known, and note that it is used."""
        path = self.path(name)
        try:
            found = os.stat(path)
            if size is not None and found.st_size != size:
                return False
            # The time of access decides what goes first; that of modification tells the states of a file apart.
            os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        except FileNotFoundError:
            return False
        except PermissionError:
            return True
        return True

    def fetch(self, name: str, size: int | None, download: Callable[[str], None]) -> str:
        """Return the path of a file that is there now.

        Args:
            name: Name of the file.
            size: Its bytes, where they are known.
            download: Writes the file to the path that it is given, and raises unless all of it is right.
        """
        path = self.path(name)
        if self.has(name, size):
            return path
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with _locked(f"{path}.lock"):
            if self.has(name, size):  # another process fetched it meanwhile
                return path
            directory, base = os.path.split(path)
            for left in os.listdir(directory):  # whoever wrote these is dead, or it would hold the lock
                if left.startswith(f".{base}."):
                    _remove(os.path.join(directory, left))
            self.make_room(size or 0)
            descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{base}.")
            os.close(descriptor)
            try:
                download(temporary)
                os.replace(temporary, path)
            except BaseException:
                _remove(temporary)
                raise
        return path

    def make_room(self, needed: int) -> None:
        """Remove the files used longest ago until so many more bytes fit."""
        files = [(found.st_atime_ns, found.st_size, path) for path, found in self._files()]
        total = sum(size for _, size, _ in files) + needed
        for _, size, path in sorted(files):
            if total <= self.size:
                return
            _remove(path)
            total -= size

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(directory, name)
                if not name.endswith(".lock") and not name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        yield path, os.stat(path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: both fetch, either result is right
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, path):  # the one before removed it while we waited
                continue
            try:
                yield
            finally:
                _remove(path)
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a forked child still has it open
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
