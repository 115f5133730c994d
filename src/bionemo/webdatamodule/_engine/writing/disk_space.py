"""Checks that the disks have space for the remaining shards."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bionemo.webdatamodule._engine.humanize import size
from bionemo.webdatamodule._engine.writing.layout import SplitPlan, estimate_bytes
from bionemo.webdatamodule._engine.writing.staging import find_staged
from bionemo.webdatamodule._engine.writing.tasks import ShardTask
from bionemo.webdatamodule.errors import ConversionError, WebDataModuleError

_SURE = 0.8  # of the estimated bytes: a conversion is not begun with less space than that
_FULL = frozenset(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One file system that shards go to.

    Attributes:
        places: What the user calls the places on it.
        splits: The splits that go to it.
        directory: A directory on it.
        needed: About how many bytes the shards will take that are still to be made.
    """

    places: tuple[str, ...]
    splits: tuple[str, ...]
    directory: str
    needed: float


@dataclass(frozen=True, kw_only=True)
class Room:
    """The file systems that the shards of a conversion go to.

    Attributes:
        disks: One for each file system.
    """

    disks: tuple[Disk, ...]

    @classmethod
    def needed(cls, plans: Sequence[SplitPlan], tasks: Sequence[ShardTask]) -> Room:
        """Add up what each file system has to take; shards that lie finished in the staging directory are there.

        Args:
            plans: The splits, whose staging directories exist.
            tasks: The shards to be made for them.
        """
        disks: dict[int, list[tuple[SplitPlan, float]]] = {}
        for plan in plans:
            left = [
                task for task in tasks if task.split == plan.split and find_staged(task.staging, task.inputs) is None
            ]
            disks.setdefault(os.stat(plan.target.staging).st_dev, []).append((plan, _bytes(plan, left)))
        return cls(
            disks=tuple(
                Disk(
                    places=tuple(str(plan.target) for plan, _ in found),
                    splits=tuple(plan.split for plan, _ in found),
                    directory=found[0][0].target.staging,
                    needed=sum(needed for _, needed in found),
                )
                for found in disks.values()
            )
        )

    def check(self) -> None:
        """Refuse to begin where a disk is clearly too small.

        Raises:
            ConversionError: If so, with both numbers.
        """
        for disk in self.disks:
            free = shutil.disk_usage(disk.directory).free
            if free < _SURE * disk.needed:
                raise ConversionError(
                    f"{' and '.join(disk.places)} {'has' if len(disk.places) == 1 else 'together have'} "
                    f"{size(free)} free, and the shards need about {size(disk.needed)}; "
                    "finished shards are kept: make room and run it again",
                    split=" and ".join(disk.splits),
                )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to errors of a full disk how much is needed, and what to do."""
        try:
            yield
        except (ConversionError, OSError) as error:
            message = error.message if isinstance(error, WebDataModuleError) else str(error.strerror)
            if not any(full in message for full in _FULL):
                raise
            needs = "; ".join(
                f"{' and '.join(disk.places)} needed about {size(disk.needed)} at the start and has "
                f"{size(shutil.disk_usage(disk.directory).free)} free"
                for disk in self.disks
            )
            where = error.where if isinstance(error, WebDataModuleError) else {"file": error.filename}
            raise ConversionError(f"{message}; {needs}; finished shards are kept", **where) from error


def _bytes(plan: SplitPlan, tasks: Sequence[ShardTask]) -> float:
    """Return about how large the shards of some tasks will be."""
    names = [name for task in tasks for name in task.names]
    if not names:
        return 0
    if plan.bytes_per_sample is not None:
        return plan.bytes_per_sample * len(names)
    return estimate_bytes(tasks[0].recipe.reader, names)
