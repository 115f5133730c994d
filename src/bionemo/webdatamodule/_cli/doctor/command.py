"""``webdatamodule doctor``: is this machine fit for a run, and what would go wrong."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from bionemo.webdatamodule._cli.arguments import USUAL_PREFIX, only_prefix
from bionemo.webdatamodule._cli.doctor.findings import Finding, findings
from bionemo.webdatamodule._cli.doctor.machine import DataSet, Machine, look, open_data
from bionemo.webdatamodule._cli.doctor.trial import Trial, try_worker
from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._engine import humanize
from bionemo.webdatamodule._engine.storage.remote.urls import shown
from bionemo.webdatamodule.errors import RemoteError, count


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="*", help="directories or URLs to read")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default the only one with a manifest")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if something would go wrong."""
    machine = look()
    trial = None if "torch" in machine.broken else try_worker()
    data = [_open(directory, args.prefix) for directory in args.directory]
    found = findings(machine, trial, data)
    if args.json:
        report = {
            "machine": dataclasses.asdict(machine),
            "trial": None if trial is None else dataclasses.asdict(trial),
            "data": [dataclasses.asdict(each) for each in data],
            "findings": [dataclasses.asdict(finding) for finding in found],
        }
        print_json(report)
    else:
        for title, line in _lines(machine, trial, data):
            print(f"{title:<15}{line}")
        _print_findings(found)
    return int(any(finding.level == "problem" for finding in found))


def _open(directory: str, prefix: str | None) -> DataSet:
    """Return what a directory or URL holds; of a URL that cannot be asked for its prefixes, why not."""
    try:
        return open_data(directory, prefix or only_prefix(directory))
    except RemoteError as error:
        return DataSet(directory=shown(directory), prefix=USUAL_PREFIX, is_remote=True, problem=error.message)


def _lines(machine: Machine, trial: Trial | None, data: Sequence[DataSet]) -> Iterator[tuple[str, str]]:
    limits, gpus, cache = machine.limits, machine.gpus, machine.cache
    yield "system", machine.system
    yield "versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    left = len(machine.left_out) + len(machine.disabled)
    yield "plugins", f"{count(machine.components, 'component')}, {count(left, 'plugin')} left out"
    yield (
        "workers",
        f"start by {machine.start_method or 'an unknown method'}"
        + (f"; one sent its batches after {trial.seconds:.2f} s" if trial and trial.problem is None else ""),
    )
    yield "checksums", f"CRC-32 of {machine.checksum}"
    quota = "" if limits.quota is None else f", the time of {limits.quota:.3g}"
    yield "cores", f"{limits.affinity} of {limits.cores}{quota}"
    bound = "" if limits.memory_limit is None else f", of which {humanize.size(limits.memory_limit)} may be used"
    yield "memory", f"{_size(limits.memory_free)} free of {_size(limits.memory)}{bound}"
    shards = count(machine.open_shards, "shard")
    yield "open files", f"{_count(limits.open_files)}, at most {_count(limits.open_files_hard)}; {shards} at a time"
    shm = "none" if limits.shm is None else f"{_size(limits.shm_free)} free of {_size(limits.shm)}"
    yield "shared memory", shm
    yield "GPUs", f"{gpus.usable} usable; torch is built for {gpus.build or 'CPUs'}"
    state = "writable" if cache.writable else "not writable"
    yield "cache", f"{cache.path}, {state}, {humanize.size(cache.used)} in it, {_size(cache.free)} free"
    for name, value in machine.environment.items():
        yield "environment", f"{name}={value}"
    for each in data:
        if each.problem is None:
            size = f"{count(each.samples, 'sample')} in {count(each.shards, 'shard')}"
            kind = "a URL" if each.is_remote else each.file_system or "an unknown file system"
            yield "data", f"{each.directory} {each.prefix}: {size}, {humanize.size(each.bytes)}, on {kind}"


def _print_findings(found: Sequence[Finding]) -> None:
    print()
    for finding in found:
        print(f"{finding.level}: {finding.what}\n  {finding.do}")
    if not any(finding.level == "problem" for finding in found):
        print("nothing would go wrong")


def _size(n: int | None) -> str:
    return "unknown" if n is None else humanize.size(n)


def _count(n: int | None) -> str:
    return "without limit" if n is None else f"{n:,}"
