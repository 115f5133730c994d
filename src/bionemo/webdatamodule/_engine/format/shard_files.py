"""The files of a directory that are shards of a prefix."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule.errors import CorruptShardError, DataWarning, NoShardsError, count

_UNPACK = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.bz2": "bunzip2", ".tar.xz": "unxz", ".tar.zst": "unzstd --rm"}


def is_shard_name(name: str, prefix: str) -> bool:
    """Return whether a file is named as a shard of a prefix: ``{prefix}-*.tar``, or ``{prefix}<digits>.tar``."""
    middle = name[len(prefix) : -len(".tar")]
    return name.startswith(prefix) and name.endswith(".tar") and (middle[:1] == "-" or _is_number(middle))


def find_shards(directory: str, prefix: str) -> list[str]:
    """Return the paths of the shards of another tool in a directory, see :func:`choose_shards`.

    Raises:
        NoShardsError: If there are none.
        CorruptShardError: If one is a directory, or a link to a file that is not there.
    """
    found = [os.path.join(directory, name) for name in choose_shards(os.listdir(directory), directory, prefix)]
    for path in found:
        if not os.path.isfile(path):
            what = "a link to a file that does not exist" if os.path.islink(path) else "not a file"
            raise CorruptShardError(f"{path} is named as a shard and is {what}; restore or remove it", shard=path)
    return found


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
    others = re.compile(re.escape(prefix) + r".*[-_][0-9]+\.tar")  # such as those of the prefix t-val beside t
    left = [name for name in shards if name not in set(found)]
    if unexpected := [name for name in left if not others.fullmatch(name)]:
        more = f" and {len(unexpected) - 1} more" if unexpected[1:] else ""
        warnings.warn(
            f"{directory} has shards that are numbered, such as {found[0]}, so {unexpected[0]}{more} is not read; "
            "number it as well, or move it away",
            DataWarning,
            stacklevel=2,
        )
    elif left:
        decided("%s: left out %s of other prefixes, such as %s", directory, count(len(left), "tar"), left[0])
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
