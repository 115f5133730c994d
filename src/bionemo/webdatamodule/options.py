"""Checks of options for the factories of components."""

from __future__ import annotations

import numbers
import operator
import os
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from bionemo.webdatamodule.errors import ConfigError

Check: TypeAlias = Callable[[str, Any], Any]
"""Returns the value of an argument, given its name and what the user gave, or raises a ``ConfigError``."""


def whole_number(argument: str, given: object, *, least: int) -> int:
    """Return a whole number that is large enough.

    Raises:
        ConfigError: If it is not a whole number, or too small.
    """
    try:
        number = None if isinstance(given, bool) else operator.index(given)  # type: ignore[arg-type]  # asks for it
    except TypeError:
        number = None
    if number is None:
        raise ConfigError(f"{argument} is a whole number, not {given!r}")
    if number < least:
        raise ConfigError(f"{argument} is at least {least}, not {number}")
    return number


def number(argument: str, given: object, *, least: float) -> float:
    """Return a number that is large enough; it may be infinite.

    Raises:
        ConfigError: If it is not a number, or too small.
    """
    if not isinstance(given, numbers.Real) or isinstance(given, bool) or given != given:  # noqa: PLR0124 - not a number
        raise ConfigError(f"{argument} is a number, not {given!r}")
    if given < least:
        raise ConfigError(f"{argument} is at least {least}, not {given}")
    return float(given)


def one_of(argument: str, given: object, choices: tuple[object, ...]) -> Any:
    """Return a choice.

    Raises:
        ConfigError: If it is none of the choices.
    """
    try:
        known = given in choices
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors have no truth
        known = False
    if not known:
        raise ConfigError(f"{argument} is one of {', '.join(map(repr, choices))}, not {given!r}")
    return given


def function(argument: str, given: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return a function that is given directly or by its import path.

    Raises:
        ConfigError: If it is neither.
    """
    if callable(given):
        return given
    if not isinstance(given, str):
        raise ConfigError(f"{argument} is a function or its import path, not {given!r}")
    try:
        found = pkgutil.resolve_name(given)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{argument} is a function or its import path; {given!r} is neither: {error}") from error
    if not callable(found):
        raise ConfigError(f"{argument} names {given!r}, which cannot be called")
    return found  # type: ignore[no-any-return]  # that it can be called is all that is known of it


def local_path(argument: str, given: object) -> str:
    """Return a path on a disk as text, with its ``~`` replaced.

    Raises:
        ConfigError: If it is not a path, or is a URL.
    """
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{argument} holds {given!r}, which is not a path")
    if "://" in path:
        raise ConfigError(f"{argument} is a path on a disk, not the URL {path}")
    text = str(path)  # an array of NumPy holds texts of a class of its own
    return os.path.expanduser(text)  # noqa: PTH111 - Path would change more than that


def flag(argument: str, given: object) -> bool:
    """Return a boolean.

    Raises:
        ConfigError: If it is none.
    """
    return bool(one_of(argument, given, (True, False)))


def optional(check: Check) -> Check:
    """Return a check that accepts ``None`` as well."""
    return lambda argument, given: None if given is None else check(argument, given)


def checked(given: Mapping[str, Any], checks: Mapping[str, Check], form: str = "{}") -> dict[str, Any]:
    """Return options with the values that their checks return.

    Args:
        given: The options.
        checks: The check of each option; one without a check is returned as it is.
        form: What the messages call an option, such as ``"{} in kwargs_wds[train]"``.

    Raises:
        ConfigError: If a check refuses a value.
    """
    return {name: checks[name](form.format(name), value) if name in checks else value for name, value in given.items()}
