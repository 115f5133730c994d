"""Which plan a split follows in global order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bionemo.webdatamodule._engine.loading.placement import sized_stage
from bionemo.webdatamodule._engine.loading.records import Settings, SplitSettings
from bionemo.webdatamodule._engine.reading.reader import SampleReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.sampling.plan import EpochPlan, Plan
from bionemo.webdatamodule._engine.sampling.plan import Source as PlanSource
from bionemo.webdatamodule._engine.sampling.size_plan import SizedPlan
from bionemo.webdatamodule.builtins.batching import BatchBySize, size_of
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PlanError

REMOTE_BLOCK = 16
"""Shards that are shuffled together where they are remote and the user gave no number."""


def make_plan(
    settings: Settings, split: SplitSettings, sets: Sequence[ShardSet], reader: SampleReader, *, training: bool
) -> EpochPlan:
    """Return the plan of a split in global order.

    Raises:
        PlanError: If the samples do not suffice, or there are none.
        ConfigError: If ``batch_by_size`` is asked for together with ``n_samples`` or weights.
    """
    available = sum(found.n_samples for found in sets)
    if not available:
        raise PlanError(f"{split.sources[0].directory} holds no sample", split=split.split)
    if (stage := sized_stage(split)) is not None:
        return _sized_plan(settings, split, stage, reader, training=training)
    if not training and split.n_samples is not None and split.n_samples < available:
        warnings.warn(
            f"{split.split}: n_samples is {split.n_samples}, so {available - split.n_samples} of {available} samples "
            "are left out of evaluation",
            DataWarning,
            stacklevel=2,
        )
    try:
        return plan_of(
            sets,
            [source.weight for source in split.sources],
            training=training,
            block=settings.shuffle_shards,
            global_batch_size=settings.global_batch_size,
            n_samples=split.n_samples or 0,
            seed=settings.seed,
            tail=settings.tail,
        )
    except PlanError as error:
        raise error.located(split=split.split) from error.__cause__


def plan_of(
    sets: Sequence[ShardSet],
    weights: Sequence[float | None],
    *,
    training: bool,
    block: int | None,
    tail: Literal["share", "drop", "fill"],
    **options: Any,
) -> Plan:
    """Return the plan of some shard sets.

    Args:
        sets: What is read.
        weights: The weight of each in a mixture.
        training: Whether it is shuffled; nothing is left out of evaluation, so it has no other ``tail``.
        block: Shards that are shuffled together; 0 for all, ``None`` to choose by where they are.
        tail: What becomes of an incomplete batch in training.
        options: More of :class:`~bionemo.webdatamodule._engine.sampling.plan.Plan`.

    Raises:
        PlanError: If there is no such plan.
    """
    if block is None:  # a shard that comes over the network should serve many samples while it is here
        block = REMOTE_BLOCK if any(found.remote is not None for found in sets) else 0
    return Plan(
        sources=tuple(
            PlanSource(samples=found.n_samples, weight=weight, shards=tuple(found.samples))
            for found, weight in zip(sets, weights, strict=True)
        ),
        block=block if training else 0,
        shuffle=training,
        tail=tail if training else "share",
        **options,
    )


def _sized_plan(
    settings: Settings, split: SplitSettings, stage: BatchBySize, reader: SampleReader, *, training: bool
) -> SizedPlan:
    if split.n_samples not in (None, reader.n_samples) or any(source.weight is not None for source in split.sources):
        raise ConfigError("batch_by_size takes every sample once an epoch, without n_samples or weights")
    suffixes = reader.suffixes if callable(stage.size) else (stage.size,)
    measure = stage.size if callable(stage.size) else size_of
    fields = SampleReader(reader.sets, suffixes, policy=settings.policy, check="never", split=split.split)
    sizes = np.empty(fields.n_samples, dtype=np.int64)
    for first in range(0, len(sizes), 1024):
        samples = fields.read(np.arange(first, min(first + 1024, len(sizes))))
        sizes[first : first + 1024] = [measure(sample if len(suffixes) > 1 else sample[0]) for sample in samples]
    return SizedPlan(
        sizes=sizes,
        max_total=stage.max_total,
        max_samples=stage.max_samples,
        width=stage.width,
        oversize=stage.oversize,
        seed=settings.seed,
        shuffle=training,
    )
