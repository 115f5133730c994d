"""``webdatamodule plan``: who would read what, before a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bionemo.webdatamodule._cli import plot
from bionemo.webdatamodule._cli.arguments import natural, open_set, positive, real, whole
from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._engine.humanize import size
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.sampling.summary import report_global, report_shards
from bionemo.webdatamodule.errors import ConfigError, count

_LISTED = 16  # ranks and workers that are printed; JSON has all
_MOST = 1_000_000  # processes whose work is listed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="directory of a split; several form one data set")
    parser.add_argument("--ranks", type=positive, help="number of ranks (default: those of the nodes)")
    parser.add_argument("--nodes", type=positive, default=1, help="number of nodes, each with a cache (%(default)s)")
    parser.add_argument("--ranks-per-node", type=positive, metavar="RANKS", help="ranks of each node (1)")
    parser.add_argument("--workers", type=natural, default=0, help="workers of each rank (%(default)s)")
    parser.add_argument("--global-batch", type=positive, required=True, help="samples of a batch over all ranks")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default the only one with a manifest")
    parser.add_argument("--weights", type=real, nargs="+", metavar="W", help="weight of each DIR: a mixture")
    parser.add_argument(
        "--weights-at",
        type=real,
        nargs="+",
        action="append",
        metavar="STEP W",
        help="weights at a step, for a mixture that changes linearly; repeatable",
    )
    parser.add_argument("--accumulate", type=positive, default=1, help="batches per optimizer step (%(default)s)")
    parser.add_argument("--n-samples", type=positive, default=0, help="samples of an epoch (default: all)")
    parser.add_argument("--tail", choices=["share", "drop", "fill"], default="share", help="last batch (%(default)s)")
    parser.add_argument("--order", choices=["global", "shards"], default="global", help="(%(default)s)")
    parser.add_argument(
        "--shuffle-shards",
        type=natural,
        metavar="SHARDS",
        help="number of shards to read in parallel (0: shuffle all samples)",
    )
    parser.add_argument("--remote", action="store_true", help="plan as if the shards were behind a URL")
    parser.add_argument("--evaluation", action="store_true", help="plan an evaluation, unshuffled")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the order (%(default)s)")
    parser.add_argument("--epoch", type=natural, default=0, help="epoch to show (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the shuffle (.png, .svg, .pdf); needs the extra 'plot'")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if such a run could not be done."""
    _check(args)
    sets = [open_set(directory, args.prefix) for directory in args.directory]
    shards = [n for found in sets for n in found.samples]
    per_node = args.ranks_per_node or max(1, (args.ranks or 1) // args.nodes)
    ranks = args.ranks or args.nodes * per_node
    if ranks != args.nodes * per_node:
        raise ConfigError(
            f"{count(args.nodes, 'node')} of {count(per_node, 'rank')} make {count(args.nodes * per_node, 'rank')}, "
            f"not {ranks:,}"
        )
    if ranks * max(1, args.workers) > _MOST:
        raise ConfigError(
            f"{count(ranks, 'rank')} of {count(args.workers, 'worker')}: more than {_MOST:,} processes; correct them"
        )
    if args.order == "shards":
        report = report_shards(
            shards,
            ranks=ranks,
            workers=args.workers,
            global_batch_size=args.global_batch,
            n_samples=args.n_samples,
            accumulate=args.accumulate,
        )
    else:
        plan = _plan(args, sets)
        served = min(ranks, plan.n_samples) if args.evaluation else ranks
        report = report_global(
            plan,
            ranks=served,
            workers=args.workers,
            accumulate=args.accumulate,
            epoch=args.epoch,
            sample_bytes=sum(found.n_bytes for found in sets) / max(1, sum(found.n_samples for found in sets)),
            ranks_per_node=per_node,
        )
        if served < ranks:
            report["notes"].append(
                f"{count(served, 'sample')} for {count(ranks, 'rank')}: some are evaluated on several of them"
            )
        if args.plot:
            _save(plot.draw(plan, shards, epoch=args.epoch), args.plot)
    report["sources"] = [
        {"directory": found.directory, "prefix": found.prefix, "samples": found.n_samples, "shards": len(found.samples)}
        for found in sets
    ]
    if args.json:
        print_json(report)
    else:
        _print(report)
    return int(bool(report["problems"]))


def _check(args: argparse.Namespace) -> None:
    """Check arguments against each other."""
    if args.plot and args.order == "shards":
        raise ConfigError("--plot shows order='global'; in shards order the shuffle is a buffer of shards")
    if args.weights and args.order == "shards":
        raise ConfigError("--weights needs --order global; in shards order a data set is not a mixture")
    if args.weights and len(args.weights) != len(args.directory):
        raise ConfigError(
            f"--weights gives {count(len(args.weights), 'number')} for "
            f"{count(len(args.directory), 'directory', 'directories')}"
        )
    for step, *weights in args.weights_at or ():
        if step < 0 or step != int(step):
            raise ConfigError(f"--weights-at begins with a step, a whole number of 0 or more, not {step:g}")
        if not args.weights:
            raise ConfigError("--weights-at needs --weights, which says the weights at the beginning")
        if len(weights) != len(args.directory):
            raise ConfigError(
                f"--weights-at {step:g} gives {count(len(weights), 'weight')} for "
                f"{count(len(args.directory), 'directory', 'directories')}; it takes a step and a weight for each"
            )


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # a directory that is not there, or a format that is none
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error


def _plan(args: argparse.Namespace, sets: list[ShardSet]) -> Plan:
    from bionemo.webdatamodule._engine.loading.plans import plan_of  # here, because it imports torch

    return plan_of(
        sets,
        args.weights or [None] * len(sets),
        training=not args.evaluation,
        changes=[(0, tuple(args.weights)), *sorted((int(step), tuple(found)) for step, *found in args.weights_at)]
        if args.weights_at
        else (),
        shuffle_shards=args.shuffle_shards,
        remote=args.remote or None,
        global_batch_size=args.global_batch,
        n_samples=args.n_samples,
        seed=args.seed,
        tail=args.tail,
    )


def _print(report: dict[str, Any]) -> None:
    for source in report["sources"]:
        print(f"{source['directory']}: {count(source['samples'], 'sample')} in {count(source['shards'], 'shard')}")
    if "steps" in report:
        print()
        _print_steps(report)
        print()
        (_print_global if report["order"] == "global" else _print_shards)(report)
    for kind in ("notes", "problems"):
        for line in report[kind]:
            print(f"\n{kind[:-1]}: {line}")


def _print_steps(report: dict[str, Any]) -> None:
    print(f"order             {report['order']}")
    print(f"epoch             {count(report['n_samples'], 'sample')}")
    print(f"global batches    {report['steps']:,} of {count(report['global_batch_size'], 'sample')}", end="")
    print(f", the last ones {', '.join(map(str, report['last_batches']))}" if "last_batches" in report else "")
    print(f"optimizer steps   {report['optimizer_steps']:,}, accumulating {report['accumulate']}")
    if "draws_from" in report:
        _print_reading(report)
    for row in report.get("shares", ()):
        print(f"from step {row['step']:<8,}{', '.join(f'{part:.1%}' for part in row['shares'])}")
    for number, source in enumerate(report.get("mixture", ())):
        print(
            f"source {number:<11}{count(source['drawn'], 'sample')} an epoch, {source['passes']:.3g} times through it"
        )


def _print_reading(report: dict[str, Any]) -> None:
    if report["lanes"]:
        print(f"pieces            {report['pieces']:,} of about {size(report['piece_bytes'])}, shuffled")
        print(f"lanes             {report['lanes']:,}, so a rank has about {size(report['open_bytes'])} open")
        print(f"a batch draws     from {count(report['draws_from'], 'piece')}")
    else:
        how = "one place" if report["draws_from"] == 1 else f"{report['draws_from']:,} places, all samples shuffled"
        print(f"a batch draws     from {how}")
    if "fetched" in report:
        print(f"the nodes fetch   {report['fetched']:.2f} times the data in an epoch")


def _print_global(report: dict[str, Any]) -> None:
    ranks = [
        (
            row["rank"],
            f"{report['steps']:,}",
            f"{row['samples']:,}",
            row["share"],
            row["last_share"],
            _few(row["first_samples"]),
        )
        for row in report["ranks"]
    ]
    _table(("rank", "batches", "samples", "in a batch", "in the last", f"first ids of epoch {report['epoch']}"), ranks)
    print()
    workers = [
        (row["worker"], f"{row['batches']:,}", _few(row["first_batches"]) or "idle") for row in report["workers"]
    ]
    _table(("worker of each rank", "batches", "first batches"), workers)


def _print_shards(report: dict[str, Any]) -> None:
    rows = [
        (row["rank"], row["worker"], f"{row['shards']:,}", f"{row['samples']:,}" if row["shards"] else "idle")
        for row in report["workers"]
    ]
    _table(("rank", "worker", "shards", "samples"), rows)


def _few(numbers: list[int]) -> str:
    return " ".join(map(str, numbers)) + (" …" if numbers else "")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    shown = [titles, *([str(cell) for cell in row] for row in rows[:_LISTED])]
    widths = [max(len(row[column]) for row in shown) for column in range(len(titles))]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(rows) > _LISTED:
        print(f"… and {len(rows) - _LISTED:,} more; --json has all")
