"""Fields of samples that lie in further directories, found by the samples' keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.reading.fields import key_of
from bionemo.webdatamodule._engine.reading.locate import Joined, Places
from bionemo.webdatamodule._engine.reading.selection import KEY, Selected
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.derived import derived
from bionemo.webdatamodule.errors import ConfigError, MissingFieldError, count

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOGETHER = 1024  # samples whose keys are read together
_LISTED = 5  # keys in a message


def join(
    selected: Sequence[Selected],
    sets: Sequence[ShardSet],
    joined: Sequence[ShardSet],
    *,
    chosen: NDArray[np.int64] | None,
    split: str | None,
) -> tuple[list[int], list[Joined]]:
    """Find the fields of samples in further sets.

    Args:
        selected: The fields.
        sets: They have the samples.
        joined: Each has more fields of samples of the same keys, in any order.
        chosen: The samples that count, where these are not all.
        split: The split's name, for messages.

    Returns:
        For each field the number of its home among those of all fields, and the joined sets among these; the samples'
        own sets come first, if they have any of the fields.

    Raises:
        MissingFieldError: If a set lacks keys.
        ConfigError: If two sets have a suffix, or a key occurs twice.
    """
    sides = [tuple(sets), *((found,) for found in joined)]
    homes = [_home(each, sides, split) for each in selected]
    used = sorted(set(homes))
    found: list[Joined] = []
    if used[-1]:
        keys = [key for each in sets for key in stored_keys(each, split)]
        keys = keys if chosen is None else [keys[number] for number in chosen.tolist()]
        for number in filter(None, used):
            asked = [each for each, home in zip(selected, homes, strict=True) if home == number]
            found.append(Joined(found=joined[number - 1], rows=_rows(keys, joined[number - 1], asked, split)))
    return list(map(used.index, homes)), found


def stored_keys(found: ShardSet, split: str | None) -> list[str]:
    """Return the keys of all samples of a set, which are read once where a manifest says what the data are."""

    def read() -> list[bytes]:
        places = Places([found], (), split=split)
        step = min(_TOGETHER, max(1, places.at_once))
        runs = (np.arange(first, min(first + step, found.n_samples)) for first in range(0, found.n_samples, step))
        return [key_of(place).encode("utf-8", "surrogateescape") for run in runs for place in places.locate(run)]

    identity = None if found.manifest is None else found.digest
    return [key.decode("utf-8", "surrogateescape") for key in derived("keys", identity, found.n_samples, read)]


def _home(asked: Selected, sides: Sequence[Sequence[ShardSet]], split: str | None) -> int:
    """Return which side has a field."""
    homes = [
        number
        for number, side in enumerate(sides)
        if any(suffix in found.suffixes for found in side for suffix in asked.suffixes if suffix != KEY)
    ]
    if len(homes) > 1:
        listed = " and ".join(sides[number][0].directory for number in homes)
        raise ConfigError(
            f"the suffix {asked.asked!r} is in {listed}, which are joined; name one that is in one of them only, or "
            "convert it under another suffix",
            split=split,
        )
    return homes[0] if homes else 0


def _rows(keys: Sequence[str], found: ShardSet, asked: Sequence[Selected], split: str | None) -> NDArray[np.int64]:
    """Return the number of each key in a set, -1 where it has none."""
    there = stored_keys(found, split)
    numbers = dict(zip(there, range(len(there)), strict=True))
    if len(numbers) < len(there):
        wanted = set(keys)
        twice = [key for number, key in enumerate(there) if numbers[key] != number and key in wanted]
        if twice:
            raise ConfigError(
                f"{found.directory} is joined by key and has keys several times: {_listing(twice)}; "
                "convert it with each key once",
                split=split,
            )
    rows = np.fromiter((numbers.get(key, -1) for key in keys), np.int64, len(keys))
    missing = np.flatnonzero(rows < 0)
    needed = [each.asked for each in asked if not each.optional]
    if len(missing) and needed:
        raise MissingFieldError(
            f"{found.directory} is joined by key and lacks {len(missing):,} of {count(len(keys), 'key')}: "
            f"{_listing([keys[number] for number in missing[: _LISTED + 1].tolist()], len(missing))}; add them, leave "
            f"them out with where=, or ask for {needed[0] + '?'!r} to get None there",
            split=split,
        )
    decided("%s: %s has %d of %s", split, found.directory, len(keys) - len(missing), count(len(keys), "key"))
    return rows


def _listing(keys: Sequence[str], n_keys: int | None = None) -> str:
    more = (len(keys) if n_keys is None else n_keys) - _LISTED
    return ", ".join(map(repr, keys[:_LISTED])) + (f" and {more} more" if more > 0 else "")
