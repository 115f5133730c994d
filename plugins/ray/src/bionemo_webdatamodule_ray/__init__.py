"""Ray clusters for bionemo-webdatamodule: the executor ``ray``, which makes shards on every node."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import Executor, hookimpl
from bionemo_webdatamodule_ray.cluster import RayCluster

__all__ = ["RayCluster", "webdatamodule_executors"]


@hookimpl
def webdatamodule_executors() -> Iterable[Executor]:
    """Register the executor."""
    yield Executor(name="ray", summary="every node of a Ray cluster", factory=RayCluster)
