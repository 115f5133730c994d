"""Checks of what a conversion is asked to do, before its first byte: pure functions that return sentences."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo.webdatamodule.names import check_prefix

LISTED = 20
"""How many problems an error lists before it only counts."""


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
