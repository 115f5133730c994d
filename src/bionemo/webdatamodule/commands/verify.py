"""``webdatamodule verify``: does a directory hold what its manifest says."""

from __future__ import annotations

import argparse
import json
import sys

from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.shards import checks, verify


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split")
    parser.add_argument("--prefix", help="beginning of the shards' names; by default all that have a manifest")
    parser.add_argument("--deep", action="store_true", help="decode every sample, too")
    parser.add_argument("--trusted", action="store_true", help="with --deep: let pickles run code")
    parser.add_argument(
        "--allow-pickle", action="append", default=[], metavar="CLASS", help="class that pickles may hold"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if anything is damaged."""
    policy = Policy(pickles="trusted" if args.trusted else "safe", allow=tuple(args.allow_pickle))
    reports = [
        verify.verify(directory, prefix, deep=args.deep, policy=policy, progress=sys.stderr.isatty())
        for directory in args.directory
        for prefix in ([args.prefix] if args.prefix else verify.find_prefixes(directory))
    ]
    if args.json:
        print(json.dumps([vars(report) for report in reports], indent=2))
    else:
        for report in reports:
            state = f"{len(report.problems)} problems" if report.problems else "all as it was written"
            print(
                f"{report.directory} {report.prefix}: {report.samples} samples in {report.shards} shards, "
                f"{report.bytes / 1e6:.4g} MB: {state}"
            )
            for problem in report.problems[: checks.LISTED]:
                print(f"  {problem}")
            if len(report.problems) > checks.LISTED:
                print(f"  and {len(report.problems) - checks.LISTED} more")
            for note in report.notes:
                print(f"  note: {note}")
    return int(any(report.problems for report in reports))
