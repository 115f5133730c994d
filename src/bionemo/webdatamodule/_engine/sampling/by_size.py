"""Cutting samples of like size into batches, of a whole data set and of a stream."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from bionemo.webdatamodule._engine.sampling.partition import part
from bionemo.webdatamodule._engine.sampling.permutation import Ids
from bionemo.webdatamodule.errors import PlanError

_T = TypeVar("_T")

Oversize: TypeAlias = Literal["error", "alone"]
"""What becomes of a sample that is larger than a whole batch may be: an error, or a batch of its own."""


def capacity(size: int, max_total: int, max_samples: int = 0) -> int:
    """Return how many samples of a size a batch holds, at least one.

    Args:
        size: The largest of the batch, from 0 on.
        max_total: What samples times largest size may come to.
        max_samples: Limit in samples; 0 for none.
    """
    held = max(1, max_total // max(1, size))
    return min(held, max_samples) if max_samples else held


def cut(sizes: Ids, max_total: int, max_samples: int, width: float) -> tuple[Ids, Ids]:
    """Cut samples, the largest first, into buckets, and these into batches.

    A bucket takes sizes down to ``1 / (1 + width)`` of its largest, and as many more as fill its last batch;
    so only the last bucket of all has batches that are not full, and these share what it has evenly.

    Args:
        sizes: (n,) in falling order.
        max_total: What samples times largest size of a batch may come to.
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


def divide_last(edges: Ids, ranks: int) -> Ids:
    """Divide batches at the end of a list until their number is a multiple of the number of ranks.

    From the end on, batches become single samples, and the last one to be divided becomes near-equal parts.
    That depends on the end of the list alone, so what is left of the result after any step
    is the result for what is left of the list. (Dividing the largest first would not have this property.)

    Args:
        edges: (b + 1,) where each of b batches begins, and the end; rising.
        ranks: Number of ranks.

    Returns:
        The same with more edges. Where samples are too few, whole steps of undivided batches alone:
        the end is then left out.
    """
    count = len(edges) - 1
    more = -count % ranks
    if not more:
        return edges
    if edges[-1] - edges[0] < count + more:
        return edges[: count - count % ranks + 1]
    spare = np.cumsum((np.diff(edges) - 1)[::-1])
    behind = int(np.searchsorted(spare, more))
    parts = 1 + more - (int(spare[behind - 1]) if behind else 0)
    first, stop = (int(edge) for edge in edges[count - 1 - behind : count + 1 - behind])
    inner = [first + part(stop - first, number, parts)[0] for number in range(parts)]
    return np.concatenate([edges[: count - 1 - behind], inner, np.arange(stop, edges[-1] + 1)])


def check_sizes(largest: int, sample: object, max_total: int, oversize: Oversize) -> None:
    """Check that a sample fits into a batch.

    Raises:
        PlanError: If it does not and may not be alone; the message names it.
    """
    if largest > max_total and oversize == "error":
        raise PlanError(
            f"sample {sample} has size {largest}, more than the {max_total} of a whole batch; "
            "raise max_total, leave the sample out, or give it a batch of its own with oversize='alone'"
        )


def batch_by_size(
    samples: Iterable[_T],
    size: Callable[[_T], int],
    *,
    max_total: int,
    max_samples: int = 0,
    window: int = 1024,
    oversize: Oversize = "error",
) -> Iterator[list[_T]]:
    """Yield batches of like size from a stream whose length is not known.

    Of each window the batches are formed largest first, and yielded in the order in which their first samples came,
    so sizes do not rise or fall with the window.
    Samples that fill no batch wait for the next window.

    Args:
        samples: The stream.
        size: Gives the size of a sample, an integer from 0 on.
        max_total: What samples times largest size of a batch may come to.
        max_samples: Limit of a batch in samples; 0 for none.
        window: Samples that are sorted at a time.
        oversize: What becomes of a sample that is larger than ``max_total``.

    Raises:
        PlanError: If a sample is too large.
    """
    numbered = enumerate(samples)
    waiting: list[tuple[int, int, _T]] = []  # size, number in the stream, sample
    ended = False
    while not ended:
        fresh = list(itertools.islice(numbered, max(1, window - len(waiting))))
        ended = not fresh
        for number, sample in fresh:
            waiting.append((int(size(sample)), number, sample))
            check_sizes(waiting[-1][0], f"{number} of the stream", max_total, oversize)
        waiting.sort(key=lambda entry: (-entry[0], entry[1]))
        batches = []
        while waiting:
            held = capacity(waiting[0][0], max_total, max_samples)
            if len(waiting) < held and not ended:
                break
            batches.append(sorted(waiting[:held], key=lambda entry: entry[1]))
            del waiting[:held]
        for batch in sorted(batches, key=lambda entries: entries[0][1]):
            yield [sample for _, _, sample in batch]
