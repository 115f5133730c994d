"""Every change that a conversion makes to a disk goes through these functions.

Each is one operation of the operating system, so that tests can fail or kill any single one of them
(``tests/helpers/faults.py``). Call them through the module: ``files.replace(...)``.
"""

from __future__ import annotations

import contextlib
import os
import uuid


def make_directory(path: str, mode: int) -> None:
    """Create one directory."""
    os.mkdir(path, mode)


def make_directories(path: str) -> None:
    """Create a directory and its parents, and sync them; the umask decides who may read them."""
    parent = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        return
    make_directories(parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        make_directory(path, 0o777)
    sync_directory(parent)


def make_private_directory(path: str) -> None:
    """Create a directory that only this user may enter, if it is not there yet; its parent exists."""
    try:
        make_directory(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def create(path: str) -> int:
    """Open a new file for writing, or empty an old one; the umask decides who may read it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def write(descriptor: int, data: bytes | memoryview) -> int:
    """Write what the system takes at once and return how many bytes that was."""
    return os.write(descriptor, data)


def sync(descriptor: int) -> None:
    """Sync a file to disk."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a file."""
    os.close(descriptor)


def replace(source: str, target: str) -> None:
    """Rename a file over another, atomically."""
    os.replace(source, target)


def make_link(text: str, path: str) -> bool:
    """Create a symbolic link; return false if the path exists."""
    try:
        os.symlink(text, path)
    except FileExistsError:
        return False
    except OSError as error:
        error.filename, error.filename2 = path, None  # not the text of the link
        raise
    return True


def touch(path: str) -> None:
    """Set a file's times to now."""
    os.utime(path)


def remove(path: str) -> None:
    """Remove a file, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_directory(path: str) -> None:
    """Remove a directory with the files in it, if it is still there; it holds no other directories."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        remove(f"{path}/{name}")
    remove_empty_directory(path)


def remove_empty_directory(path: str) -> None:
    """Remove a directory, if it is still there and there is nothing in it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


def sync_directory(path: str) -> None:
    """Sync the entries of a directory to disk: created, renamed and removed names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str, data: bytes) -> None:
    """Put a file there at once: under a temporary name, synced, then renamed; the caller syncs the directory.

    Raises:
        OSError: If that fails; it names the file, and nothing is left under the temporary name.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        descriptor = create(temporary)
        try:
            write_all(descriptor, data)
            sync(descriptor)
        finally:
            close(descriptor)
        replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = path, None
        raise


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all data, in as many calls as the system needs."""
    written = write(descriptor, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[write(descriptor, rest) :]
