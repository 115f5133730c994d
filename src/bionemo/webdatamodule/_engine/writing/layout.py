"""The plan of a conversion: which samples go to which shard, and what each shard is made from."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bionemo.webdatamodule._engine.format.manifest import Manifest, shard_name
from bionemo.webdatamodule._engine.format.tar_write import BLOCK
from bionemo.webdatamodule._engine.storage.target import Target
from bionemo.webdatamodule._engine.writing.checks import LISTED
from bionemo.webdatamodule._engine.writing.recipe import Inputs, Recipe
from bionemo.webdatamodule._engine.writing.tasks import ShardTask, describe
from bionemo.webdatamodule.components import SampleReader
from bionemo.webdatamodule.errors import ConfigError

SHARD_BYTES = 256 << 20
"""About how large a shard becomes where the user gives no number of shards."""

_PROBES = 16  # samples read to estimate the size of all


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The shards that a split is to have.

    Attributes:
        split: Name of the split.
        target: Where they go.
        wanted: Name and inputs of each shard, in order.
        tasks: The task that makes each.
        problems: What is wrong with its samples, as far as the source knows without reading them.
        bytes_per_sample: About how large a sample is in a shard, if that was asked for.
    """

    split: str
    target: Target
    wanted: Sequence[tuple[str, str]]
    tasks: Sequence[ShardTask]
    problems: Sequence[str]
    bytes_per_sample: float | None


def plan_split(
    recipe: Recipe,
    names: Sequence[str],
    *,
    split: str,
    target: Target,
    n_shards: int | None,
    before: Manifest | None,
    look: Callable[[Inputs, Sequence[Sequence[str]]], Iterable[tuple[str, list[str]]]],
    progress: Callable[[int], object],
) -> SplitPlan:
    """Cut a split into shard tasks, and look whether its samples are there and what state they are in.

    Where no number of shards is given and the target holds just these samples already, none of them is read:
    the number of shards is what it was.

    Args:
        recipe: How samples become bytes.
        names: The samples, at least one.
        split: Name of the split.
        target: Where its shards go.
        n_shards: How many shards, of at least one sample each; ``None`` for as many as their size asks for.
        before: What the target holds.
        look: Calls a function with the names of each shard, and gives what it returns in their order. It is used where
            the target holds nothing, since otherwise there may be nothing to do, for which nothing is to start.
        progress: Called with the number of samples looked at.
    """
    if before is not None:
        look = map
    same = None
    per_sample = None
    if n_shards is None:
        if before is not None and before.n_samples == len(names) and len(before.shards) <= len(names):
            same = _cut_into(
                len(before.shards), recipe, names, split=split, target=target, look=look, progress=progress
            )
            if same.wanted == [(shard.name, shard.inputs) for shard in before.shards]:
                return same
        per_sample = estimate_bytes(recipe.reader, names) / len(names)
        n_shards = default_n_shards(per_sample * len(names))
    n_shards = min(n_shards, len(names))
    if same is None or len(same.wanted) != n_shards:
        same = _cut_into(n_shards, recipe, names, split=split, target=target, look=look, progress=progress)
    return replace(same, bytes_per_sample=per_sample)


def _cut_into(
    n_shards: int,
    recipe: Recipe,
    names: Sequence[str],
    *,
    split: str,
    target: Target,
    look: Callable[[Inputs, Sequence[Sequence[str]]], Iterable[tuple[str, list[str]]]],
    progress: Callable[[int], object],
) -> SplitPlan:
    wanted, tasks, missing = [], [], []
    parts = [names[part.start : part.stop] for part in cut(len(names), n_shards)]
    for number, (members, (inputs, absent)) in enumerate(zip(parts, look(recipe.inputs, parts), strict=True)):
        missing += absent
        wanted.append((shard_name(target.prefix, number, n_shards), inputs))
        tasks.append(ShardTask(recipe=recipe, names=members, split=split, staging=target.staging, inputs=inputs))
        progress(len(members))
    return SplitPlan(
        split=split,
        target=target,
        wanted=wanted,
        tasks=tasks,
        problems=[
            _why_missing(recipe.reader, name) if number < LISTED else name for number, name in enumerate(missing)
        ],
        bytes_per_sample=None,
    )


def _why_missing(reader: SampleReader, name: str) -> str:
    """Return what the reader says when it is asked for a sample that has no fingerprint."""
    try:
        for _ in reader([name]):
            break
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises is listed
        return f"{name}: {describe(error)}"
    return f"{name}: the source has no readable sample of that name"


def check_n_shards(n_shards: Any, *, argument: str = "n_shards") -> int | None:
    """Return a number of shards, or ``None`` for one that follows from the size of the data.

    Raises:
        ConfigError: If it is not a positive whole number.
    """
    if n_shards is not None and (isinstance(n_shards, bool) or not isinstance(n_shards, int) or n_shards < 1):
        raise ConfigError(f"{argument} must be a positive whole number or None, not {n_shards!r}")
    return n_shards


def cut(n_samples: int, n_shards: int) -> list[range]:
    """Return the samples of each shard: all in order, sizes at most one apart.

    The larger shards come last, so that samples appended to a data set change as few shards as possible.

    Args:
        n_samples: At least ``n_shards``.
        n_shards: At least one.
    """
    size, larger = divmod(n_samples, n_shards)
    sizes = [size] * (n_shards - larger) + [size + 1] * larger
    ends = itertools.accumulate(sizes)
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def default_n_shards(n_bytes: float) -> int:
    """Return the number of shards of about :data:`SHARD_BYTES` for a number of bytes."""
    return max(1, round(n_bytes / SHARD_BYTES))


def estimate_bytes(reader: SampleReader, names: Sequence[str]) -> float:
    """Return about how many bytes the tars of these samples take, from a few of them, evenly spread.

    Samples that cannot be read do not count; that they cannot is found and listed elsewhere.
    """
    step = max(1, len(names) // _PROBES)
    sizes = []
    with contextlib.suppress(Exception, SystemExit):
        for sample in reader(names[::step][:_PROBES]):
            sizes.append(sum(BLOCK * (2 + (len(data) - 1) // BLOCK) for data in sample.files.values()))  # noqa: PERF401 - keeps what came before an error
    return len(names) * sum(sizes) / max(1, len(sizes))
