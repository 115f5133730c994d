"""Plans that draw from groups of the samples of one data set in fixed proportions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bionemo.webdatamodule._engine.sampling.permutation import Ids, key
from bionemo.webdatamodule._engine.sampling.plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedPlan:
    """A plan over groups of samples: a mixture whose sources are the groups.

    Attributes:
        plan: The plan over the groups, one behind the other.
        ids: The samples of the groups, one behind the other.
        reshuffle: Shuffle before each epoch, so that no sample comes twice in one; else epochs continue where the last
            stopped.
    """

    plan: Plan
    ids: Ids = field(repr=False)
    reshuffle: bool = False

    @property
    def n_samples(self) -> int:
        """Samples of one epoch."""
        return self.plan.n_samples

    @property
    def seed(self) -> int:
        """The seed of the request."""
        return self.plan.seed

    @property
    def global_batch_size(self) -> int:
        """Samples of a global batch."""
        return self.plan.global_batch_size

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of groups, weights and the length of an epoch."""
        words = f"{self.plan.digest} {self.reshuffle}".encode() + self.ids.astype("<i8").tobytes()
        return hashlib.blake2b(words, digest_size=8).hexdigest()

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start``."""
        return self.plan.n_batches(world_size, start=start, epoch=epoch)

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the numbers of the samples that a rank takes at each of some steps."""
        plan = self.plan
        if self.reshuffle and plan.shuffle:
            plan = replace(plan, seed=int.from_bytes(key("epoch", plan.seed, epoch)[:8], "little"))
            epoch = 0
        return [self.ids[share] for share in plan.shares(epoch, batches, rank, world_size, start=start)]

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are consumed after so many steps."""
        return self.plan.consumed(batches, world_size, start=start, epoch=epoch)

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes."""
        return self.plan.unserved(world_size, start=start, epoch=epoch)

    def check(self, world_size: int) -> None:
        """Check that every rank gets a sample at every step."""
        self.plan.check(world_size)
