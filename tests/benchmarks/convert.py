"""Convert benchmark: a directory of pickles to what a loader reads, against the peers and the bare copying of bytes.

    python tests/benchmarks/convert.py [--peers ours floor litdata] [--datasets small large]

Every contender has its own environment and process, whose libraries are imported before the clock starts. All take
turns on the same files, which lie in the page cache; what a contender leaves unwritten is synced before the next one
starts. The number of samples written is checked each time.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from _contenders import Contender, ContenderError, Field, choose
from _data import KINDS, Source, make_source
from _options import n_rounds, n_samples, parser
from _report import (
    NOTHING,
    TIMES,
    Measurement,
    Results,
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

OURS = Contender(title="this package", peer="ours", variant="default", order="2 processes")
CONTENDERS = (
    OURS,
    Contender(title="floor: copy and sync the bytes", peer="floor", variant="copy", order="2 processes"),
    Contender(title="webdataset, `ShardWriter` copying bytes", peer="webdataset", variant="pickles", order="1 process"),
    Contender(
        title="bionemo-webdatamodule 1.0.0", peer="bionemo-webdatamodule", variant="documented", order="1 process"
    ),
    Contender(title="litdata, `optimize`", peer="litdata", variant="chunks", order="2 processes"),
    Contender(title="mosaicml-streaming, `MDSWriter`", peer="mosaicml-streaming", variant="mds", order="1 process"),
    Contender(title="mosaicml-streaming, parallel", peer="mosaicml-streaming", variant="parallel", order="2 processes"),
)
RETURNED, DURABLE = "returned", "durable"
BLOCK = "convert benchmark"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and print, and where asked write, its tables."""
    kinds = [kind for kind in KINDS if kind != "list"]  # its files are those of "dict"
    options = parser("Compare one conversion with the peers.", datasets=kinds).parse_args(arguments)
    field = Field(choose(CONTENDERS, options.peers), options.cache.resolve())
    try:
        for peer, reason in field.absent.items():
            print(f"{peer} is missing: {reason}", file=sys.stderr)
        results = _measure(field, options)
    finally:
        field.close()
    facts = provenance(field.versions, {"rounds": n_rounds(options), "quick": options.quick})
    page = render(results, field.absent, facts, options)
    print(page)
    if options.json:
        record = {
            "provenance": facts,
            "absent": field.absent,
            "failures": [[*key, reason] for key, reason in results.failures.items()],
            "measurements": [asdict(one) for one in results.measurements],
        }
        options.json.write_text(json.dumps(record, indent=1))
    if options.markdown:
        write_page(options.markdown, BLOCK, page)
    return 0


def _measure(field: Field, options: argparse.Namespace) -> Results:
    """Take turns; the first round warms up and does not count."""
    measurements: list[Measurement] = []
    failures: dict[tuple[str, int, str], str] = {}
    steps = len(options.datasets) * len(field.contenders) * (n_rounds(options) + 1)
    with tqdm(total=steps, unit="run", disable=None) as bar:
        for kind in options.datasets:
            size = n_samples(kind, options)
            directory = options.cache.resolve() / "source" / f"{kind}-{size}"
            source = make_source(KINDS[kind], directory, size)
            for turn in range(-1, n_rounds(options)):
                for contender in field.contenders:
                    bar.set_description(f"{kind}: {contender.title}")
                    if (kind, 0, contender.title) not in failures:
                        try:
                            measured = _turn(field, contender, source, turn)
                            measurements += measured if turn >= 0 else []
                        except ContenderError as error:
                            failures[kind, 0, contender.title] = str(error)
                    bar.update()
    return Results(measurements, failures)


def _turn(field: Field, contender: Contender, source: Source, turn: int) -> list[Measurement]:
    """One conversion: until it returned, and until its bytes were on the disk."""
    answer = field.ask(contender, "convert", source)
    return [
        Measurement(
            kind=source.kind,
            workers=0,
            contender=contender.title,
            phase=phase,
            turn=turn,
            wall=wall,
            cpu=answer["cpu"],
            samples=answer["samples"],
        )
        for phase, wall in ((RETURNED, answer["wall"]), (DURABLE, answer["wall"] + answer["sync"]))
    ]


def render(results: Results, absent: dict[str, str], facts: dict[str, Any], options: argparse.Namespace) -> str:
    """The whole report in Markdown."""
    explained = (
        f"Samples a second, from one pickle file a sample in a warm page cache. "
        f"Medians of {n_rounds(options)} rounds with the lowest and highest in brackets.\n"
        '"On disk" counts the time until the bytes are on the disk, which this package and the floor wait for '
        "and the others leave to the system; there the benchmark syncs their files for them.\n"
        '"Ours" says how many times as fast as this row we are in the same round.'
    )
    parts = [explained, provenance_text(facts)]
    for kind in options.datasets:
        rows = [row for one in CONTENDERS if (row := _row(results, kind, one)) is not None]
        size = number(n_samples(kind, options))
        header = ("", "runs as", "on disk", "ours", "returned", "ours", "CPU µs a sample")
        parts.append(f"#### {KINDS[kind].title} {TIMES} {size}\n\n{table(header, rows)}")
    parts += [f"{peer} did not take part: {reason}" for peer, reason in absent.items()]
    return "\n\n".join(parts)


def _row(results: Results, kind: str, contender: Contender) -> list[str] | None:
    title = contender.title
    failure = results.failures.get((kind, 0, title))
    if failure is not None:
        return [title, contender.order, f"failed: {failure[:120]}", NOTHING, NOTHING, NOTHING, NOTHING]
    cpu = results.cpu_per_sample(kind, 0, title, RETURNED)
    if cpu is None:
        return None
    figures = []
    for phase in (DURABLE, RETURNED):
        figures.append(cell(summarise(results.rates(kind, 0, title, phase).values())))
        figures.append(cell(results.ratio(kind, 0, phase, OURS.title, title), sign=f" {TIMES}"))
    return [title, contender.order, *figures, number(cpu.median)]


if __name__ == "__main__":
    sys.exit(main())
