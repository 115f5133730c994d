"""``webdatamodule plugins``: what is installed, what it offers, and what was left out and why."""

from __future__ import annotations

import argparse
import json
import warnings

from bionemo.webdatamodule.errors import PluginWarning
from bionemo.webdatamodule.plugins import Plugins


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an installed plugin was left out")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    plugins = Plugins()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # they are printed below
        plugins.load_installed()
    rows = [
        {
            "kind": found.kind,
            "name": found.component.name,
            "summary": found.component.summary,
            "plugin": found.plugin,
            "distribution": found.distribution,
            "version": found.version,
        }
        for found in plugins.registered
    ]
    if args.json:
        left = [vars(plugin) for plugin in plugins.left_out]
        print(json.dumps({"components": rows, "left_out": left}, indent=2))
    else:
        columns = ("kind", "name", "summary", "plugin", "distribution", "version")
        table = [dict(zip(columns, columns, strict=True)), *rows]
        widths = {column: max(len(row[column]) for row in table) for column in columns}
        for row in table:
            print("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip())
        for plugin in plugins.left_out:
            print(plugin)
    return int(args.check and bool(plugins.left_out))
