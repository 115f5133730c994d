"""Samples by number: from memory-mapped shards to decoded fields, one by one or as batches."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import get_worker_info

from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    CorruptShardError,
    DecodeError,
    MissingFieldError,
    ShardError,
    WebDataModuleError,
)
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.shards.decode import KEY, Codec, codec_name, make_codec
from bionemo.webdatamodule.shards.fields import Place, check_fields, field_views, key_of
from bionemo.webdatamodule.shards.ledger import BAD, SOUND, Ledger
from bionemo.webdatamodule.shards.maps import OpenShard, OpenShards, open_shard
from bionemo.webdatamodule.shards.sets import ShardSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SampleReader", "ShardSet"]

_log = logging.getLogger("bionemo.webdatamodule")
_SAFE = Policy()
_CHUNK = 64  # samples read together where a whole shard is iterated
_REOPEN = 3  # attempts where other processes make room in the store of remote shards
_OF_A_SAMPLE = (CorruptShardError, MissingFieldError, DecodeError)


class SampleReader:
    """Reads samples by number from one or several shard sets.

    Samples are numbered from 0: those of the first set in the order of its shards and tars, then the next set's.
    Readers pickle, and forked or spawned worker processes share what is known of the samples.
    A shard is opened when it is first read.

    Args:
        sets: What to read.
        suffixes: The fields of each sample, in the order of the tuples that are returned. They match exactly.
            ``"__key__"`` stands for the key.
        policy: What pickles may do.
        check: When to compare fields with their checksums: at the ``"first"`` time that anyone sharing this reader
            reads the sample, ``"always"`` or ``"never"``. Foreign shards have no checksums.
        on_error: ``"raise"``, or ``"skip"`` to leave out samples that are damaged, lack a field or cannot be decoded.
        max_skipped: Samples that may be left out before the next bad one is an error after all.
        split: The split's name, for messages.

    Attributes:
        n_samples: Number of samples in all sets.
        digest: Hash of what identifies the data: the set's digest, or one of all their digests.

    Raises:
        MissingFieldError: If no sample at all has one of the suffixes.
        ConfigError: If there is nothing to read, or two sets store a suffix in different ways.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        suffixes: Sequence[str],
        *,
        policy: Policy = _SAFE,
        check: Literal["first", "always", "never"] = "first",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
        split: str | None = None,
    ) -> None:
        self.sets = tuple(sets)
        self.suffixes = tuple(suffixes)
        self.policy = policy
        self.check = check
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.split = split
        if not self.sets or not self.suffixes:
            raise ConfigError("a reader needs at least one set of shards and one suffix", split=split)
        counts = [count for found in self.sets for count in found.samples]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._starts = self._ends - counts
        self._shards = [(found, number) for found in self.sets for number in range(len(found.paths))]
        self.n_samples = int(self._ends[-1])
        digests = [found.digest for found in self.sets]
        self.digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        self._codec_names = [_codec_name(self.sets, suffix, split) for suffix in self.suffixes]
        self._ledger = Ledger(self.n_samples)
        self._prepare()

    @property
    def skipped(self) -> int:
        """Number of different samples left out so far, by all processes that share this reader."""
        return self._ledger.n_bad

    def read(self, ids: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """Return samples as tuples of their fields.

        Args:
            ids: Numbers of the samples, int64 of shape ``(n,)``, in any order.

        Returns:
            A tuple for each, in the order of ``ids``; samples that are skipped are left out.

        Raises:
            CorruptShardError: If bytes were damaged.
            ChangedDataError: If a shard was changed or removed since the set was opened.
            MissingFieldError: If a sample lacks a field.
            DecodeError: If a field cannot be decoded.
        """
        return list(zip(*self._columns(ids, _each), strict=True))

    def read_batch(self, ids: NDArray[np.int64]) -> tuple[Any, ...]:
        """Return samples as one batch for each suffix: what ``default_collate`` makes of the column.

        Args:
            ids: Numbers of the samples, int64 of shape ``(n,)``, in any order.

        Raises:
            DecodeError: If a field cannot be decoded, the fields do not fit into one batch,
                or every sample was skipped.
            WebDataModuleError: As :meth:`read`.
        """
        return tuple(self._columns(ids, _together))

    def keys(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the keys of samples, in the order of ``ids``."""
        return list(map(key_of, self._locate(np.asarray(ids, np.int64))))

    def shard(self, number: int) -> Iterator[tuple[Any, ...]]:
        """Yield all samples of one shard, in the order of its tar.

        Args:
            number: Number of the shard, counted over all sets.
        """
        start, end = int(self._starts[number]), int(self._ends[number])
        if number + 1 < len(self._shards):
            self.prefetch([number + 1])
        for first in range(start, end, _CHUNK):
            yield from self.read(np.arange(first, min(first + _CHUNK, end)))

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Start to fetch shards behind URLs in the background, in this order; it returns at once.

        Args:
            numbers: Numbers of shards, counted over all sets.
        """
        for found, places in self._by_set(numbers):
            if found.remote is not None:
                found.remote.fetch_ahead(places)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"_open", "_codecs"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def _prepare(self) -> None:
        """Make what belongs to one process."""
        self._is_remote = any(found.remote is not None for found in self.sets)
        self._open = OpenShards(self._open_shard)
        self._codecs = [make_codec(name, self.policy) for name in self._codec_names]

    def _open_shard(self, number: int) -> OpenShard:
        found, place = self._shards[number]
        try:
            for _ in range(_REOPEN):
                path, stamp = found.ready(place)
                try:
                    return open_shard(path, stamp, found.index(place, stamp), self.suffixes)
                except ChangedDataError:
                    if found.remote is None:
                        raise
            raise ChangedDataError(f"{path} was removed again and again; let its store grow (cache_size)")
        except WebDataModuleError as error:
            raise error.located(split=self.split, **_process()) from error.__cause__
        except OSError as error:
            raise ShardError(
                f"{found.paths[place]} cannot be read: {error.strerror}", split=self.split, **_process()
            ) from error

    def _fetch(self, numbers: Iterable[int]) -> None:
        """Fetch the shards that are behind URLs and neither open nor here, several at the same time."""
        for found, places in self._by_set(number for number in numbers if number not in self._open):
            if found.remote is not None:
                found.remote.fetch_all(places)

    def _by_set(self, numbers: Iterable[int]) -> list[tuple[ShardSet, list[int]]]:
        """Return the sets of shards, each with the shards' places in it."""
        groups: dict[int, tuple[ShardSet, list[int]]] = {}
        for number in numbers:
            found, place = self._shards[number]
            groups.setdefault(id(found), (found, []))[1].append(place)
        return list(groups.values())

    def _locate(self, ids: NDArray[np.int64]) -> list[Place]:
        """Return where each sample is, with its shard opened."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_samples:
            raise ConfigError(
                f"samples {ids.min()} to {ids.max()} are asked for; there are {self.n_samples}", split=self.split
            )
        numbers = np.searchsorted(self._ends, ids, side="right")
        rows = (ids - self._starts[numbers]).tolist()
        shards = numbers.tolist()
        needed = dict.fromkeys(shards)
        if self._is_remote:
            self._fetch(needed)
        opened = {number: self._open[number] for number in needed}
        return [(opened[number], row) for number, row in zip(shards, rows, strict=True)]

    def _columns(self, ids: NDArray[np.int64], decode: Callable[[Codec, Sequence[Any]], Any]) -> list[Any]:
        """Return the column of each suffix; where that fails, find the samples to blame."""
        ids = np.asarray(ids, np.int64)
        if self.on_error == "skip":
            ids = ids[self._ledger.states[ids] != BAD]
        try:
            return self._decoded(ids, decode)
        except _OF_A_SAMPLE as error:
            cause: Exception = error
        except (MemoryError, ImportError, WebDataModuleError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            cause = error
        sound = np.array([sample for sample in ids.tolist() if self._is_sound(sample)], np.int64)
        if decode is _together and not len(sound):
            raise DecodeError(
                "every sample of this batch is left out, so there is no batch", split=self.split, **_process()
            ) from cause
        try:
            return self._decoded(sound, decode)
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            raise DecodeError(
                f"these {len(sound)} samples do not fit into one batch: {error}; "
                "make them alike in a stage, or batch them with a function of your own",
                split=self.split,
                **_process(),
            ) from error

    def _decoded(self, ids: NDArray[np.int64], decode: Callable[[Codec, Sequence[Any]], Any]) -> list[Any]:
        """Return the column of each suffix, without looking for whom to blame."""
        places = self._locate(ids)
        fields = [self._fields(places, column) for column in range(len(self.suffixes))]
        self._check(ids, places)
        return [decode(codec, field) for codec, field in zip(self._codecs, fields, strict=True)]

    def _fields(self, places: Sequence[Place], column: int) -> Sequence[Any]:
        return list(map(key_of, places)) if self.suffixes[column] == KEY else field_views(places, column)

    def _check(self, ids: NDArray[np.int64], places: Sequence[Place]) -> None:
        """Compare fields with their checksums, where that is due."""
        if self.check == "never":
            return
        states = self._ledger.states
        due = range(len(ids)) if self.check == "always" else np.flatnonzero(states[ids] != SOUND).tolist()
        if due:
            for place in due:
                check_fields(places[place], range(len(self.suffixes)))
            states[ids[due]] = SOUND

    def _is_sound(self, sample: int) -> bool:
        """Read one sample step by step: raise what is wrong with it, or note that it is left out."""
        where: dict[str, Any] = {}
        ids = np.array([sample])
        found, number = self._shards[int(np.searchsorted(self._ends, sample, side="right"))]
        where["shard"] = found.paths[number]
        try:
            places = self._locate(ids)
            where["key"] = key_of(places[0])
            for column, suffix in enumerate(self.suffixes):
                where["suffix"] = suffix
                field = self._fields(places, column)
                if self.check == "always" or (self.check == "first" and self._ledger.states[sample] != SOUND):
                    check_fields(places[0], [column])
                _each(self._codecs[column], field)
        except _OF_A_SAMPLE as error:
            named: WebDataModuleError = error
        except (MemoryError, ImportError, WebDataModuleError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            named = DecodeError(f"the field cannot be decoded: {type(error).__name__}: {error}")
            named.__cause__ = error
        else:
            return True
        named = named.located(split=self.split, **where, **_process())
        if self.on_error == "raise":
            raise named
        self._leave_out(sample, named)
        return False

    def _leave_out(self, sample: int, error: WebDataModuleError) -> None:
        if self.skipped >= self.max_skipped and self._ledger.states[sample] != BAD:
            raise type(error)(
                f"{self.skipped} samples are left out already, which is max_skipped; the next: {error.message}",
                **error.where,
            ) from error
        self._ledger.states[sample] = BAD
        _log.warning("left out a sample (%d of at most %d): %s", self.skipped, self.max_skipped, error)


def _each(codec: Codec, fields: Sequence[Any]) -> list[Any]:
    return list(map(codec, fields))


def _together(codec: Codec, fields: Sequence[Any]) -> Any:
    return codec.batch(fields)


def _codec_name(sets: Sequence[ShardSet], suffix: str, split: str | None) -> str:
    """Return the name of a suffix's codec, which is the same in all sets that have it."""
    if suffix == KEY:
        return KEY
    names = {codec_name(suffix, found.codecs.get(suffix)): found for found in sets if suffix in found.suffixes}
    if not names:
        there = ", ".join(sorted({suffix for found in sets for suffix in found.suffixes})[:20])
        raise MissingFieldError(
            f"no sample has the suffix {suffix!r}; there are {there}. Suffixes match exactly", split=split
        )
    if len(names) > 1:
        listed = " and ".join(f"{name} in {found.directory}" for name, found in names.items())
        raise ConfigError(f"the suffix {suffix!r} is stored as {listed}; convert them alike", split=split)
    return next(iter(names))


def _process() -> dict[str, Any]:
    """Return the worker and rank that this process is, as far as it is one."""
    info = get_worker_info()
    return {"worker": info.id if info else None, "rank": os.environ.get("RANK")}
