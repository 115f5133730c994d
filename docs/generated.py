# ruff: noqa: INP001 - scripts of the documentation are no package
"""The parts of the documentation that are made from the code: errors, commands, hooks, default components."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from bionemo.webdatamodule import errors, hookspecs
from bionemo.webdatamodule._cli.main import COMMANDS, command_module
from bionemo.webdatamodule.components import Component
from bionemo.webdatamodule.plugins import HOOKS, default_plugins, kind_name

_MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?\.*([\w.]+)`")


def expand(page: str) -> str:
    """Return a page with everything in it that is made from the code."""
    return _MARKER.sub(lambda match: BLOCKS[match[1]](), page)


def error_classes() -> Iterator[type[errors.WebDataModuleError]]:
    """Yield every error class, a class before those derived from it."""
    pending: list[type[errors.WebDataModuleError]] = [errors.WebDataModuleError]
    while pending:
        found = pending.pop(0)
        yield found
        pending[:0] = [other for other in found.__subclasses__() if other.__module__ == errors.__name__]


def error_pages() -> str:
    """Return a section for each error, whose anchor is the code at the end of its messages."""
    tree = (inspect.getdoc(errors) or "").partition("\n\n")[2]
    sections = [
        f"## {found.__name__} `[{found.code}]` {{ #{found.code} }}\n\n{_documented(found, show_bases=True)}"
        for found in error_classes()
    ]
    return "\n\n".join([tree, *sections])


def command_pages() -> str:
    """Return what ``--help`` says of each command."""
    parts = []
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}):
        for name, summary in COMMANDS.items():
            description = f"{summary[0].upper()}{summary[1:]}."
            parser = argparse.ArgumentParser(prog=f"webdatamodule {name}", description=description)
            command_module(name).configure(parser)
            parts.append(f"## webdatamodule {name}\n\n```text\n{parser.format_help().rstrip()}\n```")
    return "\n\n".join(parts)


def hook_pages() -> str:
    """Return a section for each hook: what its docstring says, with the example as a block of Python."""
    return "\n\n".join(f"## `{name}`\n\n{_markdown(getattr(hookspecs, name))}" for name in HOOKS)


def component_pages() -> str:
    """Return a section for each default component, by kind."""
    parts = []
    for kind in HOOKS.values():
        found = [registered.component for registered in default_plugins().registered]
        mine = [component for component in found if type(component) is kind]
        parts.append(f"## {kind_name(kind).capitalize()}s")
        parts.append("| name | what it does |\n|---|---|")
        parts[-1] += "".join(f"\n| [`{one.name}`](#{_anchor(one)}) | {one.summary} |" for one in mine)
        parts += [_component(component) for component in mine]
    return "\n\n".join(parts)


def _component(component: Component) -> str:
    return f"### `{component.name}` {{ #{_anchor(component)} }}\n\n{_documented(component.factory)}"


def _anchor(component: Component) -> str:
    return f"{kind_name(type(component)).replace(' ', '-')}-{component.name}"


def _documented(found: Any, *, show_bases: bool = False) -> str:
    """Return what mkdocstrings replaces by the docstring and the arguments of a class or function."""
    options = {"members": False, "show_bases": show_bases, "show_root_heading": False, "show_root_toc_entry": False}
    return f"::: {found.__module__}.{found.__qualname__}\n    options: {json.dumps(options)}"


def _markdown(documented: object) -> str:
    """Return a docstring as Markdown, with its literal block as Python."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", inspect.getdoc(documented) or "")
    prose, _, literal = text.replace("``", "`").partition("::\n\n")
    return f"{prose}:\n\n```python\n{textwrap.dedent(literal).rstrip()}\n```" if literal else prose


BLOCKS: Mapping[str, Callable[[], str]] = {
    "commands": command_pages,
    "components": component_pages,
    "errors": error_pages,
    "hooks": hook_pages,
}
"""What makes each generated part, by its name in a page."""
