"""Listing of files for writers, with one rule for hidden names and links."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bionemo.webdatamodule.errors import InputError, count

HIDDEN = (".",)
"""How the names of hidden files and folders begin."""

HIDDEN_TABLES = (".", "_")
"""The same for tables: engines that write them keep ``_temporary/``, ``_SUCCESS`` and the like beside the data."""

_log = logging.getLogger("bionemo.webdatamodule")
_NEIGHBOURS = 1000  # files that are looked at for a message
_LISTED = 3


def walk_files(
    directory: str | os.PathLike[str],
    *,
    wanted: Callable[[str], bool] | None = None,
    hidden: tuple[str, ...] = HIDDEN,
) -> Iterator[str]:
    """Yield the files in a local directory and in all folders below it.

    Links to files and folders are followed, but not back into a folder that they lie in. Broken links, pipes and the
    like are yielded as files: whether one can be read shows when it is read. What is left out is logged once, at the
    end: a warning if wanted files are among it.

    Args:
        directory: Where to look.
        wanted: Whether a file of this name, without folders, is wanted; by default every file.
        hidden: Files and folders are left out whose names begin with one of these.

    Yields:
        Paths below the directory, with ``/`` between their parts; sorted in each folder.

    Raises:
        InputError: If a folder cannot be listed.
    """
    root = os.fspath(directory)
    left_out = _LeftOut()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        below, above = pending.pop()
        folder = os.path.join(root, below)
        files, folders = [], []
        try:
            inside = above | {_identity(folder)}
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = _is_folder(entry)
                    if not is_folder and wanted is not None and not wanted(entry.name):
                        continue
                    if entry.name.startswith(hidden):
                        left_out.add(f"{below}{entry.name}", is_folder=is_folder)
                    elif not is_folder:
                        files.append(entry.name)
                    elif entry.is_symlink() and _identity(entry.path) in inside:
                        left_out.loops.append(f"{below}{entry.name}")
                    else:
                        folders.append(entry.name)
        except OSError as error:
            raise InputError(
                f"{root} cannot be listed: {error.strerror}; correct the path or its permissions", file=below or None
            ) from error
        for name in sorted(files):
            yield below + name
        pending += [(f"{below}{name}/", inside) for name in sorted(folders, reverse=True)]
    left_out.log(root)


def is_visible(path: str, *, hidden: tuple[str, ...] = HIDDEN) -> bool:
    """Return whether :func:`walk_files` would list a path, for paths that another listing gives.

    Args:
        path: A path below the directory that was asked for, with ``/`` between its parts.
        hidden: How the names of hidden files and folders begin.
    """
    return not any(part.startswith(hidden) for part in path.split("/"))


def near(path: str) -> str:
    """Say what is there in place of a missing file, for messages.

    Args:
        path: The file.

    Returns:
        That its folder is missing, or how its neighbours are named if none has its suffix; else nothing.
    """
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            files = (entry.name for entry in itertools.islice(entries, _NEIGHBOURS) if entry.is_file())
            endings = {_ending(file) for file in files if is_visible(file)}
    except FileNotFoundError:
        return f"there is no folder {folder}"
    except OSError:
        return ""
    if not endings or _ending(name) in endings:
        return ""
    first = sorted(endings)[:_LISTED]
    more = " and others" if len(endings) > _LISTED else ""
    return f"the files beside it are named {', '.join(f'*{ending}' for ending in first)}{more}"


def _ending(name: str) -> str:
    _, dot, ending = name.partition(".")
    return dot + ending


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look
        return False


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


@dataclass(kw_only=True)
class _LeftOut:
    """What a walk does not list."""

    files: int = 0
    folders: int = 0
    first: str = ""
    loops: list[str] = field(default_factory=list)

    def add(self, path: str, *, is_folder: bool) -> None:
        self.first = self.first or path
        if is_folder:
            self.folders += 1
        else:
            self.files += 1

    def log(self, root: str) -> None:
        if self.first:
            _log.log(
                logging.WARNING if self.files else logging.INFO,
                "%s: left out %s and %s, first %s",
                root,
                count(self.files, "hidden file"),
                count(self.folders, "hidden folder"),
                self.first,
            )
        if self.loops:
            _log.warning(
                "%s: did not follow %s to folders around them, first %s",
                root,
                count(len(self.loops), "link"),
                self.loops[0],
            )
