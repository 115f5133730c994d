"""``webdatamodule report``: a page about a data set, for people who have to trust it."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from bionemo.webdatamodule._cli.arguments import add_policy, natural, only_prefix, policy_of, positive
from bionemo.webdatamodule._cli.report import facts
from bionemo.webdatamodule._cli.report.page import page
from bionemo.webdatamodule.errors import ConfigError, count


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="directory of a split, or a URL")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="output file (%(default)s)")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default the only one with a manifest")
    parser.add_argument("--global-batch", type=positive, help="show the plan for this many samples over all ranks")
    parser.add_argument("--ranks", type=positive, default=1, help="number of ranks of that plan (%(default)s)")
    parser.add_argument("--workers", type=natural, default=0, help="workers of each rank (%(default)s)")
    parser.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help=f"samples to decode, spread evenly (by default {facts.SAMPLES}, fewer if they are large)",
    )
    parser.add_argument("--deep", action="store_true", help="decode all samples; for a URL, fetch all shards")
    parser.add_argument("--no-hashes", action="store_true", help="do not compare the hashes of all bytes")
    add_policy(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if the data are damaged or the plan cannot be done."""
    output = Path(args.output)
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"--output is a file in a directory that is there, not {args.output!r}")
    if args.global_batch is None and (args.ranks, args.workers) != (1, 0):
        raise ConfigError("--ranks and --workers are of a plan, which needs --global-batch, too")
    found = facts.gather(
        args.directory,
        args.prefix or only_prefix(args.directory),
        samples=args.sample,
        deep=args.deep,
        hashes=not args.no_hashes,
        policy=policy_of(args),
        topology=None
        if args.global_batch is None
        else facts.Topology(ranks=args.ranks, workers=args.workers, global_batch_size=args.global_batch),
        progress=sys.stderr.isatty(),
    )
    try:
        output.write_text(page(found, datetime.now(timezone.utc)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error
    impossible = list(found.plan["problems"]) if found.plan else []
    print(f"{output}: {count(found.n_samples, 'sample')} in {count(len(found.shards), 'shard')}")
    for problem in [*found.problems, *impossible][:20]:
        print(f"  {problem}")
    return int(bool(found.problems or impossible))
