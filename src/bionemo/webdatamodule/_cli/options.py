"""Options of components on the command line: text becomes what the component's factory takes."""

from __future__ import annotations

import collections.abc
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bionemo.webdatamodule.components import Component, Use
from bionemo.webdatamodule.errors import ConfigError, count
from bionemo.webdatamodule.plugins import check_options, find

_ANYTHING = inspect.Parameter.empty
_TEXT = (str, os.PathLike)
_LISTS = (collections.abc.Iterable, collections.abc.Collection, collections.abc.Sequence, list, tuple, set, frozenset)


def parse_options(
    words: Sequence[str], factory: Callable[..., Any] | None = None, flag: str = "--option"
) -> dict[str, Any]:
    """Return options from ``K=V`` words.

    What becomes of ``V`` depends on what the factory takes, by its annotations or else by its defaults: where it
    takes text, ``V`` is text, unless it is JSON for something else that the factory takes as well.
    Where nothing is known, ``V`` is JSON if it can be, and else text.
    An option that takes a list may be given several times, or once for a list of one.

    Args:
        words: The words.
        factory: A component's factory.
        flag: What the words stand behind, for messages.

    Raises:
        ConfigError: If a word has no ``=``, or an option comes twice that takes no list.
    """
    given: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{flag} takes K=V, not {word!r}")
        given.setdefault(name, []).append(value)
    taken = _annotations(factory)
    options = {}
    for name, values in given.items():
        kinds = _alternatives(taken.get(name, _ANYTHING))
        if len(values) == 1:
            options[name] = _converted(values[0], kinds)
            continue
        lists = _lists(kinds)
        if not lists:
            raise ConfigError(f"{flag} gives {name} {count(len(values), 'time')}, and it takes no list; give it once")
        options[name] = [_converted(value, _items(lists[0])) for value in values]
    return options


def reference(
    kind: type[Component], text: str, flag: str, more: Mapping[str, Any] | None = None, form: str | None = None
) -> Use:
    """Return a component by its name, with the options that follow it: ``NAME`` or ``NAME:K=V,K=V``.

    A comma begins another option only where ``K=`` follows it, so values may hold commas and colons.

    Args:
        kind: The kind of component, whose factory says what the options are.
        text: The words.
        flag: What they stand behind, for messages.
        more: Options that other flags give.
        form: How the user writes an option, for the message about a missing one.

    Raises:
        ConfigError: If an option has no ``=``, comes twice, is unknown or is missing.
        UnknownNameError: If no plugin registers the name.
    """
    name, colon, words = text.partition(":")
    component = find(kind, name)
    options = parse_options(re.split(r",(?=\w+=)", words), component.factory, f"{flag} {name}:") if colon else {}
    if twice := sorted({*options} & {*(more or {})}):
        raise ConfigError(
            f"{flag} {text} gives the option {twice[0]!r}, which another flag gives as well; give it once"
        )
    options.update(more or {})
    check_options(component, options, form=form or f"{flag} {name}:{{}}=VALUE")
    return Use(name, **options)


def _annotations(factory: Callable[..., Any] | None) -> dict[str, Any]:
    """Return what each parameter takes, as far as an annotation or a default says."""
    if factory is None:
        return {}
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except Exception:  # noqa: BLE001 - there is no signature, or it names what is not there at run time
        return {}
    taken = {}
    for name, parameter in parameters.items():
        if parameter.kind in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
            continue
        kind = parameter.annotation
        if kind is _ANYTHING and parameter.default is not _ANYTHING and parameter.default is not None:
            kind = type(parameter.default)
        taken[name] = kind
    return taken


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type."""
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return tuple(member for argument in typing.get_args(kind) for member in _alternatives(argument))
    return (kind,)


def _lists(kinds: Sequence[Any]) -> list[Any]:
    """Return those types that are lists of something."""
    return [kind for kind in kinds if _origin(kind) in _LISTS]


def _items(kind: Any) -> tuple[Any, ...]:
    """Return what a list takes as its items."""
    arguments = typing.get_args(kind)
    return _alternatives(arguments[0]) if arguments else (_ANYTHING,)


def _converted(text: str, kinds: Sequence[Any]) -> Any:
    """Return a value for a parameter that takes these types."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if any(_fits(value, kind) for kind in kinds):
        return value
    if any(_is_text(kind) for kind in kinds):
        return text
    lists = _lists(kinds)
    return [_converted(text, _items(lists[0]))] if lists else value


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return any(isinstance(value, str) for value in typing.get_args(kind))
    origin = _origin(kind)
    return isinstance(origin, type) and origin is not object and issubclass(origin, _TEXT)


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is one that a parameter of this type takes."""
    if kind in {_ANYTHING, Any, object}:
        return True
    if isinstance(value, str):
        return _is_text(kind)
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    origin = _origin(kind)
    if isinstance(value, bool) or value is None:
        return origin is type(value) or kind is value
    if isinstance(value, (int, float)):
        return origin is float or origin is type(value)
    if isinstance(value, list):
        return origin in _LISTS
    return isinstance(origin, type) and issubclass(origin, collections.abc.Mapping)


def _origin(kind: Any) -> Any:
    """Return a type without its arguments: ``list[str]`` is a list."""
    return typing.get_origin(kind) or kind
