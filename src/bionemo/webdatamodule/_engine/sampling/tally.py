"""The tally of delivered samples: their number, an order-free hash, and the skipped ones; tallies add up."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GAMMA, _FIRST, _SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1
_NAMED = 20  # samples left out whose numbers are kept
_CHUNK = 1 << 16  # which stays in the cache


class Tally(NamedTuple):
    """Samples that were delivered, in constant size whatever their number.

    Attributes:
        samples: How many; one that comes twice counts twice.
        hash: The sum of :func:`mixed` over their numbers, modulo 2 to the power of 64.
        skipped: How many were left out, by the code of the error; ``None`` for none.
        named: The numbers of the first samples that were left out, sorted.
        since: Samples of the epoch that came before and are not counted here.
    """

    samples: int = 0
    hash: int = 0
    skipped: Mapping[str, int] | None = None
    named: tuple[int, ...] = ()
    since: int = 0

    @classmethod
    def of(cls, ids: NDArray[np.int64], left_out: Mapping[int, str]) -> Tally:
        """Return the tally of some samples, of which others were left out with the code of an error each."""
        if not left_out:
            return cls(len(ids), int(mixed(ids).sum()))
        kept = ids[~np.isin(ids, list(left_out))]
        skipped = Counter(left_out[number] for number in ids.tolist() if number in left_out)
        named = tuple(sorted(left_out)[:_NAMED])
        return cls(len(kept), int(mixed(kept).sum()), dict(sorted(skipped.items())), named)

    @classmethod
    def of_sums(cls, parts: Iterable[tuple[Sized, int]]) -> Tally:
        """Return the tally of samples of which none were left out.

        Args:
            parts: Some of them, and the sum of their :func:`mixed` hashes.
        """
        found = list(parts)
        return cls(sum(len(some) for some, _ in found), sum(hashes for _, hashes in found) & _MASK)

    def plus(self, other: Tally) -> Tally:
        """Return the tally of both."""
        skipped, named = self.skipped, self.named
        if other.skipped:
            skipped = dict(sorted((Counter(skipped or {}) + Counter(other.skipped)).items()))
            named = tuple(sorted({*named, *other.named})[:_NAMED])
        total = (self.hash + other.hash) & _MASK
        return Tally(self.samples + other.samples, total, skipped, named, max(self.since, other.since))

    def to_state(self) -> dict[str, Any]:
        """Return plain values, which JSON and ``torch.load(weights_only=True)`` take."""
        return {**self._asdict(), "hash": f"{self.hash:016x}", "named": list(self.named)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        """Return the tally that :meth:`to_state` wrote."""
        return cls(**{**state, "hash": int(state["hash"], 16), "named": tuple(state["named"])})


def tallies(shares: Sequence[NDArray[np.int64]]) -> list[Tally]:
    """Return the tally of each of some shares, none of them empty."""
    lengths = [len(share) for share in shares]
    starts = np.cumsum([0, *lengths[:-1]])
    sums: list[int] = np.add.reduceat(mixed(np.concatenate(shares)), starts).tolist()
    return [Tally(*pair) for pair in zip(lengths, sums, strict=True)]


def total(given: Iterable[Tally]) -> Tally:
    """Return the sum of some tallies."""
    return functools.reduce(Tally.plus, given, Tally())


def mixed(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a number that looks random for each sample number: the outputs of the generator SplitMix64.

    A sum of such numbers says which samples came how often, in any order: Bellare and Micciancio, "A new paradigm for
    collision-free hashing: incrementality at reduced cost", EUROCRYPT 1997. SplitMix64 is that of Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants of java.util.
    """
    found: NDArray[np.uint64] = ids.astype(np.uint64)
    found *= _GAMMA
    found += _GAMMA
    found ^= found >> np.uint64(30)
    found *= _FIRST
    found ^= found >> np.uint64(27)
    found *= _SECOND
    found ^= found >> np.uint64(31)
    return found


@functools.lru_cache(maxsize=8)
def hash_of_all(n_samples: int) -> int:
    """Return the hash of the samples 0, 1, … each once: some seconds for a thousand million."""
    sums = (int(mixed(np.arange(first, min(first + _CHUNK, n_samples))).sum()) for first in range(0, n_samples, _CHUNK))
    return sum(sums) & _MASK
