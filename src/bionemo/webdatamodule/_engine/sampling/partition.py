"""How an epoch is cut into global batches, a batch into ranks' shares, and a rank's batches into workers' chunks.

Everything here is arithmetic on integers.
``rest`` is what an epoch still has to give, so cutting the rest at any batch boundary
gives the batches that were to come anyway: nothing but the count of samples must be remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

from bionemo.webdatamodule._engine.sampling.permutation import Ids
from bionemo.webdatamodule.errors import PlanError, count

CHUNK_SAMPLES = 512  # that cross from a worker at once, at most
COLUMNAR_SAMPLES = 1024  # the same where no stage takes them one by one, so that they are made in a few milliseconds
CHUNK_BYTES = 1 << 22  # with less, the overhead of calls shows; more only takes memory
LAZY_BYTES = 1 << 26  # where batches are made one by one: bytes that are examined together

Tail: TypeAlias = Literal["share", "drop", "fill"]
"""What becomes of samples that do not fill a global batch: the last two batches share them evenly,
they are left out, or the batch is filled from the next epoch's order."""


def n_batches(rest: int, size: int, ranks: int, tail: Tail) -> int:
    """Return the number of global batches, the same for every rank.

    Args:
        rest: Samples to cut.
        size: Global batch size.
        ranks: Ranks that share each batch.
        tail: What becomes of an incomplete batch.

    Returns:
        ``ceil(rest / size)``, or with fewer than two samples a rank and batch ``floor``, the leftover joining
        the last full batch. 0 where the rest has fewer samples than ranks.

    Raises:
        PlanError: If a global batch has fewer samples than ranks.
    """
    if not 1 <= ranks <= size:
        raise PlanError(
            f"a global batch of {count(size, 'sample')} cannot serve {count(ranks, 'rank')}: each needs at least one; "
            f"raise global_batch_size to {max(ranks, 1)} or more, or use fewer ranks"
        )
    full, left = divmod(max(rest, 0), size)
    if tail == "drop" or not left:
        return full
    if tail == "fill":
        return full + 1
    if not full:
        return int(left >= ranks)
    return full + (size >= 2 * ranks)


def bounds(batch: int, rest: int, size: int, ranks: int, tail: Tail) -> tuple[int, int]:
    """Return where a global batch begins and ends, in samples from the beginning of the rest.

    With ``tail="fill"`` the last one may end beyond the rest, in the next epoch.

    Args:
        batch: Number of the batch.
        rest: Samples to cut.
        size: Global batch size.
        ranks: Ranks that share each batch.
        tail: What becomes of an incomplete batch.

    Raises:
        IndexError: If there is no such batch.
    """
    batches = n_batches(rest, size, ranks, tail)
    if not 0 <= batch < batches:
        raise IndexError(f"there is no batch {batch}: {count(rest, 'sample')} in batches of {size} make {batches}")
    first, stop = batch * size, (batch + 1) * size
    if tail != "share" or rest == batches * size or batch < batches - 2:
        return first, stop
    if batches < -(-rest // size):  # the leftover joins the last batch
        return first, rest if batch == batches - 1 else stop
    if batches == 1:
        return 0, rest
    middle = rest - (rest - (batches - 2) * size) // 2
    return (middle, rest) if batch == batches - 1 else (first, middle)


def part(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return where a rank's share of ``size`` samples begins and ends; shares differ by one at most.

    The shares of ranks 0, 1, … in a row are the whole (the rule of ``numpy.array_split``).
    """
    each, more = divmod(size, ranks)
    first = rank * each + min(rank, more)
    return first, first + each + (rank < more)


def divide_last(edges: Ids, ranks: int) -> Ids:
    """Divide batches at the end of a list until their number is a multiple of the number of ranks.

    From the end on, batches become single samples, and the last one to be divided becomes near-equal parts.
    That depends on the end of the list alone, so what is left of the result after any step
    is the result for what is left of the list. Dividing the largest first would not have this property.

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


def chunks(batches: int, worker: int, workers: int, *, length: int = 1) -> Iterator[range]:
    """Yield the runs of batches that a worker takes: chunk ``worker``, ``worker + workers``, ….

    A loader that asks its workers in turn for one chunk each gets all batches in order.

    Args:
        batches: Batches of this rank.
        worker: Number of the worker, from 0.
        workers: Number of workers; 0, for none, counts as one.
        length: Batches in a chunk; the last one may be shorter.
    """
    for first in range(worker * length, batches, max(workers, 1) * length):
        yield range(first, min(first + length, batches))


def chunk_length(
    batches: int,
    share: int,
    workers: int,
    *,
    sample_bytes: float = 0,
    most_samples: int = CHUNK_SAMPLES,
    most_bytes: int = CHUNK_BYTES,
) -> int:
    """Return how many batches a worker should bring at a time.

    Enough for some hundred samples or kilobytes, since every hand-over between processes has its price,
    but so few that each worker gets about four turns or more, so that none is idle in a short epoch.

    Args:
        batches: Batches of this rank.
        share: Samples of a batch of this rank.
        workers: Number of workers; 0, for none, counts as one.
        sample_bytes: Mean size of a sample; 0 if it is not known.
        most_samples: What a chunk may hold, unless a batch alone has more.
        most_bytes: What a chunk may hold, unless a batch alone is larger.
    """
    share = max(1, share)
    enough = min(most_samples / share, most_bytes / max(1, share * sample_bytes))
    return max(1, min(int(enough), batches // (4 * max(1, workers))))


def mean_share(n_samples: int, batches: int, ranks: int) -> int:
    """Return how many samples a rank takes of a batch on average, rounded down, for :func:`chunk_length`."""
    return n_samples // (max(1, batches) * ranks)
