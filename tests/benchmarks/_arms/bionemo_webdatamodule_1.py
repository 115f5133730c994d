"""bionemo-webdatamodule 1.0.0 as it documents itself: single samples out of the workers, batched after the loader."""

from __future__ import annotations

import random
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import webdataset as wds
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source

from bionemo.webdatamodule.datamodule import PickledDataWDS, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SEED = 27193781

SYNCS = False


def versions() -> dict[str, str]:
    """The library and what it stands on."""
    return {name: version(name) for name in ("bionemo-webdatamodule", "webdataset", "torch")}


def convert(source: Source, target: Path, variant: str) -> None:
    """``PickledDataWDS.prepare_data``."""
    _module(source, target, workers=0).prepare_data()


def n_converted(source: Source, target: Path, variant: str) -> int:
    """Count the samples by reading the shards."""
    paths = sorted(str(path) for path in (target / "train").glob("wdshards-*.tar"))
    return sum(1 for _ in wds.WebDataset(paths, shardshuffle=False))


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """The training loader of the data module."""
    module = _module(source, target, workers=workers)
    module.setup("fit")
    loader = module.train_dataloader()
    return lambda: iter(loader)


def _module(source: Source, target: Path, *, workers: int) -> PickledDataWDS:
    kind = KINDS[source.kind]
    shuffle = [wds.shuffle(source.n_samples, rng=random.Random(SEED)) for _ in range(2)]
    # Its loader's own default is torch's batch_size=1; None spares it the needless collation of each sample.
    options = {"batch_size": None, "num_workers": workers, "persistent_workers": workers > 0}
    train, directory = Split.train, str(target / "train")
    batch = wds.batched(BATCH_SIZE, collation_fn=kind.collate, partial=True)
    return PickledDataWDS(
        source.directory,
        {train: source.names},
        kind.suffix,
        {train: directory, Split.val: directory},  # its fit stage insists on a val split
        n_tars_wds=N_SHARDS,
        pipeline_wds={train: [_untuple, shuffle[0]], Split.val: None},
        pipeline_prebatch_wld={train: [shuffle[1], batch]},
        kwargs_wds={
            train: {"shardshuffle": True, "nodesplitter": wds.split_by_node, "seed": SEED},
            Split.val: {"shardshuffle": False},
        },
        kwargs_wld={train: options},
    )


def _untuple(source: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    for (sample,) in source:
        yield sample
