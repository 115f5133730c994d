"""Checks of what a conversion is asked to do, before its first byte: pure functions that return sentences."""

from __future__ import annotations

import os
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from bionemo.webdatamodule.errors import ConfigError, InputError

LISTED = 20
"""How many problems an error lists before it only counts."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]*")
_BASE_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # what base_plus_ext looks for
_META_DIRECTORY = re.compile(r"__[^/]*__/")


def input_error(problems: Iterable[str], count: int | None = None, **where: object) -> InputError:
    """Return one error that lists the first problems and counts all.

    Args:
        problems: A sentence or phrase each.
        count: How many there are in all; ``None`` where ``problems`` holds all of them.
        **where: Place, as for all errors.
    """
    listed = list(problems)
    total = len(listed) if count is None else count
    shown = listed[:LISTED]
    more = f"\n  and {total - len(shown)} more" if total > len(shown) else ""
    noun = "1 problem" if total == 1 else f"{total} problems"
    return InputError(f"{noun} in the input, nothing was published:\n  " + "\n  ".join(shown) + more, **where)


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        InputError: See :func:`input_error`.
    """
    first: list[str] = []
    count = 0
    for count, problem in enumerate(problems, 1):
        if count <= LISTED:
            first.append(problem)
    if count:
        raise input_error(first, count)


def check_suffixes(suffixes: str | Iterable[str], *, argument: str = "suffixes") -> tuple[str, ...]:
    """Return suffixes as a tuple, after checking that each can be stored and read back as it is.

    Upper case, leading underscores, brackets and other punctuation are fine and match exactly.
    Refused are empty suffixes, those with ``/`` or control characters, those that begin with a dot,
    those that end in ``__`` (webdataset keeps ``__key__``, ``__bad__`` and their like for itself),
    and two that differ in nothing but case (webdataset reads suffixes in lower case).

    Args:
        suffixes: One suffix or several; a one-shot iterator is used up once, here.
        argument: What the user calls it, for messages.

    Raises:
        ConfigError: If one cannot be used.
    """
    if isinstance(suffixes, str):
        suffixes = (suffixes,)
    if isinstance(suffixes, (bytes, Mapping)) or not isinstance(suffixes, Iterable):
        raise ConfigError(f"{argument} must be a suffix or several, not {type(suffixes).__name__}")
    found = tuple(suffixes)
    if not found:
        raise ConfigError(f"{argument} is empty; give at least one suffix, such as 'tensor.pyd'")
    lower: dict[str, str] = {}
    for suffix in found:
        problem = suffix_problem(suffix)
        if problem:
            raise ConfigError(f"{argument} has {suffix!r}, which {problem}")
        if suffix.lower() in lower:
            twin = lower[suffix.lower()]
            raise ConfigError(
                f"{argument} has {suffix!r} twice"
                if twin == suffix
                else f"{argument} has {twin!r} and {suffix!r}, which webdataset reads as one"
            )
        lower[suffix.lower()] = suffix
    return found


def suffix_problem(suffix: Any) -> str | None:
    """Return what is wrong with a suffix, as the rest of a sentence, or ``None``."""
    if not isinstance(suffix, str):
        return f"is no string but {type(suffix).__name__}"
    if not suffix:
        return "is empty"
    if "/" in suffix:
        return "has a slash, so it would be a directory"
    if suffix.startswith("."):
        return f"begins with a dot; write {suffix.lstrip('.')!r}"
    if suffix.endswith("__"):
        return "ends in two underscores, which webdataset keeps for itself"
    if _CONTROL.search(suffix):
        return "has a control character"
    return None if _is_text(suffix) else "is no valid text"


def key_problem(key: Any) -> str | None:
    """Return why readers would not give a key back as it is, as the rest of a sentence, or ``None``.

    A key is good where ``webdataset.tariterators.base_plus_ext(key + ".x") == (key, "x")``, webdataset
    does not take it for metadata, and a tar holds it without pointing outside of a directory.
    """
    if not isinstance(key, str):
        return f"is no string but {type(key).__name__}"
    if not key:
        return "is empty"
    if _PLAIN_KEY.fullmatch(key):
        return None
    if key.startswith("/") or not {".", ".."}.isdisjoint(key.split("/")):
        return "points outside of a directory"
    if "\x00" in key or "\n" in key:
        return "has a character that tar readers stumble over"
    found = _BASE_AND_SUFFIX.match(f"{key}.x")
    if found is None or found.group(1) != key:
        return "has a dot in its last part, where webdataset looks for the suffix"
    if _META_DIRECTORY.match(key):
        return "begins with a __directory__/, which webdataset skips"
    return None if _is_storable(key) else "is no text that a tar can hold"


def check_names(names: Any, *, split: str) -> Sequence[str]:
    """Return a split's names as a sequence.

    Args:
        names: The user's names; a one-shot iterator is used up once, here.
        split: For messages.

    Raises:
        ConfigError: If these are no names.
    """
    if isinstance(names, (str, bytes, Mapping)) or not isinstance(names, Iterable):
        raise ConfigError(f"the names of split {split} must be a list of strings, not {names!r:.80}", split=split)
    check_ordered(names, split=split)
    found = names if isinstance(names, (list, tuple)) else tuple(names)
    if all(type(name) is str for name in found):
        return found
    return [str(name) if isinstance(name, str) else name for name in found]  # such as numpy's own strings


def check_ordered(names: Any, *, split: str) -> None:
    """Refuse names without an order of their own, for their order is that of the samples.

    Raises:
        ConfigError: If they are a set.
    """
    if isinstance(names, AbstractSet) and not isinstance(names, (KeysView, ItemsView)):
        raise ConfigError(
            f"the names of split {split} are a {type(names).__name__}, whose order changes from run to run; "
            "give a list, such as sorted(names)",
            split=split,
        )


def check_request(splits: Sequence[str], directories: Mapping[str, str], prefix: str) -> None:
    """Check the directories and the prefix of a conversion.

    Raises:
        ConfigError: If a split has no directory, or the prefix cannot begin a file name.
    """
    check_prefix(prefix)
    for split in splits:
        if split not in directories:
            raise ConfigError(f"the split {split} has names but no directory", split=split)


def directory_problems(splits: Sequence[str], directories: Mapping[str, str]) -> Iterator[str]:
    """Yield which splits have the same directory."""
    taken: dict[str, str] = {}
    for split in splits:
        place = os.path.realpath(os.path.expanduser(directories[split]))
        if place in taken:
            yield (
                f"the splits {taken[place]} and {split} have the same directory {directories[split]}; "
                "one would overwrite the other"
            )
        taken.setdefault(place, split)


def check_prefix(prefix: str) -> str:
    """Return a prefix of shard names.

    Raises:
        ConfigError: If it cannot begin a file name.
    """
    if (
        not isinstance(prefix, str)
        or not prefix
        or prefix.startswith(".")
        or "/" in prefix
        or _CONTROL.search(prefix)
        or not _is_text(prefix)
    ):
        raise ConfigError(f"the prefix of the shards must be the beginning of a file name, not {prefix!r}")
    return prefix


def _is_storable(key: str) -> bool:
    try:
        key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
