"""Arguments that commands share: numbers, the prefix of a directory's shards, several directories at a time."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bionemo.webdatamodule._cli.output import error_as_json, escaped, print_json
from bionemo.webdatamodule._engine.format.manifest import manifest_path
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.listing import parent_of_pattern
from bionemo.webdatamodule._engine.storage.remote.urls import is_url, shown
from bionemo.webdatamodule.errors import ConfigError, NoShardsError, RemoteError, WebDataModuleError
from bionemo.webdatamodule.pickles import Policy

USUAL_PREFIX = "wdshards"
"""The default prefix of shards."""

_MANIFEST = manifest_path("", "")
_TAR = re.compile(r"(.+?)-(?:\d+-of-\d+|[^-]*)\.tar")
_T = TypeVar("_T")


def natural(text: str) -> int:
    """Return an argument as a whole number, 0 or more."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def positive(text: str) -> int:
    """Return an argument as a whole number, 1 or more."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def whole(text: str) -> int:
    """Return an argument as a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def real(text: str) -> float:
    """Return an argument as a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def above_zero(text: str) -> float:
    """Return an argument as a finite number above 0."""
    number = real(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_policy(parser: argparse.ArgumentParser, *, trusted: str = "let pickles run code") -> None:
    """Add the arguments that say what pickles may do.

    Args:
        parser: Where to.
        trusted: What ``--trusted`` is for.
    """
    parser.add_argument("--trusted", action="store_true", help=trusted)
    parser.add_argument(
        "--allow-pickle",
        action="append",
        default=[],
        metavar="CLASS",
        help="class, or PACKAGE.*, that pickles may contain; repeatable",
    )


def policy_of(args: argparse.Namespace) -> Policy:
    """Return what pickles may do, from the arguments of :func:`add_policy`."""
    return Policy(pickles="trusted" if args.trusted else "safe", allow=tuple(args.allow_pickle))


def only_prefix(directory: str) -> str:
    """Return the prefix of the only data set in a directory, or behind its URL, or the default if no manifest has one.

    Raises:
        ConfigError: If there are several.
        RemoteError: If a URL cannot be asked.
    """
    prefixes = sorted(name.removesuffix(_MANIFEST) for name in _names(directory) if name.endswith(_MANIFEST))
    if len(prefixes) > 1:
        raise ConfigError(f"{shown(directory)} holds {', '.join(prefixes)}; choose one with --prefix")
    return prefixes[0] if prefixes else USUAL_PREFIX


def open_set(directory: str, prefix: str | None) -> ShardSet:
    """Open the shards of a directory or URL, those of its only prefix where none is given.

    Raises:
        ConfigError: If there are several prefixes and none is given.
        ShardError: If there are no shards, or they cannot be used.
        RemoteError: If a URL cannot be asked.
    """
    chosen = prefix or only_prefix(directory)
    with prefixes_named(directory, chosen):
        return ShardSet.open(directory, chosen)


@contextmanager
def prefixes_named(directory: str, prefix: str) -> Iterator[None]:
    """Name the prefixes that a directory has shards of, in the error that it has none of another.

    Raises:
        NoShardsError: In place of the one that is raised within.
    """
    try:
        yield
    except NoShardsError as error:
        others = sorted({match[1] for match in map(_TAR.fullmatch, _names(directory)) if match})
        if not others:
            raise
        hint = " or ".join(f"--prefix {other}" for other in others[:5])
        raise NoShardsError(f"{shown(directory)} has no shards of the prefix {prefix!r}; try {hint}") from error


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[_T]):
    """What became of one prefix of one directory.

    Attributes:
        directory: The directory.
        found: What was found; ``None`` where it could not be done.
        error: Why it could not be done; ``None`` where it could.
    """

    directory: str
    found: _T | None = None
    error: WebDataModuleError | None = None


def look_at_each(
    command: str, directories: Sequence[str], prefix: str | None, look: Callable[[str, str], _T]
) -> Iterator[Outcome[_T]]:
    """Look at directories one after another, so that one that is bad hides nothing of the others.

    An error is printed on standard error at once.

    Args:
        command: Name of the command, for messages.
        directories: The directories.
        prefix: Beginning of the shards' names; by default all that have a manifest.
        look: Looks at one prefix of one directory.

    Yields:
        What was found, or the error.
    """
    for directory in directories:
        try:
            prefixes = _prefixes(directory, prefix)
        except WebDataModuleError as error:
            yield _failed(command, directory, error)
            continue
        for each in prefixes:
            yield _look(command, directory, each, look)


def print_outcomes(outcomes: Sequence[Outcome[Any]]) -> None:
    """Print a list with what was found of each; where that was an error, the directory and the error."""
    rows = [
        {"directory": outcome.directory, **error_as_json(outcome.error)} if outcome.error else outcome.found
        for outcome in outcomes
    ]
    print_json(rows)


def _prefixes(directory: str, prefix: str | None) -> list[str]:
    if prefix:
        return [prefix]
    from bionemo.webdatamodule._engine.reading.verify import find_prefixes  # which needs torch

    try:
        return list(find_prefixes(directory))
    except ConfigError:  # web servers do not list their files
        return [USUAL_PREFIX]


def _look(command: str, directory: str, prefix: str, look: Callable[[str, str], _T]) -> Outcome[_T]:
    try:
        return Outcome(directory=directory, found=look(directory, prefix))
    except WebDataModuleError as error:
        return _failed(command, directory, error)


def _failed(command: str, directory: str, error: WebDataModuleError) -> Outcome[Any]:
    print(f"webdatamodule {command}: {escaped(str(error))}", file=sys.stderr)
    return Outcome(directory=directory, error=error)


def _names(directory: str) -> list[str]:
    """Return the names of the files in a directory, or behind its URL; none of what cannot be listed."""
    if is_url(directory):
        return _remote_names(directory)
    try:
        return os.listdir(os.path.expanduser(directory))  # noqa: PTH208, PTH111 - ~nobody stays as it is
    except OSError:
        return []


def _remote_names(url: str) -> list[str]:
    """Return the names of the files behind a URL; none where it is of a web server, a pattern, or may not be listed."""
    if parent_of_pattern(url) is not None:
        return []
    try:
        return [file.name for file in RemoteDirectory.at(url).list()]
    except ConfigError:
        return []
    except RemoteError as error:
        if isinstance(error.__cause__, PermissionError):  # reading may be permitted all the same
            return []
        raise
