"""This process's data-parallel rank, and the exchange of values between ranks.

Values go through the key-value store that ``torch.distributed`` runs on. No collective call is made, so a rank that
died or is elsewhere costs the others a limited time and nothing more.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule.errors import ConfigError

if TYPE_CHECKING:
    import lightning as L
    from torch.distributed.device_mesh import DeviceMesh

DataRanks: TypeAlias = "DeviceMesh | Callable[[], DeviceMesh | tuple[int, int]] | None"
"""The source of the data rank: a mesh, a function that returns one, or the rank and the number of ranks."""

_DATA = ("data", "data_parallel", "ddp", "dp", "fsdp", "hsdp", "replicate", "shard")
"""Names of the dimensions of a mesh along which batches differ, and those that begin with ``data_`` or ``dp_``."""

_POLL = 0.01  # seconds


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This process's place among the data-parallel processes."""

    rank: int = 0
    world_size: int = 1


def topology_of(trainer: L.Trainer | None, data_ranks: DataRanks = None) -> Topology:
    """Return this process's place among the data-parallel ones.

    It is asked of the mesh or the function that the user gave, else of the trainer's strategy, else of
    ``torch.distributed``, else of ``RANK`` and ``WORLD_SIZE``.

    Raises:
        ConfigError: If the mesh or the function says nothing that can be used.
    """
    if data_ranks is not None:
        return _given(data_ranks() if callable(data_ranks) else data_ranks, data_ranks)
    if trainer is not None:
        place = trainer.distributed_sampler_kwargs or {}
        return Topology(rank=int(place.get("rank", 0)), world_size=max(1, int(place.get("num_replicas", 1))))
    rank, world_size = processes()
    return Topology(rank=rank, world_size=world_size)


def processes() -> tuple[int, int]:
    """Return the rank of this process among all of the run, data-parallel or not, and the number of processes."""
    if _is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def _given(found: Any, data_ranks: DataRanks) -> Topology:
    if hasattr(found, "mesh_dim_names"):
        return _along(found)
    try:
        rank, world_size = map(operator.index, found)
    except (TypeError, ValueError):
        rank, world_size = -1, 0
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"data_ranks is {describe(data_ranks)} and gives {found!r:.60}; give a DeviceMesh, or a function that "
            "returns one, or this process's data rank and the number of data ranks, such as (0, 4)"
        )
    return Topology(rank=rank, world_size=world_size)


def _along(mesh: DeviceMesh) -> Topology:
    """Return the place along the data-parallel dimensions of a mesh; the peers along the others get the same data."""
    names = tuple(mesh.mesh_dim_names or ())
    data = [place for place, name in enumerate(names) if name in _DATA or _begins_as_data(name)]
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        raise ConfigError("this process is not in the mesh that data_ranks gives; give one of all processes of the run")
    if not data:
        raise ConfigError(
            f"no dimension of the mesh ({', '.join(names) or 'without names'}) is called {', '.join(_DATA)} or dp_…; "
            "give data_ranks=lambda: (mesh['name'].get_local_rank(), mesh['name'].size())"
        )
    rank, world_size = 0, 1
    for place in data:
        rank = rank * mesh.size(place) + coordinates[place]
        world_size *= mesh.size(place)
    return Topology(rank=rank, world_size=world_size)


def _begins_as_data(name: str) -> bool:
    return name.startswith(("data_", "dp_")) and not {"cp", "pp", "tp"} & set(name.split("_"))


def exchange(name: str, rank: int, ranks: Sequence[int], value: Any, *, wait: float) -> dict[int, Any] | None:
    """Publish a value for other ranks, and return theirs.

    Args:
        name: What it is of, the same on all ranks and nothing else.
        rank: This rank.
        ranks: Those whose values are wanted; none to leave one only.
        value: Anything that JSON takes.
        wait: Seconds that others get.

    Returns:
        The values of the ranks that left one; ``None`` where there is no store.
    """
    if not _is_initialized():
        return None
    store = torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - nothing public
    keys = {other: _key(name, other) for other in ranks}
    end = time.monotonic() + wait
    try:
        store.set(_key(name, rank), json.dumps(value))
        while keys and not store.check([*keys.values()]) and time.monotonic() < end:
            time.sleep(_POLL)
        return {other: json.loads(store.get(key)) for other, key in keys.items() if store.check([key])}
    except RuntimeError:  # the process that serves the store is gone
        return {rank: value} if rank in keys else {}


def forget(name: str, ranks: Sequence[int]) -> None:
    """Remove the published values, once no rank needs them."""
    store = torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001
    with contextlib.suppress(RuntimeError):
        for rank in ranks:
            store.delete_key(_key(name, rank))


def _key(name: str, rank: int) -> str:
    return f"bionemo.webdatamodule/{name}/{rank}"


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
