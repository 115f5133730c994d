"""Checks of options for the factories of components."""

from __future__ import annotations

import operator
import pkgutil
from collections.abc import Callable
from typing import Any

from bionemo.webdatamodule.errors import ConfigError


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


def one_of(argument: str, given: object, choices: tuple[object, ...]) -> Any:
    """Return a choice.

    Raises:
        ConfigError: If it is none of the choices.
    """
    if given not in choices:
        raise ConfigError(f"{argument} is one of {', '.join(map(repr, choices))}, not {given!r}")
    return given


def function(argument: str, given: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return a function that is given directly or by its import path.

    Raises:
        ConfigError: If it is neither.
    """
    if callable(given):
        return given
    try:
        found = pkgutil.resolve_name(str(given))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{argument} is a function or its import path; {given!r} is neither: {error}") from error
    if not callable(found):
        raise ConfigError(f"{argument} names {given!r}, which cannot be called")
    return found  # type: ignore[no-any-return]  # that it can be called is all that is known of it
