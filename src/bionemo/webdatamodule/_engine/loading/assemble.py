"""Putting a split together: from checked settings to a dataset and its loader."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from webdataset.shardlists import split_by_node, split_by_worker

from bionemo.webdatamodule._engine.loading.dataset import PlannedDataset
from bionemo.webdatamodule._engine.loading.loader import PlannedLoader
from bionemo.webdatamodule._engine.loading.placement import split_stages
from bionemo.webdatamodule._engine.loading.plans import Repeated, check_planner, make_plan, planner_of
from bionemo.webdatamodule._engine.loading.progress import Clock, EvaluationClock, OwnClock
from bionemo.webdatamodule._engine.loading.records import (
    LoaderChoice,
    Settings,
    SplitSettings,
    check_url,
    resolve_loader,
    with_stores,
)
from bionemo.webdatamodule._engine.loading.stream_dataset import Dealing, StreamDataset
from bionemo.webdatamodule._engine.loading.stream_loader import StreamLoader
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.peers import Peers
from bionemo.webdatamodule._engine.ranks import Topology, processes, topology_of
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.reading.subset import chosen
from bionemo.webdatamodule._engine.sampling.cursor import STREAMED, Cursor
from bionemo.webdatamodule.errors import ConfigError, DataWarning, PlanError, count

if TYPE_CHECKING:
    import lightning as L

__all__ = [
    "LoaderChoice",
    "Settings",
    "SplitSettings",
    "add_resume",
    "check_url",
    "make_dataset",
    "make_loader",
    "resolve_loader",
    "topology_of",
    "with_stores",
]


def make_dataset(settings: Settings, split: SplitSettings, topology: Topology) -> Any:
    """Open a split's shards and make its :class:`PlannedDataset` or :class:`StreamDataset`.

    Raises:
        PlanError: If the samples do not suffice for the ranks.
        ShardError: If shards are missing or broken.
    """
    sets, joined = (
        [
            ShardSet.open(
                source.directory,
                settings.prefix,
                split=split.split,
                expect=source.digest,
                store=source.store,
                cache_dir=split.options.get("cache_dir"),
                cache_size=split.options.get("cache_size"),
            )
            for source in sources
        ]
        for sources in (split.sources, split.joined)
    )
    reader = ShardReader(
        sets,
        settings.suffixes,
        joined=joined,
        codecs=settings.codecs,
        check=settings.check,
        on_error=split.errors.on_error,
        max_skipped=split.errors.max_skipped,
        split=split.split,
        chosen=None if split.where is None else chosen(split.where, sets, joined, settings.codecs, split=split.split),
    )
    make = _planned if split.order == "global" else _stream
    dataset = make(settings, split, topology, sets, reader)
    decided(
        "%s: %s in %s, order=%r since %s",
        split.split,
        count(reader.n_samples, "sample"),
        count(sum(len(found.paths) for found in sets), "shard"),
        split.order,
        split.order_reason,
    )
    return _called("invoke_wds", split.split, dataset, split.dataset_calls)


def make_loader(module: L.LightningDataModule, settings: Settings, split: SplitSettings, dataset: Any) -> Any:
    """Make the loader of a split.

    Raises:
        ConfigError: If a stage does not fit the workers' start method.
        PlanError: If a worker would have nothing to read.
    """
    if not isinstance(dataset, (PlannedDataset, StreamDataset)):
        raise ConfigError(
            f"_setup_wds() of {type(module).__name__} returns {type(dataset).__name__}; return what "
            "super()._setup_wds(split) returns, or override _setup_dataloader(split), too",
            split=split.split,
        )
    clock: Clock = OwnClock() if split.split == "train" else EvaluationClock()
    function = split.loader.function
    place = (dataset.topology.rank, dataset.topology.world_size)
    given = settings.data_ranks is not None
    peers = Peers(split.split, dataset.topology) if processes()[1] > 1 and (given or place != processes()) else None
    shared: dict[str, Any] = {
        "loader": function,
        "loader_name": split.loader.name,
        "loader_plugin": split.loader.plugin,
        "skips_changed": settings.resume == "next_epoch",
        "receipt": settings.receipt,
        "clock": clock,
        "peers": peers,
    }
    if isinstance(dataset, PlannedDataset):
        if not function.in_order:
            raise ConfigError("in_order=False in kwargs_wld breaks the plan of order='global'", split=split.split)
        loader: Any = PlannedLoader(
            dataset=dataset,
            stages=split_stages(split.loader_stages)[1],
            cursor=Cursor.of(dataset.plan, dataset.reader.digest),
            **shared,
        )
    else:
        dataset.check(function.num_workers)
        _warn_of_evaluation(split, dataset.topology)
        n_samples = split.n_samples or dataset.reader.n_samples
        loader = StreamLoader(
            dataset=dataset,
            stages=split.loader_stages,
            n_batches=math.ceil(n_samples / settings.global_batch_size),
            num_workers=function.num_workers,
            cursor=Cursor(
                n_samples=n_samples,
                seed=dataset.dealing.seed,
                global_batch_size=settings.global_batch_size,
                digest=f"{dataset.reader.digest}/{STREAMED}",
            ),
            **shared,
        )
    return _called("invoke_wld", split.split, loader, split.loader_calls)


def check_order(split: SplitSettings) -> None:
    """Refuse options that the order of a split, or its stages, would ignore.

    Raises:
        ConfigError: If there are any.
    """
    check_planner(split)
    if split.order == "shards" and any(source.weight is not None for source in split.sources):
        raise ConfigError(
            f"weights need order='global', and shards order was chosen since {split.order_reason}; "
            "leave webdataset's shard arguments out of kwargs_wds, or the weights out of dirs_tars_wds",
            split=split.split,
        )
    if split.order == "global" and split.loader.drop_last:
        raise ConfigError(
            "drop_last in kwargs_wld would drop samples on one rank and not on another; "
            "leave it out, and for batches of one size in training give tail='drop'",
            split=split.split,
        )
    name, single = split.loader.collate, split.loader.batch_size is None and not split.joins
    if single and isinstance(name, str):
        raise ConfigError(
            f"collate_fn={name!r} in kwargs_wld makes batches, and where pipeline_prebatch_wld is given it gets single "
            f"samples; leave it out, and give Use('batch', collate={name!r}) in pipeline_prebatch_wld",
            split=split.split,
        )


def add_resume(trainer: L.Trainer) -> None:
    """Add the callbacks that apply a checkpoint's cursors and write receipts, once for a trainer."""
    from bionemo.webdatamodule._engine.loading.receipts import ReceiptCallback
    from bionemo.webdatamodule._engine.loading.resume import ResumeCallback

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    for kind in (ReceiptCallback, ResumeCallback):  # this one is the first
        if not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.insert(0, kind())


def _warn_of_evaluation(split: SplitSettings, topology: Topology) -> None:
    """Say where shards order may leave samples out of evaluation, or repeat some."""
    apart = split.loader.batch_size is not None and split.loader.function.num_workers > 1
    if split.split != "train" and (topology.world_size > 1 or apart):
        who = "ranks" if topology.world_size > 1 else "workers"
        warnings.warn(
            f"{split.split}: in shards order {who} need not have the same number of batches, so evaluation may leave "
            "samples out or repeat some; leave webdataset's shard arguments out of this split's kwargs_wds",
            DataWarning,
            stacklevel=2,
        )


def _planned(
    settings: Settings, split: SplitSettings, topology: Topology, sets: list[ShardSet], reader: ShardReader
) -> PlannedDataset:
    plan = make_plan(settings, split, sets, reader, training=split.split == "train")
    if split.split != "train" and plan.n_samples < topology.world_size:
        warnings.warn(
            f"{split.split}: fewer samples than ranks: {count(plan.n_samples, 'sample')} for "
            f"{count(topology.world_size, 'rank')}, so some are evaluated on several of them; "
            "evaluate on fewer ranks where means must not count a sample twice",
            DataWarning,
            stacklevel=2,
        )
        plan = Repeated(plan=plan)
    try:
        plan.check(topology.world_size)
    except PlanError as error:
        raise error.located(split=split.split) from error.__cause__
    share = -(-settings.global_batch_size // topology.world_size)
    if planner_of(split) is None and (split.loader.batch_size or share) < share:
        raise ConfigError(
            f"batch_size in kwargs_wld is {split.loader.batch_size}, and each rank's share of a global batch is "
            f"{count(share, 'sample')}, of which workers make one batch; leave batch_size out, or choose "
            "global_batch_size",
            split=split.split,
        )
    ahead, left = split_stages(split.loader_stages)
    return PlannedDataset(
        reader=reader,
        plan=plan,
        stages=split.stages,
        ahead=(split.torch_stage, *ahead),
        batches=not left,
        joins=split.joins,
        topology=topology,
        split=split.split,
        seed=settings.seed,
        sample_bytes=reader.sample_bytes,
    )


def _stream(
    settings: Settings, split: SplitSettings, topology: Topology, sets: list[ShardSet], reader: ShardReader
) -> StreamDataset:
    options = split.options
    shuffle = options.get("shardshuffle")
    return StreamDataset(
        reader=reader,
        shards=[path for found in sets for path in found.paths],
        stages=(*split.stages, split.torch_stage),
        dealing=Dealing(
            nodesplitter=options.get("nodesplitter", split_by_node),
            workersplitter=options.get("workersplitter", split_by_worker),
            shardshuffle=100 if shuffle is True else int(shuffle or 0),
            resampled=bool(options.get("resampled")) or options.get("mode") == "resampled",
            empty_check=bool(options.get("empty_check", True)),
            seed=settings.seed if options.get("seed") is None else options["seed"],
        ),
        topology=topology,
        split=split.split,
        joins=split.joins,
        batch_size=max(1, settings.global_batch_size // topology.world_size),
        sample_bytes=reader.sample_bytes,
    )


def _called(argument: str, split: str, target: Any, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Call webdataset's fluid methods on a dataset or loader, one after the other."""
    for name, kwargs in calls:
        method = getattr(target, name, None)
        if not callable(method):
            raise ConfigError(f"{argument} names {name!r}, which is no method of {type(target).__name__}", split=split)
        target = method(**kwargs)
    return target
