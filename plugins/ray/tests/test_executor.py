from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import pytest

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConversionError, InputError
from bionemo.webdatamodule.testing.conversion import convert_samples
from bionemo_webdatamodule_ray import RayCluster

pytestmark = pytest.mark.usefixtures("ray", "by_value")


@dataclass(frozen=True, kw_only=True)
class DeadlyReader:
    """A source in which reading ``deadly`` stops for good in the first worker, which writes down its process's id."""

    n: int
    deadly: str
    marker: str
    parent: int

    def names(self):
        """Return the names of the samples."""
        return [f"sample-{number}" for number in range(self.n)]

    def __call__(self, names):
        """Yield the samples."""
        for name in names:
            if name == self.deadly and os.getpid() != self.parent and not Path(self.marker).exists():
                Path(f"{self.marker}.tmp").write_text(str(os.getpid()))
                Path(f"{self.marker}.tmp").rename(self.marker)
                time.sleep(600)
            yield Sample(name, {"txt": name.encode() * 1000})


@dataclass(frozen=True, kw_only=True)
class Killer:
    """A source that kills every process that reads it, but for the one that made it."""

    parent: int

    def __call__(self, names):
        """Yield a sample of each name, or end."""
        for name in names:
            if os.getpid() != self.parent:
                die()
            yield Sample(name, {"txt": b""})


def wait_for(path, seconds=60):
    """Wait until a file is there, and return what it says."""
    end = time.monotonic() + seconds
    while not Path(path).exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)
    return Path(path).read_text()


def digests(shards):
    """Return the name and the hash of each shard and of its index."""
    return [
        (Path(path).name, *(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (path, f"{path}.idx")))
        for path in shards.paths
    ]


def files(folder):
    """Return the names of all files in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def mark_and_sleep(folder, number):
    """Write down that a task began, and work on for long; when it is interrupted, write that down, too."""
    try:
        Path(folder, f"began-{number}").touch()  # from here on it may be interrupted
        for _ in range(60_000):
            time.sleep(0.01)  # Ray's interrupts come between two steps of Python
    finally:
        Path(folder, f"stopped-{number}").touch()


def sleep_stubbornly(folder):
    """Sleep through interrupts."""
    Path(folder, "began").touch()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(600)


def die():
    """End the process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    """Raise an error of the package with a place."""
    raise InputError("bad sample", key="k")


class StubbornError(Exception):
    """An error that pickles, but cannot be loaded again."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_stubborn():
    """Raise it."""
    raise StubbornError(1, 2)


class Unloadable:
    """Something that pickles, but cannot be loaded anywhere."""

    def __reduce__(self):
        return __import__, ("no_such_module",)


def test_a_killed_worker_in_the_middle_changes_nothing(tmp_path, caplog):
    """A worker that is killed while it writes a shard is replaced, and the shards are those of ``serial``."""
    reader = DeadlyReader(n=60, deadly="sample-25", marker=str(tmp_path / "marker"), parent=os.getpid())
    killed = []

    def kill():
        killed.append(int(wait_for(reader.marker)))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING, "bionemo.webdatamodule"):
        by_ray = convert_samples(reader, reader.names(), str(tmp_path / "ray"), executor=RayCluster(), n_shards=6)
    killer.join()
    serially = convert_samples(reader, reader.names(), str(tmp_path / "serial"), n_shards=6)

    assert 1 == len(killed)
    assert "(WorkerCrashedError); it runs again, 1 of 3" in caplog.text
    assert digests(serially) == digests(by_ray)
    assert files(tmp_path / "serial") == files(tmp_path / "ray")


def test_a_task_that_keeps_dying_is_an_error(caplog):
    """The number of tries is bounded, and the error says what to look for."""
    with RayCluster(retries=2) as pool, caplog.at_level(logging.WARNING, "bionemo.webdatamodule"):
        deadly, harmless = pool.submit(die), pool.submit(len, "abc")
        error = deadly.exception(120)

        assert 3 == harmless.result(60)

    assert isinstance(error, ConversionError)
    assert "a task keeps dying on Ray, 3 times now; last WorkerCrashedError" in str(error)
    assert 2 == len([record for record in caplog.records if "runs again" in record.message])


def test_a_conversion_whose_task_keeps_dying_leaves_nothing_behind(tmp_path):
    """There is no data set, and what was there before is untouched."""
    reader = Killer(parent=os.getpid())

    with pytest.raises(ConversionError, match="keeps dying on Ray, 1 time now"):
        convert_samples(reader, ["a", "b"], str(tmp_path / "out"), executor=RayCluster(retries=0))

    assert [] == list((tmp_path / "out").glob("*.manifest.json"))
    assert [] == list((tmp_path / "out").glob("*.tar"))


def test_what_a_task_raises_is_not_tried_again():
    """The error arrives as it was raised, and its cause tells where on the cluster."""
    with RayCluster() as pool:
        error = pool.submit(refuse).exception(60)

    assert isinstance(error, InputError)
    assert {"key": "k"} == error.where
    assert "in refuse" in str(error.__cause__)


def test_errors_and_results_that_do_not_travel_are_named():
    """Neither is lost, and neither hangs."""
    with RayCluster() as pool:
        error = pool.submit(raise_stubborn).exception(60)
        result = pool.submit(Unloadable).exception(60)
        lock = pool.submit(threading.Lock).exception(60)

    assert isinstance(error, ConversionError)
    assert "a task failed: StubbornError: 1 2" in str(error)
    assert "No module named 'no_such_module'" in str(result)
    assert "cannot pickle" in str(lock)


def test_calls_that_do_not_travel_are_named():
    """What cannot be pickled is an error here, what a node cannot load an error that names the node."""
    with RayCluster() as pool:
        here = pool.submit(len, threading.Lock()).exception(60)
        there = pool.submit(len, Unloadable()).exception(60)

    assert isinstance(here, TypeError)
    assert isinstance(there, ConversionError)
    assert "cannot load a task (ModuleNotFoundError: No module named 'no_such_module'); install there" in str(there)


def test_waiting_calls_can_be_cancelled_and_running_ones_not(tmp_path):
    """As in a pool of processes: what was handed over runs."""
    with RayCluster() as pool:
        running = [pool.submit(time.sleep, 1) for _ in range(4)]
        waiting = [pool.submit(mark_and_sleep, str(tmp_path), number) for number in range(3)]
        while not all(future.running() for future in running):
            time.sleep(0.01)

        assert [False] * 4 == [future.cancel() for future in running]
        assert [True] * 3 == [future.cancel() for future in waiting]

    assert [] == files(tmp_path)


def test_shutting_down_waits_and_takes_nothing_more(tmp_path):
    """With ``cancel_futures`` only what had begun is done."""
    with RayCluster() as pool:
        slow = [pool.submit(time.sleep, 0.5) for _ in range(4)]
        while not slow[3].running():
            time.sleep(0.01)
        waiting = pool.submit(mark_and_sleep, str(tmp_path), 1)
        pool.shutdown(wait=True, cancel_futures=True)

        assert [None] * 4 == [future.result(0) for future in slow]
        assert waiting.cancelled()
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(len, "abc")


def test_an_error_stops_the_tasks_that_run(tmp_path):
    """Ctrl-C does not wait for hours; tasks are interrupted and may tidy up."""
    tasks = []

    def fail():
        with RayCluster() as pool:
            tasks.extend(pool.submit(mark_and_sleep, str(tmp_path), number) for number in range(6))
            wait_for(tmp_path / "began-0")
            wait_for(tmp_path / "began-1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert ["began-0", "began-1", "stopped-0", "stopped-1"] == files(tmp_path)
    assert [True] * 6 == [task.done() for task in tasks]
    with pytest.raises(futures.CancelledError):
        tasks[0].result(0)


def test_a_task_that_ignores_interrupts_is_killed(tmp_path, monkeypatch):
    """After a time of grace."""
    from bionemo_webdatamodule_ray import executor

    monkeypatch.setattr(executor, "_GRACE", 0.5)
    tasks = []

    def fail():
        with RayCluster() as pool:
            tasks.append(pool.submit(sleep_stubbornly, str(tmp_path)))
            wait_for(tmp_path / "began")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(futures.CancelledError):
        tasks[0].result(0)


def test_a_cluster_that_goes_away_ends_all_tasks(monkeypatch):
    """Nobody waits for ever for an executor that cannot ask Ray any more."""
    from bionemo_webdatamodule_ray import executor

    def gone(_):
        raise ConnectionError("no GCS")

    with RayCluster() as pool:
        running = pool.submit(time.sleep, 1)
        while not running.running():
            time.sleep(0.01)
        monkeypatch.setattr(executor.RayExecutor, "_room", gone)
        waiting = pool.submit(len, "abc")
        errors = [future.exception(60) for future in (running, waiting)]

    assert [ConversionError] * 2 == list(map(type, errors))
    assert "Ray failed: ConnectionError: no GCS" in str(errors[1])


def test_a_task_reserves_what_the_user_says(ray):
    """Tasks of two CPUs run one at a time on a cluster of two."""
    with RayCluster(cpus=2, resources={"memory": 1e6}) as pool:
        reserved = pool.submit(lambda: ray.get_runtime_context().get_assigned_resources()).result(60)

    assert {"CPU": 2.0, "memory": 1e6} == {name: reserved[name] for name in ("CPU", "memory")}
