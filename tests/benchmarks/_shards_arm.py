"""One run of the benchmark of many shards, in a process of its own; prints JSON.

python _shards_arm.py DIRECTORY WORKERS EPOCHS DESCRIPTORS
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from _processes import cpu_seconds, memory

BATCH = 64


def main() -> None:
    """Run."""
    directory, workers, epochs, descriptors = sys.argv[1], *map(int, sys.argv[2:5])
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    from bionemo.webdatamodule import WebDataModule

    began = time.monotonic()
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    module = WebDataModule({"train": directory}, None, "pyd", BATCH, kwargs_wld={"train": options})
    module.setup("fit")
    loader = module.train_dataloader()
    setup = time.monotonic() - began
    print(json.dumps({"setup": setup, "epochs": [epoch(loader) for _ in range(epochs)]}))


def epoch(loader: Any) -> dict[str, float]:
    """Iterate an epoch; the clock starts behind the first batch, as workers start before it."""
    batches = iter(loader)
    samples = float(next(batches)[:, 0].sum())
    count, began, cpu = 0, time.monotonic(), cpu_seconds()
    for batch in batches:
        count += len(batch)
        samples += float(batch[:, 0].sum())
    return {
        "rate": count / (time.monotonic() - began),
        "cpu": (cpu_seconds() - cpu) / count,
        "checksum": samples,
        "memory": memory(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


if __name__ == "__main__":
    main()
