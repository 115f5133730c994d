"""mosaicml-streaming on its own MDS format, with columns of fixed type and, where it can be, fixed shape."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streaming
import torch
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source
from streaming.base.util import clean_stale_shared_memory, merge_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PROCESSES = 2
RECORD = {"tokens": "ndarray:int64", "embedding": "ndarray:float32:64", "label": "int"}
COLUMNS = {
    "small": {"tensor": "ndarray:float32:256"},
    "large": {"tensor": "ndarray:float32:25600"},
    "dict": RECORD,
    "list": RECORD,
}

SYNCS = False


def versions() -> dict[str, str]:
    """The library and torch."""
    return {"mosaicml-streaming": version("mosaicml-streaming"), "torch": torch.__version__}


def stored_as(variant: str) -> str:
    """The order of reading does not matter to the files."""
    return "parallel" if variant == "parallel" else "mds"


def convert(source: Source, target: Path, variant: str) -> None:
    """One ``MDSWriter``, or ("parallel") one each in two processes and their indices merged."""
    if variant != "parallel":
        _write(source, source.paths, str(target))
        return
    half = -(-source.n_samples // PROCESSES)
    parts = [source.paths[start : start + half] for start in range(0, source.n_samples, half)]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
        for _ in pool.map(partial(_write, source), parts, [f"{target}/{number}" for number in range(len(parts))]):
            pass
    merge_index(str(target), keep_local=True)


def n_converted(source: Source, target: Path, variant: str) -> int:
    """What the index says."""
    clean_stale_shared_memory()
    return len(streaming.StreamingDataset(local=str(target), batch_size=BATCH_SIZE))


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """Its own loader over its own data set."""
    clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(target), shuffle=variant == "shuffled", batch_size=BATCH_SIZE)
    loader = streaming.StreamingDataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=workers,
        collate_fn=partial(_collate_records, source.kind) if KINDS[source.kind].is_record else _collate_tensors,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)


def _write(source: Source, paths: Sequence[str], out: str) -> None:
    size_limit = source.n_bytes // N_SHARDS
    with streaming.MDSWriter(out=out, columns=COLUMNS[source.kind], size_limit=size_limit) as writer:
        for path in paths:
            writer.write(_columns(source.load(path)))


def _columns(sample: Any) -> dict[str, Any]:
    if isinstance(sample, dict):
        return {
            "tokens": sample["tokens"].numpy(),
            "embedding": sample["embedding"].numpy(),
            "label": sample["label"],
        }
    return {"tensor": sample.numpy()}


def _collate_tensors(samples: Sequence[dict[str, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["tensor"] for sample in samples]))


def _collate_records(kind: str, samples: Sequence[dict[str, Any]]) -> Any:
    # Its arrays are read-only views of bytes, which torch warns about unless they are copied.
    return KINDS[kind].collate(
        [
            {
                "tokens": torch.from_numpy(sample["tokens"].copy()),
                "embedding": torch.from_numpy(sample["embedding"].copy()),
                "label": sample["label"],
            }
            for sample in samples
        ]
    )
