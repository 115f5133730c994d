"""The three parts of a data set that training tells apart."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from bionemo.webdatamodule.errors import ConfigError

_T = TypeVar("_T")


class Split(enum.Enum):
    """A part of a data set: ``train``, ``val`` or ``test``."""

    train = enum.auto()
    val = enum.auto()
    test = enum.auto()


def by_split(argument: str, values: Mapping[Split, _T] | Mapping[str, _T] | None) -> dict[Split, _T]:
    """Return a mapping keyed by :class:`Split` from one keyed by splits or their names.

    Args:
        argument: Name of the argument, for messages.
        values: The user's mapping, or ``None`` for an empty one.

    Raises:
        ConfigError: If it is no mapping, or a key is no split.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{argument} must map splits to values, such as {{Split.train: ...}}, not {type(values).__name__}"
        )
    found: dict[Split, _T] = {}
    for key, value in values.items():
        name = key.name if isinstance(key, Split) else key
        if not isinstance(name, str) or name not in Split.__members__:
            raise ConfigError(f"{argument} has the key {key!r}; splits are {', '.join(Split.__members__)}")
        if Split[name] in found:
            raise ConfigError(f"{argument} has the split {name} twice")
        found[Split[name]] = value
    return found
