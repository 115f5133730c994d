"""What the operating system says: limits, control groups, file systems. The files are those of Linux."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60  # bytes; version 1 of control groups writes about 2**63 for none
_ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this process may use; ``None`` where there is no limit, or none is known.

    Attributes:
        cores: Cores of the machine.
        affinity: Cores that this process may run on.
        quota: Cores' worth of time that its control group may take.
        memory: Bytes of memory of the machine.
        memory_free: Bytes of it that are available now.
        memory_limit: Bytes that its control group may take.
        memory_used: Bytes that its control group takes.
        address_space: Bytes that it may map.
        open_files: Files that it may have open, the soft limit.
        open_files_hard: How far the soft limit can be raised.
        shm: Size of ``/dev/shm`` in bytes; ``None`` where there is none.
        shm_free: Bytes free there.
    """

    cores: int
    affinity: int
    quota: float | None
    memory: int | None
    memory_free: int | None
    memory_limit: int | None
    memory_used: int | None
    address_space: int | None
    open_files: int | None
    open_files_hard: int | None
    shm: int | None
    shm_free: int | None


def limits(root: Path = _ROOT) -> Limits:
    """Return what this process may use.

    Args:
        root: Where ``proc``, ``sys`` and ``dev`` are.
    """
    cores = os.cpu_count() or 1
    memory = _meminfo(root)
    shm, shm_free = space(root / "dev/shm")
    soft, hard = map(_limit, resource.getrlimit(resource.RLIMIT_NOFILE))
    groups = list(_groups(root))
    used = [number for group in groups for number in _numbers(group, ("memory.current", "memory.usage_in_bytes"))]
    return Limits(
        cores=cores,
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        quota=min((quota for group in groups for quota in _quotas(group)), default=None),
        memory=memory.get("MemTotal"),
        memory_free=memory.get("MemAvailable"),
        memory_limit=min(
            (number for group in groups for number in _numbers(group, ("memory.max", "memory.limit_in_bytes"))),
            default=None,
        ),
        memory_used=used[0] if used else None,
        address_space=_limit(resource.getrlimit(resource.RLIMIT_AS)[0]),
        open_files=soft,
        open_files_hard=hard,
        shm=shm,
        shm_free=shm_free,
    )


def space(path: Path) -> tuple[int | None, int | None]:
    """Return the size and the free bytes of the file system of a path; ``None`` where it is not there."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail


def file_system(path: Path, root: Path = _ROOT) -> str:
    """Return the type of the file system of a path, such as ``ext4``; empty where it is not known.

    Args:
        path: A path, which need not exist.
        root: Where ``proc`` is. The format of ``proc/self/mountinfo`` is that of proc(5).
    """
    place = existing(path).resolve()
    found = (-1, "")
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or not after:
            continue
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if place.is_relative_to(point) and len(point.parts) >= found[0]:  # of two on one place the later is on top
            found = (len(point.parts), after.split()[0])
    return found[1]


def existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that is there."""
    path = path.expanduser().absolute()
    return next((place for place in (path, *path.parents) if place.exists()), path)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the directories of this process's control groups, innermost first, of versions 1 and 2."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        top = base / controllers if controllers else base
        inner = top / path.lstrip("/")
        while inner != top:
            yield inner
            inner = inner.parent
        yield top  # inside a container this is often the only one to be seen


def _quotas(group: Path) -> Iterator[float]:
    """Yield the cores' worth of time that a group may take, where it is limited."""
    words = _read(group / "cpu.max").split() or [
        _read(group / "cpu.cfs_quota_us").strip(),
        _read(group / "cpu.cfs_period_us").strip(),
    ]
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])


def _numbers(group: Path, names: tuple[str, ...]) -> Iterator[int]:
    for name in names:
        text = _read(group / name).strip()
        if text.isdecimal() and int(text) < _NO_LIMIT:
            yield int(text)


def _meminfo(root: Path) -> dict[str, int]:
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def _limit(number: int) -> int | None:
    return None if number == resource.RLIM_INFINITY else number


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
