"""Which plan a split follows in global order."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bionemo.webdatamodule._engine.config import Source
from bionemo.webdatamodule._engine.loading.records import Settings, SplitSettings
from bionemo.webdatamodule._engine.loading.sizes import measure
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.sampling.partition import bounds, n_batches
from bionemo.webdatamodule._engine.sampling.pieces import choose
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.sampling.plan import Source as PlanSource
from bionemo.webdatamodule._engine.sampling.schedule import Points, block_of
from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule.components import Planner
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PlanError, PluginError, WebDataModuleError, count
from bionemo.webdatamodule.planning import EpochPlan, Ids, PlanRequest


def make_plan(
    settings: Settings, split: SplitSettings, sets: Sequence[ShardSet], reader: ShardReader, *, training: bool
) -> EpochPlan:
    """Return the plan of a split in global order.

    Raises:
        PlanError: If the samples do not suffice, or there are none.
        PluginError: If a planner gives no plan.
    """
    available = reader.n_samples
    if not available:
        raise PlanError(f"{split.sources[0].directory} holds no sample", split=split.split)
    if (planner := planner_of(split)) is not None:
        return _planned_by(planner, settings, split, reader, training=training)
    if not training and split.n_samples is not None and split.n_samples < available:
        warnings.warn(
            f"{split.split}: n_samples is {split.n_samples}, so evaluation leaves out "
            f"{available - split.n_samples:,} of {count(available, 'sample')}",
            DataWarning,
            stacklevel=2,
        )
    for source, counts in zip(split.sources, reader.samples, strict=True):
        if source.weight is not None and not sum(counts):
            which = "none of its samples are in where" if split.where else "it holds no sample"
            raise PlanError(f"{source.directory} has a weight, and {which}; leave it out", split=split.split)
    try:
        plan = plan_of(
            sets,
            [source.weight for source in split.sources],
            changes=changes_of(split.sources),
            samples=reader.samples,
            training=training,
            shuffle_shards=settings.shuffle_shards,
            global_batch_size=settings.global_batch_size,
            n_samples=split.n_samples or 0,
            seed=settings.seed,
            tail=settings.tail,
        )
    except PlanError as error:
        named = re.match(r"source (\d+) ", error.message)
        directory = split.sources[int(named[1])].directory if named else None
        raise error.located(split=split.split, directory=directory) from error.__cause__
    _warn_of_slow_changes(plan, split)
    return plan


def _warn_of_slow_changes(plan: Plan, split: SplitSettings) -> None:
    """Say where a mixture cannot change as fast as its steps say."""
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(plan.schedule)]
    block = block_of(plan.schedule, plan.lanes or 1) if gaps else 0
    if gaps and min(gaps) < 2 * block:
        why, instead = "so long a schedule", ""
        if plan.lanes:
            why, instead = (
                "shards that are read in lanes",
                ", or shuffle_shards=0, which reads remote shards in any order",
            )
        warnings.warn(
            f"{split.split}: the mixture changes within {count(min(gaps), 'sample')}, and with {why} it changes every "
            f"{count(block, 'sample')}; give steps that lie further apart{instead}",
            DataWarning,
            stacklevel=2,
        )


@dataclass(frozen=True, kw_only=True)
class _OuterPlan:
    """What plans over another plan have of it: the epochs' length, the seed, the batches' size and the identity."""

    plan: EpochPlan

    @property
    def n_samples(self) -> int:
        """Samples of an epoch."""
        return self.plan.n_samples

    @property
    def seed(self) -> int:
        """The seed of the request."""
        return self.plan.seed

    @property
    def global_batch_size(self) -> int:
        """Samples of a global batch; 0 where it varies."""
        return self.plan.global_batch_size

    @property
    def digest(self) -> str:
        """What identifies the order."""
        return self.plan.digest


@dataclass(frozen=True, kw_only=True)
class Repeated(_OuterPlan):
    """The plan of evaluation on more ranks than there are samples: one step, in which some samples come twice.

    Args:
        plan: The plan of fewer ranks.
    """

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002 - the protocol's
        """Return 1."""
        return 1

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:  # noqa: ARG002
        """Return one sample for each rank."""
        return [np.array([rank % self.n_samples], np.int64) for _ in batches]

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002
        """Return all samples after the step."""
        return self.n_samples if batches else start

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def check(self, world_size: int) -> None:
        """Accept any number of ranks."""


@dataclass(frozen=True, kw_only=True)
class Checked(_OuterPlan):
    """The plan of a planner, whose faults are errors that name it.

    Args:
        plan: The plan.
        stage: The planner, for messages.
        split: The split's name, for messages.
        available: The samples that there are.
    """

    stage: str
    split: str
    available: int

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start``."""
        with blaming("n_batches(…) of the plan", stage=self.stage, split=self.split):
            return self.plan.n_batches(world_size, start=start, epoch=epoch)

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the samples that a rank takes at each of some steps.

        Raises:
            PluginError: If the planner's plan fails, or gives something else.
        """
        with blaming("shares(…) of the plan", stage=self.stage, split=self.split):
            shares = self.plan.shares(epoch, batches, rank, world_size, start=start)
            if problem := shares_problem(shares, len(batches), self.available):
                raise PluginError(f"the plan {problem}; correct the planner", rank=rank)
            return shares

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are consumed after so many steps."""
        with blaming("consumed(…) of the plan", stage=self.stage, split=self.split):
            return self.plan.consumed(batches, world_size, start=start, epoch=epoch)

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes."""
        with blaming("unserved(…) of the plan", stage=self.stage, split=self.split):
            return self.plan.unserved(world_size, start=start, epoch=epoch)

    def check(self, world_size: int) -> None:
        """Check that the plan can serve this number of ranks."""
        with blaming("check(…) of the plan", stage=self.stage, split=self.split):
            self.plan.check(world_size)


def shares_problem(shares: Sequence[Ids], n_batches: int, available: int) -> str:
    """Return what is wrong with the shares of some steps; empty if nothing is.

    Args:
        shares: For each step the numbers of samples.
        n_batches: How many steps were asked for.
        available: The samples that there are.
    """
    if len(shares) != n_batches:
        return f"gives {len(shares)} shares for {n_batches} steps"
    if not all(map(len, shares)):
        return "has a batch without a sample, and every rank must take a sample at each step"
    ids = np.concatenate(shares)
    if ids.dtype.kind not in "iu":
        return f"numbers samples by values of the type {ids.dtype}, which must be whole numbers, such as int64"
    if not 0 <= ids.min() <= ids.max() < available:
        return f"has the samples {ids.min()} to {ids.max()}, and there are {available}, numbered from 0"
    return ""


@contextlib.contextmanager
def blaming(what: str, *, stage: str, split: str) -> Iterator[None]:
    """Name a planner and its split in the errors of its code.

    Raises:
        PluginError: If it raises none of this package's errors.
    """
    try:
        yield
    except WebDataModuleError as error:
        raise error.located(split=split, stage=stage) from error.__cause__
    except MemoryError:
        raise
    except Exception as error:
        raise PluginError(
            f"{what} fails with {type(error).__name__}: {error}; correct the planner", split=split, stage=stage
        ) from error


def plan_of(
    sets: Sequence[ShardSet],
    weights: Sequence[float | None],
    *,
    training: bool,
    shuffle_shards: int | None,
    tail: Literal["share", "drop", "fill"],
    global_batch_size: int,
    n_samples: int = 0,
    changes: Sequence[tuple[int, tuple[float, ...]]] = (),
    remote: bool | None = None,
    samples: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Plan:
    """Return the plan of some shard sets.

    Args:
        sets: What is read.
        weights: The weight of each in a mixture.
        training: Whether it is shuffled; nothing is left out of evaluation, so it has no other ``tail``.
        shuffle_shards: Shards that are read side by side; 0 shuffles all samples together, ``None`` does so with
            local shards and reads remote ones in pieces and lanes.
        tail: What becomes of an incomplete batch in training.
        global_batch_size: Samples of a global batch.
        n_samples: Samples of an epoch; 0 for as many as there are.
        changes: Steps and the weights there, where the mixture changes; in place of ``weights``.
        remote: Whether the shards are remote; ``None`` for what they are.
        samples: For each set the number of samples in each shard that count; ``None`` for all.
        options: More of :class:`~bionemo.webdatamodule._engine.sampling.plan.Plan`.

    Raises:
        PlanError: If there is no such plan.
    """
    lanes, piece_bytes = shuffle_shards or 0, 0
    if remote is None:
        remote = any(found.remote is not None for found in sets)
    samples = [found.samples for found in sets] if samples is None else samples
    available = sum(map(sum, samples))
    if shuffle_shards is None and remote:
        lanes, piece_bytes = choose(sum(found.n_bytes for found in sets), available, global_batch_size)
    return Plan(
        sources=tuple(
            _plan_source(found, counts, None if changes else weight)
            for found, counts, weight in zip(sets, samples, weights, strict=True)
        ),
        lanes=lanes if training else 0,
        piece_bytes=piece_bytes if training else 0,
        schedule=_schedule(changes, n_samples or available, global_batch_size, tail) if training else (),
        shuffle=training,
        tail=tail if training else "share",
        global_batch_size=global_batch_size,
        n_samples=n_samples,
        **options,
    )


def _schedule(
    changes: Sequence[tuple[int, tuple[float, ...]]], n_samples: int, size: int, tail: Literal["share", "drop", "fill"]
) -> Points:
    """Return the samples over all epochs after which each of some steps begins, with its weights."""
    steps = max(1, n_batches(n_samples, size, 1, tail))
    points = []
    for step, found in changes:
        epoch, batch = divmod(step, steps)
        inside = bounds(batch, n_samples, size, 1, tail)[0] if batch else 0
        points.append((epoch * n_samples + inside, found))
    return tuple(points)


def changes_of(sources: Sequence[Source]) -> list[tuple[int, tuple[float, ...]]]:
    """Return the steps at which the mixture of some directories is given, and all their weights there."""
    return [
        (step, tuple(source.schedule[number][1] for source in sources))
        for number, (step, _) in enumerate(sources[0].schedule)
    ]


def _plan_source(found: ShardSet, counts: Sequence[int], weight: float | None) -> PlanSource:
    """Return a set as the plan sees it: shards of which no sample counts are left out."""
    if tuple(counts) == tuple(found.samples):
        return PlanSource(samples=found.n_samples, weight=weight, shards=tuple(found.samples), sizes=found.sizes)
    shards = [
        (count, stored, size) for count, stored, size in zip(counts, found.samples, found.sizes, strict=True) if count
    ]
    return PlanSource(
        samples=sum(counts),
        weight=weight,
        shards=tuple(count for count, _, _ in shards),
        sizes=tuple(-(-size * count // stored) for count, stored, size in shards),
    )


def planner_of(split: SplitSettings) -> Planner | None:
    """Return the stage that decides the plan of a split in global order, if there is one."""
    first = split.loader_stages[0] if split.loader_stages else None
    return first if split.order == "global" and isinstance(first, Planner) else None


def check_planner(split: SplitSettings) -> None:
    """Check that a planner stands where it decides the plan, with nothing that contradicts it.

    Raises:
        ConfigError: If it does not.
    """
    if split.order == "shards":
        return  # a stream has no plan
    stages = [("pipeline_wds", stage) for stage in split.stages or ()]
    stages += [("pipeline_prebatch_wld", stage) for stage in split.loader_stages or ()]
    for argument, stage in stages:
        if callable(getattr(stage, "plan", None)) and stage is not planner_of(split):
            if not isinstance(stage, Planner):
                raise ConfigError(f"{describe(stage)} has plan(…) and no size; a planner has both", split=split.split)
            where = "behind other stages of " if argument == "pipeline_prebatch_wld" else "in "
            raise ConfigError(
                f"{describe(stage)} stands {where}{argument}, and it decides which samples make up a batch; "
                "make it the first stage of pipeline_prebatch_wld, and put stages of single samples into pipeline_wds",
                split=split.split,
            )
    planner = planner_of(split)
    if planner is None:
        return
    if not callable(planner.size) and not (isinstance(planner.size, str) and planner.size):
        raise ConfigError(
            f"the size of {describe(planner)} is {planner.size!r:.40}; it must be a suffix, or a function of a sample",
            split=split.split,
        )
    if any(source.weight is not None for source in split.sources):
        raise ConfigError(f"{describe(planner)} plans one data set, so directories have no weights", split=split.split)
    if split.loader.batch_size is not None:
        raise ConfigError(
            f"{describe(planner)} decides the batches; leave batch_size out of kwargs_wld", split=split.split
        )


def _planned_by(
    stage: Planner, settings: Settings, split: SplitSettings, reader: ShardReader, *, training: bool
) -> EpochPlan:
    if split.n_samples not in (None, reader.n_samples):
        raise PlanError(
            f"n_samples is {split.n_samples}, and {describe(stage)} plans all {count(reader.n_samples, 'sample')}; "
            "leave n_samples out",
            split=split.split,
        )
    request = PlanRequest(
        seed=settings.seed,
        shuffle=training,
        global_batch_size=settings.global_batch_size,
        tail=settings.tail if training else "share",
    )
    sizes = measure(stage, reader, codecs=settings.codecs)
    named = describe(stage)
    with blaming("plan(…)", stage=named, split=split.split):
        plan = stage.plan(sizes, request)
        if not isinstance(plan, EpochPlan):
            raise PluginError(f"plan(…) gives {plan!r:.60}, which is no EpochPlan; return one, such as a ListedPlan")
    return Checked(plan=plan, stage=named, split=split.split, available=reader.n_samples)
