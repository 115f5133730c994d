"""Default stages that join samples into batches: by number, or by size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bionemo.webdatamodule import context
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import one_of, whole_number

Collate: TypeAlias = "str | Callable[[list[Any]], Any]"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Join samples into batches.

    Args:
        size: Samples in a batch. By default, in global order, the planned share of this rank;
            in shards order ``global_batch_size // world_size``.
        collate: What makes a batch of a list of samples: ``"default"`` for torch's ``default_collate``;
            ``"pad"`` for the same after filling tensors up with zeros to the longest in the batch;
            ``"list"`` for the list itself; or any function of a list.
        partial: Pass on a last batch that is smaller.
    """

    size: int | None = None
    collate: Collate = "default"
    partial: bool = True

    def __post_init__(self) -> None:
        if self.size is not None:
            whole_number("size", self.size, least=1)
        collation(self.collate)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches."""
        size = self.size or context.current().batch_size
        return self._batches(samples, size)

    def _batches(self, samples: Iterator[Any], size: int | None) -> Iterator[Any]:
        collate = collation(self.collate)
        while batch := list(itertools.islice(samples, size)):
            if size is None or len(batch) == size or self.partial:
                yield collate(batch)


@dataclass(frozen=True, kw_only=True)
class BatchBySize:
    """Join samples of like size into batches whose padded size is limited, such as at most 4,096 tokens.

    As the first stage of ``pipeline_prebatch_wld`` in global order it decides the plan: sizes are read once at setup,
    every rank takes the same number of batches, and ``global_batch_size`` plays no part.
    In shards order it batches the stream as it comes.

    Args:
        size: The size of a sample. A suffix: the length of that field, or its value if it is a number.
            Or a function of a sample: in global order of the fields as they are stored, a value for one suffix and
            a tuple for several; in shards order of what reaches this stage.
        max_total: Limit of a batch: its number of samples times its largest size.
        max_samples: Limit of a batch in samples; 0 for none.
        width: In global order, how far sizes in a batch may lie apart: 0.1 for about 10 %.
        window: In shards order, samples that are sorted at a time.
        oversize: What becomes of a sample that is larger than ``max_total``: ``"error"``, or a batch ``"alone"``.
        collate: What makes a batch of a list of samples, as in ``batch``.
    """

    size: str | Callable[[Any], int]
    max_total: int
    max_samples: int = 0
    width: float = 0.1
    window: int = 1024
    oversize: Literal["error", "alone"] = "error"
    collate: Collate = "pad"

    def __post_init__(self) -> None:
        if not callable(self.size) and not (isinstance(self.size, str) and self.size):
            raise ConfigError(f"size is a suffix or a function of a sample, not {self.size!r}")
        whole_number("max_total", self.max_total, least=1)
        whole_number("max_samples", self.max_samples, least=0)
        whole_number("window", self.window, least=1)
        one_of("oversize", self.oversize, ("error", "alone"))
        collation(self.collate)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches; in global order the planned share is one."""
        collate = collation(self.collate)
        if context.current().order == "global":
            return map(collate, filter(None, [list(samples)]))
        from bionemo.webdatamodule._engine.sampling.by_size import batch_by_size

        return map(
            collate,
            batch_by_size(
                samples,
                self._stream_size(),
                max_total=self.max_total,
                max_samples=self.max_samples,
                window=self.window,
                oversize=self.oversize,
            ),
        )

    def _stream_size(self) -> Callable[[Any], int]:
        if callable(self.size):
            return self.size
        suffix = self.size
        return lambda sample: size_of(_field(sample, suffix))


@dataclass(frozen=True, kw_only=True)
class Unbatch:
    """Turn each batch, any iterable, back into its samples."""

    def __call__(self, samples: Iterator[Iterable[Any]]) -> Iterator[Any]:
        """Yield the samples of the batches."""
        return itertools.chain.from_iterable(samples)


def _field(sample: Any, suffix: str) -> Any:
    if not isinstance(sample, Mapping):
        raise ConfigError(
            f"batch_by_size cannot find {suffix!r} in a {type(sample).__name__}; give it a function as size, "
            "samples that are dictionaries, or order='global'"
        )
    return sample[suffix]


def size_of(value: Any) -> int:
    """Return the size of a field: a number's value, the length of anything else."""
    if getattr(value, "ndim", 0) == 0 and hasattr(value, "__int__") and not isinstance(value, str | bytes):
        return int(value)
    return len(value)


def collation(collate: Collate) -> Callable[[list[Any]], Any]:
    """Return the function that makes a batch of a list of samples.

    Raises:
        ConfigError: If it is neither a known name nor a function.
    """
    if collate == "list":
        return list
    if collate == "pad":
        return _pad
    if collate == "default":
        return _default_collate
    if not callable(collate):
        raise ConfigError(f"collate is 'default', 'pad', 'list' or a function, not {collate!r}")
    return collate


def _pad(samples: list[Any]) -> Any:
    from bionemo.webdatamodule.builtins.padding import fill

    return fill(samples)


def _default_collate(samples: list[Any]) -> Any:
    from torch.utils.data import default_collate

    return default_collate(samples)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the batching stages."""
    yield Stage(name="batch", summary="join samples into batches", factory=Batch)
    yield Stage(name="batch_by_size", summary="join samples of like size, up to a total size", factory=BatchBySize)
    yield Stage(name="unbatch", summary="turn batches back into samples", factory=Unbatch)
