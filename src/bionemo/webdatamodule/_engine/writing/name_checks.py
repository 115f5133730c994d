"""Checks over all names of a conversion together: duplicates, names in two splits, keys that collide."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from bionemo.webdatamodule.errors import PluginError
from bionemo.webdatamodule.names import encode_key, key_problem

_V = TypeVar("_V")


def name_problems(
    names: Mapping[str, Sequence[str]], encode: Callable[[str], str], *, encoder: str = "custom"
) -> Iterator[str]:
    """Yield what is wrong with the names of some splits and their keys.

    Found are duplicates, names in two splits, keys that cannot be stored, and names that get one key.
    Works on hashes and compares names only where these agree, so it needs 16 bytes a name.

    Args:
        names: Names by split, in which :func:`no_names` finds nothing.
        encode: The key encoder.
        encoder: What it is called.

    Raises:
        PluginError: If the key encoder fails, or gives something else than a string.
    """
    if not names:
        return
    for name, places in _Samples(names).repeated(str).items():
        counts = Counter(split for split, _ in places)
        for split, count in counts.items():
            if count > 1:
                yield f"the name {name!r} occurs {count} times in split {split}"
        if len(counts) > 1:
            yield f"the name {name!r} is in the splits {' and '.join(counts)}"

    def key(name: str) -> str:
        try:
            found = encode(name)
        except Exception as error:
            raise PluginError(
                f"the key encoder {encoder} fails at the name {name!r} with {type(error).__name__}: {error}",
                plugin=encoder,
            ) from error
        if not isinstance(found, str):
            raise PluginError(
                f"the key encoder {encoder} makes {found!r:.80} of the name {name!r}, which is no string but "
                f"{type(found).__name__}",
                plugin=encoder,
            )
        return found

    for split, members in names.items():
        yield from _key_problems(split, members, key)


def no_names(names: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield which splits are empty, and what among the names is no string or empty."""
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
            yield f"the name {name!r} of split {split} gets the key {encode(name)!r}, which {problem}"
    for key, places in _Samples({split: names}).repeated(lambda name: _stored(encode(name))).items():
        twins = list(dict.fromkeys(name for _, name in places))
        if len(twins) > 1:
            listed = " and ".join(map(repr, twins))
            yield f"the names {listed} of split {split} get one key, {key.decode(errors='replace')!r}"


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
