# ruff: noqa: INP001 - scripts of the documentation are not a package
"""Writes the parts of the documentation that are made from the code, in place: ``python docs/generated.py``.

A page says by comments where they go::

    <!-- generated: hooks -->
    <!-- end -->

``<!-- generated: api NAME -->`` is the documentation of one class or function by its import path; methods follow where
``+METHOD`` names them, and all those of a protocol. ``--check`` writes nothing and fails where a page is stale.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from bionemo.webdatamodule import errors, hookspecs
from bionemo.webdatamodule._cli.main import COMMANDS, command_module
from bionemo.webdatamodule.components import Codec, Component
from bionemo.webdatamodule.plugins import HOOKS, default_plugins, kind_name, kind_of

HERE = Path(__file__).resolve().parent
_BLOCK = re.compile(r"^<!-- generated: (?P<words>[^\n]+) -->\n(?:.*?\n)??<!-- end -->$", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?\.*([\w.]+)`")
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\n((?:(?: {4,}[^\n]*)?\n)+)", re.MULTILINE)
_ITEM = re.compile(r"^    (\**[\w.]+)(?: \([^)\n]*\))?: ((?:[^\n]+\n)(?:(?: {5,}[^\n]*)?\n)*)", re.MULTILINE)
_TITLES = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}


def main() -> int:
    """Write every page that has generated parts, or with ``--check`` say which are stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    args = parser.parse_args()
    stale = [path for path, text in pages() if path.read_text(encoding="utf-8") != text]
    for path, text in pages():
        if path in stale and not args.check:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        outcome = "is stale; run `python docs/generated.py`" if args.check else "written"
        sys.stdout.write(f"{path.relative_to(HERE.parent)} {outcome}\n")
    return int(args.check and bool(stale))


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the pages with generated parts, and what should be in them."""
    for path in sorted(HERE.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if _BLOCK.search(text):
            yield path, _BLOCK.sub(_block, text)


def _block(match: re.Match[str]) -> str:
    kind, *words = match["words"].split()
    return f"<!-- generated: {match['words']} -->\n{BLOCKS[kind](*words).strip()}\n<!-- end -->"


def error_classes() -> Iterator[type[errors.WebDataModuleError]]:
    """Yield every error class, a class before those derived from it."""
    pending: list[type[errors.WebDataModuleError]] = [errors.WebDataModuleError]
    while pending:
        found = pending.pop(0)
        yield found
        pending[:0] = [other for other in found.__subclasses__() if other.__module__ == errors.__name__]


def error_sections() -> str:
    """Return the tree, and a section for each error, whose anchor is the code at the end of its messages."""
    tree = (inspect.getdoc(errors) or "").partition("\n\n")[2]
    sections = [
        f'<a id="{found.code}"></a>\n\n## {found.__name__} `[{found.code}]`\n\n'
        f"Bases: {', '.join(f'`{base.__name__}`' for base in found.__bases__)}\n\n{documentation(found)}"
        for found in error_classes()
    ]
    return "\n\n".join([tree, *sections])


def command_sections() -> str:
    """Return what ``--help`` prints of each command."""
    parts = []
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}):
        for name, summary in COMMANDS.items():
            description = f"{summary[0].upper()}{summary[1:]}."
            parser = argparse.ArgumentParser(prog=f"webdatamodule {name}", description=description)
            command_module(name).configure(parser)
            parts.append(f"## webdatamodule {name}\n\n```text\n{parser.format_help().rstrip()}\n```")
    return "\n\n".join(parts)


def hook_sections() -> str:
    """Return a section for each hook: its docstring, with the example as a block of Python."""
    return "\n\n".join(f"## `{name}`\n\n{documentation(getattr(hookspecs, name))}" for name in HOOKS)


def component_sections(*kinds: str) -> str:
    """Return a section for each default component of some kinds."""
    parts = []
    for kind in HOOKS.values():
        if kind_name(kind).replace(" ", "-") not in kinds:
            continue
        mine = [r.component for r in default_plugins().registered if kind_of(r.component) is kind]
        parts.append(f"## {kind_name(kind).capitalize()}s")
        parts.append("\n".join(_table(mine)))
        parts += [_component(component) for component in mine]
    return "\n\n".join(parts)


def _table(components: list[Component]) -> Iterator[str]:
    codecs = any(isinstance(component, Codec) for component in components)
    yield f"| name | what it does |{' extensions |' if codecs else ''}"
    yield f"|---|---|{'---|' if codecs else ''}"
    for one in components:
        suffixes = f" {', '.join(f'`{suffix}`' for suffix in one.suffixes)} |" if isinstance(one, Codec) else ""
        yield f"| [`{one.name}`](#{_anchor(one)}) | {one.summary} |{suffixes}"


def _component(component: Component) -> str:
    return (
        f'<a id="{_anchor(component)}"></a>\n\n### `{component.name}`\n\n'
        f"{_signature(component.factory, component.name)}\n\n{documentation(component.factory)}"
    )


def _anchor(component: Component) -> str:
    return f"{kind_name(kind_of(component)).replace(' ', '-')}-{component.name}"


def api(path: str, *members: str) -> str:
    """Return the documentation of a class or function.

    Args:
        path: Its import path.
        *members: ``+NAME`` for each method that is documented too, or ``###`` for a heading of that level.
    """
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    level = next((word for word in members if word.startswith("#")), "##")
    protocol = getattr(found, "_is_protocol", False)
    signature = f"```py\nfrom {module} import {name}\n```" if protocol else _signature(found, name, path=path)
    parts = [f"{level} `{name}`", signature, documentation(found)]
    for member in _methods(found) if protocol else [word[1:] for word in members if word.startswith("+")]:
        method = inspect.getattr_static(found, member)
        if isinstance(method, property):
            method = method.fget
            shown = f"```py\n{member}: {_kind(inspect.signature(method).return_annotation)}\n```"
        else:
            shown = _signature(method, member)
        parts += [f"{level}# `{name}.{member}`", shown, documentation(method)]
    return "\n\n".join(filter(None, parts))


def _methods(protocol: type) -> list[str]:
    """Return the names of a protocol's own methods and properties that have a docstring."""
    added = {"__init__", "__subclasshook__"}
    own = {name: getattr(found, "fget", found) for name, found in vars(protocol).items() if name not in added}
    return [name for name, found in own.items() if inspect.isfunction(found) and found.__doc__]


def _signature(found: Any, name: str, *, path: str = "") -> str:
    """Return a block with the import and the signature, one argument a line where it is long; it is not run."""
    source = f"from {path.rpartition('.')[0]} import {name}\n\n" if path else ""
    if not callable(found) or (inspect.isclass(found) and issubclass(found, BaseException)):
        return f"```py\n{source.rstrip()}\n```" if source else ""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return f"```py\n{source.rstrip()}\n```" if source else ""
    shown = [_parameter(p) for p in signature.parameters.values() if p.name != "self"]
    kinds = [p.kind for p in signature.parameters.values() if p.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if inspect.Parameter.POSITIONAL_ONLY in kinds:
        shown.insert(kinds.count(inspect.Parameter.POSITIONAL_ONLY), "/")
    result = "" if inspect.isclass(found) or signature.return_annotation is signature.empty else " -> "
    result += _kind(signature.return_annotation) if result else ""
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) > 90:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){result}"
    return f"```py\n{source}{line}\n```"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {_kind(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{kind}"
    value = getattr(parameter.default, "__qualname__", None) or repr(parameter.default)
    value = "…" if value == "<factory>" else value
    return f"{stars}{parameter.name}{kind}{' = ' if kind else '='}{value}"


def _kind(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def documentation(found: Any) -> str:
    """Return a Google-style docstring as Markdown: lists for its sections, a block for its example."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", inspect.getdoc(found) or "")
    text = text.replace("``", "`")
    prose, mark, example = text.partition("::\n\n")
    if mark:
        return f"{prose}:\n\n```python\n{textwrap.dedent(example).rstrip()}\n```"
    sections = "\n\n".join(_section(match[1], match[2]) for match in _SECTION.finditer(f"{text}\n"))
    return f"{_SECTION.sub('', f'{text}{chr(10)}').strip()}\n\n{sections}".strip()


def _section(title: str, body: str) -> str:
    if title not in _TITLES:
        words = " ".join(textwrap.dedent(body).split())
        return f"**{title}:** {words}"
    items = [f"- `{match[1]}`: {' '.join(match[2].split())}" for match in _ITEM.finditer(f"{body}\n")]
    return "\n".join([f"**{_TITLES[title]}**\n", *items])


BLOCKS: Mapping[str, Callable[..., str]] = {
    "api": api,
    "commands": command_sections,
    "components": component_sections,
    "errors": error_sections,
    "hooks": hook_sections,
}
"""What makes each generated part, by the first word of its comment."""

if __name__ == "__main__":
    sys.exit(main())
