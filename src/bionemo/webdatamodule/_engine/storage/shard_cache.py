"""The bounded local cache of remote files, which any number of processes share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bionemo.webdatamodule._engine.storage.index_cache import cache_directory
from bionemo.webdatamodule.errors import RemoteError

DEFAULT_SIZE = 100 << 30
"""Bytes that caches in the user's cache directory may take together, by default."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""Numbers of the errors of a full disk."""

_SLACK = 16  # a sixteenth of the bound more is freed than is needed, so that directories are rarely walked
_NAME_BYTES = 255  # of a file's name, at most
_OLD = 600  # seconds without use after which files of other data sets go first


class UnusableCacheError(RemoteError):
    """The cache directory cannot keep what is needed."""


_known: dict[str, list[float]] = {}
"""For each root the bytes in it as this process last knew, and the bytes since then."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A directory of files that came from elsewhere.

    Files may vanish at any time, also by hand; a process that has one open or mapped keeps it, and its bytes on the
    disk, until it lets go of it, see :func:`last_eviction`.
    A cache that cannot be written is used for what is in it.

    Attributes:
        root: Holds the directories of all data sets that share the bound.
        name: Directory of this data set, below ``root``.
        size: Bytes that all files below ``root`` may take, about. A single larger file is kept all the same.
    """

    root: str
    name: str
    size: int = DEFAULT_SIZE

    @classmethod
    def of(cls, identity: str, *, root: str | None = None, size: int | None = None) -> Cache:
        """Return the cache of what a text identifies, such as a full URL and the digest of the data there.

        Args:
            identity: Distinguishes these files from all others.
            root: Where to keep them; by default in the user's cache directory.
            size: See :class:`Cache`.
        """
        return cls(
            root=os.path.expanduser(root) if root else _usual_root(),
            name=hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40],
            size=DEFAULT_SIZE if size is None else size,
        )

    def path(self, name: str) -> str:
        """Return the path of a file, whether it exists or not."""
        return os.path.join(self.root, self.name, name)

    def has(self, name: str, size: int | None = None) -> bool:
        """Return whether a file is there, of that size in bytes where it is known, and note that it is used."""
        path = self.path(name)
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self.unusable(error) from error
        if size is not None and found.st_size != size:
            return False
        used(path, found)
        return True

    def fetch(self, name: str, size: int | None, download: Callable[[str], None]) -> str:
        """Return the path of a file that is there now.

        Args:
            name: Name of the file.
            size: Its bytes, where they are known.
            download: Writes the file to the path that it is given, and raises unless all of it is right.

        Raises:
            RemoteError: If the cache cannot be used, or what ``download`` raises.
        """
        path = self.path(name)
        if self.has(name, size):
            return path
        with self.claimed(f"{path}.lock") as claim:
            if self.has(name, size):  # another process fetched it meanwhile
                return path
            directory, base = os.path.split(path)
            with self.writing():
                left = os.fsdecode(os.pread(claim, _NAME_BYTES, 0))
                if left.startswith(f".{base}."):  # of a process that died with the claim
                    remove(os.path.join(directory, left))
                self.make_room(size or 0)
                temporary = os.path.join(directory, f".{base}.{secrets.token_hex(4)}")
                os.ftruncate(claim, 0)
                os.pwrite(claim, os.fsencode(os.path.basename(temporary)), 0)
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                try:
                    download(temporary)
                    os.replace(temporary, path)
                except BaseException:
                    remove(temporary)
                    raise
        return path

    @contextlib.contextmanager
    def claimed(self, path: str) -> Iterator[int]:
        """Hold the lock file at a path of this cache, which ends with the process that holds it; yield its descriptor.

        It holds what a process that died with it wrote into it.
        """
        while True:
            with self.writing():
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                lock(descriptor)
                if not _is_at(descriptor, path):  # the process before removed it while we waited
                    continue
                try:
                    yield descriptor
                finally:
                    remove(path)
                    unlock(descriptor)  # also where a forked child still has it open
                return
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of the disk into named errors with a remedy."""
        try:
            yield
        except RemoteError:
            raise
        except OSError as error:
            raise self.unusable(error) from error

    def unusable(self, error: OSError) -> UnusableCacheError:
        """Return the error of a cache that cannot keep what is needed."""
        where = "cache_dir or XDG_CACHE_HOME" if self.root == _usual_root() else "cache_dir"
        if error.errno in FULL:
            remedy = f"free space there, give a smaller cache_size, or another {where}"
        else:
            remedy = f"give a {where} that is a directory and can be written"
        return UnusableCacheError(f"the cache of remote shards {self.root} cannot be used: {error.strerror}; {remedy}")

    def make_room(self, needed: int, is_done: Callable[[str], bool] | None = None) -> None:
        """Remove files until a number of bytes fits.

        Files of other data sets that were not used lately go first, then files whose samples this epoch needs no more,
        then the files used longest ago.

        Args:
            needed: Bytes that are about to be written.
            is_done: Whether a file of this data set is needed no more in this epoch, by its path.
        """
        known = _known.setdefault(self.root, [-1.0, 0.0])
        known[1] += needed
        if known[0] >= 0 and known[0] + known[1] <= self.size and known[1] < self.size / _SLACK:
            return
        files = list(self._files())
        total = sum(size for _, size, _ in files)
        excess = total + needed - self.size
        if excess > 0:
            total -= self._evict(files, excess + self.size // _SLACK if is_done else excess, is_done)
        known[:] = [float(total), float(needed)]

    def free(self, needed: int, is_done: Callable[[str], bool] | None = None) -> bool:
        """Remove files where the disk is full before the bound is reached; return whether there were any."""
        return self._evict(list(self._files()), needed, is_done) > 0

    def _evict(self, files: list[tuple[float, int, str]], excess: int, is_done: Callable[[str], bool] | None) -> int:
        own, before = os.path.join(self.root, self.name) + os.sep, time.time() - _OLD

        def rank(file: tuple[float, int, str]) -> tuple[int, float]:
            last, _, path = file
            if not path.startswith(own):
                return (0 if last < before else 2), last
            if is_done is not None and is_done(path):
                return 1, last
            return 3 if is_done is not None else 2, last

        freed = 0
        for _, size, path in sorted(files, key=rank):
            if freed >= excess:
                break
            remove(path)
            freed += size
        if freed:
            _note_eviction(self.root)
        return freed

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield last use, bytes on the disk and path of every file."""
        for directory, _, names in os.walk(self.root):
            for name in names:
                if not name.endswith(".lock") and not name.startswith("."):
                    path = os.path.join(directory, name)
                    with contextlib.suppress(OSError):
                        found = os.stat(path)
                        yield found.st_atime, min(found.st_size, found.st_blocks * 512), path


def last_eviction(root: str) -> int:
    """Return a number that changes when any process removes files below the root of a cache, and seldom else."""
    try:
        return os.stat(root).st_mtime_ns
    except OSError:
        return 0


def used(path: str, found: os.stat_result) -> None:
    """Note that a file is used; the time of modification distinguishes its states and is not changed."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))


def lock(descriptor: int) -> None:
    """Wait for the lock on an open file; without locks in the file system, continue, because any result is right."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file, or return false where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def unlock(descriptor: int) -> None:
    """Release a lock."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _note_eviction(root: str) -> None:
    """Let other processes see that files were removed; this needs no space on a disk that is full."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(root)  # by the clock of the kernel, which has few digits, where the directory is another user's
        os.utime(root, ns=(now, now))


def _usual_root() -> str:
    return os.path.join(cache_directory(), "shards")


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
