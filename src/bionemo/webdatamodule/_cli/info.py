"""``webdatamodule info``: what is in a directory of shards."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bionemo.webdatamodule._cli.arguments import look_at_each, print_outcomes
from bionemo.webdatamodule._engine.format.manifest import read_manifest
from bionemo.webdatamodule._engine.humanize import counts
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule.errors import ManifestError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split, or its URL")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default all that have a manifest")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 2 if a directory cannot be described."""
    outcomes = []
    for outcome in look_at_each("info", args.directory, args.prefix, describe):
        outcomes.append(outcome)
        if outcome.found is not None and not args.json:
            _print(outcome.found)
    if args.json:
        print_outcomes(outcomes)
    return 2 if any(outcome.error for outcome in outcomes) else 0


def _print(row: Mapping[str, Any]) -> None:
    print(f"{row['directory']} {row['prefix']}")
    sizes = row["samples_per_shard"]
    print(f"  samples      {row['samples']:,}")
    print(f"  shards       {row['shards']:,} of {counts(min(sizes), max(sizes), 'sample')}")
    print(f"  size         {row['bytes'] / 1e6:.4g} MB")
    print(f"  suffixes     {', '.join(f'{suffix} ({codec})' for suffix, codec in row['codecs'].items())}")
    print(f"  writer       {_one_line(row['writer'])}")
    print(f"  key encoder  {_one_line(row['key_encoder'])}")
    print(f"  versions     {', '.join(f'{name} {version}' for name, version in row['versions'].items())}")
    print(f"  digest       {row['digest']}")


def describe(directory: str, prefix: str) -> dict[str, Any]:
    """Return what a manifest says, as JSON knows it.

    Raises:
        ManifestError: If there is none, or it cannot be read.
    """
    from bionemo.webdatamodule._engine.reading.verify import manifest_of  # which needs torch

    manifest = manifest_of(directory, prefix) if is_url(directory) else read_manifest(directory, prefix)
    if manifest is None:
        raise ManifestError(f"{directory} holds no manifest of the prefix {prefix!r}")
    return {
        "directory": directory,
        "prefix": prefix,
        "samples": manifest.n_samples,
        "shards": len(manifest.shards),
        "samples_per_shard": [shard.samples for shard in manifest.shards],
        "bytes": manifest.n_bytes,
        "codecs": dict(manifest.codecs),
        "writer": dict(manifest.writer),
        "key_encoder": dict(manifest.key_encoder),
        "versions": dict(manifest.versions),
        "digest": manifest.digest,
    }


def _one_line(component: dict[str, Any]) -> str:
    about = {name: value for name, value in component.items() if name not in {"name", "options"}}
    options = ", ".join(f"{name}={value!r}" for name, value in component.get("options", {}).items())
    source = " ".join(str(about[name]) for name in ("distribution", "version") if about.get(name))
    return f"{component.get('name', 'unknown')}({options})" + (f" of {source}" if source else "")
