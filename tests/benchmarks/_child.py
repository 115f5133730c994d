"""One contender's process: runs in the contender's own environment and answers one JSON line a request.

Started as ``python _child.py ARM SCRATCH``; ARM is a module of ``_arms``. It imports its library once, before any clock
starts, and stays, so that contenders take turns without import time in the figures.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

import torch
from _data import KINDS, Source, check_numbers, check_totals, consume
from _processes import cpu_seconds


class Epochs(Protocol):
    """A loader that was set up: every call gives the batches of one epoch."""

    def __call__(self) -> Any:
        """Batches of the next epoch."""


class Arm(Protocol):
    """What a module of ``_arms`` has to offer.

    Attributes:
        SYNCS: Whether a conversion returns only when its bytes are on the disk.
    """

    SYNCS: bool

    def versions(self) -> dict[str, str]:
        """Names and versions of the libraries at work."""

    def convert(self, source: Source, target: Path, variant: str) -> None:
        """Turn the source files into the contender's own format in an empty directory."""

    def epochs(self, source: Source, target: Path, variant: str, workers: int) -> Epochs:
        """Set up a loader of the converted data."""

    def n_converted(self, source: Source, target: Path, variant: str) -> int:
        """Number of samples that a conversion wrote, found by looking at the files."""


class Session:
    """Keeps the converted data and at most one open loader between requests."""

    def __init__(self, arm: Arm, scratch: Path) -> None:
        self.arm = arm
        self.scratch = scratch
        self.source: Source | None = None
        self.epochs: Epochs | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks."""
        action = getattr(self, "do_" + request.pop("do"))
        return dict(action(**request) or {})

    def do_hello(self) -> dict[str, Any]:
        """Versions of the libraries."""
        return {"versions": self.arm.versions(), "python": sys.version.split()[0]}

    def do_prepare(self, *, source: dict[str, Any], variant: str) -> None:
        """Have the data in the contender's format; kept for later runs of the benchmark."""
        data = Source(**source)
        target = self.target(data, variant)
        if not (target / "prepared").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            self.arm.convert(data, target, variant)
            (target / "prepared").touch()
        for path in target.rglob("*"):
            if path.is_file():
                path.read_bytes()  # into the page cache

    def do_convert(self, *, source: dict[str, Any], variant: str) -> dict[str, Any]:
        """Convert once, with the clock running, check the result and delete it."""
        data = Source(**source)
        target = self.scratch / "convert"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        os.sync()  # nobody pays for what the one before left in the page cache
        with clock() as measured:
            self.arm.convert(data, target, variant)
        with clock() as synced:
            if not self.arm.SYNCS:
                sync(target)
        n_converted = self.arm.n_converted(data, target, variant)
        if n_converted != data.n_samples:
            raise AssertionError(f"{n_converted} samples of {data.n_samples} were written")
        n_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        shutil.rmtree(target)
        return {**measured, "sync": synced["wall"], "samples": data.n_samples, "bytes": n_bytes}

    def do_open_and_epoch(self, *, source: dict[str, Any], variant: str, workers: int) -> dict[str, Any]:
        """Set up a fresh loader and take its first epoch: construction and the start of workers included."""
        self.source = Source(**source)
        numbers: list[torch.Tensor] = []
        used: list[float] = []
        with clock() as measured:
            self.epochs = self.arm.epochs(self.source, self.target(self.source, variant), variant, workers)
            count, total = consume(KINDS[self.source.kind], self.epochs(), numbers, used)
        check_totals(self.source, count, total)
        measured |= {"rest": used[-1] - used[0], "samples_of_rest": count - len(numbers[0])}
        return {**measured, "samples": count, "correlation": check_numbers(self.source, torch.cat(numbers))}

    def do_epoch(self) -> dict[str, Any]:
        """Take another epoch from the open loader, whose workers go on."""
        assert self.source is not None
        assert self.epochs is not None
        with clock() as measured:
            count, total = consume(KINDS[self.source.kind], self.epochs())
        check_totals(self.source, count, total)
        return {**measured, "samples": count}

    def do_close(self) -> None:
        """Let go of the loader and its workers."""
        self.epochs = None
        gc.collect()

    def target(self, source: Source, variant: str) -> Path:
        """Where the converted data of a variant lie; variants that share a format share them."""
        stored = getattr(self.arm, "stored_as", lambda name: name)(variant)
        return self.scratch / f"{source.kind}-{source.n_samples}-{stored}"


@contextlib.contextmanager
def clock() -> Any:
    """Fill a dictionary with the wall and CPU seconds (own and of all child processes) of the block."""
    measured: dict[str, float] = {}
    gc.collect()
    cpu = cpu_seconds()
    wall = time.perf_counter()
    yield measured
    measured["wall"] = time.perf_counter() - wall
    measured["cpu"] = cpu_seconds() - cpu


def sync(directory: Path) -> None:
    """Bring all files below a directory to the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def main() -> None:
    """Answer requests until standard input ends."""
    name, scratch = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # some need a descriptor for each tensor under way
    torch.set_num_threads(1)  # torch's idle threads spin, which on few cores slows down whoever has workers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print; the answers go their own way
    os.set_inheritable(answers.fileno(), False)
    session = Session(importlib.import_module(f"_arms.{name}"), Path(scratch))
    for line in sys.stdin:
        try:
            reply = session.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a contender goes into the report
            traceback.print_exc()
            session.do_close()
            reply = {"error": f"{type(error).__name__}: {error}".strip()}
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
