"""The files of a directory that are shards of a prefix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule.errors import NoShardsError

_UNPACK = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tar.xz": "unxz", ".tar.zst": "unzstd --rm"}


def is_shard_name(name: str, prefix: str) -> bool:
    """Return whether a file is named as a shard of a prefix: ``{prefix}-*.tar``, or ``{prefix}<digits>.tar``."""
    middle = name[len(prefix) : -len(".tar")]
    return name.startswith(prefix) and name.endswith(".tar") and (middle[:1] == "-" or _is_number(middle))


def find_shards(directory: str, prefix: str) -> list[str]:
    """Return the paths of the shards of another tool in a directory, see :func:`choose_shards`."""
    return [os.path.join(directory, name) for name in choose_shards(os.listdir(directory), directory, prefix)]


def choose_shards(files: Iterable[str], directory: str, prefix: str) -> list[str]:
    """Return those of some files that are shards of another tool, in order.

    These are ``{prefix}-<digits>.tar`` by number where there are any, so that prefix ``t`` does not take
    the shards of prefix ``t-val``; else ``{prefix}-*.tar`` by name; else ``{prefix}<digits>.tar`` by number.

    Args:
        files: The names of all files of a directory.
        directory: The directory, for messages.
        prefix: Beginning of the shards' names.

    Raises:
        NoShardsError: If there are none.
    """
    names = sorted(files)
    shards = [name for name in names if is_shard_name(name, prefix)]
    dashed = [name for name in shards if name[len(prefix)] == "-"]
    found = _numbered(dashed, f"{prefix}-") or dashed or _numbered(shards, prefix)
    if not found:
        raise NoShardsError(f"{directory} has no manifest and no {prefix}-*.tar. {_advice(names, prefix)}")
    if len(found) < len(dashed):
        decided("%s: %d tars are not numbered and left out", directory, len(dashed) - len(found))
    return found


def unlisted(directory: str, prefix: str, listed: Iterable[str]) -> list[str]:
    """Return the names of files that are numbered as shards of a prefix and are not among those listed, sorted."""
    names = [name for name in os.listdir(directory) if is_shard_name(name, prefix)]
    return sorted({*_numbered(names, f"{prefix}-"), *_numbered(names, prefix)} - set(listed))


def _numbered(names: Iterable[str], start: str) -> list[str]:
    """Return those of some names that have just a number behind a beginning, by number."""
    ends = len(start), -len(".tar")
    found = [name for name in names if name.startswith(start) and _is_number(name[ends[0] : ends[1]])]
    return sorted(found, key=lambda name: (int(name[ends[0] : ends[1]]), name))


def _advice(names: list[str], prefix: str) -> str:
    tars = [name for name in names if name.endswith(".tar")]
    packed = [name for name in names if name.endswith(tuple(_UNPACK))]
    if tars:
        more = f" and {len(tars) - 1} more" if tars[1:] else ""
        own = re.sub(r"-?[0-9]+$", "", tars[0].removesuffix(".tar"))
        if own and is_shard_name(tars[0], own):
            return f"It has {tars[0]}{more}; their prefix is {own!r}"
        return f"It has {tars[0]}{more}; rename or link them as {prefix}-000000.tar and so on"
    if packed:
        program = next(program for ending, program in _UNPACK.items() if packed[0].endswith(ending))
        return (
            f"It has {packed[0]}, which is compressed, and samples are read at any place of a shard; "
            f"unpack it with `{program} {packed[0]}`"
        )
    return "It has no tar at all; convert the data first"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
