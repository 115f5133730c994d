"""``webdatamodule bench``: how fast this machine reads these data, part by part and with more workers."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bionemo.webdatamodule.errors import ConfigError, NoShardsError

if TYPE_CHECKING:
    from bionemo.webdatamodule.measuring import Rate


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="directory of a split")
    parser.add_argument("--prefix", help="beginning of the shards' names; by default that of the manifest")
    parser.add_argument("--suffix", action="append", help="field to read, again for more; by default all")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="numbers of workers")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples of a batch (64)")
    parser.add_argument(
        "--stage", action="append", default=[], help="stage of pipeline_wds: a name, or module:function; again for more"
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time for each figure (3)")
    parser.add_argument("--trusted", action="store_true", help="let pickles run code")
    parser.add_argument(
        "--allow-pickle", action="append", default=[], metavar="CLASS", help="class that pickles may hold"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from bionemo.webdatamodule.measuring import PARTS, Bench, advice
    from bionemo.webdatamodule.pickles import Policy
    from bionemo.webdatamodule.shards.sets import ShardSet

    if args.batch_size < 1 or args.seconds <= 0 or min(args.workers) < 0:
        raise ConfigError("--batch-size takes a number from 1, --seconds one above 0, --workers numbers from 0")
    prefix = args.prefix or _prefix(args.directory)
    policy = Policy(pickles="trusted" if args.trusted else "safe", allow=tuple(args.allow_pickle))
    found = ShardSet.open(args.directory, prefix)
    suffixes = tuple(args.suffix or found.suffixes)
    stages = [_stage(name) for name in args.stage]
    bench = Bench(found, suffixes, stages, args.batch_size, args.seconds, policy)
    with tqdm(total=len(PARTS) + len(args.workers), file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        parts = [rate for rate in bench.parts(step) if rate is not None]
        pipelines = [bench.pipeline(workers, step) for workers in args.workers]
    words = advice(parts, pipelines, cpus=len(os.sched_getaffinity(0)))
    if args.json:
        report = {
            "directory": args.directory,
            "prefix": prefix,
            "samples": found.n_samples,
            "bytes_per_sample": bench.bytes_per_sample,
            "batch_size": args.batch_size,
            "parts": [asdict(rate) for rate in parts],
            "workers": [asdict(rate) for rate in pipelines],
            "advice": words,
        }
        print(json.dumps(report, indent=2))
        return 0
    print(f"{args.directory} {prefix}: {found.n_samples} samples of {bench.bytes_per_sample / 1e3:.4g} kB")
    _print("part", parts)
    _print("whole", pipelines)
    for word in words:
        print(f"* {word}")
    return 0


def _prefix(directory: str) -> str:
    """Return the prefix of the directory's manifest; the usual one for shards of other tools and behind URLs."""
    from bionemo.webdatamodule.shards.verify import find_prefixes

    try:
        prefixes = find_prefixes(directory)
    except NoShardsError:
        return "wdshards"
    if len(prefixes) > 1:
        raise ConfigError(f"{directory} holds the prefixes {', '.join(prefixes)}; choose one with --prefix")
    return prefixes[0]


def _stage(name: str) -> Any:
    """Return a stage by its registered name, or what ``module:function`` names."""
    from bionemo.webdatamodule.pipelines import resolve_stages

    module, colon, attribute = name.partition(":")
    if not colon:
        return resolve_stages("--stage", name)[0]
    sys.path.insert(0, "")  # as for python -c: modules of the folder one is in
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--stage {name} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")


def _print(title: str, rates: Sequence[Rate]) -> None:
    print(f"\n{title:12}{'samples/s':>12}{'MB/s':>10}{'µs/sample':>12}{'first batch':>14}")
    for rate in rates:
        name = rate.name if title == "part" else f"{rate.name} workers"
        start = f"{rate.start:.2f} s" if rate.start else ""
        print(f"{name:12}{rate.samples:>12,.0f}{rate.megabytes:>10,.1f}{rate.microseconds:>12,.2f}{start:>14}")
