"""Samples whose fields lie in several directories, joined by their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.reading.reader import ShardReader, Use
from bionemo.webdatamodule._engine.reading.selection import KEY, select
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.derived import derived
from bionemo.webdatamodule.columns import Column, ValueColumn
from bionemo.webdatamodule.errors import ConfigError, MissingFieldError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_T = TypeVar("_T")
_TOGETHER = 1024  # samples whose keys are read together
_LISTED = 5  # keys in a message

Reader: TypeAlias = "ShardReader | JoinedReader"


def open_reader(
    sets: Sequence[ShardSet], joined: Sequence[ShardSet], suffixes: Sequence[str], **options: Any
) -> Reader:
    """Return what reads some shard sets, and further sets joined to them by key.

    Args:
        sets: They have the samples.
        joined: Each has more fields of the same samples.
        suffixes: The fields to read.
        options: More of :class:`.ShardReader`.
    """
    return JoinedReader(sets, joined, suffixes, **options) if joined else ShardReader(sets, suffixes, **options)


@dataclass(frozen=True)
class _Part:
    """The fields that come from one side of a join.

    Attributes:
        reader: Reads them.
        places: Their places among the fields of a sample.
        rows: For each sample its number on this side, -1 where it is not there; ``None`` for the first side.
    """

    reader: ShardReader
    places: tuple[int, ...]
    rows: NDArray[np.int64] | None

    def columns(self, shares: Sequence[NDArray[np.int64]], *, lazily: bool) -> Iterator[tuple[Column, ...]]:
        """Yield the columns of each share."""
        if self.rows is not None:
            rows = self.rows
            shares = [rows[share] for share in shares]
            if any(share.min() < 0 for share in shares):
                for share in shares:
                    yield tuple(ValueColumn(list(values)) for values in zip(*self.read(share), strict=True))
                return
        yield from self.reader.columns(shares, _fields, lazily=lazily)

    def read(self, rows: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """Return the fields of samples by their numbers on this side."""
        there = rows >= 0
        found = iter(self.reader.read(rows[there]) if there.any() else ())
        nothing = (None,) * len(self.places)
        return [next(found) if present else nothing for present in there.tolist()]


class JoinedReader:
    """Reads samples by number, as :class:`.ShardReader` does; some of their fields come from other sets.

    Args:
        sets: They have the samples.
        joined: Each has more fields of samples of the same keys, in any order.
        suffixes: The fields of each sample.
        on_error: ``"raise"``.
        chosen: The samples that count, where these are not all.
        split: The split's name, for messages.
        options: More of :class:`.ShardReader`.

    Raises:
        MissingFieldError: If a set lacks keys, or no set has one of the suffixes.
        ConfigError: If two sets have a suffix, a key occurs twice, or ``on_error`` is another.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        joined: Sequence[ShardSet],
        suffixes: Sequence[str],
        *,
        on_error: str = "raise",
        chosen: NDArray[np.int64] | None = None,
        split: str | None = None,
        **options: Any,
    ) -> None:
        if on_error != "raise":
            raise ConfigError("join needs on_error='raise': samples are left out of one directory only", split=split)
        self.joined, self.suffixes, self._options = tuple(joined), tuple(suffixes), {**options, "split": split}
        sides: list[tuple[ShardSet, ...]] = [tuple(sets), *((found,) for found in joined)]
        homes = [_home(asked, sides, split) for asked in suffixes]
        keys: list[str] | None = None
        self._parts: list[_Part] = []
        for number, side in enumerate(sides):
            places = tuple(place for place, home in enumerate(homes) if home == number)
            asked = [suffixes[place] for place in places]
            if not number:
                self._main = ShardReader(side, asked or [KEY], chosen=chosen, **self._options)
            if not places:
                continue
            rows = None
            if number:
                keys = keys or _chosen_keys(sets, chosen, split)
                rows = _rows(keys, side[0], asked, split)
            reader = self._main if not number else ShardReader(side, asked, **self._options)
            self._parts.append(_Part(reader, places, rows))
        self._sets, self.sets, self.chosen, self.split = tuple(sets), (*sets, *joined), chosen, split
        self.n_samples, self.samples = self._main.n_samples, self._main.samples
        self.sample_bytes = sum(found.reader.sample_bytes for found in self._parts)
        digests = [found.reader.digest for found in self._parts]
        self.digest = hashlib.sha256("".join([self._main.digest, *digests]).encode()).hexdigest()
        self.is_remote = self._main.is_remote
        # As of ShardReader: what concerns the samples rather than their fields.
        self.keys, self.named, self.nothing_left = self._main.keys, self._main.named, self._main.nothing_left
        self.follow, self.follow_pieces = self._main.follow, self._main.follow_pieces
        self.follow_shards, self.runs = self._main.follow_shards, self._main.runs
        self.place, self.left_out = self._main.place, self._main.left_out

    skipped = 0
    """Samples left out: none."""

    def only(self, suffixes: Sequence[str], **changed: Any) -> JoinedReader:
        """Return a reader of other fields of the same samples."""
        return JoinedReader(self._sets, self.joined, suffixes, chosen=self.chosen, **{**self._options, **changed})

    def log_skipped(self) -> None:
        """Do nothing: no sample is left out."""

    def read(self, ids: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """See :meth:`.ShardReader.read`."""
        ids = np.asarray(ids, np.int64)
        parts = [found.read(ids if found.rows is None else found.rows[ids]) for found in self._parts]
        return [self._ordered(fields) for fields in zip(*parts, strict=True)]

    def columns(self, shares: Sequence[NDArray[np.int64]], use: Use[_T], *, lazily: bool = False) -> Iterator[_T]:
        """See :meth:`.ShardReader.columns`."""
        parts = [found.columns(shares, lazily=lazily) for found in self._parts]
        for number, fields in enumerate(zip(*parts, strict=True)):
            try:
                made = use(number, self._ordered(fields))
            except Exception as error:
                if isinstance(error, (MemoryError, ImportError, OSError)):
                    raise
                made = self._alone(shares[number], partial(use, number))
            yield made

    def shard(self, number: int) -> Iterator[tuple[NDArray[np.int64], list[tuple[Any, ...]]]]:
        """See :meth:`.ShardReader.shard`."""
        for ids in self.runs(number):
            yield ids, self.read(ids)

    def _alone(self, share: NDArray[np.int64], use: Callable[[tuple[Column, ...]], _T]) -> _T:
        """Return what a function makes of samples that are read one by one, so that an error names one."""
        samples = self.read(share)
        columns = tuple(ValueColumn(list(values)) for values in zip(*samples, strict=True))
        return self._main.fitting(len(samples), use, columns)

    def _ordered(self, parts: Iterable[tuple[_T, ...]]) -> tuple[_T, ...]:
        """Return the fields of all sides in the order in which they were asked for."""
        found: dict[int, _T] = {}
        for part, fields in zip(self._parts, parts, strict=True):
            found.update(zip(part.places, fields, strict=True))
        return tuple(found[place] for place in range(len(self.suffixes)))


def stored_keys(found: ShardSet, split: str | None) -> list[str]:
    """Return the keys of all samples of a set, which are read once where a manifest says what the data are."""

    def read() -> list[bytes]:
        reader = ShardReader([found], [KEY], split=split)
        runs = (np.arange(n, min(n + _TOGETHER, reader.n_samples)) for n in range(0, reader.n_samples, _TOGETHER))
        return [key.encode("utf-8", "surrogateescape") for some in runs for key in reader.keys(some)]

    identity = None if found.manifest is None else found.digest
    return [key.decode("utf-8", "surrogateescape") for key in derived("keys", identity, found.n_samples, read)]


def _chosen_keys(sets: Sequence[ShardSet], chosen: NDArray[np.int64] | None, split: str | None) -> list[str]:
    keys = [key for found in sets for key in stored_keys(found, split)]
    return keys if chosen is None else [keys[number] for number in chosen.tolist()]


def _home(asked: str, sides: Sequence[Sequence[ShardSet]], split: str | None) -> int:
    """Return which side has a suffix."""
    if asked == KEY:
        return 0
    stored = [{suffix for found in side for suffix in found.suffixes} for side in sides]
    wanted = select(asked, set().union(*stored), split=split).suffixes
    homes = [number for number, there in enumerate(stored) if there.intersection(wanted)]
    if len(homes) > 1:
        listed = " and ".join(sides[number][0].directory for number in homes)
        raise ConfigError(
            f"the suffix {asked!r} is in {listed}, which are joined; name one that is in one of them only, or convert "
            "it under another suffix",
            split=split,
        )
    return homes[0] if homes else 0


def _rows(keys: Sequence[str], found: ShardSet, asked: Sequence[str], split: str | None) -> NDArray[np.int64]:
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
    needed = [suffix for suffix in asked if not suffix.endswith("?")]
    if len(missing) and needed:
        raise MissingFieldError(
            f"{found.directory} is joined by key and lacks {len(missing)} of {len(keys)} keys: "
            f"{_listing([keys[number] for number in missing[: _LISTED + 1].tolist()], len(missing))}; add them, leave "
            f"them out with where=, or ask for {needed[0] + '?'!r} to get None there",
            split=split,
        )
    decided("%s: %d of %d keys are in %s", split, len(keys) - len(missing), len(keys), found.directory)
    return rows


def _listing(keys: Sequence[str], count: int | None = None) -> str:
    more = (len(keys) if count is None else count) - _LISTED
    return ", ".join(map(repr, keys[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def _fields(_: int, fields: tuple[Column, ...]) -> tuple[Column, ...]:
    return fields
