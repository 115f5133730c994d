"""Read benchmark: one epoch of ready data, against the peers and against what the machine allows.

    python tests/benchmarks/read.py [--peers ours floor litdata] [--workers 0 2] [--datasets small large dict list]

Every contender has its own environment, and a process for each turn. All take turns, round after round, so that a slow
minute of the machine is everybody's; ratios compare within a round only. In every epoch all values are summed, as a
stand-in for the copy to a device, and the sum is checked; in first epochs also that each sample came exactly once.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _contenders import Contender, ContenderError, Field, choose
from _data import BATCH_SIZE, KINDS, N_SHARDS, Source, make_source
from _options import n_rounds, n_samples, parser
from _report import (
    NOTHING,
    TIMES,
    Measurement,
    Results,
    Summary,
    cell,
    number,
    provenance,
    provenance_text,
    summarise,
    table,
    write_page,
)
from tqdm import tqdm

if TYPE_CHECKING:
    import argparse

SHUFFLED, IN_ORDER = "shuffled", "in order"
DEFAULT = Contender(title="this package, default", peer="ours", variant="default", order=SHUFFLED)
DOCUMENTED = Contender(title="this package, per-sample pipeline", peer="ours", variant="documented", order=SHUFFLED)
FOREIGN = Contender(title="this package, shards of `wds.ShardWriter`", peer="ours", variant="foreign", order=SHUFFLED)
FLOOR = Contender(title="floor", peer="floor", variant="raw", order=IN_ORDER)
FLOOR_SHUFFLED = Contender(title="floor, shuffled", peer="floor", variant="raw-shuffled", order=SHUFFLED)
UPSTREAM = Contender(
    title="bionemo-webdatamodule 1.0.0", peer="bionemo-webdatamodule", variant="documented", order=SHUFFLED
)
WEBDATASET_PICKLES = Contender(title="webdataset, pickles", peer="webdataset", variant="pickles", order=IN_ORDER)
LITDATA = Contender(title="litdata", peer="litdata", variant="in-order", order=IN_ORDER)
CONTENDERS = (
    DEFAULT,
    DOCUMENTED,
    FOREIGN,
    FLOOR,
    FLOOR_SHUFFLED,
    LITDATA,
    Contender(title="litdata, shuffled", peer="litdata", variant="shuffled", order=SHUFFLED),
    Contender(title="litdata, shuffled, `batch_decode=0`", peer="litdata", variant="shuffled-items", order=SHUFFLED),
    WEBDATASET_PICKLES,
    Contender(title="webdataset, npy", peer="webdataset", variant="npy", order=IN_ORDER),
    Contender(title="webdataset, npy, shuffled", peer="webdataset", variant="npy-shuffled", order=SHUFFLED),
    Contender(title="megatron-energon", peer="megatron-energon", variant="in-order", order=IN_ORDER),
    Contender(title="megatron-energon, shuffled", peer="megatron-energon", variant="shuffled", order=SHUFFLED),
    Contender(title="mosaicml-streaming", peer="mosaicml-streaming", variant="in-order", order=IN_ORDER),
    Contender(title="mosaicml-streaming, shuffled", peer="mosaicml-streaming", variant="shuffled", order=SHUFFLED),
    UPSTREAM,
)
LONG_EPOCH = 5.0  # seconds from which on the start of workers is lost in the first epoch, which then stands for all
BLOCK = "read benchmark"
PHASES = {"first": "first epoch", "rest": "its rest", "later": "later epochs"}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print, and where asked write, its tables."""
    options = _parse(arguments)
    if options.merge:
        return _publish(*_merged(options.merge), options)
    field = Field(choose(CONTENDERS, options.peers), options.cache.resolve())
    try:
        for peer, reason in field.absent.items():
            print(f"{peer} is missing: {reason}", file=sys.stderr)
        results = _measure(field, options)
    finally:
        field.close()
    facts = provenance(field.versions, {"rounds": n_rounds(options), "quick": options.quick})
    return _publish(results, field.absent, facts, options)


def _publish(results: Results, absent: dict[str, str], facts: dict[str, Any], options: argparse.Namespace) -> int:
    page = render(results, absent, facts)
    print(page)
    if options.json:
        options.json.write_text(json.dumps(_record(results, absent, facts), indent=1))
    if options.markdown:
        write_page(options.markdown, BLOCK, page)
    return 0


def _merged(paths: list[Path]) -> tuple[Results, dict[str, str], dict[str, Any]]:
    """Put the records of several runs together; machine and versions are those of the last."""
    measurements: list[Measurement] = []
    failures: dict[tuple[str, int, str], str] = {}
    absent: dict[str, str] = {}
    record: dict[str, Any] = {}
    for path in paths:
        record = json.loads(path.read_text())
        measurements += [Measurement(**one) for one in record["measurements"]]
        failures |= {(kind, workers, title): reason for kind, workers, title, reason in record["failures"]}
        absent |= record["absent"]
    return Results(measurements, failures), absent, record["provenance"]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser("Compare one epoch of reading with the peers.", datasets=list(KINDS))
    options.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    options.add_argument(
        "--merge", nargs="+", type=Path, metavar="FILE", help="measure nothing, report what --json wrote earlier"
    )
    return options.parse_args(arguments)


def _measure(field: Field, options: argparse.Namespace) -> Results:
    """Prepare everybody, then take turns."""
    measurements: list[Measurement] = []
    failures: dict[tuple[str, int, str], str] = {}
    cells = list(itertools.product(options.datasets, options.workers))
    steps = len(cells) * len(field.contenders) * (n_rounds(options) + 1)
    with tqdm(total=steps, unit="run", disable=None) as bar:
        for kind, workers in cells:
            size = n_samples(kind, options)
            directory = options.cache.resolve() / "source" / f"{kind}-{size}"
            source = make_source(KINDS[kind], directory, size, progress=_progress(kind))
            ready = []
            for contender in field.contenders:
                bar.set_description(f"{kind}, {workers} workers: preparing {contender.title}")
                try:
                    field.ask(contender, "prepare", source)
                    ready.append(contender)
                except ContenderError as error:
                    failures[kind, workers, contender.title] = str(error)
                bar.update()
            for turn in range(n_rounds(options)):
                for contender in list(ready):
                    bar.set_description(f"{kind}, {workers} workers: {contender.title}")
                    try:
                        measurements += _turn(field, contender, source, workers, turn)
                    except ContenderError as error:
                        failures[kind, workers, contender.title] = str(error)
                        ready.remove(contender)
                    bar.update()
            if options.json:  # a long run that is broken off leaves what it has
                options.json.write_text(json.dumps([asdict(one) for one in measurements]))
    return Results(measurements, failures)


def _turn(field: Field, contender: Contender, source: Source, workers: int, turn: int) -> list[Measurement]:
    """A contender's first epoch in a fresh process, and a later one with the same loader."""
    field.child(contender).end()
    first = field.ask(contender, "open_and_epoch", source, workers=workers)
    child = field.child(contender)
    later = first if first["wall"] > LONG_EPOCH else child.ask("epoch")
    child.ask("close")
    rest = {**first, "wall": first["rest"], "samples": first["samples_of_rest"]}
    return [
        Measurement(
            kind=source.kind,
            workers=workers,
            contender=contender.title,
            phase=phase,
            turn=turn,
            wall=answer["wall"],
            cpu=answer["cpu"],
            samples=answer["samples"],
        )
        for phase, answer in zip(PHASES, (first, rest, later), strict=True)
    ]


def _progress(kind: str) -> Any:
    return lambda names: tqdm(names, desc=f"writing the pickles of {kind}", unit="file", leave=False, disable=None)


def headlines(results: Results, kind: str, workers: int) -> list[tuple[str, list[Summary | None]]]:
    """The ratios that matter, each within rounds: who is compared with whom, and that in each phase."""
    peers = [one for one in CONTENDERS if one.peer not in ("ours", "floor")]
    pairs = [
        (DEFAULT.title, results.best(kind, workers, "later", [one.title for one in peers if one.order == order]))
        for order in (IN_ORDER, SHUFFLED)
    ]
    pairs += [
        (DEFAULT.title, FLOOR.title),
        (DEFAULT.title, FLOOR_SHUFFLED.title),
        (DOCUMENTED.title, UPSTREAM.title),
        (DOCUMENTED.title, LITDATA.title),
        (FOREIGN.title, WEBDATASET_PICKLES.title),
    ]
    return [
        (f"{mine} ÷ {other}", [results.ratio(kind, workers, phase, mine, other) for phase in PHASES])
        for mine, other in pairs
        if other is not None
    ]


def render(results: Results, absent: dict[str, str], facts: dict[str, Any]) -> str:
    """The whole report in Markdown."""
    explained = (
        f"Samples a second, batches of {BATCH_SIZE}, {N_SHARDS} shards, page cache warm. "
        f"Medians of {facts['options']['rounds']} rounds with the lowest and highest in brackets.\n"
        '"First epoch" is that of a fresh process; set-up of the loader, start of its workers and our check '
        "of every crc are in it; "
        '"its rest" is the first epoch from the second batch on; "later epochs" go on with the same loader.\n'
        '"Ours" says how many times as fast as this row our default pipeline is in the same epoch of the same round.'
    )
    parts = [explained, provenance_text(facts)]
    header = ("", "order", *(text for phase in PHASES.values() for text in (phase, "ours")), "CPU µs a sample")
    for kind, workers in itertools.product(KINDS, sorted({one.workers for one in results.measurements})):
        rows = [row for one in CONTENDERS if (row := _row(results, kind, workers, one)) is not None]
        if not rows:
            continue
        size = number(max((one.samples for one in results.measurements if one.kind == kind), default=0))
        parts.append(f"### {KINDS[kind].title} {TIMES} {size}, {workers} workers\n\n{table(header, rows)}")
        if ratios := [(text, *map(_times, found)) for text, found in headlines(results, kind, workers) if any(found)]:
            parts.append(table(("within the same round", *PHASES.values()), ratios))
    parts += [f"{peer} did not take part: {reason}" for peer, reason in absent.items()]
    return "\n\n".join(parts)


def _row(results: Results, kind: str, workers: int, contender: Contender) -> list[str] | None:
    title = contender.title
    failure = results.failures.get((kind, workers, title))
    if failure is not None:
        return [title, contender.order, f"failed: {failure[:120]}", *[NOTHING] * (2 * len(PHASES))]
    if not results.rates(kind, workers, title, "later"):
        return None
    cpu = results.cpu_per_sample(kind, workers, title, "later")
    epochs = [
        text
        for phase in PHASES
        for text in (
            cell(summarise(results.rates(kind, workers, title, phase).values())),
            _times(results.ratio(kind, workers, phase, DEFAULT.title, title)),
        )
    ]
    return [title, contender.order, *epochs, number(cpu.median) if cpu else NOTHING]


def _times(ratio: Summary | None) -> str:
    return cell(ratio, sign=f" {TIMES}")


def _record(results: Results, absent: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "provenance": facts,
        "absent": absent,
        "failures": [[*key, reason] for key, reason in results.failures.items()],
        "measurements": [asdict(one) for one in results.measurements],
    }


if __name__ == "__main__":
    sys.exit(main())
