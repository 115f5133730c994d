"""``webdatamodule index``: adopt shards that another tool wrote."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bionemo.webdatamodule._cli.arguments import USUAL_PREFIX, look_at_each, prefixes_named, print_outcomes
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule._engine.writing.adopt import adopt, adopt_remote
from bionemo.webdatamodule.errors import ConfigError, count

_EPILOG = """\
With --output, the URL is only read. Put the files of DIR beside the shards, with whatever may write there, or beside
a copy of the shards; nothing reads them anywhere else:

  webdatamodule index s3://bucket/train --output train-index
  aws s3 cp --recursive train-index s3://bucket/train
  webdatamodule verify s3://bucket/train
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split, or its URL")
    parser.add_argument("--prefix", default=USUAL_PREFIX, help="prefix of the shards' names (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="replace an existing manifest")
    parser.add_argument(
        "--output", metavar="DIR", help="for a URL: directory for indexes and manifest, instead of beside the shards"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 2 if a directory cannot be adopted."""

    def look(directory: str, prefix: str) -> dict[str, Any]:
        progress = sys.stderr.isatty()
        if is_url(directory):
            manifest = adopt_remote(directory, prefix, again=args.again, output=args.output, progress=progress)
        elif args.output is not None:
            raise ConfigError(
                f"{directory} is a local directory, whose indexes lie beside the shards; leave out --output"
            )
        else:
            with prefixes_named(directory, prefix):
                manifest = adopt(directory, prefix, again=args.again, progress=progress)
        return {
            "directory": directory,
            "prefix": prefix,
            "samples": manifest.n_samples,
            "shards": len(manifest.shards),
            "suffixes": list(manifest.suffixes),
            "digest": manifest.digest,
        }

    outcomes = []
    for outcome in look_at_each("index", args.directory, args.prefix, look):
        outcomes.append(outcome)
        if outcome.found is not None and not args.json:
            row = outcome.found
            print(
                f"{row['directory']} {row['prefix']}: "
                f"{count(row['samples'], 'sample')} in {count(row['shards'], 'shard')}, "
                f"suffixes {', '.join(row['suffixes'])}, digest {row['digest']}"
            )
    if args.json:
        print_outcomes(outcomes)
    return 2 if any(outcome.error for outcome in outcomes) else 0
