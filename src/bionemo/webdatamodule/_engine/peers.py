"""Comparison of the first batches of ranks that must get the same ones, such as a tensor-parallel group."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bionemo.webdatamodule._engine.ranks import Topology, exchange, processes
from bionemo.webdatamodule.errors import PeerMismatchError

_log = logging.getLogger("bionemo.webdatamodule")

WAIT = 120.0  # seconds that ranks get for their first batch, whose workers start and fetch
SEEN = 5.0  # seconds that they get to find a difference, before one of them ends
_SERIAL = itertools.count()  # of the loaders of this process, which all ranks make in one order


class Peers:
    """Compares the first batch of a loader among all processes of a run, once.

    Args:
        split: Name of the split.
        place: This process's place among the data-parallel ones.
    """

    def __init__(self, split: str, place: Topology) -> None:
        self._split = split
        self._place = place
        self._name = f"first batch/{split}/{next(_SERIAL)}"
        self._due = True

    def check(self, batch: Any, samples: str = "") -> None:
        """Compare a batch, the first time that this is called.

        Args:
            batch: The batch.
            samples: What says which samples it is made of, if that is known.

        Raises:
            PeerMismatchError: If ranks with one data rank got different batches, or data ranks do not fit together.
        """
        if not self._due:
            return
        self._due = False
        rank, count = processes()
        mine = [self._place.rank, self._place.world_size, samples, fingerprint(batch)]
        found = exchange(self._name, rank, range(count), mine, wait=WAIT)
        if found is None:
            return
        if len(found) < count:
            missing = ", ".join(str(other) for other in range(count) if other not in found)
            _log.warning(
                "%s: the first batch was not compared with those of ranks %s, which had none within %g s",
                self._split,
                missing,
                WAIT,
            )
            return
        if what := mismatch({other: tuple(value) for other, value in found.items()}):
            exchange(f"{self._name}/seen", rank, range(count), True, wait=SEEN)  # the first one serves the store
            raise PeerMismatchError(what, split=self._split, rank=rank)


def mismatch(found: Mapping[int, tuple[int, int, str, str]]) -> str:
    """Return the difference between the places and first batches of all processes; empty if there is none.

    Args:
        found: For each process its data rank, their number, and what says samples and contents of its first batch.
    """
    by_rank = defaultdict(list)
    for process, (rank, _, _, _) in sorted(found.items()):
        by_rank[rank].append(process)
    sizes = {world_size for _, world_size, _, _ in found.values()}
    if len(sizes) > 1 or sorted(by_rank) != list(range(*sizes)) or len(set(Counter(map(len, by_rank.values())))) > 1:
        listed = ", ".join(f"process {process}: {rank} of {size}" for process, (rank, size, _, _) in found.items())
        return (
            f"the data ranks of the processes do not fit together ({listed}); each data rank must be given to equally "
            "many processes: look at data_ranks, or the strategy's mesh"
        )
    for rank, processes_ in by_rank.items():
        for place, what, remedy in (
            (2, "read different samples", "give all processes the same data, seed, sizes and checkpoint"),
            (
                3,
                "made different batches of the same samples",
                "draw random numbers in stages from bionemo.webdatamodule.context",
            ),
        ):
            values = [found[process][place] for process in processes_]
            if len(set(values)) > 1:
                other = next(process for process in processes_ if found[process][place] != values[0])
                return f"processes {processes_[0]} and {other} share the data rank {rank} and {what}; {remedy}"
    return ""


def fingerprint(value: Any) -> str:
    """Return a hash of a batch: tensors, arrays, numbers and text in containers, and the types of other objects."""
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested:
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _feed(digest, name)
            _feed(digest, one)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} ".encode())
        for one in value:
            _feed(digest, one)
    else:
        plain = value is None or isinstance(value, str | bytes | int | float | complex)
        digest.update(f"{type(value).__name__} {value!r} ".encode() if plain else type(value).__name__.encode())
