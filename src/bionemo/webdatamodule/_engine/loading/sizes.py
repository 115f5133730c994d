"""The sizes of samples, which a planner asks for: measured once, at setup."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import pathlib
from typing import Any

import numpy as np

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule._engine.storage.index_cache import cache_directory, write_atomically
from bionemo.webdatamodule.components import Planner
from bionemo.webdatamodule.errors import PlanError
from bionemo.webdatamodule.planning import Ids, size_of

_TOGETHER = 1024  # samples that are read at a time


def measure(stage: Planner, reader: ShardReader, *, codecs: Codecs, split: str) -> Ids:
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
    fields = ShardReader(reader.sets, suffixes, codecs=codecs, check="never", split=split)
    cache = _cache(stage, fields)
    if cache is not None and (known := _cached(cache, fields.n_samples)) is not None:
        return known
    sizes = np.empty(fields.n_samples, dtype=np.int64)
    number = 0
    try:
        for first in range(0, len(sizes), _TOGETHER):
            for sample in fields.read(np.arange(first, min(first + _TOGETHER, len(sizes)))):
                sizes[number] = _size(stage, sample if len(suffixes) > 1 else sample[0])
                number += 1
    except PlanError as error:
        raise error.located(split=split, key=_key(fields, number)) from error.__cause__
    if cache is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            os.makedirs(os.path.dirname(cache), mode=0o700, exist_ok=True)
            write_atomically(cache, sizes.astype("<i8").tobytes())
    return sizes


def _cache(stage: Planner, fields: ShardReader) -> str | None:
    """Return the file of the cache that holds these sizes; ``None`` where nothing says that they are the same.

    Shards with a manifest are known by its digest. A function cannot be compared with that of an earlier run.
    """
    if callable(stage.size) or any(found.manifest is None for found in fields.sets):
        return None
    measure = getattr(type(stage), "measure", size_of)
    words = repr((fields.digest, fields.suffixes, describe(measure)))
    return os.path.join(cache_directory(), "sizes", hashlib.sha256(words.encode()).hexdigest())


def _cached(path: str, n_samples: int) -> Ids | None:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError:
        return None
    return np.frombuffer(data, dtype="<i8").astype(np.int64) if len(data) == 8 * n_samples else None


def _size(stage: Planner, sample: Any) -> int:
    measure = getattr(stage, "measure", None)
    if not callable(stage.size):
        return size_of(sample, f"the field {stage.size!r}") if measure is None else int(measure(sample))
    given = stage.size(sample) if measure is None else measure(stage.size(sample))
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


def _key(fields: ShardReader, number: int) -> str:
    named = ShardReader(fields.sets, ("__key__",), check="never", split=fields.split)
    return str(named.read(np.array([number]))[0][0])
