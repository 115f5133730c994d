"""``webdatamodule receipt``: did two runs deliver the same samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule.errors import ConfigError, count

Receipts: TypeAlias = "dict[tuple[str, int, int], dict[str, Any]]"
"""By split, number of the loader and epoch."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("first", metavar="A", help="receipt file of a run (receipt= of its data module)")
    parser.add_argument("second", metavar="B", help="receipt file of another run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if the runs differ."""
    first, second = read(args.first), read(args.second)
    found = differences(first, second)
    if args.json:
        print_json({"same": not found, "epochs": len({*first, *second}), "differences": found})
    elif found:
        print(f"{len(found)} of {len({*first, *second})} epochs differ")
        for line in found:
            print(f"  {line}")
    else:
        samples = sum(int(one["samples"]) for one in first.values())
        print(f"same: {count(len(first), 'epoch')}, {count(samples, 'sample')}")
    return int(bool(found))


def read(path: str) -> Receipts:
    """Return the receipts of a file.

    A line replaces those above it of the same epoch and of later ones: the run was begun again there.

    Raises:
        ConfigError: If the file holds something else, or nothing.
    """
    found: Receipts = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            one = json.loads(line)
            name = str(one["split"]), int(one.get("loader", 0)), int(one["epoch"])
            int(one["samples"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} holds no receipt in line {number}; give files that a run wrote with receipt="
            ) from error
        found = {key: value for key, value in found.items() if key[:2] != name[:2] or key[2] < name[2]}
        found[name] = one
    if not found:
        raise ConfigError(f"{path} holds no receipt; a run writes one at the end of each epoch")
    return found


def differences(first: Receipts, second: Receipts) -> list[str]:
    """Return a line for each epoch in which two runs differ."""
    lines = []
    for split, loader, epoch in sorted({*first, *second}):
        one, other = first.get((split, loader, epoch)), second.get((split, loader, epoch))
        where = f"{split}{f' (loader {loader})' if loader else ''}, epoch {epoch}"
        if one is None or other is None:
            lines.append(f"{where}: only in {'B' if one is None else 'A'}")
        elif one != other:
            lines.append(f"{where}: {_compared(one, other)}")
    return lines


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    return "; ".join(f"{name} {one.get(name)} in A, {other.get(name)} in B" for name in names)
