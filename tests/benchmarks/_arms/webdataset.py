"""webdataset as its documentation advises: enough shards, decoding and batching in the worker.

"npy" has the arrays in the form that it decodes fastest, "pickles" the pickles that the source files hold.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import webdataset as wds
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHUFFLE_BUFFER = 1000  # webdataset's own default and what its examples use

SYNCS = False


def versions() -> dict[str, str]:
    """The library and torch."""
    return {"webdataset": wds.__version__, "torch": torch.__version__}


def stored_as(variant: str) -> str:
    """The order of reading does not matter to the files."""
    return variant.removesuffix("-shuffled")


def convert(source: Source, target: Path, variant: str) -> None:
    """One ``ShardWriter``; "pickles" copies the files' bytes, "npy" takes the samples apart."""
    maxcount = -(-source.n_samples // N_SHARDS)
    suffix = KINDS[source.kind].suffix
    with wds.ShardWriter(f"{target}/wdshards-%06d.tar", maxcount=maxcount, verbose=0) as sink:
        for name, path in zip(source.names, source.paths, strict=True):
            if stored_as(variant) == "pickles":
                fields: dict[str, Any] = {suffix: Path(path).read_bytes()}
            else:
                fields = _members(source.load(path))
            sink.write({"__key__": name, **fields})


def n_converted(source: Source, target: Path, variant: str) -> int:
    """Count the samples by reading the shards."""
    return sum(1 for _ in wds.WebDataset(shards(target), shardshuffle=False))


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """Whole batches out of the workers."""
    collate = KINDS[source.kind].collate
    stored, shuffled = stored_as(variant), variant.endswith("-shuffled")
    dataset = wds.WebDataset(shards(target), shardshuffle=N_SHARDS if shuffled else False)
    if shuffled:
        dataset = dataset.shuffle(SHUFFLE_BUFFER)
    dataset = dataset.decode()
    if stored == "pickles":
        dataset = dataset.to_tuple(KINDS[source.kind].suffix).map(_first)
    elif KINDS[source.kind].is_record:
        dataset = dataset.map(_record)
    else:
        dataset = dataset.to_tuple("tensor.npy").map(_tensor)
    dataset = dataset.batched(BATCH_SIZE, collation_fn=collate, partial=True)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


def shards(target: Path) -> list[str]:
    """The shards of a conversion."""
    return sorted(glob.glob(f"{target}/wdshards-*.tar"))  # noqa: PTH207 - webdataset takes strings


def _members(sample: Any) -> dict[str, Any]:
    if isinstance(sample, dict):
        return {
            "tokens.npy": sample["tokens"].numpy(),
            "embedding.npy": sample["embedding"].numpy(),
            "label.cls": sample["label"],
        }
    return {"tensor.npy": sample.numpy()}


def _first(fields: tuple[Any, ...]) -> Any:
    return fields[0]


def _tensor(fields: tuple[Any, ...]) -> torch.Tensor:
    return torch.from_numpy(fields[0])


def _record(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": torch.from_numpy(sample["tokens.npy"]),
        "embedding": torch.from_numpy(sample["embedding.npy"]),
        "label": sample["label.cls"],
    }
