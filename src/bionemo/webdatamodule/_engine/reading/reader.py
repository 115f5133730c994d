"""Samples by number: from memory-mapped shards to decoded fields, one by one or as batches."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from bionemo.webdatamodule._engine.format.fields import Place, check_fields, field_views, key_of
from bionemo.webdatamodule._engine.reading.ledger import BAD, SOUND, Ledger
from bionemo.webdatamodule._engine.reading.locate import Places, process
from bionemo.webdatamodule._engine.reading.open_shards import hold
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.reading.together import Together, in_a_row
from bionemo.webdatamodule.builtins.codecs import KEY, Codec, codec_name, make_codec
from bionemo.webdatamodule.builtins.padding import joined
from bionemo.webdatamodule.errors import (
    ConfigError,
    CorruptShardError,
    DecodeError,
    MissingFieldError,
    WebDataModuleError,
)
from bionemo.webdatamodule.pickles import Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SampleReader", "ShardSet"]

_Decode: TypeAlias = "Callable[[Codec, Sequence[Any]], Any]"

_log = logging.getLogger("bionemo.webdatamodule")
_SAFE = Policy()
_CHUNK_SAMPLES = 512  # read together where a whole shard is iterated, at most
_CHUNK_BYTES = 1 << 22
_NAMED = 3  # keys in a message
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
        sample_bytes: Mean size of a sample in its shard; 0 where there is none.
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
        self._places = Places(self.sets, self.suffixes, split=split)
        self.n_samples = self._places.n_samples
        self.sample_bytes = sum(found.n_bytes for found in self.sets) / max(1, self.n_samples)
        digests = [found.digest for found in self.sets]
        self.digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        self._codec_names = [_codec_name(self.sets, suffix, split) for suffix in self.suffixes]
        self._ledger = Ledger(self.n_samples)
        self._told = 0  # samples left out, as last logged
        self._codecs = self._make_codecs()

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
        most = self._places.at_once
        if len(ids) > most:
            return [sample for first in range(0, len(ids), most) for sample in self.read(ids[first : first + most])]
        return list(zip(*self._columns(ids, _each), strict=True))

    def read_batch(self, ids: NDArray[np.int64], *, pad: bool = False) -> tuple[Any, ...]:
        """Return samples as one batch for each suffix: what ``default_collate`` makes of the column.

        Args:
            ids: Numbers of the samples, int64 of shape ``(n,)``, in any order.
            pad: Fill tensors up with zeros to the longest of the batch, see ``padding.fill``.

        Raises:
            DecodeError: If a field cannot be decoded, the fields do not fit into one batch,
                or every sample was skipped.
            WebDataModuleError: As :meth:`read`.
        """
        if len(ids) > self._places.at_once:
            samples = self.read(ids)
            if not samples:
                raise self.nothing_left(ids)
            with self._fitting(len(samples)):
                return tuple(joined(list(column), pad=pad) for column in zip(*samples, strict=True))
        return tuple(self._columns(ids, partial(_together, pad=pad)))

    def read_shares(self, shares: Sequence[NDArray[np.int64]]) -> list[list[tuple[Any, ...]]]:
        """Return what :meth:`read` returns for each share; quicker, since they are read together."""
        ids = np.concatenate(shares)
        if self._is_simple(ids):
            with suppress(Exception):  # read says what is wrong, and where
                samples = zip(*self._decoded(ids, self._places.locate(ids), _each), strict=True)
                return [list(itertools.islice(samples, len(share))) for share in shares]
        return [self.read(share) for share in shares]

    def read_batches(self, shares: Sequence[NDArray[np.int64]], *, pad: bool = False) -> list[tuple[Any, ...]]:
        """Return what :meth:`read_batch` returns for each share; quicker, since they are read together."""
        make = self._batcher(np.concatenate(shares), pad=pad)
        return [self._batch(make, share, here, pad=pad) for share, here in in_a_row(shares)]

    def iter_batches(self, shares: Sequence[NDArray[np.int64]], *, pad: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield what :meth:`read_batch` returns for each share, each when it is asked for.

        What they have in common is done for all at once, so this is quicker, and memory holds one batch at a time.
        """
        make = None if self.check == "always" else self._batcher(np.concatenate(shares), pad=pad)
        with hold(make.n_shards if make else 0) as held:
            if not held:
                make = None
            for share, here in in_a_row(shares):
                yield self._batch(make, share, here, pad=pad, again=True)

    def nothing_left(self, ids: NDArray[np.int64]) -> DecodeError:
        """Return the error of a share whose samples are all left out, when every rank must take the same steps."""
        keys = self.keys(ids[:_NAMED])
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        return DecodeError(
            f"every sample of this batch is left out: {', '.join(keys)}{more}, and a batch needs one; "
            "restore them, convert without them, or take a larger global_batch_size",
            split=self.split,
            **process(),
        )

    def tell_skipped(self) -> None:
        """Log how many samples are left out, if there are more than when it was told last."""
        skipped = self.skipped
        if skipped > self._told:
            self._told = skipped
            _log.warning("%s: %d of %d samples are left out", self.split, skipped, self.n_samples)

    def keys(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the keys of samples, in the order of ``ids``."""
        return list(map(key_of, self._places.locate(np.asarray(ids, np.int64))))

    def shard(self, number: int) -> Iterator[tuple[Any, ...]]:
        """Yield all samples of one shard, in the order of its tar.

        Args:
            number: Number of the shard, counted over all sets.
        """
        start, end = int(self._places.starts[number]), int(self._places.ends[number])
        chunk = max(1, min(_CHUNK_SAMPLES, int(_CHUNK_BYTES / max(1.0, self.sample_bytes))))
        for first in range(start, end, chunk):
            yield from self.read(np.arange(first, min(first + chunk, end)))

    @property
    def is_remote(self) -> bool:
        """Whether any shard is behind a URL."""
        return self._places.is_remote

    def follow(self, runs: Iterable[NDArray[np.int64] | range], epoch: int = 0) -> None:
        """Fetch samples behind URLs before they are read, in the background; it returns at once.

        Args:
            runs: What will be read, in order: numbers of samples, whose pieces are fetched whole, or ranges of them.
                They are taken as needed.
            epoch: Number of the epoch.
        """
        self._places.follow(runs, epoch)

    def follow_shards(self, numbers: Iterable[int], epoch: int = 0) -> None:
        """Fetch shards behind URLs before they are read, in the background; it returns at once.

        Args:
            numbers: Numbers of the shards in the order in which they will be read; they are taken as needed.
            epoch: Number of the epoch.
        """
        starts, ends = self._places.starts, self._places.ends
        self._places.follow((range(int(starts[number]), int(ends[number])) for number in numbers), epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_codecs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._codecs = self._make_codecs()

    def _make_codecs(self) -> list[Codec]:
        return [make_codec(name, self.policy) for name in self._codec_names]

    def _batcher(self, ids: NDArray[np.int64], *, pad: bool) -> Together | None:
        """Return what makes batches of some of these samples, or ``None`` where only one by one says what is wrong."""
        if not self._is_simple(ids):
            return None
        with suppress(Exception):
            places = self._places.locate(ids)
            fields = [self._fields(places, column) for column in range(len(self.suffixes))]
            self._check(ids, places)
            makes = [codec.batcher(field, pad=pad) for codec, field in zip(self._codecs, fields, strict=True)]
            return Together(places=places, makes=makes)
        return None

    def _batch(
        self, make: Together | None, share: NDArray[np.int64], here: slice, *, pad: bool, again: bool = False
    ) -> tuple[Any, ...]:
        if make is not None:
            with suppress(Exception):  # read_batch says what is wrong, and where
                if again:
                    make.look_again(here)
                return make(here)
        return self.read_batch(share, pad=pad)

    def _is_simple(self, ids: NDArray[np.int64]) -> bool:
        """Tell whether samples can be read together: all can be located at once, and none is left out."""
        return len(ids) <= self._places.at_once and not (self._ledger.states[ids] == BAD).any()

    def _columns(self, ids: NDArray[np.int64], decode: _Decode) -> list[Any]:
        """Return the column of each suffix; where that fails, find the samples to blame."""
        given = ids = np.asarray(ids, np.int64)
        places = self._places.locate(ids)
        if self.on_error == "skip":
            ids, places = _picked(ids, places, self._ledger.states[ids] != BAD)
        try:
            return self._decoded(ids, places, decode)
        except _OF_A_SAMPLE as error:
            cause: Exception = error
        except (MemoryError, ImportError, WebDataModuleError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            cause = error
        sound = [self._is_sound(sample, place) for sample, place in zip(ids.tolist(), places, strict=True)]
        ids, places = _picked(ids, places, np.array(sound, bool))
        if decode is not _each and not places:
            raise self.nothing_left(given) from cause
        with self._fitting(len(places)):
            return self._decoded(ids, places, decode)

    @contextmanager
    def _fitting(self, n_samples: int) -> Iterator[None]:
        """Say of samples that decode one by one that they do not fit together."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            raise DecodeError(
                f"these {n_samples} samples do not fit into one batch: {error}; "
                "make them alike in a stage, or batch them with a function of your own",
                split=self.split,
                **process(),
            ) from error

    def _decoded(self, ids: NDArray[np.int64], places: Sequence[Place], decode: _Decode) -> list[Any]:
        """Return the column of each suffix, without looking for whom to blame."""
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

    def _is_sound(self, sample: int, place: Place) -> bool:
        """Read one sample step by step: raise what is wrong with it, or note that it is left out."""
        where: dict[str, Any] = {"shard": place[0].path}
        try:
            where["key"] = key_of(place)
            for column, suffix in enumerate(self.suffixes):
                where["suffix"] = suffix
                field = self._fields([place], column)
                if self.check == "always" or (self.check == "first" and self._ledger.states[sample] != SOUND):
                    check_fields(place, [column])
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
        named = named.located(split=self.split, **where, **process())
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


def _picked(
    ids: NDArray[np.int64], places: list[Place], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[Place]]:
    return (ids, places) if wanted.all() else (ids[wanted], list(itertools.compress(places, wanted)))


def _each(codec: Codec, fields: Sequence[Any]) -> list[Any]:
    return codec.values(fields)


def _together(codec: Codec, fields: Sequence[Any], *, pad: bool) -> Any:
    return codec.batcher(fields, pad=pad)(slice(None))


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
