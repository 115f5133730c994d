"""``webdatamodule plugins``: what is installed, what it offers, what was left out and why, and what to correct."""

from __future__ import annotations

import argparse
import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._cli.plugins.check import check
from bionemo.webdatamodule._cli.plugins.describe import describe
from bionemo.webdatamodule.errors import PluginWarning, UnknownNameError
from bionemo.webdatamodule.plugins import STRICT, Plugins, Registered

_COLUMNS = ("kind", "name", "summary", "plugin", "distribution", "version")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="show the components with this name, or of this plugin, with their options",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="find plugins that were left out, duplicate names and suffixes, misspelt entry-point groups and missing "
        "dependencies; exit with 1 if there are any",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if ``--check`` finds something."""
    plugins = Plugins()
    with warnings.catch_warnings(), mock.patch.dict(os.environ):
        warnings.simplefilter("ignore", PluginWarning)  # they are printed below
        os.environ.pop(STRICT, None)  # the first failure is not all that there is to say
        plugins.load_installed()
    if args.name is not None:
        return _show(args.name, plugins, as_json=args.json)
    overridden = plugins.overridden
    rows = [_row(found, overridden=found in overridden) for found in plugins.registered]
    problems = check(plugins) if args.check else []
    if args.json:
        left = [vars(plugin) for plugin in plugins.left_out]
        print_json({"components": rows, "left_out": left, **({"problems": problems} if args.check else {})})
        return int(bool(problems))
    _print_table([dict(zip(_COLUMNS, _COLUMNS, strict=True)), *rows])
    for found in overridden:
        by = [r.origin for r in plugins.registered if _same(r, found) and not r.default]
        print(f"the default {found.kind} {found.component.name!r} is overridden by the {' and by the '.join(by)}")
    for left_out in plugins.left_out:
        print(left_out)
    for problem in problems:
        print(f"problem: {problem}")
    return int(bool(problems))


def _row(found: Registered, *, overridden: bool) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "name": found.component.name,
        "summary": found.component.summary,
        "plugin": found.plugin,
        "distribution": found.distribution,
        "version": found.version,
        "overridden": overridden,
    }


def _same(one: Registered, other: Registered) -> bool:
    return (one.kind, one.component.name) == (other.kind, other.component.name)


def _print_table(table: Sequence[Mapping[str, Any]]) -> None:
    widths = {column: max(len(row[column]) for row in table) for column in _COLUMNS}
    for row in table:
        print("  ".join(row[column].ljust(widths[column]) for column in _COLUMNS).rstrip())


def _show(name: str, plugins: Plugins, *, as_json: bool) -> int:
    chosen = [found for found in plugins.registered if name in (found.component.name, found.plugin)]
    if not chosen:
        names = sorted({found.component.name for found in plugins.registered})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"components are {', '.join(names)}"
        raise UnknownNameError(f"no component and no plugin is named {name!r}; {hint}")
    described = [{**_row(found, overridden=found in plugins.overridden), **describe(found)} for found in chosen]
    if as_json:
        print_json(described)
        return 0
    for number, row in enumerate(described):
        print("\n" * bool(number) + f"{row['kind']} {row['name']}: {row['summary']}")
        print(f"  plugin        {row['plugin']}{', overridden by another' if row['overridden'] else ''}")
        print(f"  distribution  {row['distribution']} {row['version']}")
        for key, value in row["facts"].items():
            print(f"  {key:<12}  {value}")
        for option in row["options"]:
            default = f" = {option['default']}" if option["default"] is not None else ""
            print(f"  {option['name']}: {option['type']}{default}")
            if option["text"]:
                print(f"      {option['text']}")
        if not row["options"]:
            print("  no options")
    return 0
