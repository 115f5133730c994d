"""The order in which epochs take their samples: shuffled passes, virtual epochs, mixtures, with or without lanes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from bionemo.webdatamodule._engine.sampling.lanes import Line, lane_lengths
from bionemo.webdatamodule._engine.sampling.mixture import apportion, draws
from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, groups, key
from bionemo.webdatamodule._engine.sampling.pieces import Pieces
from bionemo.webdatamodule._engine.sampling.schedule import Points, block_of, check, scheduled_draws
from bionemo.webdatamodule.errors import PlanError, count

_Runs: TypeAlias = tuple[Ids, Ids]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that samples are drawn from.

    Attributes:
        samples: How many it has.
        weight: Its part of the samples drawn, in any unit; ``None`` for what it has.
            Either all sources of a plan have a weight or none.
        shards: Samples of each of its shards, in order; needed for lanes only.
        sizes: Bytes of each of its shards; needed where pieces have a size only.
    """

    samples: int
    weight: float | None = None
    shards: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """An endless sequence of sample ids, cut into epochs; any place is found in constant time and memory.

    Sample ids count through the sources one after another.
    Without weights the sources are one data set, read in passes that are each a permutation of it.
    Epoch ``e`` takes places ``e * n_samples`` to ``(e + 1) * n_samples`` of that sequence,
    so with epochs shorter than a pass all samples are used before any repeats.
    With weights each source gives its apportioned count to every epoch and continues where it stopped;
    samples repeat only after all of their source.
    With lanes (:mod:`~bionemo.webdatamodule._engine.sampling.lanes`) that is so in each lane, and each lane is a
    mixture of its own.

    Args:
        sources: What is drawn from.
        n_samples: Samples of an epoch; 0 for as many as there are.
        seed: Any integer.
        shuffle: False for evaluation: ids in order from 0, in every epoch the same, weights ignored.
        lanes: Lanes of a training order that reads piece by piece; 0 shuffles all samples together.
        piece_bytes: Bytes of a piece; 0 for whole shards.
        schedule: Weights that change with the samples drawn, over all epochs, in place of those of the sources.

    Raises:
        PlanError: If the sources cannot give such epochs.
    """

    sources: tuple[Source, ...]
    n_samples: int = 0
    seed: int = 0
    shuffle: bool = True
    lanes: int = 0
    piece_bytes: int = 0
    schedule: Points = ()
    _counts: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())
    _passes: dict[tuple[int, int], Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    _pieces: dict[int, Pieces] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.sources, self.n_samples, self.lanes, self.piece_bytes)
        available = sum(source.samples for source in self.sources)
        weights = [source.weight for source in self.sources if source.weight is not None]
        length = self.n_samples or available
        object.__setattr__(self, "n_samples", length)
        lanes = min(self.lanes, length, available) if self.shuffle else 0
        if self.shuffle and self.schedule:
            check(self.schedule, [source.samples for source in self.sources])
            lanes = min(lanes, *(source.samples for source in self.sources)) if lanes else 0
        elif self.shuffle and weights and (len(weights) > 1 or length > available):
            object.__setattr__(self, "_counts", apportion(length, weights))
            lanes = min(lanes, *(source.samples for source in self.sources))
        elif length > available and not (self.shuffle and self.schedule):
            raise PlanError(
                f"n_samples is {length}, but there are only {count(available, 'sample')}; "
                "lower it, or leave it out to take all there are"
            )
        object.__setattr__(self, "lanes", lanes)
        object.__setattr__(self, "piece_bytes", self.piece_bytes if lanes else 0)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, without what is made again."""
        return {**self.__dict__, "_passes": {}, "_pieces": {}}

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples that each source gives to an epoch of a mixture; empty where there is none."""
        return self._counts

    @property
    def digest(self) -> str:
        """A short text of all that the order depends on beside the seed and the data themselves.

        It ends with lanes and bytes of a piece, if there are lanes, so that a run continues in the same ones.
        """
        if not self.lanes:
            return _hashed(self, [], 0)
        shards = [(source.shards, source.sizes if self.piece_bytes else ()) for source in self.sources]
        return f"{_hashed(self, shards, 'lanes')}-{self.lanes}x{self.piece_bytes}"

    def windowed(self, shards: int) -> str:
        """Return the digest of the windows of so many shards that version 0.1 had in place of lanes."""
        return _hashed(self, [source.shards for source in self.sources], shards)

    def ids(self, epoch: int, places: Ids) -> Ids:
        """Return the sample ids at these places of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            places: (k,) int64, from 0; those from ``n_samples`` on are of the epochs after.

        Returns:
            (k,) int64, a new array.
        """
        if not self.shuffle:
            return places % self.n_samples
        found = np.empty_like(places)
        for number, passed, here, inside, lane in self._walk(epoch, places):
            walk = self._pass(number, passed)
            found[here] = (walk(inside) if lane is None else walk(lane, inside)) + self._offset(number)
        return found

    def runs(self, epoch: int, places: Ids) -> _Runs:
        """Return which runs of samples are fetched for places of an epoch: where each begins and ends.

        Args:
            epoch: Number of the epoch.
            places: (k,) places in it.

        Returns:
            First sample and the sample behind the last, (k,) each. Without lanes they are whole shards.
        """
        firsts, stops = np.empty_like(places), np.empty_like(places)
        if self.lanes:
            for number, passed, here, inside, lane in self._walk(epoch, places):
                first, length, _ = self._pass(number, passed).segments(lane, inside)
                firsts[here] = first + self._offset(number)
                stops[here] = firsts[here] + length
            return firsts, stops
        edges = np.append(0, np.cumsum([count for source in self.sources for count in source.shards if count]))
        shard = np.searchsorted(edges, self.ids(epoch, places), side="right")
        return edges[shard - 1], edges[shard]

    def _walk(self, epoch: int, places: Ids) -> list[tuple[int, int, Ids, Ids, Ids | None]]:
        """Return for each source (-1 for all) and pass of it which places are there, their places in it and lanes."""
        if self.schedule:
            return self._scheduled(epoch * self.n_samples + places)
        if not self._counts:
            lanes, length = self.lanes, sum(source.samples for source in self.sources)
            return [
                (-1, passed, here, inside // (lanes or 1), inside % lanes if lanes else None)
                for passed, here, inside in _passes(epoch * self.n_samples, places, length)
            ]
        found = []
        for ahead, here in groups(places // self.n_samples):
            mine = np.arange(len(places))[here]
            inside = places[mine] - ahead * self.n_samples
            found += [(n, p, mine[w], i, lane) for n, p, w, i, lane in self._mixed(epoch + ahead, inside)]
        return found

    def _scheduled(self, places: Ids) -> list[tuple[int, int, Ids, Ids, Ids | None]]:
        """Return the same for places over all epochs of a mixture that changes."""
        found: list[tuple[int, int, Ids, Ids, Ids | None]] = []
        lanes = self.lanes or 1
        for lane, members in groups(places % lanes):
            mine = np.arange(len(places))[members]
            sources, numbers = scheduled_draws(self.schedule, lanes, lane, places[mine] // lanes, self.seed)
            for source in np.unique(sources).tolist():
                own, length = mine[sources == source], int(lane_lengths(self.sources[source].samples, lanes)[lane])
                for passed, where, inside in _passes(0, numbers[sources == source], length):
                    in_lane = np.full(len(inside), lane) if self.lanes else None
                    found.append((source, passed, own[where], inside, in_lane))
        return found

    def _mixed(self, epoch: int, places: Ids) -> list[tuple[int, int, Ids, Ids, Ids | None]]:
        found: list[tuple[int, int, Ids, Ids, Ids | None]] = []
        if not self.lanes:
            sources, numbers = draws(self._counts, places, f"{self.seed}/{epoch}")
            for source, count in enumerate(self._counts):
                mine = np.flatnonzero(sources == source)
                for passed, here, inside in _passes(epoch * count, numbers[mine], self.sources[source].samples):
                    found.append((source, passed, mine[here], inside, None))
            return found
        counts, lengths = self._by_lane()
        for lane, members in groups(places % self.lanes):
            mine = np.arange(len(places))[members]
            drawn = np.flatnonzero(counts[:, lane])
            sources, numbers = draws(
                tuple(counts[drawn, lane].tolist()), places[mine] // self.lanes, f"{self.seed}/{epoch}/{lane}"
            )
            for index, source in enumerate(drawn.tolist()):
                own, count, length = mine[sources == index], int(counts[source, lane]), int(lengths[source, lane])
                for passed, where, inside in _passes(epoch * count, numbers[sources == index], length):
                    found.append((source, passed, own[where], inside, np.full(len(inside), lane)))
        return found

    def _by_lane(self) -> tuple[Ids, Ids]:
        """Return for each source and lane the draws of an epoch and the samples, (sources, lanes) each."""
        shifts = [self._shift(number) for number in range(len(self.sources))]
        counts = [lane_lengths(count, self.lanes, shift) for count, shift in zip(self._counts, shifts, strict=True)]
        lengths = [lane_lengths(s.samples, self.lanes, shift) for s, shift in zip(self.sources, shifts, strict=True)]
        return np.array(counts), np.array(lengths)

    def _shift(self, number: int) -> int:
        """Return the first lane of those in which a source has one more; in turn, so that all lanes are equal."""
        return sum(self._counts[:number]) % self.lanes if number >= 0 else 0

    def _offset(self, number: int) -> int:
        return sum(source.samples for source in self.sources[: max(0, number)])

    def _pass(self, number: int, passed: int) -> Any:
        """Return one pass over a source, or over all; a few are kept, since batches in a row use the same."""
        kept = self._passes.get((number, passed))
        if kept is None:
            while len(self._passes) >= 4 * len(self.sources):
                self._passes.pop(next(iter(self._passes)), None)
            kept = self._passes[number, passed] = self._new_pass(number, key("pass", self.seed, number, passed))
        return kept

    def _new_pass(self, number: int, seed: bytes) -> Callable[..., Ids]:
        sources = self.sources if number < 0 else self.sources[number : number + 1]
        if not self.lanes:
            return Permutation(sum(source.samples for source in sources), seed)
        return Line(self.pieces(number), self.lanes, seed, shift=self._shift(number))

    @property
    def parts(self) -> range:
        """Numbers of the sources that are read in passes of their own; -1 where all are read as one."""
        return range(len(self.sources)) if self._counts or self.schedule else range(-1, 0)

    def pieces(self, number: int = -1) -> Pieces:
        """Return the pieces of a source, or of all."""
        if number not in self._pieces:
            sources = self.sources if number < 0 else self.sources[number : number + 1]
            shards = [count for source in sources for count in source.shards]
            sizes = [size for source in sources for size in source.sizes]
            self._pieces[number] = Pieces.of(shards, sizes or shards, self.piece_bytes)
        return self._pieces[number]


def _passes(first: int, places: Ids, length: int) -> list[tuple[int, Ids, Ids]]:
    """Cut places ``first + places`` of endless passes of a length: the pass, which of the places, and places in it."""
    passed, inside = divmod(first, length)
    places = places + inside
    index = np.arange(len(places))
    return [(passed + ahead, index[here], places[here] - ahead * length) for ahead, here in groups(places // length)]


def _hashed(order: Order, shards: list[Any], block: object) -> str:
    sources = [(source.samples, source.weight) for source in order.sources]
    words = repr((sources, shards, order.n_samples, order.shuffle, block))
    if order.schedule and order.shuffle:
        words += f"{order.schedule!r} in blocks of {block_of(order.schedule, order.lanes or 1)}"
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def _check(sources: tuple[Source, ...], n_samples: int, lanes: int, piece_bytes: int) -> None:
    weighted = sum(source.weight is not None for source in sources)
    if min(n_samples, lanes, piece_bytes) < 0:
        raise PlanError(
            f"n_samples, lanes and piece_bytes are numbers from 0 on, not {n_samples}, {lanes} and {piece_bytes}"
        )
    if weighted not in (0, len(sources)):
        raise PlanError(
            f"a weight is given for {weighted} of {count(len(sources), 'source')}; give one to all or to none"
        )
    for number, source in enumerate(sources):
        if source.samples < 0 or (weighted and not source.samples):
            raise PlanError(f"source {number} has {count(source.samples, 'sample')}; there is nothing to draw from it")
        if lanes and sum(source.shards) != source.samples:
            raise PlanError(
                f"source {number} has {count(source.samples, 'sample')}, but its {count(len(source.shards), 'shard')} "
                f"have {sum(source.shards)}; lanes need the samples of every shard"
            )
        if lanes and piece_bytes and len(source.sizes) != len(source.shards):
            raise PlanError(
                f"source {number} has {count(len(source.shards), 'shard')} and "
                f"{count(len(source.sizes), 'size')} of shards"
            )
    if not any(source.samples for source in sources):
        raise PlanError("there are no samples to plan for")
