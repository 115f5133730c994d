"""Putting a split together: from checked settings to a dataset and its loader."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import default_convert
from webdataset.shardlists import split_by_node, split_by_worker

from bionemo.webdatamodule.components import Loader, LoaderFunction
from bionemo.webdatamodule.default_plugins.batching import Batch, BatchBySize, size_of
from bionemo.webdatamodule.default_plugins.stages import Untuple
from bionemo.webdatamodule.epochs.clock import Clock, EvaluationClock, TrainerClock
from bionemo.webdatamodule.epochs.dataset import PlannedDataset, Topology
from bionemo.webdatamodule.epochs.loader import PlannedLoader
from bionemo.webdatamodule.epochs.plan import Cursor, EpochPlan, Plan
from bionemo.webdatamodule.epochs.plan import Source as PlanSource
from bionemo.webdatamodule.epochs.sized import SizedPlan
from bionemo.webdatamodule.epochs.stream import Dealing, StreamDataset, StreamLoader
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PlanError
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import Plugins, as_use, build, find, resolve
from bionemo.webdatamodule.settings import ErrorPolicy, Source, whole_number
from bionemo.webdatamodule.shards.read import SampleReader
from bionemo.webdatamodule.shards.sets import ShardSet, is_url

if TYPE_CHECKING:
    import lightning as L  # noqa: N812 - Lightning's own abbreviation

    from bionemo.webdatamodule.datamodule import WebDataModule

_log = logging.getLogger("bionemo.webdatamodule")

REMOTE_BLOCK = 16
"""Shards that are shuffled together where they are remote and the user gave no number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all splits share."""

    suffixes: tuple[str, ...]
    global_batch_size: int
    prefix: str
    seed: int
    tail: Literal["share", "drop", "fill"]
    policy: Policy
    check: Literal["first", "always", "never"]
    shuffle_shards: int | None


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """What one split has of its own. Stages are ``None`` where the user gave none."""

    split: str
    sources: tuple[Source, ...]
    n_samples: int | None
    order: Literal["global", "shards"]
    order_reason: str
    stages: tuple[Any, ...] | None
    loader_stages: tuple[Any, ...] | None
    options: Mapping[str, Any]
    loader: LoaderChoice
    dataset_calls: tuple[tuple[str, Mapping[str, Any]], ...]
    loader_calls: tuple[tuple[str, Mapping[str, Any]], ...]
    errors: ErrorPolicy


@dataclass(frozen=True, kw_only=True)
class LoaderChoice:
    """A loader, and what of its options concerns the samples rather than the workers."""

    function: LoaderFunction
    num_workers: int
    batch_size: int | None
    collate: Any
    drop_last: bool


@dataclass(frozen=True, kw_only=True)
class Convert:
    """The last stage of a worker that sends samples one by one: what torch's ``DataLoader`` does to each.

    Args:
        function: torch's ``default_convert``, which makes tensors of arrays, or the user's ``collate_fn``.
    """

    function: Any = default_convert

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the converted samples."""
        if self.function is not default_convert:
            return map(self.function, samples)
        return (sample if isinstance(sample, torch.Tensor) else default_convert(sample) for sample in samples)


def topology_of(trainer: L.Trainer | None) -> Topology:
    """Return this process's place among the data-parallel ones.

    It is asked of the trainer's strategy, else of ``torch.distributed``, else of ``RANK`` and ``WORLD_SIZE``.
    """
    if trainer is not None:
        place = trainer.distributed_sampler_kwargs or {}
        return Topology(rank=int(place.get("rank", 0)), world_size=max(1, int(place.get("num_replicas", 1))))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Topology(rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size())
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return Topology(rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    return Topology()


def resolve_loader(ref: Any, kwargs: Mapping[str, Any], plugins: Plugins | None) -> LoaderChoice:
    """Return the loader that a reference and the options of one split mean.

    Raises:
        ConfigError: If the options do not fit the loader.
        UnknownNameError: If its name is not registered.
    """
    options = dict(kwargs)
    batch_size = options.pop("batch_size", None)
    collate = options.pop("collate_fn", None)
    drop_last = bool(options.pop("drop_last", False))
    if options.pop("shuffle", False):
        raise ConfigError("kwargs_wld cannot shuffle; training data are shuffled already, evaluation data are not")
    use = as_use(ref)
    if use is not None:
        function = build(find(Loader, use.name, plugins), {**use.options, **options})
    elif options:
        raise ConfigError(f"the loader is an object, so kwargs_wld cannot set {', '.join(options)} on it")
    else:
        function = resolve(Loader, ref, plugins)
    if batch_size is not None:
        whole_number("batch_size in kwargs_wld", batch_size, least=1)
    return LoaderChoice(
        function=function,
        num_workers=int(getattr(function, "num_workers", 0)),
        batch_size=batch_size,
        collate=collate,
        drop_last=drop_last,
    )


def make_dataset(settings: Settings, split: SplitSettings, topology: Topology) -> Any:
    """Open a split's shards and make its :class:`PlannedDataset` or :class:`StreamDataset`.

    Raises:
        PlanError: If the samples do not suffice for the ranks.
        ShardError: If shards are missing or broken.
    """
    sets = [ShardSet.open(source.directory, settings.prefix, split=split.split) for source in split.sources]
    reader = SampleReader(
        sets,
        settings.suffixes,
        policy=settings.policy,
        check=settings.check,
        on_error=split.errors.on_error,
        max_skipped=split.errors.max_skipped,
        split=split.split,
    )
    make = _planned if split.order == "global" else _stream
    dataset = make(settings, split, topology, sets, reader)
    if topology.rank == 0:
        _log.info(
            "%s: %d samples in %d shards, order=%r since %s",
            split.split,
            reader.n_samples,
            sum(len(found.paths) for found in sets),
            split.order,
            split.order_reason,
        )
    return _called("invoke_wds", split.split, dataset, split.dataset_calls)


def make_loader(module: WebDataModule, settings: Settings, split: SplitSettings, dataset: Any) -> Any:
    """Make the loader of a split.

    Raises:
        ConfigError: If a stage does not fit the workers' start method.
        PlanError: If a worker would have nothing to read.
    """
    clock: Clock = TrainerClock(module) if split.split == "train" else EvaluationClock()
    function = split.loader.function
    if isinstance(dataset, PlannedDataset):
        if not getattr(function, "in_order", True):
            raise ConfigError("in_order=False in kwargs_wld breaks the plan of order='global'", split=split.split)
        loader: Any = PlannedLoader(
            dataset=dataset,
            loader=function,
            stages=_loader_stages(split) or (),
            clock=clock,
            cursor=dataset.plan.cursor(dataset.reader.digest),
        )
    else:
        dataset.check(split.loader.num_workers)
        n_samples = split.n_samples or dataset.reader.n_samples
        loader = StreamLoader(
            dataset=dataset,
            loader=function,
            stages=_loader_stages(split) or (() if split.loader.batch_size else (Batch(),)),
            n_batches=math.ceil(n_samples / settings.global_batch_size),
            num_workers=split.loader.num_workers,
            clock=clock,
            cursor=Cursor(
                n_samples=n_samples,
                seed=dataset.dealing.seed,
                global_batch_size=settings.global_batch_size,
                digest=f"{dataset.reader.digest}/shards",
            ),
        )
    return _called("invoke_wld", split.split, loader, split.loader_calls)


def add_resume(module: WebDataModule, trainer: L.Trainer) -> None:
    """Add the callback that applies a checkpoint's cursor, once for a trainer."""
    from bionemo.webdatamodule.epochs.resume import ResumeCallback

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    callbacks[:] = [c for c in callbacks if not isinstance(c, ResumeCallback)] + [ResumeCallback(module)]


def _planned(
    settings: Settings, split: SplitSettings, topology: Topology, sets: list[ShardSet], reader: SampleReader
) -> PlannedDataset:
    training = split.split == "train"
    plan = _plan(settings, split, sets, reader, training=training)
    plan.check(topology.world_size)
    worker_stages, collate, untuple = _worker_stages(settings, split)
    return PlannedDataset(
        reader=reader,
        plan=plan,
        stages=worker_stages,
        collate=collate,
        untuple=untuple,
        topology=topology,
        split=split.split,
        seed=settings.seed,
    )


def _stream(
    settings: Settings, split: SplitSettings, topology: Topology, sets: list[ShardSet], reader: SampleReader
) -> StreamDataset:
    options = split.options
    shuffle = options.get("shardshuffle")
    resampled = bool(options.get("resampled")) or options.get("mode") == "resampled"
    stages = _stages(settings, split)
    batch_size = split.loader.batch_size
    if batch_size is not None:
        stages = (*stages, _worker_batch(split))
    else:
        stages = (*stages, Convert(function=split.loader.collate or default_convert))
    return StreamDataset(
        reader=reader,
        shards=[path for found in sets for path in found.paths],
        stages=stages,
        dealing=Dealing(
            nodesplitter=options.get("nodesplitter", split_by_node),
            workersplitter=options.get("workersplitter", split_by_worker),
            shardshuffle=100 if shuffle is True else int(shuffle or 0),
            resampled=resampled,
            empty_check=bool(options.get("empty_check", True)),
            seed=settings.seed if options.get("seed") is None else int(options["seed"]),
        ),
        topology=topology,
        split=split.split,
        batch_size=max(1, settings.global_batch_size // topology.world_size),
    )


def _plan(
    settings: Settings, split: SplitSettings, sets: Sequence[ShardSet], reader: SampleReader, *, training: bool
) -> EpochPlan:
    available = sum(found.n_samples for found in sets)
    if not available:
        raise PlanError(f"{split.sources[0].directory} holds no sample", split=split.split)
    if (stage := _sized(split)) is not None:
        return _sized_plan(settings, split, stage, reader, training=training)
    if not training and split.n_samples is not None and split.n_samples < available:
        warnings.warn(
            f"{split.split}: n_samples is {split.n_samples}, so {available - split.n_samples} of {available} samples "
            "are left out of evaluation",
            DataWarning,
            stacklevel=2,
        )
    block = settings.shuffle_shards
    if block is None:  # a shard that comes over the network should serve many samples while it is here
        block = REMOTE_BLOCK if any(is_url(source.directory) for source in split.sources) else 0
    pairs = zip(split.sources, sets, strict=True)
    try:
        return Plan(
            sources=tuple(
                PlanSource(samples=found.n_samples, weight=source.weight, shards=tuple(found.samples))
                for source, found in pairs
            ),
            block=block if training else 0,
            global_batch_size=settings.global_batch_size,
            n_samples=split.n_samples or 0,
            seed=settings.seed,
            shuffle=training,
            tail=settings.tail if training else "share",
        )
    except PlanError as error:
        raise error.located(split=split.split) from error.__cause__


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


def _sized(split: SplitSettings) -> BatchBySize | None:
    first = split.loader_stages[0] if split.loader_stages else None
    return first if isinstance(first, BatchBySize) else None


def _worker_stages(settings: Settings, split: SplitSettings) -> tuple[tuple[Any, ...], bool, bool]:
    """Return the stages of workers in global order, whether they only batch, and whether they untuple first."""
    stages = _stages(settings, split)
    choice = split.loader
    if choice.batch_size is not None:
        return (*stages, _worker_batch(split)), False, False
    if (sized := _sized(split)) is not None and len(split.loader_stages or ()) == 1:
        return (*stages, sized), False, False
    if _loader_stages(split) is not None:
        return (*stages, Convert(function=choice.collate or default_convert)), False, False
    if stages in ((), (Untuple(),)):
        return (), True, bool(stages)
    return (*stages, Batch()), False, False


def _stages(settings: Settings, split: SplitSettings) -> tuple[Any, ...]:
    if split.stages is not None:
        return split.stages
    return (Untuple(),) if len(settings.suffixes) == 1 else ()


def _loader_stages(split: SplitSettings) -> tuple[Any, ...] | None:
    """Return the stages behind the loader, or ``None`` where they would only make the default batch."""
    by_worker = split.loader_stages in (None, (Batch(),)) or (_sized(split) and len(split.loader_stages or ()) == 1)
    return None if by_worker and split.order == "global" else split.loader_stages


def _worker_batch(split: SplitSettings) -> Batch:
    choice = split.loader
    return Batch(size=choice.batch_size, collate=choice.collate or "default", partial=not choice.drop_last)


def _called(argument: str, split: str, target: Any, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Call webdataset's fluid methods on a dataset or loader, one after the other."""
    for name, kwargs in calls:
        method = getattr(target, name, None)
        if not callable(method):
            raise ConfigError(f"{argument} names {name!r}, which is no method of {type(target).__name__}", split=split)
        target = method(**kwargs)
    return target
