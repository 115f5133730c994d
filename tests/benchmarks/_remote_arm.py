"""One run of one arm of the remote benchmark, in a process and with a cache of its own; prints JSON.

python _remote_arm.py ARM URL SHARDS WORKERS RANK RANKS EPOCHS
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

BATCH = 64


def ours(url: str, workers: int, rank: int, ranks: int) -> Any:
    """This package, as a user calls it."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    from bionemo.webdatamodule import WebDataModule

    options = {"num_workers": workers} | ({"persistent_workers": True} if workers else {})
    module = WebDataModule({"train": url}, None, "bin", BATCH * ranks, kwargs_wld={"train": options})
    module.setup("fit")
    loader = module.train_dataloader()
    return lambda: iter(loader)


def with_webdataset(url: str, shards: int, workers: int) -> Any:
    """webdataset as its documentation advises."""
    import webdataset as wds

    urls = f"pipe:curl -s -f {url}/wdshards-{{000000..{shards - 1:06d}}}.tar"
    dataset = wds.WebDataset(urls, shardshuffle=shards).shuffle(1000, initial=BATCH).to_tuple("bin").batched(BATCH)
    loader = wds.WebLoader(dataset, num_workers=workers, batch_size=None)
    return lambda: iter(loader)


def epoch(batches: Iterable[Any], started: float) -> dict[str, Any]:
    """Iterate an epoch and time its steps."""
    times, n_bytes, cpu = [started], 0, _cpu()
    for batch in batches:
        values = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch[0], bytes) else batch
        n_bytes += sum(map(len, values))
        times.append(time.monotonic())
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    return {
        "first": times[1] - started,
        "seconds": times[-1] - started,
        "longest": max(steps, default=0),
        "stalls": sum(step > 0.3 for step in steps),
        "bytes": n_bytes,
        "cpu": _cpu() - cpu,
    }


def _cpu() -> float:
    """Return the CPU seconds of this process and its workers; a store's helper process counts when it has ended."""
    ended = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ended += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return ended


def main() -> None:
    """Run."""
    arm, url, shards, workers, rank, ranks, epochs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:8])
    if arm == "webdataset":
        import webdataset  # noqa: F401 - imports are not counted

        gc.collect()  # nor is the collection of what they left
        begin = time.monotonic()
        iterate = with_webdataset(url, shards, workers)
    else:
        import bionemo.webdatamodule.datamodule  # noqa: F401 - nor are those of a client of HTTP

        import_module({"fsspec": "fsspec.implementations.http", "obstore": "obstore.store"}[arm])
        gc.collect()
        begin = time.monotonic()
        iterate = ours(url, workers, rank, ranks)
    found = [epoch(iterate(), time.monotonic() if number else begin) for number in range(epochs)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
