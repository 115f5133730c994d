"""The planner ``batch_by_size``: batches of samples of similar size, within a limit."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.batching import Collate, collated, collated_values, collation
from bionemo.webdatamodule.builtins.packing import check_size, pack_plan, pack_stream
from bionemo.webdatamodule.columns import Fields
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import ConfigError, PlanError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import one_of, whole_number
from bionemo.webdatamodule.planning import Ids, ListedPlan, PlanRequest, permutation, size_of

Oversize: TypeAlias = Literal["error", "alone"]


@dataclass(frozen=True, kw_only=True)
class BatchBySize:
    """Join samples of similar size into batches of limited padded size, such as 4,096 tokens.

    As the first stage of ``pipeline_prebatch_wld`` in global order, it makes the plan: sizes are read once at setup,
    every rank takes the same number of batches, and ``global_batch_size`` is ignored.
    In shards order it batches the stream.

    Args:
        size: The size of a sample. A suffix: the length of that field, or its value if it is a number.
            Or a function of a sample: in global order of the stored fields, a value for one suffix and a tuple for
            several; in shards order of the sample at this stage.
        max_total: Limit of a batch.
        total: What is limited: ``"padded"``, the number of samples times the largest size, for tensors that are
            padded; or ``"sum"``, the sum of the sizes, for graphs and other samples that are joined without padding.
        max_samples: Limit of a batch in samples; 0 for none.
        width: In global order with ``"padded"``, how much sizes in a batch may differ: 0.1 for about 10 %.
            A smaller width needs less padding, a larger one mixes better.
        window: In shards order, samples that are sorted at a time.
        oversize: For a sample that is larger than ``max_total``: ``"error"``, or ``"alone"`` for a separate batch.
        collate: The function from a list of samples to a batch, as in ``batch``.
    """

    size: str | Callable[[Any], int]
    max_total: int
    max_samples: int = 0
    total: Literal["padded", "sum"] = "padded"
    width: float = 0.1
    window: int = 1024
    oversize: Oversize = "error"
    collate: Collate = "pad"
    anywhere = True
    makes_batches = True

    def __post_init__(self) -> None:
        check_size(self.size)
        whole_number("max_total", self.max_total, least=1)
        whole_number("max_samples", self.max_samples, least=0)
        whole_number("window", self.window, least=1)
        if not (math.isfinite(self.width) and self.width >= 0):
            raise ConfigError(f"width is a number from 0 on, not {self.width!r}")
        one_of("total", self.total, ("padded", "sum"))
        if (self.total, self.oversize) == ("sum", "alone"):
            raise ConfigError("oversize='alone' needs total='padded'; leave out samples that are too large")
        one_of("oversize", self.oversize, ("error", "alone"))
        collation(self.collate)

    def plan(self, sizes: Ids, request: PlanRequest) -> ListedPlan:
        """Return the plan of all epochs.

        Raises:
            PlanError: If a sample is too large.
        """
        if self.total == "sum":
            return pack_plan(sizes, request, max_total=self.max_total, max_samples=self.max_samples)
        check_sizes(sizes, self.max_total, self.oversize)
        options = repr((self.max_total, self.max_samples, self.width, request.shuffle))
        return ListedPlan(
            batches=SizeBatches.of(self, sizes, request),
            n_samples=len(sizes),
            seed=request.seed,
            digest=hashlib.blake2b(sizes.astype("<i8").tobytes() + options.encode(), digest_size=8).hexdigest(),
        )

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches; in global order the planned share is one."""
        collate = partial(collated_values, collate=self.collate)
        if context.current().order == "global":
            return (collate(share) for share in [list(samples)] if share)
        if self.total == "sum":
            limits = {"max_total": self.max_total, "max_samples": self.max_samples, "window": self.window}
            return (collate(pack) for pack in pack_stream(samples, self._size, **limits))
        return (collate(batch) for batch in self._batches(samples))

    def columns(self, fields: Fields) -> Any:
        """Return the batch of a planned share."""
        return collated(fields, self.collate)

    def _size(self, sample: Any) -> int:
        if callable(self.size):
            return self.size(sample)
        return size_of(_field(sample, self.size), repr(self.size))

    def _batches(self, samples: Iterator[Any]) -> Iterator[list[Any]]:
        """Yield batches of like size from a stream whose length is not known.

        Of each window the batches are formed largest first, and yielded in the order in which their first samples
        came, so sizes do not rise or fall with the window. Samples that fill no batch wait for the next window.
        """
        numbered = enumerate(samples)
        waiting: list[tuple[int, int, Any]] = []  # size, number in the stream, sample
        ended = False
        while not ended:
            fresh = list(itertools.islice(numbered, max(1, self.window - len(waiting))))
            ended = not fresh
            for number, sample in fresh:
                waiting.append((int(self._size(sample)), number, sample))
                if waiting[-1][0] > self.max_total and self.oversize == "error":
                    raise _too_large(waiting[-1][0], f"{number} of the stream", self.max_total)
            waiting.sort(key=lambda entry: (-entry[0], entry[1]))
            batches = []
            while waiting:
                held = capacity(waiting[0][0], self.max_total, self.max_samples)
                if len(waiting) < held and not ended:
                    break
                batches.append(sorted(waiting[:held], key=lambda entry: entry[1]))
                del waiting[:held]
            for batch in sorted(batches, key=lambda entries: entries[0][1]):
                yield [sample for _, _, sample in batch]


@dataclass(frozen=True, kw_only=True)
class SizeBatches:
    """Lists batches of like size, epoch by epoch.

    Samples are sorted by size into buckets once. In every epoch the samples of each bucket are shuffled and cut into
    batches, and all batches are shuffled. A bucket's batches hold as many samples as its largest size allows, so the
    number of batches is the same in every epoch and independent of the number of ranks.

    Attributes:
        by_size: Sample numbers, the largest first.
        buckets: Places in ``by_size`` where buckets begin, and the end.
        cuts: Places in ``by_size`` where batches begin, and the end.
        seed: Any integer.
        shuffle: False for the same order in every epoch, the largest first.
    """

    by_size: Ids = field(repr=False)
    buckets: Ids = field(repr=False)
    cuts: Ids = field(repr=False)
    seed: int
    shuffle: bool

    @classmethod
    def of(cls, stage: BatchBySize, sizes: Ids, request: PlanRequest) -> SizeBatches:
        """Sort sizes into buckets and cut these into batches."""
        by_size = np.argsort(-sizes, kind="stable")
        buckets, cuts = cut(sizes[by_size], stage.max_total, stage.max_samples, stage.width)
        return cls(by_size=by_size, buckets=buckets, cuts=cuts, seed=request.seed, shuffle=request.shuffle)

    def __call__(self, epoch: int) -> tuple[Ids, Ids]:
        """Return the samples of an epoch in order, and where batches begin, with the end."""
        if not self.shuffle:
            return self.by_size, self.cuts
        shuffled = np.empty_like(self.by_size)
        for bucket, (low, high) in enumerate(itertools.pairwise(self.buckets.tolist())):
            order = permutation(high - low, "sized", self.seed, epoch, bucket)
            shuffled[low:high] = self.by_size[low + order(np.arange(high - low))]
        batches = permutation(len(self.cuts) - 1, "sized", self.seed, epoch, -1)(np.arange(len(self.cuts) - 1))
        lengths = np.diff(self.cuts)[batches]
        edges = np.append(0, np.cumsum(lengths))
        places = np.arange(len(shuffled)) + np.repeat(self.cuts[batches] - edges[:-1], lengths)
        return shuffled[places], edges


def capacity(size: int, max_total: int, max_samples: int = 0) -> int:
    """Return how many samples of a size a batch holds, at least one.

    Args:
        size: The largest of the batch, from 0 on.
        max_total: Limit of samples times largest size.
        max_samples: Limit in samples; 0 for none.
    """
    held = max(1, max_total // max(1, size))
    return min(held, max_samples) if max_samples else held


def cut(sizes: Ids, max_total: int, max_samples: int, width: float) -> tuple[Ids, Ids]:
    """Cut samples, the largest first, into buckets, and these into batches.

    A bucket takes sizes down to ``1 / (1 + width)`` of its largest, and as many more as fill its last batch;
    so only the last bucket has batches that are not full, and these share what it has evenly.

    Args:
        sizes: (n,) in falling order.
        max_total: Limit of samples times largest size of a batch.
        max_samples: Limit of a batch in samples; 0 for none.
        width: How far sizes in a bucket may lie apart.

    Returns:
        Where buckets begin and where batches begin, with the end behind each.
    """
    n, rising = len(sizes), -sizes
    buckets, batches = [0], [np.zeros(1, dtype=np.int64)]
    while (first := buckets[-1]) < n:
        largest = int(sizes[first])
        held = capacity(largest, max_total, max_samples)
        near = int(np.searchsorted(rising, -math.ceil(largest / (1 + width)), side="right")) - first
        count = -(-near // held)
        taken = min(count * held, n - first)
        each, more = divmod(taken, count)
        batches.append(first + np.arange(1, count + 1) * each + np.minimum(np.arange(1, count + 1), more))
        buckets.append(first + taken)
    return np.array(buckets), np.concatenate(batches)


def check_sizes(sizes: Ids, max_total: int, oversize: Oversize) -> None:
    """Check that every sample fits into a batch.

    Raises:
        PlanError: If one does not and may not be alone; the message names it.
    """
    largest = int(sizes.argmax())
    if sizes[largest] > max_total and oversize == "error":
        raise _too_large(int(sizes[largest]), str(largest), max_total)


def _too_large(size: int, sample: str, max_total: int) -> PlanError:
    return PlanError(
        f"sample {sample} has size {size}, more than the {max_total} of a whole batch; "
        "raise max_total, leave the sample out, or give it a batch of its own with oversize='alone'"
    )


def _field(sample: Any, suffix: Any) -> Any:
    if not isinstance(sample, Mapping):
        raise ConfigError(
            f"batch_by_size cannot find {suffix!r} in a {type(sample).__name__}; give it a function as size, "
            "samples that are dictionaries, or order='global'"
        )
    return sample[suffix]


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the planner."""
    yield Stage(name="batch_by_size", summary="join samples of like size, up to a total size", factory=BatchBySize)
