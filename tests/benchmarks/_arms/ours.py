"""This package: its default pipeline, the documented pipeline of single samples, and shards of another writer."""

from __future__ import annotations

import random
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import webdataset as wds
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source

from _arms import webdataset as foreign
from bionemo.webdatamodule import PickledDataWDS, Split, Use, WebDataModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SEED = 27193781

SYNCS = True


def versions() -> dict[str, str]:
    """The package and what it stands on."""
    return {name: version(name) for name in ("webdataset", "torch", "lightning", "numpy")}


def stored_as(variant: str) -> str:
    """Both pipelines read what one conversion wrote."""
    return "foreign" if variant == "foreign" else "default"


def convert(source: Source, target: Path, variant: str) -> None:
    """``PickledDataWDS.prepare_data``, or for "foreign" webdataset's writer with the pickles as they are."""
    if variant == "foreign":
        (target / "train").mkdir()
        foreign.convert(source, target / "train", "pickles")
        return
    PickledDataWDS(
        source.directory,
        KINDS[source.kind].suffix,
        {Split.train: source.names},
        f"{target}/",
        BATCH_SIZE,
        n_tars_wds=N_SHARDS,
    ).prepare_data()


def n_converted(source: Source, target: Path, variant: str) -> int:
    """Count the samples with plain webdataset."""
    return foreign.n_converted(source, target / "train", variant)


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """The training loader of the data module."""
    make = _documented if variant == "documented" else _default
    module = WebDataModule(
        {Split.train: str(target / "train")},
        {Split.train: source.n_samples},
        KINDS[source.kind].suffix,
        BATCH_SIZE,
        **make(source, {"num_workers": workers, "persistent_workers": workers > 0}),
    )
    module.setup("fit")
    loader = module.train_dataloader()
    return lambda: iter(loader)


def _default(source: Source, options: dict[str, Any]) -> dict[str, Any]:
    """No pipeline at all, but for padding what varies in length, or the user's collate function."""
    collate = {"dict": "pad", "list": KINDS["list"].collate}.get(source.kind, "default")
    batch = Use("batch", collate=collate)
    return {"pipeline_prebatch_wld": {Split.train: batch}, "kwargs_wld": {Split.train: options}}


def _documented(source: Source, options: dict[str, Any]) -> dict[str, Any]:
    """Untuple, shuffle, and after the loader shuffle and batch, in shards order."""
    shuffles = [wds.shuffle(source.n_samples, rng=random.Random(SEED)) for _ in range(2)]
    batch = wds.batched(BATCH_SIZE, collation_fn=KINDS[source.kind].collate)
    return {
        "pipeline_wds": {Split.train: [_untuple, shuffles[0]]},
        "pipeline_prebatch_wld": {Split.train: [shuffles[1], batch]},
        "kwargs_wds": {Split.train: {"shardshuffle": True, "nodesplitter": wds.split_by_node, "seed": SEED}},
        "kwargs_wld": {Split.train: options},
    }


def _untuple(source: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    for (sample,) in source:
        yield sample
