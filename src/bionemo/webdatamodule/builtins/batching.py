"""The default stages ``batch`` and ``unbatch``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import (
    Fields,
    collate_values,
    length_of,
    pad_fields,
    pad_values,
    stack_fields,
    unlike,
)
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import ConfigError, WebDataModuleError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import whole_number

Collate: TypeAlias = "str | Callable[[list[Any]], Any]"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Join samples into batches.

    Args:
        size: Samples in a batch. By default, in global order, the planned share of this rank;
            in shards order ``global_batch_size // world_size``.
        collate: The function from a list of samples to a batch: ``"default"`` for torch's ``default_collate``;
            ``"pad"`` for the same after padding tensors with zeros to the longest in the batch;
            ``"list"`` for the list itself; or any function of a list.
        partial: Whether to yield a smaller last batch.
    """

    size: int | None = None
    collate: Collate = "default"
    partial: bool = True
    anywhere = True
    makes_batches = True

    def __post_init__(self) -> None:
        if self.size is not None:
            whole_number("size", self.size, least=1)
        collation(self.collate)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches."""
        size = self.size or context.current().batch_size
        return self._batches(samples, size)

    def columns(self, fields: Fields) -> Any:
        """Return the batch of a share."""
        return collated(fields, self.collate) if self._is_one(length_of(fields)) else NotImplemented

    def _is_one(self, samples: int) -> bool:
        """Return whether a share makes one batch."""
        return self.size is None or samples == self.size or (samples < self.size and self.partial)

    def _batches(self, samples: Iterator[Any], size: int | None) -> Iterator[Any]:
        while batch := list(itertools.islice(samples, size)):
            if size is None or len(batch) == size or self.partial:
                yield collated_values(batch, self.collate)


@dataclass(frozen=True, kw_only=True)
class Unbatch:
    """Split each batch, any iterable, into its samples."""

    anywhere = True
    makes_batches = False

    def __call__(self, samples: Iterator[Iterable[Any]]) -> Iterator[Any]:
        """Yield the samples of the batches."""
        return itertools.chain.from_iterable(samples)


def collation(collate: Collate) -> Callable[[list[Any]], Any]:
    """Return the function that makes a batch of a list of samples.

    Raises:
        ConfigError: If it is neither a known name nor a function.
    """
    if collate == "list":
        return list
    if collate == "pad":
        return pad_values
    if collate == "default":
        return collate_values
    if not callable(collate):
        raise ConfigError(f"collate is 'default', 'pad', 'list' or a function, not {collate!r}")
    return collate


def collated_values(samples: list[Any], collate: Collate) -> Any:
    """Return the batch of a list of samples.

    Raises:
        DecodeError: If ``"default"`` or ``"pad"`` cannot make one of them.
    """
    made = collation(collate)
    if callable(collate):
        return made(samples)
    try:
        return made(samples)
    except _NO_BATCH as error:
        raise unlike(len(samples), error) from error


def collated(fields: Fields, collate: Collate) -> Any:
    """Return the batch of all samples of some columns; ``NotImplemented`` if only samples make it.

    Raises:
        DecodeError: If a field cannot be decoded, or they make no batch.
    """
    try:
        if collate == "default":
            return stack_fields(fields)
        return pad_fields(fields) if collate == "pad" else NotImplemented
    except WebDataModuleError:
        raise
    except _NO_BATCH as error:
        raise unlike(length_of(fields), error) from error


_NO_BATCH = (RuntimeError, TypeError, ValueError, LookupError)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the batching stages."""
    yield Stage(name="batch", summary="join samples into batches", factory=Batch)
    yield Stage(name="unbatch", summary="turn batches back into samples", factory=Unbatch)
