"""The parameters of a conversion: writer, names, key encoder, directories, executor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.writing.checks import check_ordered
from bionemo.webdatamodule.components import Component, SampleReader
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError
from bionemo.webdatamodule.plugins import Plugins, Registered, as_use, provider, resolve
from bionemo.webdatamodule.splits import Fraction, Split, is_number

_SLACK = 1e-6  # by which parts may add up to more than 1, since numbers such as numpy.float32(0.8) are not exact


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A component as the user chose it, made into a working object.

    Attributes:
        name: Its name, or the class of an object that was given as it is.
        options: The user's options.
        provider: Plugin, distribution and version it comes from; empty for an object.
        where: Plugin and distribution, for errors; empty for a default and for an object.
        object: The working object.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    provider: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    object: Any

    @property
    def title(self) -> str:
        """What messages call it: the name in quotes, or the class or function of an object with its module."""
        if self.provider:
            return repr(self.name)
        kind = self.object if hasattr(self.object, "__qualname__") else type(self.object)
        return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """All that a conversion needs. It pickles where the reader and the key encoder do.

    Attributes:
        writer: The writer's reader.
        names: For each split its names in the order of the shards, or a rule over the names of the source.
        directories: For each split where its shards go, a path or a URL.
        stores: The stores that serve the URLs of splits; by default those that the installed plugins have for them.
        prefix: The start of the shards' file names.
        n_shards: Shards of each split; ``None`` for a default by size.
        key_encoder: Makes keys of names.
        executor: What runs the tasks: a component's object or a user's executor.
        codecs: The codecs of fields, with what pickles may hold.
    """

    writer: Chosen
    names: Mapping[str, Any]
    directories: Mapping[str, str]
    stores: Mapping[str, Registered | None] = field(default_factory=dict)
    prefix: str
    n_shards: int | None = None
    key_encoder: Chosen
    executor: Chosen
    codecs: Codecs = field(default_factory=Codecs)


def choose(kind: type[Component], ref: Any, plugins: Plugins | None = None) -> Chosen:
    """Resolve a reference, and keep what it says and where it comes from for the manifest.

    Raises:
        ConfigError: If the reference or its options are wrong.
        UnknownNameError: If no plugin registers the name.
    """
    made = resolve(kind, ref, plugins)
    use = as_use(ref)
    if use is None:
        return Chosen(name=type(made).__qualname__, object=made)
    found = provider(kind, use.name, plugins)
    if found is None:
        return Chosen(name=use.name, options=use.options, object=made)
    origin = {key: getattr(found, key) for key in ("plugin", "distribution", "version")}
    return Chosen(name=use.name, options=use.options, provider=origin, where=found.where, object=made)


def materialised(split: str, names: Any) -> Any:
    """Return names as a list if they come as a one-shot iterator, such as a generator; else as they are.

    Raises:
        ConfigError: If they are a single string, or a set, which has no order.
    """
    if isinstance(names, str | bytes):
        raise ConfigError(f"names_subset[{split}] is the string {names!r}; give a list of names", split=split)
    check_ordered(names, split=split)
    return list(names) if isinstance(names, Iterator) else names


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


def resolve_subsets(subsets: Mapping[str, Any], reader: SampleReader, **where: str) -> dict[str, Any]:
    """Return the names of each split, from what the user gave for it.

    Args:
        subsets: For each split one of: names; a number of any kind, the part of all names that it gets;
            a rule, which is any function from all names to some of them, such as :class:`Hashed`.
            Parts given as numbers follow each other in the order train, val, test and do not overlap.
        reader: The source, whose ``names()`` is called if a number or a rule asks for it.
        where: Its plugin, for messages.

    Raises:
        ConfigError: If the source cannot list itself, or the numbers add up to more than 1.
        PluginError: If ``names()`` gives something else than names.
    """
    rules: dict[str, Callable[[Sequence[str]], Any]] = {}
    start = 0.0
    for split in sorted(subsets, key=list(Split.__members__).index):
        value = subsets[split]
        if is_number(value):
            stop = start + float(value)
            if not float(value) > 0 or stop > 1 + _SLACK:
                raise ConfigError(
                    f"the parts of the splits must be positive and add up to 1 at most; {split} has {value!r}",
                    split=split,
                )
            rules[split] = Fraction(start=start, stop=min(stop, 1.0))
            start = stop
        elif callable(value):
            rules[split] = value
    if not rules:
        return dict(subsets)
    names = list_names(reader, **where)
    return {split: rules[split](names) if split in rules else value for split, value in subsets.items()}


def list_names(reader: SampleReader, **where: str) -> Sequence[str]:
    """Return all names of a source that lists itself.

    Args:
        reader: The source.
        where: Its plugin, for messages.

    Raises:
        ConfigError: If it cannot.
        PluginError: If it gives something else than names.
    """
    function = getattr(reader, "names", None)
    if not callable(function):
        raise ConfigError(f"{type(reader).__name__} cannot list its samples, so the names of each split must be given")
    try:
        names = function()
    except WebDataModuleError:
        raise
    except Exception as error:
        raise PluginError(
            f"names() of {type(reader).__name__} fails with {type(error).__name__}: {error}", **where
        ) from error
    if isinstance(names, (str, bytes)) or not isinstance(names, Sequence):
        raise PluginError(f"names() of {type(reader).__name__} must give a list of names, not {names!r:.80}", **where)
    return names
