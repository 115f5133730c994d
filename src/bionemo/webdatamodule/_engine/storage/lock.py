"""One conversion at a time for each directory and prefix, over threads, processes and machines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule.errors import ConversionError

_L = TypeVar("_L", bound="Lease")
_LOG = logging.getLogger("bionemo.webdatamodule")
_POLL = 0.1  # seconds between two looks at another owner's lease
_BEAT = 10.0  # seconds between two signs of life
EXPIRY = 120.0
"""Seconds without a sign of life after which a lease of another machine is taken over."""


class Lease:
    """The right to change a directory, as a context manager that waits until it is free.

    The lease is a symbolic link whose target names the owner, since a link is made with its content in one step.
    An owner that died on this machine is recognised by its process, where the system has ``/proc``. One on another
    machine, or without ``/proc``, is recognised by the link's age, measured with the file system's own clock.

    Args:
        path: The link. Its directory exists.
        probe: A directory on the same file system that may be made and whose times may be changed, to ask its clock.
    """

    def __init__(self, path: str, *, probe: str) -> None:
        self._path = path
        self._probe = probe
        self._mine = json.dumps({**_identity(), "token": uuid.uuid4().hex})
        self._released = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, name="webdatamodule-lease", daemon=True)

    def __enter__(self: _L) -> _L:
        said = False
        while not filesystem.make_link(self._mine, self._path):
            owner = self._owner()
            if owner is None:
                continue
            if self._is_abandoned(owner):
                self._take_from(owner)
            else:
                if not said:
                    _LOG.warning("%s", _waiting(owner, self._path))
                    said = True
                time.sleep(_POLL)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._beat.join()
        if self._owner() == self._mine:
            filesystem.remove(self._path)

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            ConversionError: If it was taken over, because this process was stopped for so long.
        """
        if self._owner() != self._mine:
            raise ConversionError(
                "another conversion took over, as this one gave no sign of life for minutes; run it again",
                file=self._path,
            )

    def _keep_alive(self) -> None:
        while not self._released.wait(_BEAT):
            with contextlib.suppress(OSError):
                if self._owner() == self._mine:
                    os.utime(self._path, follow_symlinks=False)

    def _owner(self) -> str | None:
        try:
            return os.readlink(self._path)
        except FileNotFoundError:
            return None

    def _is_abandoned(self, owner: str) -> bool:
        facts = _facts(owner)
        mine = _identity()
        if mine["started"] and all(facts.get(name) == mine[name] for name in ("host", "boot", "namespace")):
            return _started(facts.get("pid")) != facts.get("started")
        try:
            filesystem.make_private_directory(self._probe)
            filesystem.touch(self._probe)
            return Path(self._probe).stat().st_mtime - Path(self._path).lstat().st_mtime > EXPIRY
        except FileNotFoundError:
            return False

    def _take_from(self, owner: str) -> None:
        """Remove an abandoned lease; if another owner took it meanwhile, restore it."""
        aside = f"{self._path}.{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            filesystem.replace(self._path, aside)
            taken = os.readlink(aside)
            if taken != owner:
                filesystem.make_link(taken, self._path)
            filesystem.remove(aside)


def _waiting(owner: str, path: str) -> str:
    """Return the message for a lease that another process holds: its owner, and how long it may last."""
    facts = _facts(owner)
    return (
        f"another conversion holds {path}: process {facts.get('pid', 'unknown')} on {facts.get('host', 'unknown')}; "
        "waiting until it ends. If it dies, this one continues at once if both are on one machine, "
        f"else {EXPIRY:.0f} seconds after its last sign of life"
    )


def _facts(owner: str) -> dict[str, Any]:
    """Return what a lease says of its owner."""
    try:
        facts = json.loads(owner)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _identity() -> dict[str, Any]:
    """Return what distinguishes this process from all others, on this machine and elsewhere."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _target("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: object) -> str | None:
    """Return when a process of this machine started, in ticks of its clock, or ``None`` if it is no more."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in {"Z", "X"} else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
