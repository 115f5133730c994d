"""The summary of a plan: steps, shares, workers, leftover samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bionemo.webdatamodule._engine.sampling.partition import chunk_length, chunks, mean_share, part
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.sampling.schedule import shares
from bionemo.webdatamodule.errors import PlanError, count

_NODES = 8  # nodes that are looked at
_SAMPLES = 400_000


def report_global(
    plan: Plan,
    *,
    ranks: int,
    workers: int,
    accumulate: int = 1,
    epoch: int = 0,
    sample_bytes: float = 0,
    ranks_per_node: int = 0,
) -> dict[str, Any]:
    """Return what each rank and worker reads in an epoch in global order, as JSON values.

    Args:
        plan: The plan.
        ranks: Number of ranks.
        workers: Workers of each rank; 0 for none.
        accumulate: Batches to a step of the optimizer.
        epoch: The epoch whose first samples are shown.
        sample_bytes: Mean size of a sample; 0 if it is not known.
        ranks_per_node: Ranks that share what they fetch; 0 leaves out what the nodes fetch.

    Returns:
        A mapping whose ``problems`` are empty if the run can be done; else the rest of it may be missing.
    """
    available = sum(source.samples for source in plan.sources)
    found: dict[str, Any] = {
        "order": "global",
        "available": available,
        "n_samples": plan.n_samples,
        "global_batch_size": plan.global_batch_size,
        "epoch": epoch,
        "seed": plan.seed,
        "tail": plan.tail,
        "lanes": plan.lanes,
        "problems": [],
        "notes": [],
    }
    try:
        plan.check(ranks)
    except PlanError as error:
        found["problems"].append(error.message)
        return found
    batches = plan.n_batches(ranks)
    last = [_size(plan, batch, ranks) for batch in range(max(0, batches - 3), batches)]
    found |= {
        **_steps(batches, accumulate),
        "last_batches": last,
        "dropped": plan.unserved(ranks),
        "borrowed": max(0, plan.batch_bounds(batches - 1, ranks)[1] - plan.n_samples),
        "mixture": _mixture(plan),
        "shares": _changing(plan),
        "draws_from": min(plan.global_batch_size, plan.lanes or plan.n_samples) if plan.shuffle else 1,
        **_far_away(plan, ranks, ranks_per_node),
        "ranks": [_rank(plan, rank, ranks, batches, last, epoch) for rank in range(ranks)],
        "workers": _workers(batches, workers, mean_share(plan.n_samples, batches, ranks), sample_bytes),
    }
    found["notes"] = list(_notes(plan, found, ranks, available))
    return found


def report_shards(
    shards: Sequence[int], *, ranks: int, workers: int, global_batch_size: int, n_samples: int = 0, accumulate: int = 1
) -> dict[str, Any]:
    """Return what each rank and worker reads in shards order, as JSON values.

    Args:
        shards: Samples of each shard.
        ranks: Number of ranks.
        workers: Workers of each rank; 0 for none.
        global_batch_size: Samples of a global batch.
        n_samples: Samples of an epoch; 0 for as many as there are.
        accumulate: Batches to a step of the optimizer.
    """
    share = max(1, global_batch_size // ranks)
    n_samples = n_samples or sum(shards)
    batches = -(-n_samples // global_batch_size)
    table = []
    for rank in range(ranks):
        own = shards[rank::ranks]
        table += [
            {"rank": rank, "worker": worker, "shards": len(mine), "samples": sum(mine)}
            for worker in range(max(1, workers))
            for mine in [own[worker :: max(1, workers)]]
        ]
    samples = [sum(shards[rank::ranks]) for rank in range(ranks)]
    found: dict[str, Any] = {
        "order": "shards",
        "available": sum(shards),
        "n_samples": n_samples,
        "shards": len(shards),
        "global_batch_size": global_batch_size,
        **_steps(batches, accumulate),
        "ranks": [{"rank": rank, "samples": count, "per_epoch": batches * share} for rank, count in enumerate(samples)],
        "workers": table,
        "problems": [],
        "notes": [],
    }
    needed = ranks * max(1, workers)
    if len(shards) < needed:
        found["problems"].append(
            f"fewer shards than workers: {count(len(shards), 'shard')} for {count(ranks, 'rank')} of "
            f"{count(max(1, workers), 'worker')}; convert into at least {count(needed, 'shard')}, take fewer workers, "
            "or use order='global', which needs no shard for each worker"
        )
    elif min(samples) != max(samples):
        found["notes"].append(
            f"ranks have {min(samples)} to {max(samples)} samples, and each takes {batches * share} in an epoch: "
            "some samples come more often than others; order='global' takes each once"
        )
    return found


def fetched(plan: Plan, nodes: int, ranks_per_node: int = 1) -> float:
    """Return how many bytes a cluster fetches in an epoch, relative to the data: 1 if each byte comes once.

    Each node keeps what it has fetched. It is measured on a few nodes, and on a part of the shards where these hold
    many samples.

    Args:
        plan: The plan, with the samples of every shard.
        nodes: Number of nodes.
        ranks_per_node: Ranks of each.
    """
    plan = _smaller(plan)
    world = nodes * ranks_per_node
    counts = np.array([count for source in plan.sources for count in source.shards])
    sizes = np.array([size for source in plan.sources for size in source.sizes or source.shards])
    each = sizes / np.maximum(counts, 1)
    steps = range(plan.n_batches(world))
    some = sorted({nodes * number // _NODES for number in range(_NODES)})
    total = 0.0
    for node in some:
        ranks = range(node * ranks_per_node, (node + 1) * ranks_per_node)
        total += sum(each[piece.shard] * (piece.stop - piece.first) for piece in plan.pieces(0, steps, ranks, world))
    return float(total / len(some) * nodes / sizes.sum())


def _smaller(plan: Plan) -> Plan:
    every = -(-sum(source.samples for source in plan.sources) // _SAMPLES)
    if every == 1:
        return plan
    sources = [
        replace(s, samples=sum(s.shards[::every]), shards=s.shards[::every], sizes=s.sizes[::every])
        for s in plan.sources
    ]
    n_samples = sum(source.samples for source in sources)
    return replace(plan, sources=tuple(sources), n_samples=n_samples) if n_samples >= plan.global_batch_size else plan


def _far_away(plan: Plan, ranks: int, ranks_per_node: int) -> dict[str, Any]:
    """Return what the pieces and lanes of a plan come to; empty where shards are not known."""
    if not any(source.shards for source in plan.sources):
        return {}
    found: dict[str, Any] = {}
    if ranks_per_node:
        found["fetched"] = round(fetched(plan, max(1, ranks // ranks_per_node), ranks_per_node), 3)
    if plan.lanes:
        pieces = sum(len(plan.order.pieces(number).firsts) - 1 for number in plan.order.parts)
        mean = sum(sum(source.sizes) for source in plan.sources) / pieces
        found |= {
            "pieces": pieces,
            "piece_bytes": round(mean),
            "open_bytes": round(mean * -(-plan.lanes // ranks)),
        }
    return found


def _steps(batches: int, accumulate: int) -> dict[str, int]:
    return {
        "steps": batches,
        "accumulate": accumulate,
        "optimizer_steps": -(-batches // accumulate),
        "last_accumulation": (batches - 1) % accumulate + 1,
    }


def _size(plan: Plan, batch: int, ranks: int) -> int:
    first, stop = plan.batch_bounds(batch, ranks)
    return stop - first


def _rank(plan: Plan, rank: int, ranks: int, batches: int, last: list[int], epoch: int) -> dict[str, Any]:
    """Return what a rank takes; all batches but the last three are full."""
    taken = [stop - first for first, stop in (part(size, rank, ranks) for size in last)]
    first, stop = part(plan.global_batch_size, rank, ranks)
    return {
        "rank": rank,
        "samples": (batches - len(last)) * (stop - first) + sum(taken),
        "share": stop - first if batches > len(last) else taken[0],
        "last_share": taken[-1],
        "first_samples": plan.shares(epoch, [0], rank, ranks)[0][:6].tolist(),
    }


def _workers(batches: int, workers: int, share: int, sample_bytes: float) -> list[dict[str, Any]]:
    length = chunk_length(batches, share, workers, sample_bytes=sample_bytes)
    found = []
    for worker in range(max(1, workers)):
        firsts = range(worker * length, batches, max(1, workers) * length)
        missing = max(0, firsts[-1] + length - batches) if firsts else 0  # of a last chunk that is shorter
        run = next(chunks(batches, worker, workers, length=length), range(0))
        found.append(
            {
                "worker": worker,
                "batches": len(firsts) * length - missing,
                "first_batches": list(run)[:4],
                "chunk": length,
            }
        )
    return found


def _mixture(plan: Plan) -> list[dict[str, Any]]:
    """Return how often an epoch goes through each source; empty where there is no mixture."""
    pairs = zip(plan.sources, plan.order.counts, strict=False)
    return [
        {"samples": source.samples, "weight": source.weight, "drawn": count, "passes": count / source.samples}
        for source, count in pairs
    ]


def _changing(plan: Plan) -> list[dict[str, Any]]:
    """Return the part of each source at the points of a mixture that changes, and half-way; empty where it does not."""
    if not (plan.schedule and plan.shuffle):
        return []
    points = [place for place, _ in plan.schedule]
    places = sorted({*points, *((first + stop) // 2 for first, stop in itertools.pairwise(points))})
    found = shares(plan.schedule, np.array(places)).round(4).tolist()
    return [
        {"step": _step(plan, place), "epoch": place // plan.n_samples, "shares": parts}
        for place, parts in zip(places, found, strict=True)
    ]


def _step(plan: Plan, place: int) -> int:
    """Return the step, over all epochs, that takes a sample."""
    epoch, inside = divmod(place, plan.n_samples)
    steps = plan.n_batches(1)
    step = min(inside // plan.global_batch_size, max(0, steps - 2))
    if step == steps - 2 and inside >= plan.batch_bounds(step, 1)[1]:  # these two may have other sizes
        step += 1
    return epoch * steps + step


def _notes(plan: Plan, found: dict[str, Any], ranks: int, available: int) -> list[str]:
    notes = []
    idle = [worker["worker"] for worker in found["workers"] if not worker["batches"]]
    if idle:
        notes.append(f"each rank has {count(len(idle), 'worker')} of {len(found['workers'])} without a batch")
    if plan.global_batch_size % ranks:
        notes.append(
            f"{plan.global_batch_size} is not a multiple of {count(ranks, 'rank')}: shares differ by one sample"
        )
    if plan.global_batch_size < 2 * ranks:
        notes.append(
            f"with fewer than two samples a rank and batch the last batch depends on the number of ranks; "
            f"from a global batch of {2 * ranks} on it does not"
        )
    if found["dropped"]:
        notes.append(f"each epoch drops {count(found['dropped'], 'sample')} at its end, not the same as the others")
    if found["borrowed"]:
        notes.append(
            f"the last batch takes {count(found['borrowed'], 'sample')} of the next epoch's order, repeated there"
        )
    if plan.shuffle and not plan.order.counts and plan.n_samples < available:
        notes.append(f"it takes {available / plan.n_samples:.4g} epochs to see all {count(available, 'sample')}")
    if found["last_accumulation"] != found["accumulate"]:
        notes.append(
            f"the last optimizer step of an epoch has {found['last_accumulation']} of "
            f"{count(found['accumulate'], 'batch', 'batches')}"
        )
    return notes
