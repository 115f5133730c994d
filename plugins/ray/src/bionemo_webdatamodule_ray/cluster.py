"""What the executor ``ray`` takes, and the connection to a cluster; Ray is imported when it is entered."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from bionemo.webdatamodule.errors import ConfigError, ConversionError, UsageError

_log = logging.getLogger("bionemo.webdatamodule")
_ATTEMPTS = 3
_FORK_SIGNS = ("Starting Ray client server failed", "ZombieProcess")
"""What a head node says whose fork of a server died, one in some 15: github.com/ray-project/ray/issues/63202."""


@dataclass(kw_only=True)
class RayCluster:
    """Runs tasks on a Ray cluster: every node makes shards, and a task whose worker or node dies is run again.

    Every node needs this package, the writer's package, and the paths of the sources and of the shards.

    Where this process is connected to Ray already, that connection is used and left as it is.

    Args:
        address: ``"ray://host:10001"`` or ``"host:6379"`` of a running cluster, ``"auto"`` for the one this
            machine is part of, or ``"local"`` for a cluster of this process's own, which ends with it.
            By default what the environment variable ``RAY_ADDRESS`` says, or ``"local"``.
        cpus: CPUs that a task reserves.
        resources: Further resources that a task reserves, such as ``{"memory": 2e9}`` in bytes,
            or a custom one that only some nodes have.
        retries: How often a task is run again when its worker or node died. What a task raises itself
            is not tried again.
        init: Further arguments of ``ray.init``, such as ``{"num_cpus": 4}`` or ``{"runtime_env": {...}}``.

    Raises:
        ConfigError: If an argument is wrong.
    """

    address: str | None = None
    cpus: float = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    retries: int = 3
    init: Mapping[str, Any] = field(default_factory=dict)
    _stack: ExitStack | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"retries is a whole number of at least 0, not {self.retries!r}")
        if isinstance(self.cpus, bool) or not isinstance(self.cpus, int | float) or self.cpus <= 0:
            raise ConfigError(f"cpus is a number above 0, not {self.cpus!r}")
        if "CPU" in self.resources:
            raise ConfigError("resources names CPU; say it with cpus=")
        if "address" in self.init:
            raise ConfigError("init names address; say it with address=")

    def __enter__(self) -> futures.Executor:
        """Connect to the cluster and return its executor.

        Raises:
            ConversionError: If the cluster cannot be reached.
            UsageError: If it was entered already.
        """
        from bionemo_webdatamodule_ray.executor import RayExecutor

        if self._stack is not None:
            raise UsageError("this executor runs already; make another one")
        with ExitStack() as stack:
            stack.enter_context(_connected(self.address, self.init))
            executor = RayExecutor(cpus=self.cpus, resources=self.resources, retries=self.retries)
            stack.push(executor.__exit__)
            self._stack = stack.pop_all()
        return executor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all tasks, or stop them if an error is on its way, and leave the cluster."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(kind, error, trace)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stack": None}


@contextmanager
def _connected(address: str | None, init: Mapping[str, Any]) -> Iterator[None]:
    """Connect to a cluster, or start one, unless this process is connected already."""
    import ray

    if ray.is_initialized():
        if address is not None or init:
            raise ConfigError("this process is connected to Ray already; leave address and init out to use that")
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    defaults = {"include_dashboard": False} if address == "local" else {}
    try:
        _init(address, {**defaults, **init})
        yield
    finally:
        ray.shutdown()  # also without an answer, since Ray would stay half connected


def _init(address: str, arguments: Mapping[str, Any]) -> None:
    import ray

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(address=address, **arguments)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            is_fork = any(sign in str(error) for sign in _FORK_SIGNS)
            if is_fork and attempt < _ATTEMPTS:
                _log.warning(
                    "Ray at %s failed to start a server for this client; attempt %d follows", address, attempt + 1
                )
                ray.shutdown()
                continue
            remedy = "; start the head node with GRPC_ENABLE_FORK_SUPPORT=0 in its environment" if is_fork else ""
            raise ConversionError(f"Ray at {address} cannot be reached: {error}{remedy}") from error
        return
