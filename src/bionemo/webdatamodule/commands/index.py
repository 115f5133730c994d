"""``webdatamodule index``: adopt shards that another tool wrote."""

from __future__ import annotations

import argparse
import json
import sys

from bionemo.webdatamodule.shards.adopt import adopt


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split")
    parser.add_argument("--prefix", default="wdshards", help="beginning of the shards' names (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="replace a manifest, taking the shards as they are now")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    rows = []
    for directory in args.directory:
        manifest = adopt(directory, args.prefix, again=args.again, progress=sys.stderr.isatty())
        rows.append(
            {
                "directory": directory,
                "prefix": args.prefix,
                "samples": manifest.n_samples,
                "shards": len(manifest.shards),
                "suffixes": list(manifest.suffixes),
                "digest": manifest.digest,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(
            f"{row['directory']} {row['prefix']}: {row['samples']} samples in {row['shards']} shards, "
            f"suffixes {', '.join(row['suffixes'])}, digest {row['digest']}"
        )
    return 0
