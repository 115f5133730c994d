"""The options of a component, from the signature and the docstring of its factory."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

from bionemo.webdatamodule.components import Component
from bionemo.webdatamodule.plugins import Registered

_ARGS = re.compile(r"^Args:\n(?P<args>(?:[ \t]+.*\n|\n)*)", re.MULTILINE)
_ARG = re.compile(r"^    (?P<name>\w+)(?: \([^)]*\))?: (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)
_MARKUP = re.compile(r":\w+:`~?(?:[\w.]*\.)?([^`]+)`|``([^`]+)``")


def describe(found: Registered) -> dict[str, Any]:
    """Return the options of a component and what else its record says.

    Returns:
        ``options``: for each its ``name``, ``type`` and ``default`` as they are written (``None`` for a default means
        that there is none) and ``text``, the first sentence of its documentation; ``facts``: other fields of the
        record.
    """
    return {"options": options_of(found.component.factory), "facts": _facts(found.component)}


def options_of(factory: Callable[..., Any]) -> list[dict[str, str | None]]:
    """Return name, type, default and first sentence of each option that a factory takes."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return []
    texts = _texts(inspect.getdoc(factory) or "")
    made = {field.name: field.default_factory for field in _fields(factory)}
    return [
        {
            "name": parameter.name,
            "type": _type(parameter.annotation),
            "default": _default(parameter, made.get(parameter.name, dataclasses.MISSING)),
            "text": texts.get(parameter.name, ""),
        }
        for parameter in parameters
        if parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    ]


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _fields(factory: Callable[..., Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(factory) if dataclasses.is_dataclass(factory) else ()


def _default(parameter: inspect.Parameter, made: Any) -> str | None:
    if parameter.default is parameter.empty:
        return None
    if made is not dataclasses.MISSING:
        return repr(made())
    name = getattr(parameter.default, "__qualname__", None)  # of a function, whose repr has an address
    return f"{parameter.default.__module__}.{name}" if name else repr(parameter.default)


def _texts(documentation: str) -> dict[str, str]:
    """Return the first sentence of each argument of a Google-style docstring."""
    section = _ARGS.search(documentation + "\n")
    found = _ARG.finditer(section["args"]) if section else ()
    return {match["name"]: _first_sentence(match["text"]) for match in found}


def _first_sentence(text: str) -> str:
    plain = _MARKUP.sub(lambda match: match[1] or match[2], " ".join(text.split()))
    return re.split(r"(?<=\.)\s", plain)[0]


def _facts(component: Component) -> dict[str, str]:
    """Return the fields of a record that not every record has."""
    common = {field.name for field in dataclasses.fields(Component)} | {"factory"}
    values = {field.name: getattr(component, field.name) for field in dataclasses.fields(component)}
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if name not in common and value not in ((), False, None)
    }
