"""The data sets of the benchmarks: how samples are made, batched, summed and checked.

Runs in every environment of the benchmark, so it needs nothing but torch and the standard library.
"""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

BATCH_SIZE = 64
N_SHARDS = 8


def _floats(number: int, length: int) -> torch.Tensor:
    """Uniform values in [0, 1), but the sample's number comes first, so that its delivery can be proved."""
    values = torch.rand(length, generator=torch.Generator().manual_seed(number))
    values[0] = number
    return values


def _record(number: int) -> dict[str, Any]:
    """A sequence of 50 to 1,000 tokens, an embedding and the sample's number as its label."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(50, 1001, (1,), generator=generator))
    return {
        "tokens": torch.randint(0, 33, (length,), generator=generator),
        "embedding": torch.rand(64, generator=generator),
        "label": number,
    }


def _stack(samples: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(samples))


def _listed(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Leave the tokens of each sample a tensor of their own, as for packed or nested batches, and stack the rest."""
    return {
        "tokens": [sample["tokens"] for sample in samples],
        "embedding": torch.stack([sample["embedding"] for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
    }


def _pad(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad the tokens with zeros to the longest of the batch and stack the rest."""
    batch = _listed(samples)
    return {**batch, "tokens": torch.nn.utils.rnn.pad_sequence(batch["tokens"], batch_first=True)}


def _sum_tensor(batch: torch.Tensor) -> float:
    return float(batch.sum())


def _sum_record(batch: dict[str, Any]) -> float:
    tokens = torch.cat(batch["tokens"]) if isinstance(batch["tokens"], list) else batch["tokens"]
    return float(tokens.sum()) + float(batch["embedding"].sum())


def _numbers_tensor(batch: torch.Tensor) -> torch.Tensor:
    return batch[:, 0].clone()


def _numbers_record(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["label"].clone()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of sample: how to make it, and what a batch of it looks like, the same for every arm.

    Attributes:
        name: Short name, as on the command line.
        title: What the tables call it.
        suffix: What follows the sample's name in the source directory.
        n_samples: Number of samples in a full run.
        make: The sample with a number.
        collate: Samples to one batch.
        total: Sum of all values of a batch.
        numbers: The numbers of the samples in a batch.
        is_record: Whether a sample is a dict.
    """

    name: str
    title: str
    suffix: str
    n_samples: int
    make: Callable[[int], Any]
    collate: Callable[[Sequence[Any]], Any]
    total: Callable[[Any], float]
    numbers: Callable[[Any], torch.Tensor]
    is_record: bool = False


def _small(number: int) -> torch.Tensor:
    return _floats(number, 256)


def _large(number: int) -> torch.Tensor:
    return _floats(number, 25_600)


_DICT = Kind(
    name="dict",
    title="dicts",
    suffix="record.pyd",
    n_samples=20_000,
    make=_record,
    collate=_pad,
    total=_sum_record,
    numbers=_numbers_record,
    is_record=True,
)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="small",
            title="float32[256]",
            suffix="tensor.pyd",
            n_samples=20_000,
            make=_small,
            collate=_stack,
            total=_sum_tensor,
            numbers=_numbers_tensor,
        ),
        Kind(
            name="large",
            title="float32[25600]",
            suffix="tensor.pyd",
            n_samples=2_000,
            make=_large,
            collate=_stack,
            total=_sum_tensor,
            numbers=_numbers_tensor,
        ),
        _DICT,
        replace(_DICT, name="list", title="dicts, with lists of tensors by a collate function", collate=_listed),
    )
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A directory of pickles, one a sample, as a user has them before any conversion.

    Attributes:
        kind: Name of the kind of sample.
        directory: Where the files lie.
        n_samples: How many there are.
        n_bytes: Size of all files, in bytes.
        total: Sum of all values of all samples.
    """

    kind: str
    directory: str
    n_samples: int
    n_bytes: int
    total: float

    @property
    def names(self) -> list[str]:
        """Names of the samples, in order."""
        return [f"s{number:06d}" for number in range(self.n_samples)]

    @property
    def paths(self) -> list[str]:
        """Paths of the samples, in order."""
        suffix = KINDS[self.kind].suffix
        return [f"{self.directory}/{name}.{suffix}" for name in self.names]

    def load(self, path: str) -> Any:
        """The sample in a file."""
        return pickle.loads(Path(path).read_bytes())


def make_source(
    kind: Kind,
    directory: Path,
    n_samples: int,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda names: names,
) -> Source:
    """Write the pickles, or take them from an earlier run that finished."""
    receipt = directory / "source.json"
    if receipt.exists():
        source = Source(**json.loads(receipt.read_text()))
        if (source.kind, source.n_samples, source.directory) == (kind.name, n_samples, str(directory)):
            return source
    directory.mkdir(parents=True, exist_ok=True)
    draft = Source(kind=kind.name, directory=str(directory), n_samples=n_samples, n_bytes=0, total=0.0)
    n_bytes, total = 0, 0.0
    for number, path in enumerate(progress(draft.paths)):
        sample = kind.make(number)
        data = pickle.dumps(sample)
        Path(path).write_bytes(data)
        n_bytes += len(data)
        total += kind.total(sample)
    source = Source(**{**asdict(draft), "n_bytes": n_bytes, "total": total})
    receipt.write_text(json.dumps(asdict(source)))
    return source


def consume(
    kind: Kind, batches: Iterator[Any], numbers: list[torch.Tensor] | None = None, used: list[float] | None = None
) -> tuple[int, float]:
    """Take one epoch as a training loop does: every value is read once.

    Args:
        kind: The kind of samples.
        batches: The epoch.
        numbers: Where to put the numbers of the samples as they come, if anywhere.
        used: Where to put the time at which each batch was used, if anywhere.

    Returns:
        Number of samples, and the sum of all their values.
    """
    count, total = 0, 0.0
    for batch in batches:
        count += len(batch["label"]) if isinstance(batch, dict) else len(batch)
        total += kind.total(batch)
        if numbers is not None:
            numbers.append(kind.numbers(batch))
        if used is not None:
            used.append(time.perf_counter())
    return count, total


def check_totals(source: Source, count: int, total: float) -> None:
    """Raise if an epoch did not bring the values of every sample.

    float32 sums of a batch are good to about 1e-6, a missing sample is worth 5e-5 of the total or more.
    """
    if count != source.n_samples:
        raise AssertionError(f"{count} samples of {source.n_samples} arrived")
    if abs(total - source.total) > 1e-5 * abs(source.total):
        raise AssertionError(f"the values add up to {total}, expected {source.total}")


def check_numbers(source: Source, numbers: torch.Tensor) -> float:
    """Raise unless every sample came exactly once; tell how well they were shuffled.

    Returns:
        Correlation of a sample's number with its place in the epoch: 1 for unshuffled, near 0 for a full shuffle.
    """
    places = torch.arange(source.n_samples, dtype=torch.float64)
    if not torch.equal(numbers.double().sort().values, places):
        raise AssertionError("not every sample arrived exactly once")
    return float(torch.corrcoef(torch.stack([numbers.double(), places]))[0, 1])
