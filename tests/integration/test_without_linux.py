"""What only Linux has may be missing: every such call is taken away here, and all works without it."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers.convert import convert

from bionemo.webdatamodule import Sample, WebDataModule
from bionemo.webdatamodule._cli.doctor.system import limits
from bionemo.webdatamodule._engine import verdict
from bionemo.webdatamodule._engine.format import writeback
from bionemo.webdatamodule._engine.reading import open_shards
from bionemo.webdatamodule._engine.storage import lock
from bionemo.webdatamodule._engine.storage.lock import Lease
from bionemo.webdatamodule.builtins import executors
from bionemo.webdatamodule.builtins.executors import Processes
from bionemo.webdatamodule.builtins.webloader import shared_blocks, status
from bionemo.webdatamodule.builtins.webloader.start_method import start_context


class Tensors:
    """Reads a tensor that is large enough to need memory of its own on its way from a worker."""

    def __call__(self, names):
        for name in names:
            yield Sample(name, {"x.pyd": pickle.dumps(torch.full((1000,), int(name)))})


@pytest.fixture
def elsewhere(monkeypatch):
    """Take away what only Linux has: system calls, ``/proc``, and fork as the default."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(writeback, "_sync_file_range", None)
    monkeypatch.setattr(open_shards, "MAPS", "/nowhere")
    monkeypatch.setattr(lock, "_text", lambda _: "")
    monkeypatch.setattr(lock, "_target", lambda _: "")
    monkeypatch.setattr(shared_blocks, "_sees_descriptors", lambda _: False)
    monkeypatch.setattr(shared_blocks._Here, "pool", None)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_are_converted_and_read(elsewhere, tmp_path, workers):
    """A conversion in two processes, then an epoch with workers, whose tensors go through a pipe."""
    convert(
        reader=Tensors(),
        names={"train": [str(number) for number in range(20)]},
        directories={"train": str(tmp_path)},
        prefix="wdshards",
        key_encoder=str,
        executor=Processes(workers=2, start_method="fork"),
        n_shards=2,
    )
    loader = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    data = WebDataModule({"train": tmp_path}, None, "x.pyd", 5, kwargs_wld={"train": loader})
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [5] * 4 == [len(batch) for batch in batches]
    assert list(range(20)) == sorted(int(row[0]) for batch in batches for row in batch)


def test_processes_start_as_python_starts_them_there(elsewhere, monkeypatch):
    """Fork is the default on Linux alone: on macOS libraries crash in a forked process."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn", "fork", "forkserver"])
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_context", lambda named: named or "spawn")
    assert "spawn" == Processes().start_method
    assert "spawn" == start_context(None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "fork" == Processes().start_method == start_context(None)


def test_cores_are_counted(elsewhere, tmp_path):
    """All of the machine are taken for usable, and limits of groups and memory are unknown."""
    assert os.cpu_count() == executors._cores() == verdict.usable_cpus()
    found = limits(tmp_path)
    assert (os.cpu_count(), None, None, None) == (found.affinity, found.quota, found.memory, found.shm)


def test_a_conversion_waits_for_a_living_owner_and_takes_over_from_a_silent_one(elsewhere, tmp_path, caplog):
    """Without ``/proc`` a dead process is known by the age of its lease, as one of another machine is."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    path = tmp_path / "lease"
    with Lease(str(path), probe=str(tmp_path / "probe")) as mine:
        mine.check()
        assert not Lease(str(path), probe=str(tmp_path / "probe"))._is_abandoned(str(path.readlink()))
    path.symlink_to(json.dumps({**lock._identity(), "pid": 2**22 + 1, "token": "x"}))
    silent = time.time() - lock.EXPIRY - 5
    os.utime(path, (silent, silent), follow_symlinks=False)
    with Lease(str(path), probe=str(tmp_path / "probe")) as mine:
        mine.check()
    assert not path.exists()


def test_a_worker_ignores_the_signal_for_stacks(elsewhere):
    """There is no file in memory to write them to, and the signal must not end the worker."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        table = status.StatusTable(1)
        status.writer(table, 0)("reading")
        os.kill(os.getpid(), signal.SIGUSR1)
        note = table.read(0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ("reading", "") == (note.text, status.stacks(os.getpid(), note))


def test_bytes_are_written_without_the_hint(elsewhere, tmp_path):
    """The hint to begin writing does nothing."""
    with Path(tmp_path / "file").open("wb") as file:
        file.write(b"data")
        writeback.start_writing(file.fileno())
    assert b"data" == Path(tmp_path / "file").read_bytes()
