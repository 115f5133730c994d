"""Pieces: runs of neighbouring samples of one shard, the unit of reading where reads must stay local."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bionemo.webdatamodule._engine.sampling.permutation import Ids

PIECE_BYTES = 4 << 20  # of a piece at most: at usual latencies a connection still works most of the time
OPEN_BYTES = 2 << 30  # of one piece for each lane, at most
MOST_PIECES = 1 << 22  # of a data set, about; some bytes of memory each
PASSES = 256  # pieces of a data set at least, if it has as many samples
MOST_LANES = 2048
USUAL_LANES = 64
PIECES_IN_LANE = 4


class Piece(NamedTuple):
    """A run of samples to fetch.

    Attributes:
        shard: Number of the shard, counted through all sources.
        first: Its first sample, counted from the beginning of the shard.
        stop: The sample behind its last.
        batch: The batch that needs it first.
    """

    shard: int
    first: int
    stop: int
    batch: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """Where the pieces of a data set begin, and the end.

    Shards are cut as the cache of remote shards cuts them
    (:class:`~bionemo.webdatamodule._engine.storage.remote.pieces.Cut`), so that each piece is a file there.

    Attributes:
        firsts: First sample of each piece, ``(p + 1,)``, rising; the last is the number of samples.
    """

    firsts: Ids

    @classmethod
    def of(cls, samples: Sequence[int], sizes: Sequence[int], piece_bytes: int) -> Pieces:
        """Cut shards into pieces of about equal size.

        Args:
            samples: Samples of each shard.
            sizes: Bytes of each shard.
            piece_bytes: Bytes of a piece; 0 for one piece a shard.
        """
        counts = np.asarray(samples, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        starts, counts, known = starts[counts > 0], counts[counts > 0], np.asarray(sizes, dtype=np.int64)
        wanted = np.ones_like(counts)
        if piece_bytes:
            wanted = np.clip(-(-known[np.asarray(samples) > 0] // piece_bytes), 1, counts)
        each, more = np.divmod(np.repeat(counts, wanted), np.repeat(wanted, wanted))
        inside = np.arange(len(each)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        firsts = np.repeat(starts, wanted) + inside * each + np.minimum(inside, more)
        return cls(firsts=np.append(firsts, int(np.sum(np.asarray(samples, dtype=np.int64)))))


def choose(total_bytes: int, n_samples: int, global_batch_size: int) -> tuple[int, int]:
    """Return how many lanes and how large pieces suit a data set that is far away.

    With as many lanes as samples in a batch, or a multiple or a divisor of it, the share of a rank is whole lanes
    in every batch, so that each byte is needed on one rank only.

    Args:
        total_bytes: Bytes of all shards.
        n_samples: Samples of all shards.
        global_batch_size: Samples of a global batch.

    Returns:
        Lanes, and bytes of a piece.
    """
    largest = max(PIECE_BYTES, total_bytes // MOST_PIECES)
    pieces = min(max(PASSES, total_bytes // largest), n_samples)
    most = max(1, min(pieces // PIECES_IN_LANE, MOST_LANES))
    if global_batch_size <= most:
        lanes = global_batch_size * max(1, min(-(-USUAL_LANES // global_batch_size), most // global_batch_size))
    else:
        lanes = max(lanes for lanes in range(1, most + 1) if not global_batch_size % lanes)
    bounded = min(largest, max(1, OPEN_BYTES // lanes)) if total_bytes // MOST_PIECES < OPEN_BYTES // lanes else largest
    return lanes, max(1, min(bounded, math.ceil(total_bytes / pieces)))
