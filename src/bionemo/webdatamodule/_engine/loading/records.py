"""What a data module's arguments come to, checked and resolved: the records that the other parts work from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.config import ErrorPolicy, Source
from bionemo.webdatamodule._engine.loading.items import as_loader
from bionemo.webdatamodule._engine.ranks import DataRanks
from bionemo.webdatamodule._engine.reading.subset import Subset
from bionemo.webdatamodule._engine.stages import describe
from bionemo.webdatamodule._engine.storage.remote.directory import find_store
from bionemo.webdatamodule._engine.storage.remote.urls import is_url, shown, without_host
from bionemo.webdatamodule.components import ItemLoader, Loader
from bionemo.webdatamodule.errors import ConfigError, WebDataModuleError
from bionemo.webdatamodule.options import Check, checked, flag, function, optional, whole_number
from bionemo.webdatamodule.plugins import Plugins, as_use, installed_plugins, option_names, resolve


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all splits share."""

    suffixes: tuple[str, ...]
    global_batch_size: int
    prefix: str
    seed: int
    tail: Literal["share", "drop", "fill"]
    codecs: Codecs
    check: Literal["first", "always", "never"]
    shuffle_shards: int | None
    resume: Literal["exact", "next_epoch"] = "exact"
    receipt: str | None = None
    data_ranks: DataRanks = None


@dataclass(frozen=True, kw_only=True)
class LoaderChoice:
    """A loader, and what of its options concerns the samples rather than the workers.

    Attributes:
        function: The loader.
        name: What messages call it.
        plugin: Plugin and distribution, for errors; empty for a default loader and for an object.
    """

    function: ItemLoader
    name: str
    plugin: Mapping[str, str]
    batch_size: int | None
    collate: Any
    drop_last: bool


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """What one split has of its own.

    Attributes:
        stages: The user's ``pipeline_wds``, or the default.
        torch_stage: What workers do to its samples before ``loader_stages``, in place of torch's ``DataLoader``.
        joined: Directories whose fields are joined to the samples of ``sources``, by key.
        loader_stages: The user's ``pipeline_prebatch_wld``, or the default.
        joins: Whether ``loader_stages`` is the default.
    """

    split: str
    sources: tuple[Source, ...]
    n_samples: int | None
    order: Literal["global", "shards"]
    order_reason: str
    stages: tuple[Any, ...]
    torch_stage: Any
    loader_stages: tuple[Any, ...]
    options: Mapping[str, Any]
    loader: LoaderChoice
    dataset_calls: tuple[tuple[str, Mapping[str, Any]], ...]
    loader_calls: tuple[tuple[str, Mapping[str, Any]], ...]
    errors: ErrorPolicy
    where: Subset | None = None
    joined: tuple[Source, ...] = ()
    joins: bool = False


def check_url(argument: str, directory: str) -> str:
    """Return a directory that is a path, or a URL that can be one.

    Raises:
        ConfigError: If it is a URL that names no bucket or server.
    """
    if wrong := without_host(directory):
        raise ConfigError(f"{argument} holds {shown(directory)!r}, which {wrong}")
    return directory


def with_stores(argument: str, sources: Sequence[Source], plugins: Plugins | None) -> tuple[Source, ...]:
    """Return the directories of a split with the stores that a user's own set of plugins has for their URLs.

    Args:
        argument: Name of the argument and the split, for messages.
        sources: The directories.
        plugins: The set; ``None`` for the installed plugins, which are looked up where a URL is opened.

    Raises:
        ConfigError: If a URL names no bucket or server, or no store of the set serves it.
    """
    for source in sources:
        check_url(argument, source.directory)
    return tuple(
        source._replace(store=find_store(source.directory, plugins))
        if plugins is not None and is_url(source.directory)
        else source
        for source in sources
    )


def resolve_loader(ref: Any, kwargs: Mapping[str, Any], plugins: Plugins | None, *, split: str) -> LoaderChoice:
    """Return the loader that a reference and the options of one split mean.

    Raises:
        ConfigError: If the options do not fit the loader.
        UnknownNameError: If its name is not registered.
    """
    try:
        return _loader_choice(ref, kwargs, plugins)
    except WebDataModuleError as error:
        raise error.located(split=split) from error.__cause__


def _collate(argument: str, given: Any) -> Any:
    """Return a function that makes batches, or one of the names that the stage ``batch`` knows."""
    return given if isinstance(given, str) and given in ("default", "pad", "list") else function(argument, given)


_TORCH: Mapping[str, Check] = {
    "batch_size": optional(partial(whole_number, least=1)),
    "collate_fn": optional(_collate),
    "drop_last": optional(flag),
    "shuffle": optional(flag),
}
"""Options of torch's ``DataLoader`` that concern samples, where the loader does not take them itself."""


def _loader_choice(ref: Any, kwargs: Mapping[str, Any], plugins: Plugins | None) -> LoaderChoice:
    options = dict(kwargs)
    use = as_use(ref)
    found = None if use is None else (plugins or installed_plugins()).lookup(Loader, use.name)
    own = set() if found is None else set(option_names(found.component.factory))
    for_torch = checked(
        {name: None if name in own else options.pop(name, None) for name in _TORCH}, _TORCH, "{} in kwargs_wld"
    )
    if for_torch["shuffle"]:
        raise ConfigError("kwargs_wld cannot shuffle; training data are shuffled already, evaluation data are not")
    if use is not None and found is not None:
        function, name = found.build({**use.options, **options}), repr(use.name)
    elif options:
        raise ConfigError(f"the loader is an object, so kwargs_wld cannot set {', '.join(options)} on it")
    else:
        function = resolve(Loader, ref, plugins)
        name = describe(function)
    return LoaderChoice(
        function=as_loader(function, name),
        name=name,
        plugin={} if found is None else found.where,
        batch_size=for_torch["batch_size"],
        collate=for_torch["collate_fn"],
        drop_last=bool(for_torch["drop_last"]),
    )
