"""The sizes of samples, which a planner asks for: measured once, at setup."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import os
import pathlib
import pickle
import pickletools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from importlib import metadata
from typing import Any

import numpy as np

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule._engine.storage.index_cache import cache_directory, write_atomically
from bionemo.webdatamodule._engine.verdict import usable_cpus
from bionemo.webdatamodule.components import Executor, Planner
from bionemo.webdatamodule.errors import PlanError, UnknownNameError, WebDataModuleError
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.planning import Ids, size_of
from bionemo.webdatamodule.plugins import resolve

_TOGETHER = 1024  # samples that are read at a time
_LARGEST = (1 << 63) - 1
_APART = 20_000  # samples from which on several processes read them; they start in some tens of milliseconds


def measure(stage: Planner, reader: ShardReader, *, codecs: Codecs) -> Ids:
    """Return the size of each sample of a split.

    Args:
        stage: Says what the size of a sample is.
        reader: Reads the split.
        codecs: What decodes its fields.

    Raises:
        PlanError: If a sample has no size; the message names its key.
    """
    suffixes = reader.suffixes if callable(stage.size) else (stage.size,)
    check = "never" if reader.check == "never" else "first"
    fields = reader.only(suffixes, codecs=codecs, check=check, on_error="raise")
    if not callable(stage.size) and not hasattr(stage, "measure") and (sizes := fields.sizes()) is not None:
        return sizes
    cache = _cache(stage, fields)
    if cache is not None and (known := _cached(cache, fields.n_samples)) is not None:
        return known
    sizes = _all(stage, fields)
    if cache is not None and check != "never":  # or damage would stay behind
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            os.makedirs(os.path.dirname(cache), mode=0o700, exist_ok=True)
            write_atomically(cache, sizes.astype("<i8").tobytes())
    return sizes


def _all(stage: Planner, fields: ShardReader) -> Ids:
    """Return the sizes of all samples, which several processes read where there are many."""
    n = fields.n_samples
    cpus = usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks do it side by side
    # What fetches must not be forked, and fetches several pieces at a time by itself.
    if n >= _APART and cpus > 1 and not fields.is_remote and _pickled((stage, fields)) is not None:
        with contextlib.suppress(UnknownNameError, BrokenExecutor):  # then without
            executor: Any = resolve(Executor, "processes")
            sized = getattr(executor, "for_tasks", None)
            edges = [n * number // cpus for number in range(cpus + 1)]
            with executor if sized is None else sized(cpus) as pool:
                parts = [pool.submit(_part, stage, fields, first, stop) for first, stop in itertools.pairwise(edges)]
                return np.concatenate([part.result() for part in parts])
    return _part(stage, fields, 0, n)


def _part(stage: Planner, fields: ShardReader, first: int, stop: int) -> Ids:
    """Return the sizes of some samples."""
    sizes = np.empty(stop - first, dtype=np.int64)
    runs = [np.arange(begin, min(begin + _TOGETHER, stop)) for begin in range(first, stop, _TOGETHER)]
    if fields.is_remote:
        fields.follow(runs)
    number = first
    for run in runs:
        for sample in fields.read(run):
            try:
                sizes[number - first] = _size(stage, sample if len(fields.suffixes) > 1 else sample[0])
            except WebDataModuleError as error:
                key = _key(fields, number)
                raise error.located(split=fields.split, stage=describe(stage), key=key) from error.__cause__
            number += 1
    return sizes


def _cache(stage: Planner, fields: ShardReader) -> str | None:
    """Return the file of the cache that holds these sizes; ``None`` where nothing says that they are the same.

    Shards with a manifest are known by its digest, and this package's code by its version. Other code may be another
    in a later run under the same name, so sizes that it decides are not kept: those of a function, of a ``measure()``,
    of a codec, or of classes that pickles may name.
    """
    if callable(stage.size) or any(found.manifest is None for found in (*fields.sets, *fields.joined)):
        return None
    if fields.codecs.policy != Policy():
        return None
    deciding = [*fields.decoders.items(), stage if hasattr(stage, "measure") else None]
    pickled = [_pickled(one) for one in deciding]
    if not all(map(_is_ours, pickled)):
        return None
    try:
        version = metadata.version("bionemo-webdatamodule")
    except metadata.PackageNotFoundError:  # used from a source tree
        return None
    words = repr((version, fields.digest, fields.suffixes, pickled))
    return os.path.join(cache_directory(), "sizes", hashlib.sha256(words.encode()).hexdigest())


def _pickled(value: object) -> bytes | None:
    """Return the pickle of an object, which names its classes in plain text; ``None`` where it has none."""
    try:
        return pickle.dumps(value, protocol=3)
    except Exception:  # noqa: BLE001 - pickling runs the object's own code
        return None


def _is_ours(pickled: bytes | None) -> bool:
    """Return whether all classes and functions that a pickle names are this package's."""
    if pickled is None:
        return False
    named = [str(argument) for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"]
    return all(name.startswith("bionemo.webdatamodule.") for name in named)


def _cached(path: str, n_samples: int) -> Ids | None:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError:
        return None
    return np.frombuffer(data, dtype="<i8").astype(np.int64) if len(data) == 8 * n_samples else None


def _size(stage: Planner, sample: Any) -> int:
    """Return the size of a sample: what the planner's functions make of it, or its length where there are none."""
    measure = getattr(stage, "measure", None)
    given = _called(stage.size, sample) if callable(stage.size) else sample
    if measure is not None:
        given = _called(measure, given)
    elif not callable(stage.size):
        given = size_of(given, _named(stage.size))
    try:
        size = operator.index(given)
    except TypeError:
        size = -1
    if not 0 <= size <= _LARGEST:
        what = _named(stage.size if measure is None else measure)
        raise PlanError(
            f"{what} gives {given!r:.40} as the size of a sample; it must be a whole number from 0 to 2**63 - 1"
        )
    return size


def _called(function: Callable[[Any], Any], value: Any) -> Any:
    try:
        return function(value)
    except (MemoryError, WebDataModuleError):
        raise
    except Exception as error:
        raise PlanError(
            f"{_named(function)} for the size of a sample fails with {type(error).__name__}: {error}; correct it, or "
            "leave out the sample with where="
        ) from error


def _named(size: str | Callable[[Any], Any]) -> str:
    return f"the function {describe(size)}" if callable(size) else f"the field {size!r}"


def _key(fields: ShardReader, number: int) -> str:
    return fields.keys(np.array([number]))[0]
