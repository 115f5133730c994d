"""Where in a run a pipeline stands: what seeded stages draw their randomness from."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place of a running pipeline.

    Attributes:
        order: How the split is read.
        seed: The data module's seed.
        epoch: Number of the epoch, from 0.
        first: In global order the samples of the epoch that come before this part of it, over all ranks;
            in shards order the number of passes over the data before this one.
        rank: This process's rank.
        worker: The loader's worker; -1 in the main process.
        batch_size: Samples of a batch of this rank; ``None`` where the plan has drawn the batches already.
    """

    order: Literal["global", "shards"] = "shards"
    seed: int = 0
    epoch: int = 0
    first: int = 0
    rank: int = 0
    worker: int = -1
    batch_size: int | None = None

    def rng(self, purpose: str = "") -> random.Random:
        """Return a generator that depends on this place and the purpose alone.

        In global order it depends on ``(seed, epoch, first)``, so neither ranks nor workers matter;
        in shards order on ``(seed, epoch, first, rank, worker)``.
        """
        place = () if self.order == "global" else (self.rank, self.worker)
        words = "/".join(map(str, (purpose, self.seed, self.epoch, self.first, *place)))
        return random.Random(int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest(), "big"))


_NOWHERE = Context()
_current = _NOWHERE


def current() -> Context:
    """Return the place of the pipeline that is being set up or run.

    A stage asks when it is called with its samples, before it yields the first one.
    Outside a data module's pipeline this is a default place, so a stage can be tried by itself.
    """
    return _current


@contextlib.contextmanager
def at(context: Context) -> Iterator[None]:
    """Make a place the current one for the time of a ``with`` block."""
    global _current  # noqa: PLW0603 - one place a process; loaders may not thread arguments through users' stages
    before = _current
    _current = context
    try:
        yield
    finally:
        _current = before
