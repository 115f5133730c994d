"""How worker processes start, and whether a dataset can be sent to them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Mapping
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from bionemo.webdatamodule.errors import ConfigError


def start_context(named: str | BaseContext | None) -> BaseContext:
    """Return the way in which workers start.

    What the user named, here or with ``multiprocessing.set_start_method``, is taken.
    Otherwise it is fork on Linux, also on Pythons whose default is forkserver: workers then share the dataset's
    memory, start at once, and stages need not pickle.
    That holds with CUDA in use too: a forked worker may not touch CUDA, but neither do stages have reason to,
    and torch has started workers of GPU training like this since it has a loader.
    """
    if isinstance(named, BaseContext):
        return named
    chosen = multiprocessing.get_start_method(allow_none=True)
    default = multiprocessing.get_all_start_methods()[0]
    if named is None and chosen is not None and chosen != default:
        named = chosen
    if named is None and sys.platform == "linux":
        named = "fork"
    try:
        return multiprocessing.get_context(named)
    except (ValueError, TypeError) as error:  # one that has no hash
        raise ConfigError(
            f"multiprocessing_context={named!r} is no way to start workers here; "
            f"there are {', '.join(multiprocessing.get_all_start_methods())}"
        ) from error


def check_pickles(dataset: Any, method: str, where: Mapping[str, object]) -> None:
    """Refuse a dataset that cannot be sent to its workers, naming the part of it to blame.

    Args:
        dataset: What the workers iterate.
        method: How they start; with fork nothing needs to pickle.
        where: Split and rank, for the message.

    Raises:
        ConfigError: With the path to the first part that does not pickle.
    """
    if method == "fork" or (error := _pickle_error(dataset)) is None:
        return
    path, part = _culprit("dataset", dataset)
    raise ConfigError(
        f"workers started by {method} get the dataset as a pickle, and {path} does not pickle: {part!r} ({error}); "
        "define functions at the top level of a module and make locks, files and generators in the worker, "
        "or set multiprocessing_context='fork' in kwargs_wld",
        **where,
    ) from error


class _Nowhere:
    """Takes a pickle of any size and keeps none of it."""

    def write(self, data: Any) -> int:
        return len(data)


class _Probe(ForkingPickler):
    """Pickles as for a new process, but leaves tensors where they are, which always pickle."""

    def reducer_override(self, obj: Any) -> Any:
        return (int, ()) if isinstance(obj, torch.Tensor) else NotImplemented


def _pickle_error(value: Any) -> Exception | None:
    try:
        _Probe(_Nowhere()).dump(value)
    except Exception as error:  # noqa: BLE001 - a user's __reduce__ may raise anything
        return error
    return None


def _culprit(path: str, value: Any, above: frozenset[int] = frozenset()) -> tuple[str, Any]:
    """Follow attributes and items to the innermost part that does not pickle by itself."""
    above |= {id(value)}
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        parts = [(f"{path}.{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    for name, item in parts:
        if id(item) not in above and _pickle_error(item) is not None:
            return _culprit(name, item, above)
    return path, value
