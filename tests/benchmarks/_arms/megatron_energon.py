"""megatron-energon over tars of npy members, prepared by its own indexer, with a crude data set and one cooker."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _data import BATCH_SIZE, KINDS, Source
from megatron.energon import (
    Cooker,
    CrudeWebdataset,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)

from _arms import webdataset as shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHUFFLE_BUFFER = 1000
SAMPLES_PER_SEQUENCE = 100  # as in its examples: a balance of reading in order and mixing
DATASET_YAML = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"

SYNCS = False


def versions() -> dict[str, str]:
    """The library and what it stands on."""
    return {name: version(name) for name in ("megatron-energon", "webdataset", "torch")}


def stored_as(variant: str) -> str:
    """The order of reading does not matter to the files."""
    return "npy"


def convert(source: Source, target: Path, variant: str) -> None:
    """Tars by webdataset's writer, and the index that ``energon prepare`` makes."""
    shards.convert(source, target, "npy")
    CrudeWebdataset.prepare_dataset(
        target,
        [Path(path).name for path in shards.shards(target)],
        split_parts_ratio=[("train", 1.0), ("val", 0.0)],
        workers=2,
    )
    (target / ".nv-meta" / "dataset.yaml").write_text(DATASET_YAML)


def n_converted(source: Source, target: Path, variant: str) -> int:
    """Count the samples by reading the shards."""
    return shards.n_converted(source, target, variant)


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """Its validation order for unshuffled, its training order for shuffled reading."""
    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    encoder = _Encoder(source.kind)
    if variant == "shuffled":
        dataset = get_train_dataset(
            target,
            worker_config=config,
            batch_size=BATCH_SIZE,
            shuffle_buffer_size=SHUFFLE_BUFFER,
            max_samples_per_sequence=SAMPLES_PER_SEQUENCE,
            task_encoder=encoder,
            repeat=False,
        )
    else:
        dataset = get_val_dataset(
            target, split_part="train", worker_config=config, batch_size=BATCH_SIZE, task_encoder=encoder
        )
    loader = get_loader(dataset)
    return lambda: iter(loader)


@dataclasses.dataclass
class _Cooked(Sample):
    value: Any


@stateless
def _cook_tensor(sample: dict[str, Any]) -> _Cooked:
    return _Cooked(**basic_sample_keys(sample), value=torch.from_numpy(sample["tensor.npy"]))


@stateless
def _cook_record(sample: dict[str, Any]) -> _Cooked:
    record = {
        "tokens": torch.from_numpy(sample["tokens.npy"]),
        "embedding": torch.from_numpy(sample["embedding.npy"]),
        "label": sample["label.cls"],
    }
    return _Cooked(**basic_sample_keys(sample), value=record)


class _Encoder(DefaultTaskEncoder):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.collate = KINDS[kind].collate
        self.cookers = [Cooker(_cook_record if KINDS[kind].is_record else _cook_tensor)]

    @stateless
    def batch(self, samples: Sequence[_Cooked]) -> Any:
        return self.collate([sample.value for sample in samples])
