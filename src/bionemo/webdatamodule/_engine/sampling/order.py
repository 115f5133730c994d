"""The order in which epochs take their samples: shuffled passes, virtual epochs, mixtures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bionemo.webdatamodule._engine.sampling.mixture import apportion, draws
from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, groups, key
from bionemo.webdatamodule._engine.sampling.windows import BlockPermutation
from bionemo.webdatamodule.errors import PlanError

_Pass: TypeAlias = Callable[[Ids], Ids]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that samples are drawn from.

    Attributes:
        samples: How many it has.
        weight: Its part of the samples drawn, in any unit; ``None`` for what it has.
            Either all sources of a plan have a weight or none.
        shards: Samples of each of its shards, in order; needed for shuffling in blocks only.
    """

    samples: int
    weight: float | None = None
    shards: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order:
    """An endless sequence of sample ids, cut into epochs; any place is found in constant time and memory.

    Sample ids count through the sources one after another.
    Without weights the sources are one data set, read in passes that are each a permutation of it.
    Epoch ``e`` takes places ``e * n_samples`` to ``(e + 1) * n_samples`` of that sequence,
    so with epochs shorter than a pass all samples are seen before any comes again.
    With weights each source gives its apportioned count to every epoch and goes on where it stopped;
    what comes again comes only after the whole of its source.

    Args:
        sources: What is drawn from.
        n_samples: Samples of an epoch; 0 for as many as there are.
        seed: Any integer.
        shuffle: False for evaluation: ids in order from 0, in every epoch the same, weights ignored.
        block: Shards that are shuffled together (:class:`~.blocks.BlockPermutation`);
            0 shuffles all samples together.

    Raises:
        PlanError: If the sources cannot give such epochs.
    """

    sources: tuple[Source, ...]
    n_samples: int = 0
    seed: int = 0
    shuffle: bool = True
    block: int = 0
    _counts: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())
    _passes: dict[tuple[int, int], _Pass] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.sources, self.n_samples, self.block)
        available = sum(source.samples for source in self.sources)
        weights = [source.weight for source in self.sources if source.weight is not None]
        length = self.n_samples or available
        object.__setattr__(self, "n_samples", length)
        if self.shuffle and len(weights) > 1:
            object.__setattr__(self, "_counts", apportion(length, weights))
        elif length > available:
            raise PlanError(
                f"n_samples is {length}, but there are only {available} samples; "
                "lower it, or leave it out to take all there are"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples that each source gives to an epoch of a mixture; empty where there is none."""
        return self._counts

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that the order depends on beside the seed and the data themselves."""
        sources = [(source.samples, source.weight) for source in self.sources]
        shards = [source.shards for source in self.sources] if self.block else []
        words = repr((sources, shards, self.n_samples, self.shuffle, self.block))
        return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()

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
        if not self._counts:
            return self._walk(-1, epoch * self.n_samples, places)
        found = np.empty_like(places)
        for ahead, here in groups(places // self.n_samples):
            found[here] = self._drawn(epoch + ahead, places[here] - ahead * self.n_samples)
        return found

    def _drawn(self, epoch: int, places: Ids) -> Ids:
        sources, numbers = draws(self._counts, places, f"{self.seed}/{epoch}")
        found = np.empty_like(places)
        offset = 0
        for number, (source, count) in enumerate(zip(self.sources, self._counts, strict=True)):
            here = np.flatnonzero(sources == number)
            if here.size:
                found[here] = self._walk(number, epoch * count, numbers[here]) + offset
            offset += source.samples
        return found

    def _walk(self, number: int, first: int, places: Ids) -> Ids:
        """Return the ids at places ``first + places`` of the endless passes of a source; -1 is all of them."""
        length = sum(source.samples for source in self.sources) if number < 0 else self.sources[number].samples
        passed, inside = divmod(first, length)
        places = places + inside
        found = np.empty_like(places)
        for ahead, here in groups(places // length):
            found[here] = self._pass(number, passed + ahead)(places[here] - ahead * length)
        return found

    def _pass(self, number: int, passed: int) -> _Pass:
        """Return the permutation of one pass; a few are kept, since batches in a row use the same."""
        kept = self._passes.get((number, passed))
        if kept is None:
            while len(self._passes) >= 4 * len(self.sources):
                self._passes.pop(next(iter(self._passes)), None)
            kept = self._passes[number, passed] = self._permutation(number, key("pass", self.seed, number, passed))
        return kept

    def _permutation(self, number: int, seed: bytes) -> _Pass:
        sources = self.sources if number < 0 else self.sources[number : number + 1]
        if self.block:
            return BlockPermutation([n for source in sources for n in source.shards], self.block, seed)
        return Permutation(sum(source.samples for source in sources), seed)


def _check(sources: tuple[Source, ...], n_samples: int, block: int) -> None:
    weighted = sum(source.weight is not None for source in sources)
    if n_samples < 0 or block < 0:
        raise PlanError(f"n_samples and block are numbers from 0 on, not {n_samples} and {block}")
    if weighted not in (0, len(sources)):
        raise PlanError(f"{weighted} of {len(sources)} sources have a weight; give one to all or to none")
    for number, source in enumerate(sources):
        if source.samples < 0 or (weighted and not source.samples):
            raise PlanError(f"source {number} has {source.samples} samples; there is nothing to draw from it")
        if block and sum(source.shards) != source.samples:
            raise PlanError(
                f"source {number} has {source.samples} samples, but its {len(source.shards)} shards "
                f"have {sum(source.shards)}; shuffling in blocks needs the samples of every shard"
            )
    if not any(source.samples for source in sources):
        raise PlanError("there are no samples to plan for")
