"""``webdatamodule bench``: how fast this machine reads these data, part by part and with more workers."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bionemo.webdatamodule._cli.arguments import above_zero, add_policy, natural, open_set, policy_of, positive
from bionemo.webdatamodule._cli.options import reference
from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._engine.verdict import usable_cpus
from bionemo.webdatamodule.components import Loader, Stage
from bionemo.webdatamodule.errors import ConfigError, MissingFieldError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule._cli.bench.measure import Rate


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="directory of a split")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default the only one with a manifest")
    parser.add_argument("--suffix", action="append", help="field to read; repeatable; by default all")
    parser.add_argument("--workers", type=natural, nargs="+", default=[0, 2], metavar="N", help="numbers of workers")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="samples of a batch (64)")
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        help="stage of pipeline_wds: NAME, NAME:K=V,K=V, as JSON, or MODULE:FUNCTION; repeatable",
    )
    parser.add_argument(
        "--loader", default="webloader", metavar="NAME[:K=V,K=V]", help="loader to measure (%(default)s)"
    )
    parser.add_argument("--seconds", type=above_zero, default=3.0, metavar="S", help="time for each figure (3)")
    parser.add_argument(
        "--training", type=above_zero, metavar="N", help="samples per second of the model, for the verdict"
    )
    add_policy(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from bionemo.webdatamodule._cli.bench.measure import PARTS, Bench, verdict

    policy = policy_of(args)
    found = open_set(args.directory, args.prefix)
    suffixes = tuple(args.suffix or found.suffixes)
    stages = [_stage(name) for name in args.stage]
    loader = reference(Loader, args.loader, "--loader")
    with tqdm(file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        try:
            bench = Bench(found, suffixes, stages, args.batch_size, args.seconds, policy, loader)
            counts = bench.workers(args.workers)
            bar.total = len(PARTS) + len(counts)
            parts = [rate for rate in bench.parts(step) if rate is not None]
            pipelines = [bench.pipeline(workers, step) for workers in counts]
        except MissingFieldError as error:
            hint = f"{error.message}; choose fields that all samples have, with --suffix"
            raise MissingFieldError(hint, **error.where) from error
    result = verdict(parts, pipelines, cpus=usable_cpus(), training=args.training, takes_workers=bench.takes_workers)
    if args.json:
        report = {
            "directory": args.directory,
            "prefix": found.prefix,
            "samples": found.n_samples,
            "bytes_per_sample": bench.bytes_per_sample,
            "batch_size": bench.batch_size,
            "parts": [asdict(rate) for rate in parts],
            "workers": [asdict(rate) for rate in pipelines],
            "notes": bench.notes(),
            "verdict": {**asdict(result), "line": str(result)},
        }
        print_json(report)
        return 0
    print(
        f"{args.directory} {found.prefix}: {count(found.n_samples, 'sample')} of {bench.bytes_per_sample / 1e3:.4g} kB"
    )
    _print("part", parts)
    _print("whole", pipelines)
    for note in bench.notes():
        print(f"\n{note}")
    print(f"\nverdict: {result}")
    return 0


def _stage(word: str) -> Any:
    """Return the stage that a word means: a registered name, with options behind it or as JSON, or ``module:function``.

    Raises:
        ConfigError: If it means none.
    """
    from bionemo.webdatamodule._engine.stages import resolve_stages

    name, colon, more = word.partition(":")
    if word.startswith("{"):
        try:
            given = json.loads(word)
        except ValueError as error:
            raise ConfigError(f"--stage {word} is not JSON: {error}") from error
        return resolve_stages("--stage", given)[0]
    if "=" in more:
        return resolve_stages("--stage", reference(Stage, word, "--stage"))[0]
    return _imported(name, more) if colon else resolve_stages("--stage", name)[0]


def _imported(module: str, attribute: str) -> Any:
    sys.path.insert(0, "")  # as for python -c: modules of the folder one is in
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--stage {module}:{attribute} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(found) and not callable(getattr(found, "run", None)):  # run: a stage of webdataset
        raise ConfigError(f"--stage {module}:{attribute} is a {type(found).__name__}; name a function")
    return found


def _print(title: str, rates: Sequence[Rate]) -> None:
    print(f"\n{title:12}{'samples/s':>12}{'MB/s':>10}{'µs/sample':>12}{'first batch':>14}")
    for rate in rates:
        name = rate.name if title == "part" else count(int(rate.name), "worker")
        start = f"{rate.start:.2f} s" if rate.start else ""
        print(f"{name:12}{rate.samples:>12,.0f}{rate.megabytes:>10,.1f}{rate.microseconds:>12,.2f}{start:>14}")
