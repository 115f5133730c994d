"""Reading from a store: first batch, cold epoch, stalls, warm epoch and bytes, against webdataset.

    python tests/benchmarks/remote.py [--shards 24] [--shard-mb 32] [--arms fsspec obstore webdataset] [--nodes 2 4 8]
        [--repeat 3] [--link 250]

A web server on loopback answers each request after 30 ms, with 60 MB/s on each connection and 250 MB/s in all; its
CPU seconds are printed, since it shares the machine, and the first arm, plain ranged requests of 4 MB by 16 threads,
says what the server can deliver. Each run is a process with a cache of its own; arms take turns, and figures are
medians. Nodes are processes of a rank each. A stall is a step of more than 0.3 s after the first batch.
litdata and mosaicml-streaming read no plain web server and no tar, so they have no arm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from statistics import median
from typing import Any

DELAY, CONNECTION, LINK = 0.03, 60e6, 250e6
SAMPLE = 100_000  # bytes
HERE = Path(__file__).parent
TIMEOUT = 300


def main() -> None:
    """Make the data, serve them, run each arm and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--shard-mb", type=float, default=32)
    parser.add_argument("--arms", nargs="*", default=["fsspec", "obstore", "webdataset"])
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--nodes", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--repeat", type=int, default=1, help="rounds in which each arm takes a turn")
    parser.add_argument("--link", type=float, default=LINK / 1e6, help="MB/s of all connections together")
    parser.add_argument("--epochs", type=int, default=2, help="the first one is cold, the others are warm")
    args = parser.parse_args()
    link = args.link * 1e6
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        n_bytes = make_data(root / "data", args.shards, int(args.shard_mb * 1e6 / SAMPLE))
        print(f"{n_bytes / 1e6:.0f} MB in {args.shards} shards, {DELAY * 1e3:.0f} ms, {args.link:.0f} MB/s", flush=True)
        with served(root / "data", link) as (url, server):
            seconds = plain(url, root / "data")
            print(f"plain requests: {n_bytes / link / seconds:.2f} of the link, server {cpu(server):.1f} CPU s")
            sent(url)
            titles = "arm", "workers", "first batch s", "cold epoch s", "of the link", "longest step s", "stalls"
            print(f"| {' | '.join((*titles, 'warm epoch s', 'bytes', 'requests', 'CPU s', 'server CPU s'))} |")
            print("|---" * 12 + "|")
            for workers in args.workers:
                rows: dict[str, list[list[float]]] = {arm: [] for arm in args.arms}
                for _ in range(args.repeat):
                    for arm in args.arms:
                        before = cpu(server)
                        ((cold, *warm),) = run(arm, url, args.shards, workers, 1, root, epochs=args.epochs)
                        fetched, requests = sent(url)
                        rows[arm].append(
                            [
                                cold["first"],
                                cold["seconds"],
                                n_bytes / link / cold["seconds"],
                                cold["longest"],
                                cold["stalls"],
                                warm[0]["seconds"] if warm else math.nan,
                                fetched / n_bytes,
                                requests,
                                cold["cpu"],
                                cpu(server) - before,
                            ]
                        )
                for arm, found in rows.items():
                    shown = (f"{median(column):.2f}" for column in zip(*found, strict=True))
                    print(f"| {arm} | {workers} | {' | '.join(shown)} |", flush=True)
            for nodes in args.nodes:
                run(args.arms[0], url, args.shards, 0, nodes, root, epochs=1)
                print(f"{nodes} nodes fetch {sent(url)[0] / n_bytes:.2f} x the data", flush=True)


def plain(url: str, directory: Path) -> float:
    """Return the seconds that plain ranged requests take for all shards."""
    part = 4_000_000
    ranges = [
        (path.name, begin) for path in sorted(directory.glob("*.tar")) for begin in range(0, path.stat().st_size, part)
    ]

    def get(place: tuple[str, int]) -> int:
        name, begin = place
        wanted = urllib.request.Request(f"{url}/{name}", headers={"Range": f"bytes={begin}-{begin + part - 1}"})
        with urllib.request.urlopen(wanted) as answer:
            return len(answer.read())

    started = time.monotonic()
    with futures.ThreadPoolExecutor(16) as pool:
        sum(pool.map(get, ranges))
    return time.monotonic() - started


def cpu(process: subprocess.Popen[str]) -> float:
    """Return the CPU seconds of a process."""
    found = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(found[11]) + int(found[12])) / os.sysconf("SC_CLK_TCK")


def make_data(directory: Path, shards: int, per_shard: int) -> int:
    """Write random bytes as shards, with their manifest, and return their size."""
    import webdataset as wds

    directory.mkdir()
    block = os.urandom(SAMPLE * 2)
    with wds.ShardWriter(f"{directory}/wdshards-%06d.tar", maxcount=per_shard, verbose=0) as sink:
        for number in range(shards * per_shard):
            start = number % SAMPLE
            sink.write({"__key__": f"s{number:08d}", "bin": block[start : start + SAMPLE]})
    subprocess.run(
        [sys.executable, "-m", "bionemo.webdatamodule", "index", str(directory)], check=True, stdout=subprocess.DEVNULL
    )
    return sum(path.stat().st_size for path in directory.glob("*.tar"))


@contextlib.contextmanager
def served(directory: Path, link: float) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a directory and yield its URL and the server."""
    command = [sys.executable, str(HERE / "_remote_server.py"), str(directory), *map(str, (DELAY, CONNECTION, link))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process
        finally:
            process.kill()


def sent(url: str) -> tuple[int, int]:
    """Return the bytes sent since this was last asked, and the requests."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        n_bytes, requests = json.load(answer)
    return int(n_bytes), int(requests)


def run(arm: str, url: str, shards: int, workers: int, ranks: int, root: Path, *, epochs: int = 2) -> list[Any]:
    """Run an arm in fresh processes and return what each found, by epoch."""
    processes = []
    for rank in range(ranks):
        disabled = "" if arm == "obstore" else "obstore"
        cache = tempfile.mkdtemp(dir=root)
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "WEBDATAMODULE_DISABLED_PLUGINS": disabled}
        command = [
            sys.executable,
            str(HERE / "_remote_arm.py"),
            arm,
            url,
            *map(str, (shards, workers, rank, ranks, epochs)),
        ]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    results = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{arm} failed")
    return [json.loads(result.splitlines()[-1]) for result in results]


if __name__ == "__main__":
    main()
