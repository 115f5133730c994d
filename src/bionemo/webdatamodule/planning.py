"""What a planner stage builds on: the protocol of an epoch plan, permutations, and equal division among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
"""Numbers of samples, int64 of shape ``(k,)``."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the user chose, for a planner.

    Attributes:
        seed: Where all randomness comes from.
        shuffle: True for training; false for evaluation, whose order is the same in every epoch.
        global_batch_size: Samples of a batch, summed over all ranks; a planner may have limits of its own instead.
        tail: What becomes of samples that fill no batch in training.
    """

    seed: int
    shuffle: bool
    global_batch_size: int
    tail: Literal["share", "drop", "fill"] = "share"


@runtime_checkable
class EpochPlan(Protocol):
    """Which samples each rank takes at each step of an epoch: pure functions of integers.

    ``start`` is a number of samples of the epoch that are consumed already, as :meth:`consumed` returns it;
    batches are counted from there. Planning on from any batch boundary must give the batches that were to come.
    Plans pickle.

    Attributes:
        n_samples: Samples of one epoch.
        seed: The seed of the request.
        global_batch_size: Samples of a global batch; 0 where it varies.
        digest: 16 hexadecimal digits of all that the batches depend on beside the seed, the batch size and the data.
    """

    @property
    def n_samples(self) -> int: ...  # noqa: D102 - see the class
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def global_batch_size(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start``, the same on every rank; from 0 on the same in all epochs."""
        ...

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the numbers of the samples that a rank takes at each of some steps; never none."""
        ...

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are consumed after so many steps, ``start`` included."""
        ...

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes."""
        ...

    def check(self, world_size: int) -> None:
        """Raise a :class:`~bionemo.webdatamodule.errors.PlanError` with the numbers if the ranks cannot be served."""
        ...
