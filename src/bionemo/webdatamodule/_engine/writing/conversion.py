"""From a data module's arguments to a conversion: what is read, how it is named, where it goes, what runs it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule._engine.format.manifest import Manifest
from bionemo.webdatamodule._engine.writing.convert import convert
from bionemo.webdatamodule._engine.writing.split_rules import resolve_subsets
from bionemo.webdatamodule._engine.writing.validate import check_ordered
from bionemo.webdatamodule.components import Component, KeyFunction, SampleReader
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.plugins import Plugins, as_use, provider, resolve


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A component as the user chose it, made into a working object.

    Attributes:
        name: Its name, or the class of an object that was given as it is.
        options: The user's options.
        provider: Plugin, distribution and version it comes from; empty for an object.
        object: The working object.
    """

    name: str
    options: Mapping[str, Any]
    provider: Mapping[str, str]
    object: Any


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """All that a conversion needs. It pickles where the reader and the key encoder do.

    Attributes:
        writer: The writer's reader.
        names: For each split its names, or a rule over the names of the source.
        directories: For each split where its shards go.
        prefix: The start of the shards' file names.
        n_shards: Shards of each split; ``None`` for a default by size.
        key_encoder: Makes keys of names.
        executor: What runs the tasks: a component's object or a user's executor.
        policy: What pickles may hold.
    """

    writer: Chosen
    names: Mapping[str, Any]
    directories: Mapping[str, str]
    prefix: str
    n_shards: int | None
    key_encoder: Chosen
    executor: Any
    policy: Policy


def choose(kind: type[Component], ref: Any, plugins: Plugins | None = None) -> Chosen:
    """Resolve a reference, and keep what it says and where it comes from for the manifest.

    Raises:
        ConfigError: If the reference or its options are wrong.
        UnknownNameError: If no plugin registers the name.
    """
    made = resolve(kind, ref, plugins)
    use = as_use(ref)
    if use is None:
        return Chosen(name=type(made).__qualname__, options={}, provider={}, object=made)
    found = provider(kind, use.name, plugins)
    origin = {} if found is None else {key: getattr(found, key) for key in ("plugin", "distribution", "version")}
    return Chosen(name=use.name, options=use.options, provider=origin, object=made)


def materialised(split: str, names: Any) -> Any:
    """Return names as a list if they come as a one-shot iterator, such as a generator; else as they are.

    Raises:
        ConfigError: If they are one string, whose characters nobody means, or a set, which has no order.
    """
    if isinstance(names, str | bytes):
        raise ConfigError(f"names_subset[{split}] is the string {names!r}; give a list of names", split=split)
    check_ordered(names, split=split)
    return list(names) if isinstance(names, Iterator) else names


def run(conversion: Conversion, *, check: bool = False, progress: bool | None = None) -> Mapping[str, Manifest]:
    """Convert what is not there yet or has changed, and return what each split's directory then holds.

    Args:
        conversion: What to do.
        check: Compare the hashes of all shards that are there, and make damaged ones anew.
        progress: Whether to show progress bars; by default where standard error is a terminal.

    Raises:
        InputError: If the source is bad; all problems are listed and nothing is written.
        ConversionError: If writing fails; what was there before is untouched.
    """
    reader: SampleReader = conversion.writer.object
    encode: KeyFunction = conversion.key_encoder.object
    return convert(
        reader=reader,
        names=resolve_subsets(conversion.names, reader),
        directories=conversion.directories,
        prefix=conversion.prefix,
        n_shards=conversion.n_shards,
        key_encoder=encode,
        key_encoder_name=conversion.key_encoder.name,
        executor=executor_context(conversion.executor),
        policy=conversion.policy,
        writer=conversion.writer.name,
        options=conversion.writer.options,
        provider=conversion.writer.provider,
        check=check,
        progress=_is_watched() if progress is None else progress,
    )


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def executor_context(executor: Any) -> contextlib.AbstractContextManager[futures.Executor]:
    """Return a context manager that gives an executor; a user's own executor is not shut down by it.

    Raises:
        ConfigError: If it is neither an executor, nor a context manager of one, nor makes one.
    """
    if isinstance(executor, futures.Executor):
        return contextlib.nullcontext(executor)
    if not hasattr(executor, "__enter__") and callable(executor):
        name = getattr(executor, "__qualname__", type(executor).__qualname__)
        try:
            executor = executor()
        except WebDataModuleError:
            raise
        except Exception as error:
            raise PluginError(f"the executor {name} cannot be made: {type(error).__name__}: {error}") from error
    if not hasattr(executor, "__enter__"):
        raise ConfigError(
            "an executor is a name such as 'processes', a Use, or a concurrent.futures.Executor, "
            f"not {type(executor).__name__}"
        )
    return executor  # type: ignore[no-any-return]  # a protocol of two methods, of which one was looked for
