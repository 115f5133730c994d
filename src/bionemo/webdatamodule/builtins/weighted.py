"""The planner ``weighted``: how often samples come, by a small field or by key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.batching import Collate, collated, collation
from bionemo.webdatamodule.columns import Fields
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import ConfigError, PlanError, count
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import whole_number
from bionemo.webdatamodule.planning import EpochPlan, Ids, PlanRequest, apportion, grouped_plan

_MOST_CLASSES = 4096


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Make batches in which classes of samples have a chosen part, such as rare cell types.

    As the first stage of ``pipeline_prebatch_wld`` in global order, it makes the plan: classes are read once at setup,
    and every epoch has the exact part of each class, in batches of ``global_batch_size``.
    The samples of a class are shuffled and used completely before any repeats.

    Args:
        by: The class of a sample. A suffix, whose field is a whole number or text; or a function of the stored
            fields, a value for one suffix and a tuple for several, such as ``__key__``.
        weights: The part of each class in an epoch, in any unit; 0 leaves it out. ``"balanced"``: all classes have
            the same part.
        n_samples: Samples of an epoch. By default all, or without replacement as many as the scarcest class allows.
        replacement: Whether a sample may repeat within an epoch. If not, each epoch uses other samples of the
            frequent classes.
        collate: The function from a list of samples to a batch, as in ``batch``.
    """

    by: str | Callable[[Any], Any]
    weights: Mapping[Any, float] | Literal["balanced"] = "balanced"
    n_samples: int = 0
    replacement: bool = True
    collate: Collate = "default"
    makes_batches = True

    def __post_init__(self) -> None:
        if not callable(self.by) and not (isinstance(self.by, str) and self.by):
            raise ConfigError(f"by is a suffix or a function of a sample, not {self.by!r}")
        if isinstance(self.weights, str) and self.weights != "balanced":
            raise ConfigError(f"weights is 'balanced' or a weight for each class, not {self.weights!r}")
        if not isinstance(self.weights, str):
            for name, weight in self.weights.items():
                if not 0 <= weight < float("inf"):
                    raise ConfigError(f"weights gives the class {name!r} the weight {weight!r}; weights are from 0 on")
            if not any(self.weights.values()):
                raise ConfigError("weights leaves out every class")
        whole_number("n_samples", self.n_samples, least=0)
        collation(self.collate)

    @property
    def size(self) -> str | Callable[[Any], Any]:
        """What is read of each sample."""
        return self.by

    def measure(self, value: Any) -> int:
        """Return the number of a class: itself, or for text a hash.

        Raises:
            PlanError: If it is neither a whole number nor text.
        """
        if getattr(value, "ndim", None) == 0:
            value = value.item()
        if isinstance(value, int) and 0 <= value < 1 << 62:
            return int(value)
        if not isinstance(value, int | str | bytes):
            raise PlanError(
                f"the class of a sample is a whole number or text, not a {type(value).__name__}; "
                "give as by a function of the sample that returns one"
            )
        return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big") >> 2 | 1 << 62

    def plan(self, sizes: Ids, request: PlanRequest) -> EpochPlan:
        """Return the plan of all epochs.

        Raises:
            PlanError: If a class has no weight, or too few samples.
        """
        if not request.shuffle:
            return grouped_plan([np.arange(len(sizes))], [1], request, n_samples=0)
        classes, firsts, counts = np.unique(sizes, return_index=True, return_counts=True)
        if len(classes) > _MOST_CLASSES:
            raise PlanError(
                f"there are {len(classes):,} classes, more than {_MOST_CLASSES:,}; give by a coarser function"
            )
        weights = [self._weight(*found) for found in zip(classes.tolist(), firsts.tolist(), strict=True)]
        kept = [number for number, weight in enumerate(weights) if weight]
        if not kept:
            raise PlanError("weights leaves out every class that there is")
        samples = np.split(np.argsort(sizes, kind="stable"), np.cumsum(counts)[:-1])
        weights, held = [weights[number] for number in kept], counts[kept]
        most = int(held.sum())
        if not self.replacement:
            most = max(1, int(np.min(held * sum(weights) / np.array(weights)) + 1e-9))
        n_samples = self.n_samples or most
        if not self.replacement:
            if request.tail == "fill" and n_samples % request.global_batch_size:
                raise PlanError(
                    f"replacement=False uses no sample twice in an epoch, and tail='fill' repeats some, since "
                    f"{count(n_samples, 'sample')} fill no whole number of batches; take tail='share' or 'drop', or an "
                    f"n_samples that is a multiple of {request.global_batch_size}"
                )
            short = np.flatnonzero(np.array(apportion(n_samples, weights)) > held)
            if len(short):
                raise PlanError(
                    f"an epoch of {count(n_samples, 'sample')} needs more of a class than the {held[short[0]]} that "
                    f"there are; lower n_samples to {most}, or allow replacement"
                )
        return grouped_plan(
            [samples[number] for number in kept], weights, request, n_samples=n_samples, reshuffle=not self.replacement
        )

    def columns(self, fields: Fields) -> Any:
        """Return the batch of a planned share."""
        return collated(fields, self.collate)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batch of a planned share.

        Raises:
            ConfigError: In shards order, which has no plan.
        """
        if context.current().order != "global":
            raise ConfigError("weighted decides a plan, so it needs order='global'")
        collate = collation(self.collate)
        return (collate(share) for share in [list(samples)] if share)

    def _weight(self, number: int, sample: int) -> float:
        if isinstance(self.weights, str):
            return 1.0
        known = {self.measure(name): weight for name, weight in self.weights.items()}
        if number not in known:
            what = f"class {number}" if number < 1 << 62 else "class"
            raise PlanError(f"the {what} of sample {sample} has no weight; weights takes 0 for what is left out")
        return float(known[number])


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the planner."""
    yield Stage(name="weighted", summary="batches with a chosen part of each class", factory=Weighted)
