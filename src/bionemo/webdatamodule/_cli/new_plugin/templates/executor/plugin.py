"""The executor ``$name``: replace the threads by the engine that you want to convert on."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent import futures
from types import TracebackType

from bionemo.webdatamodule import Executor, hookimpl


class Threads:
    """Runs the tasks of a conversion in threads of this process.

    The arguments are the options that users give: ``Use("$name", workers=2)``.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        workers: How many threads.
    """

    def __init__(self, *, workers: int = 4) -> None:
        self.workers = workers
        self._pool: futures.ThreadPoolExecutor | None = None

    def __enter__(self) -> futures.Executor:
        """Start the engine; the object itself stays light, so that it pickles and can be entered again."""
        self._pool = futures.ThreadPoolExecutor(self.workers)
        return self._pool

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the tasks under way, and drop the others if the block was left by an error."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
            self._pool = None


@hookimpl
def webdatamodule_executors() -> Iterable[Executor]:
    """Register the executor."""
    yield Executor(name="$name", summary="threads of this process", factory=Threads)
