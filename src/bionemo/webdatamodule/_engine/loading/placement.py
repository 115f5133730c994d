"""Which stages run where: in workers or after the loader, the user's or the default ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_convert

from bionemo.webdatamodule._engine.loading.plans import planner_of
from bionemo.webdatamodule._engine.loading.records import Settings, SplitSettings
from bionemo.webdatamodule.builtins.batching import Batch
from bionemo.webdatamodule.builtins.stages import Untuple

_PADDED = Batch(collate="pad")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """The last stage of a worker that sends samples one by one: what torch's ``DataLoader`` does to each.

    Args:
        function: torch's ``default_convert``, which makes tensors of arrays, or the user's ``collate_fn``.
    """

    function: Any = default_convert

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the converted samples."""
        if self.function is not default_convert:
            return map(self.function, samples)
        return (sample if _is_converted(sample) else default_convert(sample) for sample in samples)


_KEPT = frozenset((torch.Tensor, int, float, bool, str, bytes, type(None)))
"""Types that torch's ``default_convert`` hands back as they are."""


def _is_converted(sample: Any) -> bool:
    """Tell whether torch's ``default_convert``, which takes its time, would change nothing."""
    kind = type(sample)
    return kind in _KEPT or (kind is dict and _KEPT.issuperset(map(type, sample.values())))


@dataclass(frozen=True, kw_only=True)
class WorkerPart:
    """What workers do with each share in global order.

    Attributes:
        stages: Run on the samples of a share.
        collate: Make a batch of the share straight from the shards; there are no stages then.
        pad: Fill these batches up with zeros where lengths differ.
        untuple: Take the only value out of its 1-tuple first.
    """

    stages: tuple[Any, ...] = ()
    collate: bool = False
    pad: bool = False
    untuple: bool = False


def worker_part(settings: Settings, split: SplitSettings) -> WorkerPart:
    """Return what workers do in global order: as much as possible, since a batch crosses quicker than samples."""
    stages = dataset_stages(settings, split)
    if split.loader.batch_size is not None:  # no smaller than a share
        return WorkerPart(stages=(*stages, Batch(collate=split.loader.collate or "default")))
    if loader_stages(split):
        return WorkerPart(stages=(*stages, torch_convert(split)))
    if (planner := planner_of(split)) is not None:
        return WorkerPart(stages=(*stages, planner))
    if stages == () or (stages == (Untuple(),) and len(settings.suffixes) == 1):
        return WorkerPart(collate=True, pad=split.loader_stages == (_PADDED,), untuple=bool(stages))
    return WorkerPart(stages=(*stages, *(split.loader_stages or (Batch(),))))


def loader_stages(split: SplitSettings) -> tuple[Any, ...]:
    """Return what is left to do behind the loader in global order; a lone batching stage is done by workers."""
    given = split.loader_stages
    lone = given is None or given == (Batch(),) or (len(given) == 1 and planner_of(split) is not None)
    if given == (_PADDED,):
        lone = split.loader.batch_size is None and split.loader.collate is None
    return () if given is None or lone else given


def dataset_stages(settings: Settings, split: SplitSettings) -> tuple[Any, ...]:
    """Return ``pipeline_wds``, or its default: ``untuple`` for one suffix."""
    if split.stages is not None:
        return split.stages
    return (Untuple(),) if len(settings.suffixes) == 1 else ()


def torch_batch(split: SplitSettings) -> Batch:
    """Return the stage that batches in workers, as torch does for ``batch_size`` in ``kwargs_wld``."""
    choice = split.loader
    return Batch(size=choice.batch_size, collate=choice.collate or "default", partial=not choice.drop_last)


def torch_convert(split: SplitSettings) -> Convert:
    """Return the stage that does to single samples what torch does to them."""
    return Convert(function=split.loader.collate or default_convert)
