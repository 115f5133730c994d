"""Runs the tasks of a conversion on an executor, shows how far they are, and gathers what went wrong."""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tqdm import tqdm

from bionemo.webdatamodule._engine.writing.checks import input_error
from bionemo.webdatamodule._engine.writing.conversion import Chosen, executor_context
from bionemo.webdatamodule._engine.writing.recipe import Inputs
from bionemo.webdatamodule._engine.writing.staging import Staged, progress_path
from bionemo.webdatamodule._engine.writing.tasks import Result, ShardTask
from bionemo.webdatamodule.errors import ConfigError, ConversionError, PluginError, WebDataModuleError

_REFRESH = 0.5  # seconds between two updates of the progress bar
_FEW = 5_000  # samples from which on processes pay for their start, however small these are
_LOOKED_AT = 2_000  # samples that a task looks at, so that there are few tasks where shards are small
_PROBES = 5  # samples that are tried where there are fewer
_SHORT = 0.1  # seconds of work below which one more process would cost more than it saves
_SAMPLE, _BYTE = 15e-6, 1.5e-9  # seconds that it takes to write a sample, and each of its bytes
_AT_ONCE = 256  # tasks that may be under way, which are the first that have not finished


class Workers:
    """The executor of a conversion, which is entered when there is something to do.

    Args:
        executor: As the user chose it.
        entered: Leaves it.
        n_shards: How many shards it may have to write, as far as that is known before.

    Attributes:
        executor: As the user chose it.
    """

    def __init__(self, executor: Chosen, entered: ExitStack, n_shards: int = 0) -> None:
        self.executor = executor
        self._n_shards = n_shards
        self._entered = entered.enter_context(ExitStack())
        self._pool: futures.Executor | None = None
        self._size = 0.0  # tasks at a time that it was started for

    def start(self, worth: Callable[[], int]) -> futures.Executor:
        """Return the executor, after entering it if it is not, or if it is too small.

        Args:
            worth: Says how many tasks it is worth running at a time.

        Raises:
            ConfigError: If it is none.
            PluginError: If it cannot start.
        """
        if self._pool is not None and self._size < math.inf and self._size < worth():
            self._entered.close()
            self._pool = None
        if self._pool is None:
            executor = executor_context(self.executor.object)
            sized = getattr(executor, "for_tasks", None)
            self._size = worth() if callable(sized) else math.inf
            self._pool = _enter(executor, self._entered, self._size, self.executor)
        return self._pool

    def look(self, inputs: Inputs, parts: Sequence[Sequence[str]]) -> Iterator[tuple[str, list[str]]]:
        """Yield what the recipe says of each part of the samples, which tasks of the executor ask where that pays.

        Args:
            inputs: The recipe's method.
            parts: The names of each shard.

        Raises:
            ConfigError, PluginError: As :meth:`start`, and as ``inputs``.
        """
        done = 0
        n_samples = sum(map(len, parts))
        if len(parts) > 1 and n_samples >= _FEW:
            pool = self.start(lambda: max(self._n_shards, len(parts)))
            size = max(1, _LOOKED_AT * len(parts) // n_samples)
            with contextlib.suppress(Exception):  # whatever it is shows again below, or when the tasks run
                for found in _looked(pool, inputs, [parts[n : n + size] for n in range(0, len(parts), size)]):
                    yield from found
                    done += len(found)
        yield from map(inputs, parts[done:])


def _looked(
    pool: futures.Executor, inputs: Inputs, groups: Sequence[Sequence[Sequence[str]]]
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield what the recipe says of the parts in each group."""
    waiting: deque[futures.Future[Any]] = deque()
    answered = 0
    try:
        for group in groups:
            waiting.append(pool.submit(_each, inputs, group))
            while waiting and waiting[0].done():  # at once, in an executor that does each in this thread
                yield _sound(waiting.popleft().result(), groups[answered])
                answered += 1
        while waiting:
            yield _sound(waiting[0].result(), groups[answered])
            waiting.popleft()
            answered += 1
    finally:
        for future in waiting:
            future.cancel()


def _each(inputs: Inputs, parts: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    return [inputs(part) for part in parts]


def _sound(found: Any, parts: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Return what a task returned, if it can be that of :func:`_each`."""
    if not isinstance(found, list) or len(found) != len(parts):
        raise TypeError
    return [(digest, list(missing)) for digest, missing in found]


def run_tasks(
    tasks: Sequence[ShardTask],
    workers: Workers,
    *,
    progress: bool,
    staged: Callable[[ShardTask], None],
) -> list[Staged]:
    """Run all tasks and return their shards, in the order of the tasks.

    Args:
        tasks: One for each shard.
        workers: Give the executor.
        progress: Whether to show a progress bar on standard error.
        staged: Is called in any thread when a task has staged its shard.

    Raises:
        InputError: If samples are bad. All tasks run to their end before, so that all problems are known.
        ConversionError: If a shard could not be made.
        ConfigError: If a task cannot be pickled for the executor.
        PluginError: If the writer broke its contract.
    """
    if not tasks:
        return []
    n_samples = sum(len(task.names) for task in tasks)
    with tqdm(total=n_samples, unit=" samples", desc="converting", disable=not progress, leave=False) as bar:
        pool = workers.start(lambda: _worth(tasks))
        running: dict[futures.Future[Result], ShardTask] = {}
        try:
            for task in tasks:
                future = _submit(pool, task, workers.executor)
                running[future] = task
                future.add_done_callback(partial(_report, task, staged))
                if future.done():  # in an executor that does each in this thread
                    bar.update(len(task.names))
                    if not future.cancelled() and future.exception() is not None:
                        break
            _watch(running, bar, workers.executor)
        except BaseException:
            for future in running:
                future.cancel()
            raise
        results = [_result(future, workers.executor) for future in running]
    problems = [problem for result in results for problem in result.problems]
    if problems:
        raise input_error(problems, sum(result.n_problems for result in results))
    return [result.staged for result in results if result.staged is not None]


def _enter(executor: Any, entered: ExitStack, size: float, chosen: Chosen) -> futures.Executor:
    """Enter an executor, for so many tasks at a time where that is a whole number."""
    own = ExitStack()
    try:
        pool: futures.Executor = own.enter_context(executor if size == math.inf else executor.for_tasks(size))
    except WebDataModuleError:
        raise
    except Exception as error:
        raise _breach(chosen, f"cannot start: {type(error).__name__}: {error}") from error
    entered.push(partial(_leave, own, chosen))
    if not callable(getattr(pool, "submit", None)):
        raise _breach(chosen, f"gives {type(pool).__name__}, which is not a concurrent.futures.Executor")
    return pool


def _leave(own: ExitStack, chosen: Chosen, kind: Any, raised: BaseException | None, trace: Any) -> bool | None:
    """Leave an executor, which may raise again what was raised within it."""
    try:
        return own.__exit__(kind, raised, trace)
    except WebDataModuleError:
        raise
    except Exception as error:
        if error is raised:
            raise
        raise _breach(chosen, f"cannot end: {type(error).__name__}: {error}") from error


def _breach(chosen: Chosen, what: str) -> PluginError:
    return PluginError(f"the executor {chosen.title} {what}", **chosen.where)


def _worth(tasks: Sequence[ShardTask]) -> int:
    """Return how many tasks it is worth running at a time, by the time that a few samples take."""
    n_samples = sum(len(task.names) for task in tasks)
    if len(tasks) == 1 or n_samples >= _FEW:
        return len(tasks)
    return max(1, min(len(tasks), int(n_samples * _seconds(tasks) / _SHORT + 0.5)))


def _seconds(tasks: Sequence[ShardTask]) -> float:
    """Return about how long one sample takes; much where that cannot be said, since the tasks say what is wrong."""
    recipe = tasks[0].recipe
    names = list(itertools.islice(itertools.chain.from_iterable(task.names for task in tasks), _PROBES))
    took, began = [], math.inf  # the first sample takes longer, as modules are imported
    with contextlib.suppress(Exception, SystemExit):
        for _, files in recipe.reader(names):
            for suffix, data in files.items():
                recode = recipe.recode(suffix)
                if recode is not None:
                    recode(data)
            now = time.perf_counter()
            if began < now:
                took.append(now - began + _SAMPLE + _BYTE * sum(map(len, files.values())))
            if sum(took) > _SHORT:
                break
            began = now
    return statistics.median(took) if took else _SHORT


def _watch(running: dict[futures.Future[Result], ShardTask], bar: tqdm[Any], chosen: Chosen) -> None:
    """Wait for all tasks, raising the first error that stops the conversion."""
    finished: SimpleQueue[futures.Future[Result]] = SimpleQueue()  # wait() would look at all of them every time
    waiting, done, shown = dict(running), 0, 0.0
    for future in running:
        future.add_done_callback(finished.put)
    while waiting:
        with contextlib.suppress(Empty):
            future = finished.get(timeout=_REFRESH)
            done += len(waiting.pop(future).names)
            if future.cancelled():
                raise ConversionError(
                    f"the executor {chosen.title} cancelled a shard; run it again, finished shards are kept",
                    **chosen.where,
                )
            error = future.exception()
            if isinstance(error, WebDataModuleError):
                raise error
            if error is not None:
                raise _failure(error, running[future], chosen, "a shard could not be made on") from error
        if not waiting or (not bar.disable and time.monotonic() > shown + _REFRESH):
            shown = time.monotonic()
            noted = sum(map(_noted, itertools.islice(waiting.values(), _AT_ONCE)))
            bar.update(max(0, done + noted - bar.n))


def _submit(pool: futures.Executor, task: ShardTask, chosen: Chosen) -> futures.Future[Result]:
    try:
        future = pool.submit(task)
    except Exception as error:
        raise _failure(error, task, chosen, "a shard could not be given to") from error
    if not isinstance(future, futures.Future):
        raise _breach(chosen, f"gives {type(future).__name__} for a task, which is not a Future")
    return future


def _report(task: ShardTask, staged: Callable[[ShardTask], None], future: futures.Future[Result]) -> None:
    if not future.cancelled() and future.exception() is None and getattr(future.result(), "staged", None) is not None:
        staged(task)


def _result(future: futures.Future[Result], chosen: Chosen) -> Result:
    result = future.result()
    if not isinstance(result, Result):
        raise _breach(chosen, f"gives {type(result).__name__} as the result of a task, not what it returned")
    return result


def _failure(error: BaseException, task: ShardTask, chosen: Chosen, what: str) -> WebDataModuleError:
    """Return the error for a task that failed, or was not taken by the executor."""
    if isinstance(error, WebDataModuleError):
        return error
    if isinstance(error, futures.BrokenExecutor):
        return ConversionError(
            f"a process that made shards died, perhaps for lack of memory ({error}); "
            "run it again with fewer workers, finished shards are kept",
            **chosen.where,
        )
    for kind, part in (("writer", task.recipe.reader), ("key encoder", task.recipe.encode)):
        reason = _why_unpicklable(part)
        if reason:
            return ConfigError(
                f"the {kind} {part!r} cannot be sent to another process ({reason}); "
                "make it of module-level functions and classes, or use executor='serial'"
            )
    return ConversionError(
        f"{what} the executor {chosen.title}: {type(error).__name__}: {error}; "
        "correct this and run it again, finished shards are kept",
        **chosen.where,
    )


def _why_unpicklable(value: object) -> str | None:
    try:
        pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - pickling runs the object's own code
        return f"{type(error).__name__}: {error}"
    return None


def _noted(task: ShardTask) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(progress_path(task.staging, task.inputs)).read_text())
    return 0
