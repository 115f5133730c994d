"""Errors of worker processes, as the main process raises them: whole, and with what the worker was doing."""

from __future__ import annotations

import itertools
import pickle
import signal
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from bionemo.webdatamodule.builtins.webloader.status import StatusTable, stacks
from bionemo.webdatamodule.errors import WebDataModuleError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_EXIT_WAIT = 1.0  # seconds that the kernel gets to finish with a process
_HINTS = {
    signal.SIGKILL: "most often the kernel or the container runs out of memory: take fewer num_workers, a smaller "
    "prefetch_factor or smaller batches, or give the job more memory",
    signal.SIGTERM: "the scheduler or the user stopped it",
    signal.SIGBUS: "a file it read was cut short, or a disk is full or failing",
    signal.SIGSEGV: "a compiled library crashed: try num_workers=0, and multiprocessing_context='spawn' if the "
    "library cannot be forked",
}

_NOT_BEGUN = (
    "its own error is in the log above; with spawn and forkserver a worker imports the main program again, so put what "
    'trains below `if __name__ == "__main__":` in a file, and the stages into a module; '
    "a program from stdin or a notebook cannot be imported"
)


class WorkerTraceback(Exception):  # noqa: N818 - it is the cause of an error, shown above it
    """The traceback of a worker process, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception on its way from a worker to the main process.

    Attributes:
        errors: The exception and its explicit causes, as far as they pickle.
        text: The traceback in the worker, with all causes.
    """

    errors: tuple[BaseException, ...]
    text: str

    @classmethod
    def of(cls, error: Exception, where: Mapping[str, object]) -> Failure:
        """Describe an exception that was caught in a worker.

        Args:
            error: The exception.
            where: Who and where, such as worker, rank and split, for messages.
        """
        if isinstance(error, WebDataModuleError):
            error.located(**where)
        place = ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)
        text = f"In {place}:\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
        errors = tuple(itertools.takewhile(_pickles, _causes(error)))
        if not errors:
            errors = (WorkerError(f"{type(error).__name__}: {error}; the cause is shown above", **where),)
        return cls(errors=errors, text=text.rstrip())

    def throw(self) -> NoReturn:
        """Raise the exception, in the main process, with its causes and at their end the worker's traceback."""
        for error, cause in itertools.pairwise((*self.errors, WorkerTraceback(self.text))):
            error.__cause__ = cause
        raise self.errors[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _pickles(error: BaseException) -> bool:
    # An exception whose __init__ takes other arguments than it passes on pickles well and fails to load.
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - a user's __reduce__ or __init__ may raise anything
        return False


def explained(
    error: RuntimeError, workers: Sequence[Any], table: StatusTable, awaited: int | None, where: Mapping[str, object]
) -> Exception:
    """Return a clear error for what torch's loader raises about dead and hung workers.

    Args:
        error: What torch raised.
        workers: The loader's processes.
        table: What they wrote.
        awaited: The worker whose data are next, if that is known.
        where: Rank and split, for the message.

    Returns:
        A :class:`WorkerError`, or the error itself if it is about something else.
    """
    if isinstance(error, WorkerError):  # its memory is gone already, and the process is about to be
        wait_for(lambda: any(worker.exitcode for worker in workers), _EXIT_WAIT)
    for number, worker in enumerate(workers):
        if worker.exitcode:
            return _dead(number, worker, table, where)
    if "timed out" in str(error):
        return _hung(workers, table, awaited, where)
    return error


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, or until a timeout.

    (The wait of :mod:`multiprocessing` ends when a process closes its files, which is before it has an exit code.)
    """
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


def _dead(number: int, worker: Any, table: StatusTable, where: Mapping[str, object]) -> WorkerError:
    doing = _doing(number, table)
    if worker.exitcode > 0 and not doing:
        how = f"ended with exit code {worker.exitcode} before it began: {_NOT_BEGUN}"
    elif worker.exitcode > 0:
        how = f"ended with exit code {worker.exitcode}: something called os._exit() or sys.exit() in a stage"
    else:
        killer = signal.Signals(-worker.exitcode)
        how = f"was killed by {killer.name}: {_HINTS.get(killer, 'see the log of the system')}"
    last = f"; at last it was {doing}" if doing else ""
    return WorkerError(f"a worker process {how}{last}", worker=number, pid=worker.pid, **where)


def _hung(workers: Sequence[Any], table: StatusTable, awaited: int | None, where: Mapping[str, object]) -> WorkerError:
    texts = []
    for number, worker in enumerate(workers):
        if worker.is_alive():
            doing = _doing(number, table) or "silent"
            lines = _own_frames(stacks(worker.pid, table.read(number)))
            texts.append(f"Worker {number} (pid {worker.pid}), {doing}:\n{lines}")
    doing = _doing(awaited, table) if awaited is not None else ""
    error = WorkerError(
        f"no data came from a worker process in time{', which was ' if doing else ''}{doing}; "
        "the stacks above show where the workers stand; "
        "if they are only slow, set a longer timeout in kwargs_wld, in seconds, or 0 to wait forever",
        worker=awaited,
        **where,
    )
    error.__cause__ = WorkerTraceback("\n\n".join(texts))
    return error


def _doing(number: int, table: StatusTable) -> str:
    note = table.read(number)
    return f"{note.text} for {note.seconds:.0f} s" if note.text else ""


def _own_frames(text: str) -> str:
    """Cut from each stack what starts every worker, and leave out the thread that sends data."""
    threads = []
    for thread in text.strip().split("\n\n"):
        lines = list(itertools.takewhile(lambda line: "_worker_loop" not in line, thread.splitlines()))
        if not any("queues.py" in line and line.endswith(" in _feed") for line in lines):
            threads.append("\n".join(lines))
    return "\n\n".join(threads)
