"""The default loader: torch's worker processes, with our transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bionemo.webdatamodule.components import Item, ItemDataset, Loader
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import Check, checked, flag, function, number, optional, whole_number


@dataclass(frozen=True, kw_only=True)
class WebLoader:
    """Read items in worker processes and move them to the main one through shared memory.

    The options are those of ``torch.utils.data.DataLoader`` that make sense for a stream of items.

    Args:
        num_workers: Worker processes; 0 reads in the main process.
        pin_memory: Copy tensors to page-locked memory, for faster transfer to a GPU.
        prefetch_factor: Items that each worker prepares ahead; torch's default is 2.
        persistent_workers: Keep the workers from one epoch to the next.
        timeout: Seconds without an item after which the workers count as hung; ``None`` for nine minutes,
            0 for never.
        multiprocessing_context: ``"fork"``, ``"spawn"`` or ``"forkserver"``; by default fork where there is one,
            so that stages need not pickle.
        worker_init_fn: Called in each worker with its number; a function or its import path.
        generator: Torch's generator for the workers' base seed.
        in_order: Take items from the workers in turn; ``False`` is refused in global order.
    """

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int | None = None
    persistent_workers: bool = False
    timeout: float | None = None
    multiprocessing_context: Any = None
    worker_init_fn: Callable[[int], None] | None = None
    generator: Any = None
    in_order: bool = True

    def __post_init__(self) -> None:
        for name, value in checked(vars(self), _CHECKS).items():
            object.__setattr__(self, name, value)

    @property
    def keeps_workers(self) -> bool:
        """Whether workers live on after an iteration."""
        return self.persistent_workers

    def transported(self, value: Any) -> Any:
        """Return a value after what it passes through on its way from a worker to the main process."""
        import pickle

        from bionemo.webdatamodule.builtins.webloader.transport import pack

        return pickle.loads(pickle.dumps(pack(value))).unpack()

    def __call__(self, dataset: ItemDataset) -> Iterable[Item]:
        """Return an iterable of a dataset's items, read in worker processes if there are any.

        Args:
            dataset: In a worker it yields that worker's part of the items.

        Raises:
            ConfigError: If an option cannot be served, or the dataset must pickle and does not.
        """
        if self.num_workers == 0:
            from bionemo.webdatamodule.builtins.webloader.in_process import InProcessLoader

            return InProcessLoader(dataset, pin_memory=self.pin_memory)
        from bionemo.webdatamodule.builtins.webloader.loader import WorkerLoader

        return WorkerLoader(dataset, self)


def _start_method(argument: str, given: Any) -> Any:  # noqa: ARG001 - as all checks
    """Return the same way to start workers, if there is one of this name."""
    from bionemo.webdatamodule.builtins.webloader.start_method import start_context

    start_context(given)
    return given


def _generator(argument: str, given: Any) -> Any:
    """Return a generator of torch."""
    import torch

    if not isinstance(given, torch.Generator):
        raise ConfigError(f"{argument} is a torch.Generator, not {given!r}")
    return given


_CHECKS: Mapping[str, Check] = {
    "num_workers": partial(whole_number, least=0),
    "pin_memory": flag,
    "prefetch_factor": optional(partial(whole_number, least=1)),
    "persistent_workers": flag,
    "timeout": optional(partial(number, least=0)),
    "multiprocessing_context": _start_method,
    "worker_init_fn": optional(function),
    "generator": optional(_generator),
    "in_order": flag,
}


@hookimpl
def webdatamodule_loaders() -> Iterable[Loader]:
    """Register the default loader."""
    yield Loader(name="webloader", summary="worker processes and shared memory", factory=WebLoader)
