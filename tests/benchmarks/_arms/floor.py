"""What the machine allows: raw values at known offsets, and two processes that only copy bytes.

Reading is memory map, ``torch.frombuffer`` and the batch; with workers the same in a torch ``DataLoader`` whose workers
send whole batches. Converting is reading the source files and writing and syncing the same bytes.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PROCESSES = 2

SYNCS = True


def versions() -> dict[str, str]:
    """Nothing but torch."""
    return {"torch": torch.__version__}


def stored_as(variant: str) -> str:
    """The order of reading does not matter to the files."""
    return variant.removesuffix("-shuffled")


def convert(source: Source, target: Path, variant: str) -> None:
    """Copy the source files' bytes on two processes ("copy"), or write raw values for reading ("raw")."""
    if variant == "copy":
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
            for _ in pool.map(_copy, _shards(source.paths), _outputs(target)):
                pass
        return
    table = []
    for paths, output in zip(_shards(source.paths), _outputs(target), strict=True):
        with Path(output).open("wb") as file:
            for path in paths:
                fields, label = _fields(source.load(path))
                table.append((output, file.tell(), [len(field) for field in fields], label))
                file.writelines(field.numpy().tobytes() for field in fields)
    torch.save(table, target / "table.pt")


def n_converted(source: Source, target: Path, variant: str) -> int:
    """All samples if all bytes are there."""
    n_bytes = sum(Path(path).stat().st_size for path in _outputs(target))
    return source.n_samples if n_bytes == source.n_bytes else 0


def epochs(source: Source, target: Path, variant: str, workers: int) -> Callable[[], Iterator[Any]]:
    """Batches in the order of the files, or in a new random order every epoch."""
    dataset = _Batches(source, torch.load(target / "table.pt"))
    order = _Order(source.n_samples, shuffled=variant.endswith("-shuffled"))
    if workers == 0:
        return lambda: (dataset[ids] for ids in order)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, sampler=order, num_workers=workers, persistent_workers=True
    )
    return lambda: iter(loader)


class _Order:
    """Lists of sample numbers, one a batch."""

    def __init__(self, n_samples: int, *, shuffled: bool) -> None:
        self.n_samples = n_samples
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[list[int]]:
        ids = torch.randperm(self.n_samples) if self.shuffled else torch.arange(self.n_samples)
        return (batch.tolist() for batch in ids.split(BATCH_SIZE))

    def __len__(self) -> int:
        return math.ceil(self.n_samples / BATCH_SIZE)


class _Batches:
    """The batch of a list of sample numbers."""

    def __init__(self, source: Source, table: list[tuple[str, int, list[int], int | None]]) -> None:
        self.collate = KINDS[source.kind].collate
        maps = {path: _map(path) for path, *_ in table}
        self.table = [(maps[path], *rest) for path, *rest in table]
        self.read = _read_record if KINDS[source.kind].is_record else _read_tensor

    def __getitem__(self, ids: list[int]) -> Any:
        read, table = self.read, self.table
        return self.collate([read(*table[number]) for number in ids])


def _read_tensor(data: mmap.mmap, offset: int, lengths: list[int], _: int | None) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.float32, count=lengths[0], offset=offset)


def _read_record(data: mmap.mmap, offset: int, lengths: list[int], label: int | None) -> dict[str, Any]:
    n_tokens, n_embedding = lengths
    return {
        "tokens": torch.frombuffer(data, dtype=torch.int64, count=n_tokens, offset=offset),
        "embedding": torch.frombuffer(data, dtype=torch.float32, count=n_embedding, offset=offset + 8 * n_tokens),
        "label": label,
    }


def _fields(sample: Any) -> tuple[list[torch.Tensor], int | None]:
    if isinstance(sample, dict):
        return [sample["tokens"], sample["embedding"]], sample["label"]
    return [sample], None


def _map(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns about read-only memory


def _shards(paths: Sequence[str]) -> list[Sequence[str]]:
    size = -(-len(paths) // N_SHARDS)
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _outputs(target: Path) -> list[str]:
    return [f"{target}/{number:06d}.bin" for number in range(N_SHARDS)]


def _copy(paths: Sequence[str], output: str) -> None:
    with Path(output).open("wb") as file:
        for path in paths:
            with open(path, "rb", buffering=0) as one:  # noqa: PTH123 - a floor takes the shortest way
                file.write(one.read())
        file.flush()
        os.fsync(file.fileno())
