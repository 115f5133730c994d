"""What the kernel is advised to read, and when."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bionemo.webdatamodule._engine.format.mapping import expect, mapped
from bionemo.webdatamodule._engine.storage import page_cache
from bionemo.webdatamodule._engine.storage.page_cache import PageCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LARGE = 100_000
READ = 1 << 20  # bytes


def steps(cache: PageCache, runs: Iterable[int], disk: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return in which order runs are expected, where the disk is read during that, and used."""
    log: list[str] = []
    monkeypatch.setattr(page_cache, "_disk_bytes", lambda: READ * next(disk))

    def expected(run: int) -> None:
        if cache.misses():
            log.append(f"expect {run}")

    log.extend(f"use {run}" for run in cache.ahead(runs, expected))
    return log


def test_the_next_run_is_read_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is used as soon as it is there, the others come one ahead."""
    found = steps(PageCache(LARGE, 0), range(4), iter(range(100)), monkeypatch)
    expected = ["expect 0", "use 0", "expect 1", "expect 2", "use 1", "expect 3", "use 2", "use 3"]
    assert expected == found


def test_what_is_in_memory_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is expected where no disk is read."""
    assert ["use 0", "use 1", "use 2"] == steps(PageCache(LARGE, 0), range(3), iter([5] * 100), monkeypatch)


def test_what_is_read_beside_the_data_is_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are imported meanwhile; but what the shards of the first run need is one for that run."""
    monkeypatch.setattr(f"{__name__}.READ", 1 << 18)
    assert ["use 0", "use 1", "use 2"] == steps(PageCache(LARGE, 0), range(3), iter([0, 0, 1, 2, 3]), monkeypatch)
    found = steps(PageCache(LARGE, 0), range(3), iter(range(9)), monkeypatch)
    assert ["expect 0", "use 0", "use 1", "use 2"] == found


def test_a_disk_is_expected_for_a_while_after_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight runs from the one that found it at work on; the next epoch begins without it."""
    cache = PageCache(LARGE, 0)
    found = steps(cache, range(12), iter([0, 0, 0, 1, *[1] * 100]), monkeypatch)
    assert [f"expect {run}" for run in range(2, 10)] == [step for step in found if step.startswith("expect")]
    assert ["use 0", "use 1"] == steps(cache, range(2), iter([7] * 100), monkeypatch)


@pytest.mark.parametrize("sample_bytes", [1000.0, 0.0])
def test_what_lies_around_small_samples_is_read_with_them(sample_bytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as all of them stay in memory."""
    assert ["use 0", "use 1"] == steps(PageCache(sample_bytes, 1e6), range(2), iter(range(100)), monkeypatch)
    assert "expect 0" in steps(PageCache(sample_bytes, 1e18), range(2), iter(range(100)), monkeypatch)


def test_no_run_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of which nothing is left yields nothing."""
    assert [] == steps(PageCache(LARGE, 0), [], iter(range(9)), monkeypatch)


def test_what_is_expected_comes_into_memory(tmp_path: Path) -> None:
    """Its pages are there soon, without being touched."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    data = mapped(descriptor)
    os.close(descriptor)
    expect(data[100_001:700_000])
    limit = time.monotonic() + 60
    while not resident(data)[100_001 // mmap.PAGESIZE : -(-700_000 // mmap.PAGESIZE)].all():
        assert time.monotonic() < limit
        time.sleep(0.01)


def resident(data: memoryview) -> np.ndarray:
    """Return of each page of a map whether it is in memory."""
    pages = np.zeros(-(-len(data) // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert 0 == mincore(np.frombuffer(data, np.uint8).ctypes.data, len(data), pages.ctypes.data)
    return pages & 1
