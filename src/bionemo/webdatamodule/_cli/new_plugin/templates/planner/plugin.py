"""The planner ``$name``: replace the batches of like size by those that you want to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bionemo.webdatamodule import Stage, hookimpl
from bionemo.webdatamodule.planning import Ids, ListedPlan, PlanRequest, permutation


@dataclass(frozen=True, kw_only=True)
class LikeSize:
    """Puts samples of like size into batches of equally many, and makes lists of them.

    A planner is the first stage of ``pipeline_prebatch_wld``. It decides the plan of all epochs from the sizes of
    the samples, which the core reads once.
    The fields of the class are the options that users give: ``Use("$name", size="tokens.pyd", samples=16)``.

    Args:
        size: The suffix whose length, or value if it is a number, is the size of a sample; or a function of a sample.
        samples: Samples of a batch of one rank.
    """

    size: str | Callable[[Any], int]
    samples: int = 8

    def plan(self, sizes: Ids, request: PlanRequest) -> ListedPlan:
        """Return the plan; equal steps on all ranks and resume are up to ``ListedPlan``."""
        by_size = np.argsort(sizes, kind="stable")
        return ListedPlan(
            batches=Batches(by_size=by_size, samples=self.samples, seed=request.seed, shuffle=request.shuffle),
            n_samples=len(sizes),
            seed=request.seed,
            digest=hashlib.sha256(by_size.tobytes() + f"{self.samples} {request.shuffle}".encode()).hexdigest()[:16],
        )

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batch of a planned share, if it has samples."""
        batch = list(samples)
        if batch:
            yield batch


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Lists the batches of an epoch, a pure function of its number.

    Args:
        by_size: Numbers of the samples in the order of their size.
        samples: Samples of a batch.
        seed: The seed of the run.
        shuffle: False for the same order in every epoch.
    """

    by_size: Ids
    samples: int
    seed: int
    shuffle: bool

    def __call__(self, epoch: int) -> tuple[Ids, Ids]:
        """Return the sample numbers in order, and where each batch begins and the last ends."""
        batches = np.split(self.by_size, range(self.samples, len(self.by_size), self.samples))
        if self.shuffle:
            order = permutation(len(batches), "$name", self.seed, epoch)
            batches = [batches[order.at(place)] for place in range(len(batches))]
        return np.concatenate(batches), np.cumsum([0, *map(len, batches)])


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the planner, which is a stage."""
    yield Stage(name="$name", summary="lists of samples of like size", factory=LikeSize)
