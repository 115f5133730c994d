"""Calls in another form: that of bionemo-webdatamodule 1.0.0, or that of torch's ``DataLoader``.

The error shows today's form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.splits import Split

_SHARDS = (
    "suffix_keys_wds",
    "dirs_tars_wds",
    "prefix_tars_wds",
    "pipeline_wds",
    "pipeline_prebatch_wld",
    "kwargs_wds",
    "kwargs_wld",
    "invoke_wds",
    "invoke_wld",
)
"""Parameters of ``WebDataModule`` in 1.0.0, in their order."""

_PICKLES = ("dir_pickles", "names_subset", *_SHARDS)
"""Those of ``PickledDataWDS``."""

_LOADER = (
    "collate_fn",
    "drop_last",
    "multiprocessing_context",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
)
"""Arguments of ``DataLoader`` that are options of a loader here."""

_Init = TypeVar("_Init", bound=Callable[..., None])


def recognises_shards(init: _Init) -> _Init:
    """Let the constructor of ``WebDataModule`` recognise calls of 1.0.0, where the suffixes came first."""

    def is_former(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if args and not isinstance(args[0], Mapping):
            return isinstance(args[1] if args[1:] else kwargs.get("dirs_tars_wds"), Mapping)
        return not args and {"suffix_keys_wds", "dirs_tars_wds"} <= set(kwargs) and not _has_new(kwargs)

    return _answering(init, is_former, "WebDataModule", _SHARDS)


def recognises_pickles(init: _Init) -> _Init:
    """Let the constructor of ``PickledDataWDS`` recognise calls of 1.0.0, where the names came before the suffixes."""

    def is_former(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if args[1:]:
            return isinstance(args[1], Mapping)
        return "dirs_tars_wds" in kwargs and "prefix_dir_tars_wds" not in kwargs

    return _answering(init, is_former, "PickledDataWDS", _PICKLES)


def _answering(
    init: _Init,
    is_former: Callable[[tuple[Any, ...], Mapping[str, Any]], bool],
    name: str,
    parameters: tuple[str, ...],
) -> _Init:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_former(args, kwargs) and len(args) <= len(parameters):
            raise ConfigError(_answer(name, dict(zip(parameters, args, strict=False)) | kwargs))
        if wrong := _meant_for_torch(kwargs):
            raise ConfigError(wrong)
        init(self, *args, **kwargs)

    return cast("_Init", wrapped)


def _meant_for_torch(kwargs: Mapping[str, Any]) -> str | None:
    """Return what to give in place of an argument of torch's ``DataLoader``, if there is one."""
    if "batch_size" in kwargs:
        return "batch_size is given as global_batch_size, the number of samples of a batch, summed over all ranks"
    if "shuffle" in kwargs:
        return "shuffle cannot be chosen: training data are shuffled, evaluation data are not; leave it out"
    for name in _LOADER:
        if name in kwargs:
            example = f"kwargs_wld={{'train': {{{name!r}: {kwargs[name]!r:.60}}}}}"
            return f"{name} is an option of the loader, given for each split, as in {example}"
    return None


def _has_new(kwargs: Mapping[str, Any]) -> bool:
    return "global_batch_size" in kwargs or "n_samples" in kwargs


def _answer(name: str, given: Mapping[str, Any]) -> str:
    """Return the message with the same call in today's form."""
    given = dict(given)
    size = given.pop("global_batch_size", _batch_size(given))
    suffixes, directories = given.pop("suffix_keys_wds", None), given.pop("dirs_tars_wds", None)
    suffixes = suffixes if isinstance(suffixes, str) or not isinstance(suffixes, Iterable) else list(suffixes)
    first: dict[str, Any]
    if name == "WebDataModule":
        first = {"dirs_tars_wds": directories, "n_samples": given.pop("n_samples", None), "suffix_keys_wds": suffixes}
    else:
        first = {
            "dir_pickles": given.pop("dir_pickles", None),
            "suffix_pickles": suffixes,
            "names_subset": given.pop("names_subset", None),
            "prefix_dir_tars_wds": directories,
        }
    call = {**first, "global_batch_size": size, **given, "order": "shards"}
    lines = [f"    {argument}={_shown(argument, value)}," for argument, value in call.items()]
    return (
        "this is a call in the form of bionemo-webdatamodule 1.0.0. In this version it is\n\n"
        f"{name}(\n" + "\n".join(lines) + "\n)\n\n"
        "where a name such as kwargs_wds stands for the value of your call. global_batch_size is the number of samples "
        "of a batch, times the number of ranks. Leave order out for equal steps on all ranks and exact resume"
    )


def _batch_size(given: Mapping[str, Any]) -> int:
    """Return the batch size, if the stages after the loader or its options have one."""
    stages: Any = given.get("pipeline_prebatch_wld")
    for value in stages.values() if isinstance(stages, Mapping) else ():
        for stage in value if isinstance(value, Iterable) else (value,):
            function = getattr(stage, "f", None)
            if getattr(function, "__name__", "") == "_batched":
                arguments = {"batchsize": 20, **dict(zip(("batchsize",), stage.args, strict=False)), **stage.kw}
                return int(arguments["batchsize"])
    options: Any = given.get("kwargs_wld")
    sizes = [(value or {}).get("batch_size") for value in options.values()] if isinstance(options, Mapping) else []
    return next((size for size in sizes if isinstance(size, int)), 1)


def _shown(argument: str, value: Any) -> str:
    """Return the source code of a value, or the name of the argument if it has none."""
    try:
        return _source(value)
    except ValueError:
        return argument


def _source(value: Any) -> str:
    if isinstance(value, Split):
        return f"Split.{value.name}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_source(key)}: {_source(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)) and len(value) <= 20:
        parts = ", ".join(map(_source, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts},)"
    if value is None or type(value) in (str, int, float, bool):
        return repr(value)
    raise ValueError
