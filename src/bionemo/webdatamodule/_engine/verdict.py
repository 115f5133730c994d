"""The verdict of ``bench`` and training runs: what a run waits for, and the setting to change."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SETTINGS = {
    "store": "dirs_tars_wds, to a copy of the shards on a local disk",
    "decoding": "suffix_keys_wds, to the fields that the model needs, stored as plain arrays or tensors",
    "stages": "pipeline_wds: what is the same in each epoch belongs into the conversion",
    "start": "persistent_workers in kwargs_wld, to True",
    "transport": "global_batch_size, to larger batches, which cost less for each sample",
}


def slowest(costs: Mapping[str, float], *, more: int = 0, checks: bool = False) -> tuple[str, float, str]:
    """Return the part that takes most, its share of the whole from 0 to 1, and the setting to change.

    Args:
        costs: What each part takes, in any unit: ``"store"``, ``"decoding"``, ``"transport"``, ``"start"`` of workers;
            others are stages.
        more: Workers to take instead, where more of them would help; 0 where they would not.
        checks: Whether checksums are most of what the store takes.
    """
    part = max(costs, key=lambda name: costs[name])
    if part == "store" and checks:
        setting = 'check, to "never": checksums take longer than reading'
    elif part not in ("transport", "start") and more:
        setting = f"num_workers in kwargs_wld, to {more}"
    else:
        setting = _SETTINGS.get(part, _SETTINGS["stages"])
    return part, costs[part] / (sum(costs.values()) or 1.0), setting


def waits(
    spent: Mapping[str, float], own: Mapping[str, float], *, waited: float, total: float, started: float, workers: int
) -> dict[str, float]:
    """Return the seconds for which an epoch waited for each part.

    Workers work while the model trains. Where they are busy all the time, the wait is theirs, each part's by what it
    takes; where they are not, what they made was late for other reasons: their start, or the transport.

    Args:
        spent: Seconds that the parts of the work took in all workers together.
        own: Those that stages took in the main process.
        waited: Seconds that the main process waited, in which it ran these stages.
        total: Seconds of the epoch's steps, waiting included.
        started: Seconds until the first batch, of those waited.
        workers: Worker processes; 0 where all is done in the main process.
    """
    if not workers:
        return {**spent, **{part: own[part] + spent.get(part, 0.0) for part in own}}
    busy = sum(spent.values()) / workers
    late = min(waited - started, max(0.0, total - started - busy))
    transport = max(0.0, late - sum(own.values()))
    theirs = max(0.0, waited - started - late)
    scale = theirs / (sum(spent.values()) or 1.0)
    found = {part: seconds * scale for part, seconds in spent.items()}
    for part, seconds in own.items():
        found[part] = found.get(part, 0.0) + min(seconds, late)
    return {**found, "transport": transport, "start": started}


def more_workers(workers: int, cpus: int) -> int:
    """Return how many workers to take instead of some, where they do not suffice; 0 if there is no processor left."""
    return min(cpus, max(2, 2 * workers)) if workers < (cpus if workers else cpus - 1) else 0


def usable_cpus() -> int:
    """Return the number of processors that this process may use, of which only Linux knows a subset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
