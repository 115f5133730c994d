"""What is wrong with the installed plugins, and what to do about it: a sentence for each problem."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata

from bionemo.webdatamodule._engine.codecs import Codecs, codecs_in
from bionemo.webdatamodule.components import Component
from bionemo.webdatamodule.errors import PluginError
from bionemo.webdatamodule.hookspecs import NAME
from bionemo.webdatamodule.plugins import (
    DEFAULT_PLUGINS,
    DISABLED,
    Plugins,
    Registered,
    installed_entry_points,
    kind_of,
)

_REQUIREMENT = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[[^]]*\])?\s*\(?(?P<bounds>[^;()]*)\)?\s*(?P<marker>;.*)?")
_BOUND = re.compile(r"(?P<operator>>=|<=|==|!=|~=|>|<)\s*(?P<version>\d+(?:\.\d+)*)")


def check(plugins: Plugins) -> list[str]:
    """Return the problems of a set of installed plugins."""
    return [
        *(str(left) for left in plugins.left_out if left.remedy),
        *_clashes(plugins),
        *_clashes_of_suffixes(codecs_in(plugins)),
        *_unread_groups(),
        *_requirements(),
        *_unknown_names(),
    ]


def _clashes(plugins: Plugins) -> Iterator[str]:
    """Yield the errors that looking up a name twice registered raises."""
    for kind, name in dict.fromkeys((kind_of(r.component), r.component.name) for r in plugins.registered):
        error = _clash(plugins, kind, name)
        if error is not None:
            yield error.message


def _clashes_of_suffixes(registered: tuple[Registered, ...]) -> Iterator[str]:
    """Yield the errors that reading a field raises whose suffix two codecs claim."""
    codecs = Codecs(registered=registered)
    claimed = (suffix.lower() for found in registered for suffix in getattr(found.component, "suffixes", ()))
    for suffix in dict.fromkeys(claimed):
        try:
            codecs.registered_for(suffix)
        except PluginError as error:  # noqa: PERF203 - few suffixes
            yield error.message


def _clash(plugins: Plugins, kind: type[Component], name: str) -> PluginError | None:
    try:
        plugins.lookup(kind, name)
    except PluginError as error:
        return error
    return None


def _unread_groups() -> Iterator[str]:
    """Yield entry-point groups that are nearly the group of plugins."""
    for distribution in metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group != NAME and _is_near(entry.group):
                yield (
                    f"the distribution {distribution.metadata['Name']} {distribution.version} has the entry point "
                    f"{entry.name!r} in the group {entry.group!r}, which is not read; rename the group to {NAME!r} in "
                    "its pyproject.toml and install it again"
                )


def _is_near(group: str) -> bool:
    plain, wanted = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (group, NAME))
    return wanted in plain or plain in {"webdatamodule", "webdatamodules"} or _ratio(plain, wanted) > 0.85


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _requirements() -> Iterator[str]:
    """Yield what the distributions of plugins require and this environment does not have."""
    distributions = {entry.dist.name: entry.dist for entry in installed_entry_points() if entry.dist}
    for name, distribution in distributions.items():
        for text in distribution.requires or ():
            problem = requirement_problem(text)
            if problem:
                yield f"the distribution {name} {distribution.version} requires {problem}"


def requirement_problem(text: str) -> str | None:
    """Return what is wrong with a requirement here, with a remedy, or ``None``.

    Versions are compared by their numbers alone. Requirements with a marker, such as those of extras, pass.
    """
    match = _REQUIREMENT.fullmatch(text)
    if match is None or match["marker"]:
        return None
    wanted = text.strip()
    remedy = f"run `pip install '{wanted}'`"
    try:
        version = metadata.version(match["name"])
    except metadata.PackageNotFoundError:
        return f"{wanted}, which is not installed; {remedy}"
    bounds = [(found["operator"], _numbers(found["version"])) for found in _BOUND.finditer(match["bounds"])]
    if all(_holds(_numbers(version), operator, bound) for operator, bound in bounds):
        return None
    return f"{wanted}, and {match['name']} {version} is installed; {remedy}"


def _numbers(version: str) -> tuple[int, ...]:
    digits = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number) for number in digits[0].split(".")] if digits else []
    while numbers and not numbers[-1]:  # 1.0 is 1
        numbers.pop()
    return tuple(numbers)


def _holds(version: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    outcomes: Mapping[str, bool] = {
        ">=": version >= bound,
        "<=": version <= bound,
        ">": version > bound,
        "<": version < bound,
        "==": version[: len(bound)] == bound,  # ==1.2 and ==1.2.* alike: too generous rather than wrong
        "!=": version != bound,
        "~=": version >= bound and version[: len(bound) - 1] == bound[:-1],
    }
    return outcomes[operator]


def _unknown_names() -> Iterator[str]:
    """Yield names in the environment variable that no plugin has."""
    known = {"*", *DEFAULT_PLUGINS, *(entry.name for entry in installed_entry_points())}
    for name in filter(None, map(str.strip, os.environ.get(DISABLED, "").split(","))):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; plugins are {', '.join(sorted(known - {'*'}))}"
            yield f"{DISABLED} names {name!r}, and no plugin has that name{hint}"
