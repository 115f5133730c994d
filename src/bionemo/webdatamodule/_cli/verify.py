"""``webdatamodule verify``: does a directory hold what its manifest says."""

from __future__ import annotations

import argparse
import sys

from bionemo.webdatamodule._cli.arguments import add_policy, look_at_each, policy_of, print_outcomes
from bionemo.webdatamodule._engine.reading import verify
from bionemo.webdatamodule._engine.writing import checks
from bionemo.webdatamodule.errors import count

_REMEDY = "to repair it, restore what is damaged, or run the conversion again with --check"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split, or its URL")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default all that have a manifest")
    parser.add_argument("--deep", action="store_true", help="also decode every sample")
    add_policy(parser, trusted="with --deep: let pickles run code")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if anything is damaged, 2 if a directory cannot be verified."""
    policy = policy_of(args)

    def look(directory: str, prefix: str) -> verify.Report:
        return verify.verify(directory, prefix, deep=args.deep, policy=policy, progress=sys.stderr.isatty())

    code = 0
    outcomes = []
    for outcome in look_at_each("verify", args.directory, args.prefix, look):
        outcomes.append(outcome)
        code = max(code, 2 if outcome.found is None else int(bool(outcome.found.problems)))
        if outcome.found is not None and not args.json:
            _print(outcome.found)
    if args.json:
        print_outcomes(outcomes)
    return code


def _print(report: verify.Report) -> None:
    state = count(len(report.problems), "problem") if report.problems else "all as it was written"
    print(
        f"{report.directory} {report.prefix}: {count(report.samples, 'sample')} in {count(report.shards, 'shard')}, "
        f"{report.bytes / 1e6:.4g} MB: {state}"
    )
    for problem in report.problems[: checks.LISTED]:
        print(f"  {problem}")
    if len(report.problems) > checks.LISTED:
        print(f"  and {len(report.problems) - checks.LISTED} more")
    if report.problems:
        print(f"  {_REMEDY}")
    for note in report.notes:
        print(f"  note: {note}")
