"""Tokens that stand for what a pickle names, and checks that the constructors behind them share."""

from __future__ import annotations

import _compat_pickle
import importlib
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_INTEGER: Final = 1 << 16
"""Bits of an integer that is an argument or a key: arithmetic and comparisons with larger ones are slow."""

TRUST: Final = 'if you trust where the data come from, read them with pickles="trusted"'
"""The remedy where allowing names is none."""


class UnknownNameError(Exception):
    """A pickle names something that is neither known nor allowed; its argument is ``module.name``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Global:
    """A token for what a pickle named; inert, whatever a pickle does to it.

    Attributes:
        name: ``module.name``, as the user would write it in ``allow_pickle``.
        call: What REDUCE calls.
        new: What NEWOBJ calls, without the class.
        real: The type, where a pickle may pass it as an argument, as in ``defaultdict(list)``.
        charged: ``call`` takes the budget before the arguments.
        allowed: The user allowed it, so it is used as :mod:`pickle` would.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None
    real: Any = None
    charged: bool = False
    allowed: bool = False


@dataclass(frozen=True, eq=False)
class Fresh:
    """An object that may take its state from one BUILD.

    Attributes:
        value: The object.
        build: Takes the object and the state. Returns the steps of work that depend on the state, if there are many.
    """

    value: Any
    build: Callable[[Any, Any], int | None]


@dataclass(frozen=True, eq=False)
class Owned:
    """An object of a class that the user allowed."""

    value: Any


def expect(good: bool, what: str) -> None:
    """Raise :class:`DecodeError` unless an argument is as its constructor takes it."""
    if not good:
        raise DecodeError(f"the pickle has {what}")


def is_named(token: Any, name: str) -> bool:
    """Return whether an argument is the token of that name."""
    return type(token) is Global and token.name == name


def is_size(number: Any) -> bool:
    """Return whether an argument is an integer from 0 on that fits into 63 bits."""
    return type(number) is int and 0 <= number < 1 << 63


def as_bytes(data: Any) -> Any:
    """Return bytes as they are, and text of Python 2, which had one type for both, as its bytes."""
    return data.encode("latin-1") if type(data) is str else data


def real(value: Any) -> Any:
    """Return the object that a token stands for, and any other value as it is; for classes that the user allowed."""
    if type(value) is not Global:
        return value
    return value.real if value.real is not None else resolve(*value.name.rsplit(".", 1))


def resolve(module: str, name: str) -> Any:
    """Import what a pickle names.

    Raises:
        ImportError, AttributeError: If it is not there.
    """
    return operator.attrgetter(name)(importlib.import_module(module))


def python3_name(module: str, name: str) -> tuple[str, str]:
    """Return what Python 3 calls a name of Python 2, which protocols 0 to 2 write, as :mod:`pickle` does."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def table(functions: Iterable[tuple[str, Callable[..., Any]]], **options: Any) -> dict[tuple[str, str], Any]:
    """Return tokens for functions, by ``(module, name)`` as pickles spell it."""
    return {
        (name.rpartition(".")[0], name.rpartition(".")[2]): Global(name=name, call=call, **options)
        for name, call in functions
    }
