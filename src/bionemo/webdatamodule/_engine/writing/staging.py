"""Finished shards in the staging directory, where they wait for publication or for the rerun of a stopped conversion.

Files are named by the hash of what the shard is made from, so a shard is found again only if it is still wanted,
and two conversions that make the same one at once write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from bionemo.webdatamodule._engine.format.tar_write import Written
from bionemo.webdatamodule._engine.storage import filesystem

_PROGRESS_EVERY = 0.5  # seconds between two notes of a task's progress


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A finished shard in the staging directory."""

    bytes: int
    samples: int
    sha256: str
    index_sha256: str
    suffixes: tuple[str, ...]


class Progress:
    """Notes now and then how many samples are done, where the parent process can see it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._next = time.monotonic() + _PROGRESS_EVERY

    def note(self, done: int) -> None:
        """Record the number of finished samples, at most twice a second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY
            with contextlib.suppress(OSError):  # nothing but a progress bar depends on it
                Path(self._path).write_text(str(done))


def tar_path(staging: str, inputs: str) -> str:
    """Return where a finished shard's tar waits for publication."""
    return f"{staging}/{inputs}.tar"


def index_path(staging: str, inputs: str) -> str:
    """Return where a finished shard's index waits for publication."""
    return f"{staging}/{inputs}.idx"


def progress_path(staging: str, inputs: str) -> str:
    """Return where a running task notes how many samples are done."""
    return f"{staging}/{inputs}.done"


def _record_path(staging: str, inputs: str) -> str:
    return f"{staging}/{inputs}.json"


def find_staged(staging: str, inputs: str) -> Staged | None:
    """Return the finished shard that an earlier run left in the staging directory, if it is whole."""
    try:
        record = json.loads(Path(_record_path(staging, inputs)).read_bytes())
        staged = Staged(**{**record, "suffixes": tuple(record["suffixes"])})
        index = Path(index_path(staging, inputs)).read_bytes()
        size = Path(tar_path(staging, inputs)).stat().st_size
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = size == staged.bytes and hashlib.sha256(index).hexdigest() == staged.index_sha256
    return staged if whole else None


def keep(staging: str, inputs: str, part: str, written: Written) -> Staged:
    """Give a synced tar its place in the staging directory, with its index, and a record that both are whole."""
    staged = Staged(
        bytes=written.bytes,
        samples=written.samples,
        sha256=written.sha256,
        index_sha256=hashlib.sha256(written.index).hexdigest(),
        suffixes=written.suffixes,
    )
    filesystem.write_whole(index_path(staging, inputs), written.index)
    filesystem.replace(part, tar_path(staging, inputs))
    filesystem.write_whole(_record_path(staging, inputs), json.dumps(vars(staged)).encode())
    return staged
