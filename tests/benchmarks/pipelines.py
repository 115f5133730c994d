"""Users' pipelines: one first epoch in a fresh process, against torch's loader over files and against webdataset.

    python tests/benchmarks/pipelines.py [--rows map batched collator images graphs] [--workers 0 1 2] [--json FILE]

All contenders make the same batches by the same functions, and the sum of their values is checked. torch's loader
reads the files of the samples one by one, shuffled, and webdataset our shards, in order, with batches made in the
worker. All take turns, and the page cache is warm.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _data import BATCH_SIZE, KINDS
from _peers import default_cache
from _report import TIMES, cell, provenance, provenance_text, summarise, table, write_page
from tqdm import tqdm

HERE = Path(__file__).parent
SAMPLES = {"map": 20_000, "batched": 20_000, "collator": 20_000, "images": 5_000, "graphs": 5_000}
SUFFIX = {"images": "jpg", "graphs": "graph.pyd"}
NEEDS = {"images": "pillow", "graphs": "torch_geometric"}
CONTENDERS = ("ours", "plain", "webdataset")
TIMEOUT = 600
BLOCK = "pipelines benchmark"


def main() -> int:
    """Make the data, take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--samples", type=int, help="fewer than usual: does everything run?")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="renew the generated part of this page")
    options = parser.parse_args()
    directories = {row: make_data(options.cache, row, options.samples or SAMPLES[row]) for row in options.rows}
    runs: list[dict[str, Any]] = []
    turns = list(itertools.product(range(options.repeat), options.rows, options.workers, CONTENDERS))
    for turn, row, workers, contender in tqdm(turns, unit="run", disable=None):
        found = run(row, contender, workers, directories[row])
        runs.append({"turn": turn, "row": row, "workers": workers, "contender": contender, **found})
        if options.json:  # a long run that is broken off leaves what it has
            options.json.write_text(json.dumps(runs))
    libraries = ["torch", "webdataset", *(NEEDS[row] for row in options.rows if row in NEEDS)]
    facts = provenance({"ours": {name: version(name) for name in libraries}}, {"rounds": options.repeat})
    page = render(runs, facts)
    print(page)
    if options.json:
        options.json.write_text(json.dumps({"provenance": facts, "runs": runs}, indent=1))
    if options.markdown:
        write_page(options.markdown, BLOCK, page)
    check(runs)
    return 0


def make_data(cache: Path, row: str, samples: int) -> Path:
    """Write the files of a row and convert them, once; into the page cache."""
    from bionemo.webdatamodule import PickledDataWDS

    suffix = SUFFIX.get(row, "record.pyd")
    directory = cache / "pipelines" / f"{samples}-{suffix}"
    if not (directory / "ready").exists():
        names = [f"s{number:06d}" for number in range(samples)]
        (directory / "files").mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            (directory / "files" / f"{name}.{suffix}").write_bytes(sample(row, number))
        PickledDataWDS(
            directory / "files",
            suffix,
            {"train": names},
            f"{directory}/shards/",
            BATCH_SIZE,
            n_tars_wds=8,
            allow_pickle=["torch_geometric.*"] if row == "graphs" else (),
            codecs={"jpg": "bytes"} if row == "images" else None,
        ).prepare_data()
        (directory / "ready").touch()
    for path in directory.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return directory


def sample(row: str, number: int) -> bytes:
    """Return the file of a sample."""
    import numpy as np
    import torch

    if row == "images":
        from PIL import Image

        stream = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((128, 128)).save(stream, "jpeg")
        return stream.getvalue()
    if row == "graphs":
        from torch_geometric.data import HeteroData

        graph, generator = HeteroData(), torch.Generator().manual_seed(number)
        nodes = int(torch.randint(20, 60, (1,), generator=generator))
        graph["a"].x, graph["b"].x = torch.rand(nodes, 16, generator=generator), torch.rand(10, 8, generator=generator)
        edges = torch.stack([torch.randint(0, n, (3 * nodes,), generator=generator) for n in (nodes, 10)])
        graph["a", "to", "b"].edge_index = edges
        return pickle.dumps(graph)
    return pickle.dumps(KINDS["dict"].make(number))


def run(row: str, contender: str, workers: int, directory: Path) -> dict[str, Any]:
    """Return what a fresh process measured."""
    command = [sys.executable, HERE / "_pipelines_arm.py", row, contender, str(workers), directory]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check(runs: Sequence[dict[str, Any]]) -> None:
    """Raise unless all contenders brought the same values."""
    for row in {one["row"] for one in runs}:
        totals = [one["total"] for one in runs if one["row"] == row]
        if max(totals) - min(totals) > 1e-5 * abs(max(totals)):
            raise AssertionError(f"{row}: the values add up to {min(totals)} and to {max(totals)}")


def render(runs: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    explained = (
        f"A first epoch in a fresh process, batches of {BATCH_SIZE}, from the first batch on, page cache warm. Medians "
        f"of {facts['options']['rounds']} rounds with the lowest and highest in brackets; ratios are within a round: "
        "how many times as fast we are, and in CPU seconds how many times as cheap."
    )
    header = ("", "workers", "batches a second", f"{TIMES} torch", "CPU", f"{TIMES} webdataset", "CPU")
    rows = []
    for row in dict.fromkeys(one["row"] for one in runs):
        for workers in sorted({one["workers"] for one in runs}):
            mine = [one for one in runs if (one["row"], one["workers"]) == (row, workers)]
            by = {name: [one for one in mine if one["contender"] == name] for name in CONTENDERS}
            line = [row, str(workers), cell(summarise(one["rate"] for one in by["ours"]))]
            for other in ("plain", "webdataset"):
                pairs = list(zip(by["ours"], by[other], strict=True))
                line.append(cell(summarise(one["rate"] / its["rate"] for one, its in pairs)))
                line.append(cell(summarise(its["cpu"] / one["cpu"] for one, its in pairs)))
            rows.append(line)
    return "\n\n".join((explained, provenance_text(facts), table(header, rows)))


if __name__ == "__main__":
    sys.exit(main())
