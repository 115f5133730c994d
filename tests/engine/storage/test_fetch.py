"""The fetcher follows a plan: how shards are cut, what it joins and divides, and what it counts."""

import threading
import time
from dataclasses import replace

import fsspec
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from tests.helpers.fetching import wait_for_background

from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.sampling.pieces import Pieces
from bionemo.webdatamodule._engine.storage.remote import directory, fetch, retry
from bionemo.webdatamodule._engine.storage.remote.counters import Counters, fetched
from bionemo.webdatamodule._engine.storage.remote.fetch import Fetcher, Need
from bionemo.webdatamodule._engine.storage.remote.pieces import Cut
from bionemo.webdatamodule._engine.storage.remote.transfer import Memory
from bionemo.webdatamodule.errors import RemoteError

from .test_remote_shards import write_set


@given(st.integers(1, 300), st.integers(1, 9000), st.integers(1, 500))
def test_cache_and_plan_cut_shards_alike(samples, n_bytes, piece_bytes):
    """So each piece of a plan is one file of the cache."""
    cut = Cut.of(samples, n_bytes, piece_bytes)
    bounds = [cut.bounds(place) for place in range(cut.pieces)]

    assert [first for first, _ in bounds] + [samples] == Pieces.of([samples], [n_bytes], piece_bytes).firsts.tolist()
    assert [place for place, (first, stop) in enumerate(bounds) for _ in range(first, stop)] == [
        cut.place(row) for row in range(samples)
    ]


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Return three shards of 40 samples behind a URL, and the ranges that are read from the tars."""
    memory, seen = fsspec.filesystem("memory"), []
    memory.put(str(write_set(tmp_path / "data", n=120)), "/fetch", recursive=True)
    read = directory.RemoteDirectory.read

    def noted(self, name, ranges, into):
        seen.append((name, *ranges))
        read(self, name, ranges, into)

    monkeypatch.setattr(directory.RemoteDirectory, "read", noted)
    yield ShardSet.open("memory://fetch", "t"), seen
    memory.rm("/fetch", recursive=True)


def fetcher(found, **options):
    """Return a fetcher of pieces of ten samples."""
    shards = [(found.remote, number) for number in range(3)]
    cuts = [found.remote.cut(number, -(-found.sizes[0] // 4)) for number in range(3)]
    return Fetcher(shards, suffixes=["x.pyd"], cuts=cuts, **options)


def test_parts_of_a_piece_come_in_one_request_but_for_the_first(remote):
    """A first batch does not wait for what is needed later."""
    found, seen = remote
    one = fetcher(found)
    one._most = 1  # so that requests follow each other
    parts = [Need(shard=1, first=first, last=first + 2) for first in (0, 2, 4, 6, 8)]
    one.follow([Need(shard=0, first=0, last=1), *parts, Need(shard=2, first=0, last=10)], epoch=0)
    wait_for_background()

    assert ["t-000000.tar", "t-000001.tar", "t-000001.tar", "t-000002.tar"] == [name for name, *_ in seen]
    assert sum(end - begin for _, (begin, end) in seen) == sum(
        found.remote.index(number).headers[last] for number, last in enumerate((1, 10, 10))
    )


def test_more_is_fetched_ahead_the_more_was_read(remote, monkeypatch):
    """Until the first samples are read, little is fetched ahead of them, so that the first batch is early."""
    found, seen = remote
    monkeypatch.setattr(fetch, "_FIRST", 1)
    monkeypatch.setattr(fetch, "_LEAD", 1)
    one, counts = fetcher(found), []
    one.follow([Need(shard=shard, first=first, last=first + 10) for shard in range(3) for first in (0, 10)], epoch=0)
    for place in (0, 1):
        wait_for_background()
        counts.append(len(seen))
        one.reached({(0, place): np.arange(10)})
    wait_for_background()

    assert [1, 2, 4] == [*counts, len(seen)]


def test_what_is_under_way_is_bounded_by_what_was_read(remote, monkeypatch):
    """Requests share the link, so that many at once would delay what is needed next."""
    found, _ = remote
    busy, most, read = threading.Semaphore(0), [0], directory.RemoteDirectory.read
    together = threading.Barrier(3, timeout=20)

    def alone(self, name, ranges, into):
        busy.release()
        time.sleep(0.01)
        most.append(busy._value)
        read(self, name, ranges, into)
        busy.acquire()

    def beside_two(self, name, ranges, into):
        together.wait()
        read(self, name, ranges, into)

    one, plan = fetcher(found), [[Need(shard=n, first=first, last=first + 10) for n in range(3)] for first in (0, 10)]
    monkeypatch.setattr(fetch, "_UNDER_WAY", 1)
    monkeypatch.setattr(directory.RemoteDirectory, "read", alone)
    one.follow(plan[0], epoch=0)
    wait_for_background()
    assert [0, 1, 1, 1] == most
    monkeypatch.setattr(fetch, "_UNDER_WAY", sum(found.sizes))
    monkeypatch.setattr(directory.RemoteDirectory, "read", beside_two)
    one.follow(plan[1], epoch=0)
    wait_for_background()
    assert not together.broken


def test_workers_divide_a_plan_and_wait_for_each_other(remote):
    """Each fetches every other piece; who reads one first fetches it, and the other finds it."""
    found, seen = remote
    needs = [Need(shard=shard, first=first, last=first + 10) for first in range(0, 40, 10) for shard in range(3)]
    workers = [fetcher(found, worker=number, workers=2) for number in range(2)]
    workers[0].follow(needs, epoch=0, divided=True)
    wait_for_background()
    assert 6 == len(seen)
    workers[0].fetch([((1, 0), np.array([3]))])  # the other's
    assert 7 == len(seen)
    workers[1].follow(needs, epoch=0, divided=True)
    wait_for_background()

    assert 12 == len(seen) == len(set(seen))


def test_workers_leave_out_no_part_of_a_piece_that_is_wanted_bit_by_bit(remote, monkeypatch):
    """While one fetches a part of a piece, whose file is locked then, the other fetches parts of others."""
    found, seen = remote
    slow = directory.RemoteDirectory.read

    def read(*arguments):
        time.sleep(0.02)
        slow(*arguments)

    monkeypatch.setattr(directory.RemoteDirectory, "read", read)
    needs = [
        Need(shard=shard, first=first + part, last=first + part + 1)
        for part in range(10)
        for first in range(0, 40, 10)
        for shard in range(3)
    ]
    workers = [fetcher(found, worker=number, workers=2) for number in range(2)]
    for worker in workers:
        worker.follow(needs, epoch=0, divided=True)
    wait_for_background()
    planned = len(seen)
    for worker in workers:
        worker.fetch([((shard, place), np.arange(10)) for shard in range(3) for place in range(4)])

    assert planned == len(seen)


@pytest.mark.parametrize("startable", [0, 1])
def test_what_no_thread_can_be_started_for_is_fetched_all_the_same(remote, monkeypatch, startable):
    """Where the system gives no more threads, one that runs does the work, or the reader itself."""
    found, seen = remote
    start, left = fetch.in_background, [None] * startable

    def limited(function):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(function)

    monkeypatch.setattr(fetch, "in_background", limited)
    one = fetcher(found)
    one.follow([Need(shard=shard, first=0, last=40) for shard in range(3)], epoch=0)
    one.fetch([((shard, place), np.arange(10)) for shard in range(3) for place in range(4)])
    wait_for_background()

    assert {"t-000000.tar", "t-000001.tar", "t-000002.tar"} == {name for name, *_ in seen}
    assert len(seen) == len(set(seen))


def test_an_attempt_without_a_thread_is_an_error(remote, monkeypatch):
    """Attempts need a thread, since they are given up after a time; without one the reader gets an error, and ends."""

    def none(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(retry._thread, "start_new_thread", none)
    monkeypatch.setattr(retry, "BUDGET", replace(retry.BUDGET, attempts=2, first_wait=0.01))
    with pytest.raises(RemoteError, match=r"tried 2 times.*can't start new thread"):
        fetcher(remote[0]).fetch([((0, 0), np.arange(10))])


def test_what_was_fetched_is_counted(remote):
    """Bytes, requests and the time that reading waited, of all readers of this process."""
    found, seen = remote
    before = fetched()
    values = [value for (value,) in ShardReader([found], ["x.pyd"]).read(np.arange(9))]
    after = fetched() - before

    assert list(range(0, 27, 3)) == values
    assert (sum(end - begin for _, (begin, end) in seen), len(seen)) == (after.n_bytes, after.n_requests)
    assert 0 < after.waited


def test_what_readers_fetched_counts_when_they_are_gone():
    """The difference of two totals is what was fetched in between."""
    counters = Counters()
    counters.add(0, n_bytes=10, n_requests=1, waited=0.5)
    before = fetched()
    del counters

    assert before == fetched()


def test_counters_of_processes_add_up():
    """Each process counts in a place of its own."""
    counters = Counters()
    for worker in (0, 1, 1):
        counters.add(worker, n_bytes=10, n_requests=1, waited=0.5)
    total = counters.total()

    assert (30, 3, 1.5) == (total.n_bytes, total.n_requests, total.waited)


def test_memory_is_used_again_unless_a_part_is_held():
    """An attempt that was given up may write into its memory later, so that is left to it."""
    memory = Memory()
    with memory.of(100) as first:
        first[:] = b"a" * 100
    with memory.of(50) as again:
        assert again == b"a" * 50
        held = again[10:20]
    with memory.of(50) as other:
        other[:] = b"b" * 50
        held[:] = b"c" * 10
        assert other == b"b" * 50
    with memory.of(200) as longer:
        assert len(longer) == 200
