"""One run of the benchmark of users' pipelines, in a process of its own; prints JSON.

python _pipelines_arm.py ROW CONTENDER WORKERS DIRECTORY
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from _data import BATCH_SIZE, KINDS
from _processes import cpu_seconds
from torch.utils.data import DataLoader, Dataset

from bionemo.webdatamodule import Use, WebDataModule

pad: Any = KINDS["dict"].collate


def cut(sample: dict[str, Any]) -> dict[str, Any]:
    """A plain function on samples, as of any user: the middle of the tokens, and a normalised embedding."""
    tokens, embedding = sample["tokens"], sample["embedding"]
    start = max(0, (len(tokens) - 256) // 2)
    return {**sample, "tokens": tokens[start : start + 256], "embedding": embedding / embedding.norm()}


class Collator:
    """A collator as of Hugging Face: pads ``input_ids``, makes the mask, and takes lists or tensors."""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        longest = max(len(feature["tokens"]) for feature in features)
        ids = torch.zeros((len(features), longest), dtype=torch.int64)
        mask = torch.zeros((len(features), longest), dtype=torch.int64)
        for row, feature in enumerate(features):
            length = len(feature["tokens"])
            ids[row, :length] = torch.as_tensor(feature["tokens"])
            mask[row, :length] = 1
        return {"tokens": ids, "mask": mask, "label": torch.tensor([feature["label"] for feature in features])}


def image(data: bytes) -> torch.Tensor:
    """Decode an image."""
    import io

    from PIL import Image

    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy())


def graphs(samples: Sequence[Any]) -> Any:
    """Make a batch of graphs."""
    from torch_geometric.data import Batch

    return Batch.from_data_list(list(samples))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A pipeline.

    Attributes:
        suffix: Of the files, and of the field.
        load: What a user without any library calls for the bytes of a file.
        map: Function of each sample.
        collate: Function of a list of samples.
        ours: Arguments of our data module.
        total: A number that all contenders must agree about, of a batch.
    """

    suffix: str
    load: Callable[[bytes], Any]
    map: Callable[[Any], Any] | None = None
    collate: Callable[[Any], Any]
    ours: dict[str, Any]
    total: Callable[[Any], float] = lambda batch: float(batch["tokens"].sum())


def mapping(function: Callable[[Any], Any], **more: Any) -> dict[str, Any]:
    """Arguments for a function on samples."""
    return {"pipeline_wds": {"train": ["untuple", Use("map", function=function)]}, **more}


ROWS = {
    "map": Row(
        suffix="record.pyd",
        load=pickle.loads,
        map=cut,
        collate=pad,
        ours=mapping(cut, pipeline_prebatch_wld={"train": Use("batch", collate="pad")}),
    ),
    "batched": Row(
        suffix="record.pyd",
        load=pickle.loads,
        collate=pad,
        ours={"pipeline_prebatch_wld": {"train": wds.batched(BATCH_SIZE, collation_fn=pad)}},
    ),
    "collator": Row(
        suffix="record.pyd",
        load=pickle.loads,
        collate=Collator(),
        ours={"kwargs_wld": {"train": {"collate_fn": Collator()}}},
    ),
    "images": Row(
        suffix="jpg",
        load=bytes,
        map=image,
        collate=torch.stack,
        ours=mapping(image, codecs={"jpg": "bytes"}),
        total=lambda batch: float(batch.sum()),
    ),
    "graphs": Row(
        suffix="graph.pyd",
        load=pickle.loads,
        collate=graphs,
        ours={"kwargs_wld": {"train": {"collate_fn": graphs}}, "allow_pickle": ["torch_geometric.*"]},
        total=lambda batch: float(batch["a"].x.sum()),
    ),
}


class Files(Dataset):  # type: ignore[type-arg]
    """The files as a plain data set."""

    def __init__(self, row: Row, directory: str) -> None:
        self.row = row
        self.paths = sorted(Path(directory, "files").iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        sample = self.row.load(self.paths[number].read_bytes())
        return sample if self.row.map is None else self.row.map(sample)


def ours(row: Row, directory: str, workers: int) -> Iterable[Any]:
    """This package, shuffled."""
    options = {"num_workers": workers, **row.ours.get("kwargs_wld", {}).get("train", {})}
    arguments = {**row.ours, "kwargs_wld": {"train": options}}
    module = WebDataModule({"train": f"{directory}/shards/train"}, None, row.suffix, BATCH_SIZE, **arguments)
    module.setup("fit")
    return module.train_dataloader()  # type: ignore[no-any-return]


def plain(row: Row, directory: str, workers: int) -> Iterable[Any]:
    """torch's own loader over the files, shuffled."""
    return DataLoader(
        Files(row, directory), batch_size=BATCH_SIZE, shuffle=True, num_workers=workers, collate_fn=row.collate
    )


def webdataset(row: Row, directory: str, workers: int) -> Iterable[Any]:
    """webdataset over the same shards, with its batches made in the worker, in order."""
    shards = sorted(map(str, Path(directory, "shards", "train").glob("*.tar")))
    dataset = wds.WebDataset(shards, shardshuffle=False).to_tuple(row.suffix).map(lambda fields: row.load(fields[0]))
    if row.map is not None:
        dataset = dataset.map(row.map)
    dataset = dataset.batched(BATCH_SIZE, collation_fn=row.collate, partial=True)
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers)  # type: ignore[no-any-return]


def main() -> None:
    """Run."""
    name, contender, workers, directory = sys.argv[1:5]
    row = ROWS[name]
    began, cpu = time.monotonic(), cpu_seconds()
    total, count = 0.0, 0
    for batch in {"ours": ours, "plain": plain, "webdataset": webdataset}[contender](row, directory, int(workers)):
        if not count:
            ready = time.monotonic()
        count += 1
        total += row.total(batch)
    ended = time.monotonic()
    rate = (count - 1) / (ended - ready)
    print(json.dumps({"total": total, "wall": ended - began, "cpu": cpu_seconds() - cpu, "rate": rate}))


if __name__ == "__main__":
    main()
