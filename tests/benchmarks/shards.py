"""Many shards: a full shuffle of the same samples in few and in many shards, with few open files.

    python tests/benchmarks/shards.py [--samples 1000000] [--shards 20 2000 20000] [--workers 0 2] [--json FILE]

Each run is a fresh process with a soft limit of 1,024 descriptors, and all take turns. The page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _arms import ours
from _peers import default_cache
from _report import cell, number, provenance, provenance_text, summarise, table, write_page

HERE = Path(__file__).parent
VALUES = 64
DESCRIPTORS = 1024
TIMEOUT = 600
BLOCK = "shards benchmark"


@dataclass(frozen=True)
class Numbered:
    """A source of tensors whose first value is the sample's number."""

    def __call__(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the samples of some names."""
        import torch

        for name in names:
            values = torch.zeros(VALUES)
            values[0] = int(name)
            yield name, {"pyd": pickle.dumps(values)}


def main() -> int:
    """Make the data, take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 2_000, 20_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="renew the generated part of this page")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    directories = {shards: make_data(options.cache, options.samples, shards) for shards in options.shards}
    for turn in range(options.repeat):
        for workers in options.workers:
            for shards, directory in directories.items():
                found = run(directory, workers, options.epochs)
                runs.append({"turn": turn, "workers": workers, "shards": shards, **found})
                if options.json:
                    options.json.write_text(json.dumps(runs))
    facts = provenance({"ours": ours.versions()}, {"rounds": options.repeat, "samples": options.samples})
    page = render(runs, facts)
    print(page)
    if options.json:
        options.json.write_text(json.dumps({"provenance": facts, "runs": runs}, indent=1))
    if options.markdown:
        write_page(options.markdown, BLOCK, page)
    return 0


def make_data(cache: Path, samples: int, shards: int) -> Path:
    """Convert numbered samples into some number of shards, once."""
    from bionemo.webdatamodule import SourceDataWDS

    directory = cache / "shards" / f"{samples}-{shards}"
    names = [f"{number:08d}" for number in range(samples)]
    if not (directory / "ready").exists():
        SourceDataWDS(Numbered(), {"train": names}, f"{directory}/", "pyd", 64, n_tars_wds=shards).prepare_data()
        (directory / "ready").touch()
    for path in (directory / "train").iterdir():
        path.read_bytes()  # into the page cache
    return directory / "train"


def run(directory: Path, workers: int, epochs: int) -> dict[str, Any]:
    """Return what a fresh process measured."""
    command = [sys.executable, HERE / "_shards_arm.py", directory, str(workers), str(epochs), str(DESCRIPTORS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def render(runs: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    explained = (
        f"Samples a second of a full shuffle of {facts['options']['samples']:,} samples of float32[{VALUES}], batches "
        f"of 64, a soft limit of {DESCRIPTORS:,} descriptors, page cache warm, each run a fresh process. Medians of "
        f"{facts['options']['rounds']} rounds with the lowest and highest in brackets; ratios are within a round, "
        "to the fewest shards."
    )
    header = ("shards", "workers", "set-up s", "epoch 1", "ratio", "last epoch", "ratio", "CPU µs", "MB", "MB more")
    few = min(one["shards"] for one in runs)
    rows = []
    for workers in sorted({one["workers"] for one in runs}):
        base = {one["turn"]: one for one in runs if (one["workers"], one["shards"]) == (workers, few)}
        for shards in sorted({one["shards"] for one in runs}):
            mine = [one for one in runs if (one["workers"], one["shards"]) == (workers, shards)]
            row = [f"{shards:,}", str(workers), cell(summarise(one["setup"] for one in mine))]
            for epoch in (0, -1):
                row.append(cell(summarise(one["epochs"][epoch]["rate"] for one in mine)))
                ratios = [one["epochs"][epoch]["rate"] / base[one["turn"]]["epochs"][epoch]["rate"] for one in mine]
                row.append(cell(summarise(ratios)))
            last = [one["epochs"][-1] for one in mine]
            row.append(cell(summarise(1e6 * one["cpu"] for one in last)))
            row.append(number(max(one["memory"] for one in last) / 1e6))
            row.append(number(max(one["epochs"][-1]["memory"] - one["epochs"][0]["memory"] for one in mine) / 1e6))
            rows.append(row)
    return "\n\n".join((explained, provenance_text(facts), table(header, rows)))


if __name__ == "__main__":
    sys.exit(main())
