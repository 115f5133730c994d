"""Samples by number: from memory-mapped shards to columns of fields, and from these to samples."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from bionemo.webdatamodule._engine.codecs import Codecs, NamedCodec, lacking
from bionemo.webdatamodule._engine.reading.columns import Field, ShareColumn, Together
from bionemo.webdatamodule._engine.reading.fields import (
    Place,
    check_fields,
    expect_fields,
    field_views,
    key_of,
    sound_views,
)
from bionemo.webdatamodule._engine.reading.joined import join
from bionemo.webdatamodule._engine.reading.ledger import BAD, SOUND, Ledger
from bionemo.webdatamodule._engine.reading.locate import Places, process
from bionemo.webdatamodule._engine.reading.open_shards import LARGE, hold
from bionemo.webdatamodule._engine.reading.selection import KEY, Selected, select
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.page_cache import PageCache
from bionemo.webdatamodule._engine.storage.remote.pieces import PIECE_BYTES
from bionemo.webdatamodule.columns import Column, ValueColumn, samples_of, unlike
from bionemo.webdatamodule.errors import (
    ConfigError,
    CorruptShardError,
    DecodeError,
    MissingFieldError,
    PluginError,
    RemoteError,
    ShardError,
    WebDataModuleError,
    count,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bionemo.webdatamodule.components import FieldCodec

__all__ = ["ShardReader", "ShardSet"]

_T = TypeVar("_T")
Use: TypeAlias = "Callable[[int, tuple[Column, ...]], _T]"
"""What is made of the number of a share among those asked for, and its columns."""
_Made: TypeAlias = Callable[[tuple[Column, ...]], list[tuple[Any, ...]]]

_log = logging.getLogger("bionemo.webdatamodule")
_DEFAULT = Codecs()
_CHUNK_SAMPLES = 512  # read together where a whole shard is iterated, at most
_CHUNK_BYTES = 1 << 22
_NAMED = 3  # keys in a message
_OF_A_SAMPLE = (CorruptShardError, MissingFieldError, DecodeError)


class ShardReader:
    """Reads samples by number from one or several shard sets.

    Samples are numbered from 0: those of the first set in the order of its shards and tars, then the next set's.
    Readers pickle, and forked or spawned worker processes share what is known of the samples.
    A shard is opened when it is first read.

    Args:
        sets: What to read.
        suffixes: The fields of each sample, in the order of the tuples that are returned, see :func:`.select`.
            ``"__key__"`` stands for the key.
        codecs: What decodes them.
        check: When to compare fields with their checksums: at the ``"first"`` time that anyone sharing this reader
            reads the sample, ``"always"`` or ``"never"``. Foreign shards have no checksums.
        on_error: ``"raise"``, or ``"skip"`` to leave out samples that are damaged, lack a field or cannot be decoded.
        max_skipped: Samples that may be left out before the next bad one is an error after all.
        split: The split's name, for messages.
        chosen: The samples that count, where these are not all: sorted, int64 of shape ``(k,)``. They are numbered
            from 0, and the others are not there.
        joined: Further sets with fields of samples of the same keys, in any order.

    Attributes:
        n_samples: Number of samples in all sets.
        samples: For each set the number of samples in each of its shards.
        sample_bytes: Mean size of a sample in its shards; 0 where there is none.
        digest: Hash of what identifies the data: the set's digest, or one of all their digests.

    Raises:
        MissingFieldError: If no sample at all has one of the suffixes, or a joined set lacks keys.
        ConfigError: If there is nothing to read, two sets store a suffix in different ways, or sets cannot be joined.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        suffixes: Sequence[str],
        *,
        codecs: Codecs = _DEFAULT,
        check: Literal["first", "always", "never"] = "first",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
        split: str | None = None,
        chosen: NDArray[np.int64] | None = None,
        joined: Sequence[ShardSet] = (),
    ) -> None:
        self.sets = tuple(sets)
        self.joined = tuple(joined)
        self.suffixes = tuple(suffixes)
        self.codecs = codecs
        self.check = check
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.split = split
        self.chosen = chosen
        if not self.sets or not self.suffixes:
            raise ConfigError("a reader needs at least one set of shards and one suffix", split=split)
        everything = (*self.sets, *self.joined)
        stored = {suffix for found in everything for suffix in found.suffixes}
        selected = [select(asked, stored, split=split) for asked in self.suffixes]
        sides, others = join(selected, self.sets, self.joined, chosen=chosen, split=split)
        own = len(set(sides)) > len(others)
        opened = list(dict.fromkeys(suffix for each in selected for suffix in each.suffixes if suffix != KEY))
        self._places = Places(self.sets, opened, split=split, chosen=chosen, joined=others, own=own)
        self.n_samples = self._places.n_samples
        counts = iter((self._places.ends - self._places.starts).tolist())
        self.samples = tuple(tuple(itertools.islice(counts, len(found.paths))) for found in self.sets)
        read = [self.sets] * own + [(side.found,) for side in others]
        self.sample_bytes = sum(map(_sample_bytes, read))
        self._page_cache = PageCache(self.sample_bytes, self.sample_bytes * self.n_samples)
        self.digest = _digest_of([found.digest for found in self.sets])
        if chosen is not None:
            self.digest = hashlib.sha256(self.digest.encode() + chosen.astype("<i8").tobytes()).hexdigest()
        self.digest = _digest_of([self.digest, *(side.found.digest for side in others)])
        self._ledger = Ledger(self.n_samples)
        if check == "first" and not others:  # what was compared when it came need not be compared when it is read
            self._places.ledger = self._ledger
        self._logged = 0  # samples left out, as last logged
        self._fields = [
            _field(each, side, opened, everything, codecs, split) for each, side in zip(selected, sides, strict=True)
        ]

    @property
    def skipped(self) -> int:
        """Number of different samples left out so far, by all processes that share this reader."""
        return self._ledger.n_bad

    def only(self, suffixes: Sequence[str], **changed: Any) -> ShardReader:
        """Return a reader of other fields of the same samples.

        Args:
            suffixes: The fields.
            changed: Other arguments than this reader's.
        """
        kept = ("codecs", "check", "on_error", "max_skipped", "split", "chosen", "joined")
        return ShardReader(self.sets, suffixes, **{name: getattr(self, name) for name in kept} | changed)

    def read(self, ids: NDArray[np.int64], made: _Made = samples_of) -> list[tuple[Any, ...]]:
        """Return samples as tuples of their fields.

        Args:
            ids: Numbers of the samples, int64 of shape ``(n,)``, in any order.
            made: Makes them of their columns; for who wants to know how long that takes.

        Returns:
            A tuple for each, in the order of ``ids``; samples that are skipped are left out.

        Raises:
            CorruptShardError: If bytes were damaged.
            ChangedDataError: If a shard was changed or removed since the set was opened.
            MissingFieldError: If a sample lacks a field.
            DecodeError: If a field cannot be decoded.
        """
        ids = np.asarray(ids, np.int64)
        most = self._places.at_once
        if len(ids) > most:
            return [
                sample for first in range(0, len(ids), most) for sample in self.read(ids[first : first + most], made)
            ]
        return self._blaming(ids, made)

    def columns(self, shares: Sequence[NDArray[np.int64]], use: Use[_T], *, lazily: bool = False) -> Iterator[_T]:
        """Yield what a function makes of the columns of each share, when it is asked for.

        What the shares have in common is done for all of them at once. Where anything fails, the samples of the
        share are read one by one, so that the error names one, or that one is left out.

        Args:
            shares: Numbers of the samples of each share, none of them empty.
            use: Takes the number of the share, and a column for each suffix, at least one sample long. It may be
                called again with other columns after it failed. It does not return ``None``.
            lazily: Time may pass from one share to the next, and memory should hold the values of one share only.

        Raises:
            DecodeError: If a field cannot be decoded, if all samples of a share are left out, or if the function
                fails although each of them can be decoded.
            WebDataModuleError: As :meth:`read`.
        """
        together = None if lazily and self.check == "always" else self._together(np.concatenate(shares))
        with hold(_n_shards(together)) if together and lazily else nullcontext(True) as held:
            if not held:  # or its shards would stay open
                together = None
            stop = 0
            for number, share in enumerate(shares):
                where = slice(stop, stop := stop + len(share))
                made = _attempt(use, number, together, where, lazily=lazily) if together else None
                yield self._alone(share, partial(use, number)) if made is None else made
                del made
                if together and self.sample_bytes >= LARGE:
                    for places in _sides(together):
                        for shard, row in places[where]:
                            shard.release(row)

    def left_out(self, ids: NDArray[np.int64]) -> dict[int, str]:
        """Return which of some samples are left out so far, each with the code of its error."""
        if self.on_error == "raise":
            return {}
        states = self._ledger.states[ids]
        bad = np.flatnonzero(states >= BAD).tolist()
        return {int(ids[place]): _OF_A_SAMPLE[states[place] - BAD].code for place in bad}

    def nothing_left(self, ids: NDArray[np.int64]) -> DecodeError:
        """Return the error of a share whose samples are all left out, when every rank must take the same steps."""
        return DecodeError(
            f"every sample of this batch is left out: {self.named(ids)}, and a batch needs one; "
            "restore them, convert without them, or take a larger global_batch_size",
            split=self.split,
            **process(),
        )

    def named(self, ids: NDArray[np.int64]) -> str:
        """Return the keys of the first samples and the number of the others, for messages."""
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        return ", ".join(self.keys(ids[:_NAMED])) + more

    def log_skipped(self) -> None:
        """Log how many samples are left out, if there are more than last time."""
        skipped = self.skipped
        if skipped > self._logged:
            self._logged = skipped
            _log.warning("%s: %d of %s left out", self.split, skipped, count(self.n_samples, "sample"))

    def keys(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the keys of samples, in the order of ``ids``."""
        return list(map(key_of, self._places.locate(np.asarray(ids, np.int64))))

    def place(self, ids: NDArray[np.int64], number: int, n_left: int) -> dict[str, str]:
        """Return shard and key of a sample, for messages; nothing where that is not known.

        Args:
            ids: The samples that were read together.
            number: Number of the sample among those that were not left out.
            n_left: How many were not left out.
        """
        with suppress(ShardError):
            left = ids[self._ledger.states[ids] != BAD]
            if len(left) == n_left and 0 <= number < n_left:
                (found,) = self._places.locate(left[number : number + 1])
                return {"shard": found[0].path, "key": key_of(found)}
        return {}

    @property
    def decoders(self) -> Mapping[str, FieldCodec]:
        """What decodes each stored suffix of the fields."""
        found = [zip(field.selected.suffixes, field.codecs, strict=False) for field in self._fields]
        return dict(itertools.chain.from_iterable(found))  # the key has no codec

    def sizes(self) -> NDArray[np.int64] | None:
        """Return the sizes of the only field by its length in bytes, where :class:`.SizingCodec` allows it.

        Returns:
            int64 of shape ``(n,)``; ``None`` where the field has to be read, or reading it says what is wrong.
        """
        (field,) = self._fields
        sized = getattr(field.codecs[0], "sizes", None) if len(field.codecs) == 1 else None
        if sized is None or field.selected.optional:
            return None
        lengths = self._places.lengths()
        if (lengths < 0).any():
            return None
        try:
            found = np.asarray(sized(lengths.copy()))
        except Exception:  # noqa: BLE001 - codecs raise what they like, and decoding says where
            return None
        if found.shape != lengths.shape or found.dtype.kind not in "iu" or (found < 0).any():
            raise PluginError(
                f"sizes(lengths) of the codec of {field.selected.asked!r} gives {found!r:.60}; return a whole number "
                "from 0 on for each length, or leave sizes out",
                split=self.split,
            )
        return found.astype(np.int64)

    def ahead(self, runs: Iterator[_T], ids: Callable[[_T], NDArray[np.int64]]) -> Iterator[_T]:
        """Yield runs of samples, each while the next is read from a local disk, where that is waited for.

        Args:
            runs: The runs, which are taken one ahead.
            ids: Returns the numbers of the samples of one.
        """
        return runs if self.is_remote else self._page_cache.ahead(runs, lambda run: self._expect(ids(run)))

    def _expect(self, ids: NDArray[np.int64]) -> None:
        if len(ids) <= self._places.at_once:
            with suppress(WebDataModuleError):  # what is wrong shows when they are read
                sides = self._places.sides(ids)
                if self._page_cache.misses():
                    for places in sides:
                        expect_fields(places, self._places.columns)

    def runs(self, number: int) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers of the samples of one shard in the order of its tar, some to be read together at a time.

        Args:
            number: Number of the shard, counted over all sets.
        """
        start, end = int(self._places.starts[number]), int(self._places.ends[number])
        chunk = max(1, min(_CHUNK_SAMPLES, int(_CHUNK_BYTES / max(1.0, self.sample_bytes))))
        for first in range(start, end, chunk):
            yield np.arange(first, min(first + chunk, end))

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

    def follow_pieces(
        self, pieces: Iterable[tuple[int, int, int, int]], epoch: int = 0, *, piece_bytes: int = 0
    ) -> None:
        """Fetch pieces behind URLs before they are read, in the background; it returns at once.

        Args:
            pieces: Number of a shard, its first sample, the sample behind the last and anything else, in the order in
                which they will be read, the same for all workers; they are taken as needed.
            epoch: Number of the epoch.
            piece_bytes: Bytes of a piece, by which shards are cut into files of the cache; 0 for the usual ones.
        """
        starts = self._places.starts
        runs = (range(int(starts[shard]) + first, int(starts[shard]) + stop) for shard, first, stop, _ in pieces)
        self._places.follow(runs, epoch, piece_bytes=piece_bytes or PIECE_BYTES, divided=True)

    def follow_shards(self, numbers: Iterable[int], epoch: int = 0) -> None:
        """Fetch shards behind URLs before they are read, in the background; it returns at once.

        Args:
            numbers: Numbers of the shards in the order in which they will be read; they are taken as needed.
            epoch: Number of the epoch.
        """
        starts, ends = self._places.starts, self._places.ends
        self._places.follow((range(int(starts[number]), int(ends[number])) for number in numbers), epoch)

    def _together(self, ids: NDArray[np.int64]) -> tuple[Together, ...] | None:
        """Return the columns of samples; ``None`` where only reading one by one says what is wrong."""
        if len(ids) > self._places.at_once or (self._ledger.states[ids] >= BAD).any():
            return None
        try:
            places = self._places.sides(ids)
            columns = self._columns(ids, places)
        except RemoteError:  # reading one by one would repeat all attempts
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it comes again
            return None
        return tuple(
            Together(field=field, places=places[field.side], column=column)
            for field, column in zip(self._fields, columns, strict=True)
        )

    def _alone(self, share: NDArray[np.int64], use: Callable[[tuple[Column, ...]], _T]) -> _T:
        """Return what a function makes of the columns of one share."""
        if len(share) <= self._places.at_once:
            return self._blaming(share, use, wanted=True)
        samples = self.read(share)
        if not samples:
            raise self.nothing_left(share)
        columns = tuple(ValueColumn(list(column)) for column in zip(*samples, strict=True))
        return self._fitting(len(samples), use, columns)

    def _blaming(self, ids: NDArray[np.int64], use: Callable[[tuple[Column, ...]], _T], *, wanted: bool = False) -> _T:
        """Return what a function makes of the columns of samples; where that fails, find the samples to blame.

        Args:
            ids: The samples, no more than can be located at once.
            use: The function.
            wanted: Whether it is an error if no sample is left.
        """
        given = ids
        places: Sequence[Sequence[Place]] = self._places.sides(ids)
        if self.on_error == "skip":
            ids, places = _picked(ids, places, self._ledger.states[ids] < BAD)
        if len(ids) or not wanted:
            try:
                return use(self._columns(ids, places))
            except _OF_A_SAMPLE as error:
                cause: Exception | None = error
            except (MemoryError, WebDataModuleError):
                raise
            except Exception as error:  # noqa: BLE001 - codecs raise what they like
                cause = error
            sound = [
                self._is_sound(sample, where)
                for sample, where in zip(ids.tolist(), zip(*places, strict=True), strict=True)
            ]
            ids, places = _picked(ids, places, np.array(sound, bool))
        else:
            cause = None
        if wanted and not len(ids):
            raise self.nothing_left(given) from cause
        return self._fitting(len(ids), use, self._columns(ids, places))

    def _columns(self, ids: NDArray[np.int64], places: Sequence[Sequence[Place]]) -> tuple[Column, ...]:
        """Return the columns of samples, compared with their checksums where that is due."""
        states = self._ledger.states
        due = self.check == "always" or (self.check == "first" and bool((states[ids] != SOUND).any()))
        views = sound_views if due else field_views
        columns = tuple(field.column(places[field.side], views) for field in self._fields)
        if due:
            states[ids] = SOUND
        return columns

    def _fitting(self, n_samples: int, use: Callable[[tuple[Column, ...]], _T], columns: tuple[Column, ...]) -> _T:
        """Call a function with columns whose samples decode one by one."""
        try:
            return use(columns)
        except WebDataModuleError as error:
            raise error.located(split=self.split, **process()) from error.__cause__
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            raise unlike(n_samples, error).located(split=self.split, **process()) from error

    def _is_sound(self, sample: int, places: Sequence[Place]) -> bool:
        """Read one sample step by step: raise what is wrong with it, or note that it is left out."""
        (own,) = self._places.locate(np.array([sample]))
        where: dict[str, Any] = {"shard": own[0].path}
        origin: Mapping[str, str] = {}
        try:
            where["key"] = key_of(own)
            for field in self._fields:
                place = places[field.side]
                suffix, origin = field.stored(place)
                where |= {"shard": place[0].path, "suffix": suffix}
                column = field.column([place])
                if self.check == "always" or (self.check == "first" and self._ledger.states[sample] != SOUND):
                    check_fields(place, field.columns)
                column.values()
        except _OF_A_SAMPLE as error:
            named: WebDataModuleError = error
        except (MemoryError, WebDataModuleError):
            raise
        except ImportError as error:  # this and the next are not the sample's fault, so it is never left out
            raise lacking(error, split=self.split, **where, **origin, **process()) from error
        except OSError as error:
            what = f"the field cannot be decoded: {type(error).__name__}: {error}; correct this and start again"
            raise DecodeError(what, split=self.split, **where, **origin, **process()) from error
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            named = DecodeError(f"the field cannot be decoded: {type(error).__name__}: {error}")
            named.__cause__ = error
        else:
            return True
        if isinstance(named, DecodeError):
            where |= origin
        named = named.located(split=self.split, **where, **process())
        if self.on_error == "raise":
            raise named
        self._leave_out(sample, named)
        return False

    def _leave_out(self, sample: int, error: WebDataModuleError) -> None:
        if self.skipped >= self.max_skipped and self._ledger.states[sample] < BAD:
            raise type(error)(
                f"{count(self.skipped, 'sample')} already left out, which is max_skipped; the next: {error.message}",
                **error.where,
            ) from error
        kind = next(number for number, kind in enumerate(_OF_A_SAMPLE) if isinstance(error, kind))
        self._ledger.states[sample] = BAD + kind
        _log.warning("left out a sample (%d of at most %d): %s", self.skipped, self.max_skipped, error)


def _picked(
    ids: NDArray[np.int64], places: Sequence[Sequence[Place]], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Sequence[Sequence[Place]]]:
    return (ids, places) if wanted.all() else (ids[wanted], [list(itertools.compress(side, wanted)) for side in places])


def _attempt(use: Use[_T], number: int, together: Sequence[Together], where: slice, *, lazily: bool) -> _T | None:
    """Return what a function makes of the columns of one share; ``None`` where it fails."""
    try:
        if lazily:
            _look_again(together, where)
        return use(number, tuple([ShareColumn(column, where, lazily) for column in together]))
    except Exception:  # noqa: BLE001 - the share alone says what is wrong, and where
        return None


def _n_shards(together: Sequence[Together]) -> int:
    return len({shard for places in _sides(together) for shard, _ in places})


def _sides(together: Sequence[Together]) -> Iterable[Sequence[Place]]:
    """Return where samples are, once for each set of fields."""
    return {column.field.side: column.places for column in together}.values()


def _look_again(together: Sequence[Together], where: slice) -> None:
    """Check that the shards of some samples still have all their bytes."""
    for shard in {shard for places in _sides(together) for shard, _ in places[where]}:
        shard.check()


def _sample_bytes(sets: Sequence[ShardSet]) -> float:
    return sum(found.n_bytes for found in sets) / max(1, sum(found.n_samples for found in sets))


def _digest_of(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _field(
    selected: Selected, side: int, opened: Sequence[str], sets: Sequence[ShardSet], codecs: Codecs, split: str | None
) -> Field:
    if selected.suffixes == (KEY,):
        return Field(selected=selected, side=side, columns=(), codecs=())
    named = [_codec(suffix, sets, codecs, split) for suffix in selected.suffixes]
    return Field(
        selected=selected,
        side=side,
        columns=tuple(map(opened.index, selected.suffixes)),
        codecs=tuple(each.codec for each in named),
        origins=tuple(each.origin for each in named),
    )


def _codec(suffix: str, sets: Sequence[ShardSet], codecs: Codecs, split: str | None) -> NamedCodec:
    """Return the codec of a suffix, which is the same in all sets that have it."""
    found: Mapping[str, tuple[NamedCodec, ShardSet]] = {
        named.name: (named, each)
        for each in sets
        if suffix in each.suffixes
        for named in [codecs.of(suffix, each.codecs.get(suffix))]
    }
    if len(found) > 1:
        listed = " and ".join(f"{name} in {each.directory}" for name, (_, each) in found.items())
        raise ConfigError(f"the suffix {suffix!r} is stored as {listed}; convert them alike", split=split)
    return next(iter(found.values()))[0]
