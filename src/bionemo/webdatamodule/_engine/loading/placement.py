"""Which stages run where: in workers or after the loader, the user's or the default ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_convert

from bionemo.webdatamodule._engine.loading.records import LoaderChoice
from bionemo.webdatamodule.columns import Column, Fields
from bionemo.webdatamodule.components import Stage, Use
from bionemo.webdatamodule.plugins import Plugins, resolve

_BATCHING = {"batched": True, "listed": True, "unbatched": False, "unlisted": False}
"""Stages of webdataset that join samples or take batches apart."""


def default_stages(n_suffixes: int, plugins: Plugins | None) -> tuple[Any, ...]:
    """Return ``pipeline_wds`` where the user gave none: ``untuple`` for one suffix."""
    return (resolve(Stage, "untuple", plugins),) if n_suffixes == 1 else ()


def makes_batches(stages: Sequence[Any], calls: Sequence[tuple[str, Any]]) -> bool:
    """Return whether stages of ``pipeline_wds``, or calls of ``invoke_wds`` behind them, join samples into batches."""
    made = False
    for stage in stages:
        name = getattr(getattr(stage, "f", None), "__name__", None)  # of a stage of webdataset
        made = getattr(stage, "makes_batches", _BATCHING.get(str(name).lstrip("_"), made))
    for name, _ in calls:
        made = _BATCHING.get(name, made)
    return made


def default_loader_stages(loader: LoaderChoice, plugins: Plugins | None) -> tuple[Any, ...]:
    """Return ``pipeline_prebatch_wld`` where the user gave none: ``batch``, unless ``kwargs_wld`` batches.

    Batches are made by the ``collate_fn`` of ``kwargs_wld``, if there is one.
    """
    if loader.batch_size is not None:
        return ()
    options = {} if loader.collate is None else {"collate": loader.collate}
    return (resolve(Stage, Use("batch", **options), plugins),)


def torch_stage(loader: LoaderChoice, order: str, plugins: Plugins | None, *, own_stages: bool) -> Any:
    """Return the stage that does in workers what torch does behind a dataset: convert samples, or batch them.

    Args:
        loader: The loader, and the options of torch's ``DataLoader`` that concern samples.
        order: In global order a batch is the whole share.
        plugins: Where to look ``batch`` up.
        own_stages: Whether the user gave ``pipeline_prebatch_wld``; if not, the ``collate_fn`` makes batches there.
    """
    if loader.batch_size is None and loader.collate is not None and not own_stages:
        return Convert(function=_unchanged)
    if loader.batch_size is None:
        return Convert(function=loader.collate or default_convert)
    options = {} if order == "global" else {"size": loader.batch_size, "partial": not loader.drop_last}
    return resolve(Stage, Use("batch", collate=loader.collate or "default", **options), plugins)


def split_stages(stages: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the leading stages of ``pipeline_prebatch_wld`` that workers run, and the others.

    Workers do as much as they may, since a batch crosses processes faster than samples.
    """
    ahead = tuple(itertools.takewhile(lambda stage: getattr(stage, "anywhere", False) is True, stages))
    return ahead, tuple(stages[len(ahead) :])


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Does to samples what torch's ``DataLoader`` does: arrays and numbers of NumPy become tensors.

    Args:
        function: torch's ``default_convert``, or the user's ``collate_fn``.
    """

    function: Any = default_convert
    anywhere = True

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the converted samples."""
        if self.function is default_convert:
            return _each_converted(samples)
        return (self.function(sample) for sample in samples)  # map() would end where it raises StopIteration

    def columns(self, fields: Fields) -> Any:
        """Return columns of converted values; a batch of them is that of the values as they are."""
        if self.function is not default_convert:
            return NotImplemented
        if isinstance(fields, tuple):
            return tuple(map(_Converted, fields))
        if isinstance(fields, dict):
            return {name: _Converted(column) for name, column in fields.items()}
        return _Converted(fields)


@dataclass(eq=False, slots=True)  # one is made for every share
class _Converted:
    column: Column

    def __len__(self) -> int:
        return len(self.column)

    def values(self) -> list[Any]:
        return _all_converted(self.column.values())

    def stack(self) -> Any:
        return self.column.stack()

    def pad(self) -> Any:
        return self.column.pad()


def _unchanged(sample: Any) -> Any:
    return sample


_KEPT = frozenset((torch.Tensor, int, float, bool, str, bytes, type(None)))
"""Types that torch's ``default_convert`` returns unchanged."""


def _each_converted(samples: Iterator[Any]) -> Iterator[Any]:
    """Yield samples as :func:`converted` returns them, without a call for those that it returns unchanged."""
    for sample in samples:
        yield sample if type(sample) in _KEPT else converted(sample)


def _all_converted(values: Sequence[Any]) -> list[Any]:
    kinds = set(map(type, values))
    if kinds == {dict}:  # all of them together, in a quarter of the time
        kinds = set(map(type, itertools.chain.from_iterable(map(dict.values, values))))
    return list(values if kinds <= _KEPT else map(converted, values))


def converted(sample: Any) -> Any:
    """Return what torch's ``default_convert``, which takes its time, makes of a sample."""
    kind = type(sample)
    if kind in _KEPT or (kind is dict and _KEPT.issuperset(map(type, sample.values()))):
        return sample
    if kind is dict:
        return {name: converted(value) for name, value in sample.items()}
    if kind is list or kind is tuple:  # torch makes lists of tuples, too
        return _all_converted(sample)
    if kind is Counter:  # torch would add to the counts
        return Counter({name: converted(value) for name, value in sample.items()})
    try:
        return default_convert(sample)
    except (TypeError, ValueError):  # times and records, other byte orders, negative strides: arrays without a tensor
        return sample
