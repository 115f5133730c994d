"""The sizes of samples, which a planner asks for: measured once, at setup."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.reader import SampleReader
from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule.components import Planner
from bionemo.webdatamodule.errors import PlanError
from bionemo.webdatamodule.planning import Ids, size_of

_TOGETHER = 1024  # samples that are read at a time


def measure(stage: Planner, reader: SampleReader, *, codecs: Codecs, split: str) -> Ids:
    """Return the size of each sample of a split.

    Args:
        stage: Says what the size of a sample is.
        reader: Reads the split.
        codecs: What decodes its fields.
        split: Name of the split, for messages.

    Raises:
        PlanError: If a sample has no size; the message names its key.
    """
    suffixes = reader.suffixes if callable(stage.size) else (stage.size,)
    fields = SampleReader(reader.sets, suffixes, codecs=codecs, check="never", split=split)
    sizes = np.empty(fields.n_samples, dtype=np.int64)
    number = 0
    try:
        for first in range(0, len(sizes), _TOGETHER):
            for sample in fields.read(np.arange(first, min(first + _TOGETHER, len(sizes)))):
                sizes[number] = _size(stage, sample if len(suffixes) > 1 else sample[0])
                number += 1
    except PlanError as error:
        raise error.located(split=split, key=_key(fields, number)) from error.__cause__
    return sizes


def _size(stage: Planner, sample: Any) -> int:
    if not callable(stage.size):
        return size_of(sample, f"the field {stage.size!r}")
    given = stage.size(sample)
    try:
        size = operator.index(given)
    except TypeError:
        raise PlanError(
            f"the function {describe(stage.size)} gives {given!r:.40} as the size of a sample; it must return a "
            "whole number from 0 on"
        ) from None
    if size < 0:
        raise PlanError(f"the function {describe(stage.size)} gives {size} as the size of a sample; sizes begin at 0")
    return size


def _key(fields: SampleReader, number: int) -> str:
    named = SampleReader(fields.sets, ("__key__",), check="never", split=fields.split)
    return str(named.read(np.array([number]))[0][0])
