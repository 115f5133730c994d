"""Memory of batches that are gone."""

from __future__ import annotations

import platform
import subprocess
import sys

TWO_ROUNDS = """
import resource
from bionemo.webdatamodule._engine.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * 100_000 for _ in range(300)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(faults(), faults())
"""


def test_memory_of_samples_that_are_gone_is_used_again_without_page_faults() -> None:
    """The second 30 MB of samples lie where the first did, where the C library is glibc."""
    done = subprocess.run([sys.executable, "-c", TWO_ROUNDS], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 0
    if platform.libc_ver()[0] == "glibc":
        assert second < first / 10
