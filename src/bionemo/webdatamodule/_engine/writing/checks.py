"""Checks of the arguments of a conversion, before it writes: pure functions that return sentences."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from bionemo.webdatamodule.errors import ConfigError, InputError, PluginError, count
from bionemo.webdatamodule.names import check_prefix, encode_key, key_problem

LISTED = 20
"""How many problems an error lists before it only counts."""

_V = TypeVar("_V")


def input_error(problems: Iterable[str], n_problems: int | None = None, **where: object) -> InputError:
    """Return one error that lists the first problems and counts all.

    Args:
        problems: A sentence or phrase each.
        n_problems: How many there are in all; ``None`` where ``problems`` holds all of them.
        **where: Place, as for all errors.
    """
    listed = list(problems)
    total = len(listed) if n_problems is None else n_problems
    shown = listed[:LISTED]
    more = f"\n  and {total - len(shown)} more" if total > len(shown) else ""
    return InputError(
        f"{count(total, 'problem')} in the input, nothing was published:\n  " + "\n  ".join(shown) + more, **where
    )


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        InputError: See :func:`input_error`.
    """
    first: list[str] = []
    number = 0
    for number, problem in enumerate(problems, 1):
        if number <= LISTED:
            first.append(problem)
    if number:
        raise input_error(first, number)


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


def name_problems(
    names: Mapping[str, Sequence[str]], encode: Callable[[str], str], *, encoder: str = "custom", **where: str
) -> Iterator[str]:
    """Yield what is wrong with the names of some splits and their keys.

    Found are duplicates, names in two splits, keys that cannot be stored, and names that get one key.
    Works on hashes and compares names only where these agree, so it needs 16 bytes a name.

    Args:
        names: Names by split, in which :func:`no_names` finds nothing.
        encode: The key encoder.
        encoder: What it is called.
        where: Its plugin, for messages.

    Raises:
        PluginError: If the key encoder fails, or gives something else than a string.
    """
    if not names:
        return
    for name, places in _Samples(names).repeated(str).items():
        counts = Counter(split for split, _ in places)
        for split, times in counts.items():
            if times > 1:
                yield f"the name {name!r} occurs {times} times in split {split}"
        if len(counts) > 1:
            yield f"the name {name!r} is in the splits {' and '.join(counts)}"

    def key(name: str) -> str:
        try:
            found = encode(name)
        except Exception as error:
            raise PluginError(
                f"the key encoder {encoder} fails at the name {name!r} with {type(error).__name__}: {error}",
                key_encoder=encoder,
                **where,
            ) from error
        if not isinstance(found, str):
            raise PluginError(
                f"the key encoder {encoder} makes {found!r:.80} of the name {name!r}, which is not a string but "
                f"{type(found).__name__}",
                key_encoder=encoder,
                **where,
            )
        return found

    for split, members in names.items():
        yield from _key_problems(split, members, key)


def no_names(names: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield which splits are empty, and what among the names is not a string or empty."""
    for split, members in names.items():
        if not len(members):
            yield f"split {split} is empty; leave it out or give it names"
        for number, name in enumerate(members):
            if not isinstance(name, str) or not name:
                yield f"name {number} of split {split} is {name!r}; names are strings with something in them"


def _key_problems(split: str, names: Sequence[str], encode: Callable[[str], str]) -> Iterator[str]:
    for name in names:
        problem = key_problem(encode(name))
        if problem:
            yield (
                f"the name {name!r} of split {split} gets the key {encode(name)!r}, which {problem}; "
                "rename it, or use key_encoder='escaped'"
            )
    for key, places in _Samples({split: names}).repeated(lambda name: _stored(encode(name))).items():
        twins = list(dict.fromkeys(name for _, name in places))
        if len(twins) > 1:
            listed = " and ".join(map(repr, twins))
            shared = key.decode(errors="replace")
            yield (
                f"the names {listed} of split {split} get one key, {shared!r}; "
                "rename all but one, or use key_encoder='escaped'"
            )


class _Samples:
    """The names of some splits in a row, to look for values that they share."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self._names = names
        self._ends = np.cumsum([len(members) for members in names.values()])

    def repeated(self, value: Callable[[str], _V]) -> dict[_V, list[tuple[str, str]]]:
        """Return each value that several names have, with the split and name of each of them."""
        everything = chain.from_iterable(self._names.values())
        hashes = np.fromiter((hash(value(name)) for name in everything), np.int64, int(self._ends[-1]))
        order = np.argsort(hashes, kind="stable")
        same = hashes[order[1:]] == hashes[order[:-1]]
        suspects = np.sort(np.unique(np.concatenate([order[1:][same], order[:-1][same]])))
        found = defaultdict(list)
        for split, name in map(self._at, suspects.tolist()):
            found[value(name)].append((split, name))
        return {key: places for key, places in found.items() if len(places) > 1}

    def _at(self, position: int) -> tuple[str, str]:
        split = int(np.searchsorted(self._ends, position, side="right"))
        members = list(self._names)[split]
        return members, self._names[members][position - int(self._ends[split])]


def _stored(key: str) -> bytes:
    """Return the bytes of a key in a tar; two keys are one to readers if these are equal."""
    try:
        return encode_key(key)
    except UnicodeEncodeError:
        return key.encode("utf-8", "surrogatepass")
