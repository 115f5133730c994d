"""What the state of a loader costs: its size, and the time of ``state_dict`` at each step.

    python tests/benchmarks/state.py [--samples 1000000000] [--shards 100000] [--steps 2000]

The plans are real and the data are not: no shard is read. Plans that list their batches (``pack``, ``batch_by_size``)
need the size of each sample, so they are measured with fewer.

Each step is timed twice: by the clock, and by the time for which a processor worked for the thread. A step that is long
by the clock alone waited for a processor that another process had.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from bionemo.webdatamodule._engine.loading.dataset import PlannedDataset
from bionemo.webdatamodule._engine.loading.loader import PlannedLoader
from bionemo.webdatamodule._engine.loading.progress import OwnClock
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule._engine.sampling.tally import Tally
from bionemo.webdatamodule.builtins.pack import Pack
from bionemo.webdatamodule.builtins.weighted import Weighted
from bionemo.webdatamodule.planning import EpochPlan, PlanRequest

LISTED = 1_000_000
BATCH = 4096


def plans(samples: int, shards: int) -> Iterator[tuple[str, int, EpochPlan]]:
    """Yield plans by name, with the number of their samples."""
    each = (samples // shards,) * shards
    sizes = (1 << 20,) * shards
    source = Source(samples=sum(each), shards=each, sizes=sizes)
    yield "shuffled", sum(each), Plan(sources=(source,), global_batch_size=BATCH)
    lanes = Plan(sources=(source,), global_batch_size=BATCH, lanes=1024, piece_bytes=1 << 18)
    yield "lanes of pieces", sum(each), lanes
    halves = (Source(samples=samples // 2, weight=0.7), Source(samples=samples // 2, weight=0.3))
    yield "mixture", 2 * (samples // 2), Plan(sources=halves, global_batch_size=BATCH)
    request = PlanRequest(seed=0, shuffle=True, global_batch_size=BATCH)
    numbers = np.random.default_rng(0).integers(50, 1000, LISTED)
    yield "pack", LISTED, Pack(size="x", max_total=8192).plan(numbers, request)
    yield "weighted", LISTED, Weighted(by="x").plan(numbers % 10, request)


def loader(plan: EpochPlan) -> PlannedLoader:
    """Return a loader that follows a plan over data that are not there."""
    reader: Any = SimpleNamespace(n_samples=plan.n_samples, digest="0" * 64)
    dataset = PlannedDataset(reader=reader, plan=plan)
    cursor = Cursor.of(plan, reader.digest)
    return PlannedLoader(dataset=dataset, loader=iter, stages=(), clock=OwnClock(), cursor=cursor)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000_000, metavar="N")
    parser.add_argument("--shards", type=int, default=100_000, metavar="N")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="steps that are measured, from the middle")
    args = parser.parse_args()
    print(
        "| plan | samples | state, bytes of JSON | pickled | first, ms | median, ms | longest, ms | longest, CPU ms |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, samples, plan in plans(args.samples, args.shards):
        measured = loader(plan)
        middle = plan.consumed(plan.n_batches(1) // 2, 1)
        measured.load_state_dict({**measured.state_dict(), "samples": middle})
        progress = measured.progress
        progress.begin(measured.finished)
        times, worked = [], []
        state = measured.state_dict()
        for _ in range(min(args.steps, plan.n_batches(1, start=middle))):
            progress.deliver(Tally(samples=BATCH, hash=1))
            began, began_work = time.perf_counter(), time.thread_time()
            state = measured.state_dict()
            worked.append(1e3 * (time.thread_time() - began_work))
            times.append(1e3 * (time.perf_counter() - began))
        sizes = f"{len(json.dumps(state))} | {len(pickle.dumps(state))}"
        figures = f"{times[0]:.3f} | {statistics.median(times):.4f} | {max(times):.3f} | {max(worked):.3f}"
        print(f"| {name} | {samples:,} | {sizes} | {figures} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
