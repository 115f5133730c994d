"""litdata on its own chunk format, written by ``optimize``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litdata
import torch
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROCESSES = 2

SYNCS = False


def versions() -> dict[str, str]:
    """The library and torch."""
    return {"litdata": litdata.__version__, "torch": torch.__version__}


def stored_as(variant: str) -> str:
    """The order of reading does not matter to the files."""
    return "chunks"


def convert(source: Source, target: Path, variant: str) -> None:
    """``optimize`` on two processes, forked so that they need not import anything while the clock runs."""
    litdata.optimize(
        fn=partial(Source.load, source),
        inputs=source.paths,
        output_dir=str(target),
        chunk_bytes=source.n_bytes // N_SHARDS,
        num_workers=PROCESSES,
        start_method="fork",
        verbose=False,
    )


def n_converted(source: Source, target: Path, variant: str) -> int:
    """What the index says."""
    return len(litdata.StreamingDataset(str(target)))


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """Its own loader over its own data set; "items" decodes samples one by one, which it offers for shuffling."""
    dataset = litdata.StreamingDataset(
        str(target),
        shuffle=variant.startswith("shuffled"),
        drop_last=False,
        batch_decode=0 if variant == "shuffled-items" else "auto",
    )
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=workers,
        collate_fn=KINDS[source.kind].collate,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)
