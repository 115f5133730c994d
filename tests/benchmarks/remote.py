"""Reading from a store: first batch, cold epoch, stalls, warm epoch and bytes, against webdataset.

    python tests/benchmarks/remote.py [--shards 24] [--shard-mb 32] [--arms fsspec obstore webdataset] [--nodes 2 4]

A web server on loopback answers each request after 30 ms, with 60 MB/s on each connection and 250 MB/s in all.
Each run is a process with a cache of its own; nodes are processes of a rank each. A stall is a step of more than
0.3 s after the first batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
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
    parser.add_argument("--nodes", nargs="*", type=int, default=[2, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        n_bytes = make_data(root / "data", args.shards, int(args.shard_mb * 1e6 / SAMPLE))
        print(
            f"{n_bytes / 1e6:.0f} MB in {args.shards} shards, {DELAY * 1e3:.0f} ms, {LINK / 1e6:.0f} MB/s", flush=True
        )
        with served(root / "data") as url:
            titles = "arm", "workers", "first batch s", "cold epoch s", "of the link", "longest step s", "stalls"
            print(f"| {' | '.join((*titles, 'warm epoch s', 'bytes'))} |")
            print("|---" * 9 + "|")
            for workers in args.workers:
                for arm in args.arms:
                    ((cold, warm),) = run(arm, url, args.shards, workers, 1, root)
                    fetched = sent(url) / n_bytes
                    print(
                        f"| {arm} | {workers} | {cold['first']:.2f} | {cold['seconds']:.2f} | "
                        f"{n_bytes / LINK / cold['seconds']:.2f} | {cold['longest']:.2f} | {cold['stalls']} | "
                        f"{warm['seconds']:.2f} | {fetched:.2f} |",
                        flush=True,
                    )
            for nodes in args.nodes:
                run("fsspec", url, args.shards, 0, nodes, root, epochs=1)
                print(f"{nodes} nodes fetch {sent(url) / n_bytes:.2f} x the data", flush=True)


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
def served(directory: Path) -> Iterator[str]:
    """Serve a directory and yield its URL."""
    command = [sys.executable, str(HERE / "_remote_server.py"), str(directory), *map(str, (DELAY, CONNECTION, LINK))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def sent(url: str) -> int:
    """Return the bytes sent since this was last asked."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return int(json.load(answer)[0])


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
