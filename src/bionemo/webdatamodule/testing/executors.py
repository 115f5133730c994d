"""What every executor has to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bionemo.webdatamodule.components import Executor
from bionemo.webdatamodule.errors import InputError
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject
from bionemo.webdatamodule.testing.conversion import MadeUpReader, convert_samples

_MIB = 1 << 20


class ExecutorConformance(ComponentConformance):
    """Checks of an executor.

    Attributes:
        timeout: Seconds that one small task may take, at most.
    """

    kind: ClassVar[type[Executor]] = Executor
    timeout: ClassVar[float] = 120

    @pytest.fixture
    def pool(self, subject: Subject) -> Iterator[futures.Executor]:
        """A running executor."""
        with subject.trying("entering its context", "make the factory return a context manager"):
            context = subject.make()
            pool = context.__enter__()  # so that a failure to enter is distinguished from one of the test
        try:
            yield pool
        finally:
            context.__exit__(None, None, None)

    def test_gives_a_standard_executor(self, subject: Subject, pool: futures.Executor) -> None:
        """What the context gives, and what it makes of a task, are those of ``concurrent.futures``."""
        if not isinstance(pool, futures.Executor):
            subject.wrong(
                f"its context gives a {type(pool).__name__}",
                "give a concurrent.futures.Executor, or a subclass that wraps yours",
            )
        future = pool.submit(_double, 21)
        if not isinstance(future, futures.Future):
            subject.wrong(
                f"submit() returns a {type(future).__name__}", "return a concurrent.futures.Future and set its result"
            )
        if (result := future.result(self.timeout)) != 42:
            subject.wrong(f"a task that returns 42 gives {result!r}", "set the result of the task's future")

    def test_runs_more_tasks_than_it_has_workers(self, subject: Subject, pool: futures.Executor) -> None:
        """Tasks queue up, each gives its own result, and ``wait`` and ``as_completed`` see all of them."""
        tasks = {pool.submit(_double, number): number for number in range(50)}
        done = futures.as_completed(tasks, timeout=self.timeout)
        with subject.trying("waiting for 50 tasks", "make every future done"):
            got = {tasks[future]: future.result() for future in done}
        if got != {number: 2 * number for number in range(50)}:
            subject.wrong(f"50 tasks give {len(got)} results, some of other tasks", "keep each task with its future")

    def test_map_keeps_the_order(self, subject: Subject, pool: futures.Executor) -> None:
        """``map`` gives results in the order of its arguments."""
        if (got := list(pool.map(_double, range(10), timeout=self.timeout))) != [2 * n for n in range(10)]:
            subject.wrong(f"map() of 0…9 doubled gives {got}", "leave map() as concurrent.futures has it")

    def test_exceptions_pass(self, subject: Subject, pool: futures.Executor) -> None:
        """What a task raises arrives as the same class, with its message and place."""
        future = pool.submit(_refuse, "sample-7")
        error = future.exception(self.timeout)
        if not isinstance(error, InputError) or error.where != {"key": "sample-7"}:
            subject.wrong(
                f"an InputError of sample-7 arrives as {error!r}", "hand exceptions to Future.set_exception as they are"
            )
        with subject.trying("the task after a failed one", "keep going after a task that raised"):
            pool.submit(_double, 1).result(self.timeout)

    def test_carries_large_values(self, subject: Subject, pool: futures.Executor) -> None:
        """Arguments and results of megabytes arrive whole."""
        data = bytes(range(256)) * (8 * _MIB // 256)
        with subject.trying("a task with 8 MiB", "set no limit on the size of messages"):
            got = pool.submit(_echo, data).result(self.timeout)
        if got != data:
            subject.wrong("8 MiB come back changed", "set no limit on the size of messages")

    def test_leaving_waits_for_tasks(self, subject: Subject) -> None:
        """After the ``with`` block no task is under way: its shards are there or its future says why not."""
        with subject.make() as pool:
            tasks = [pool.submit(_double, number) for number in range(8)]
        if waiting := sum(not task.done() for task in tasks):
            subject.wrong(f"{waiting} of 8 tasks are not done when its context is left", "shut down with wait=True")

    def test_can_be_entered_again(self, subject: Subject) -> None:
        """A data module makes one working object and enters it for each conversion."""
        context = subject.make()
        for _ in range(2):
            with (
                subject.trying(
                    "entering it twice, one after the other,", "make a new pool in __enter__ and close it in __exit__"
                ),
                context as pool,
            ):
                pool.submit(_double, 1).result(self.timeout)

    def test_leaving_by_an_error_lets_it_pass(self, subject: Subject) -> None:
        """An error inside the ``with`` block is not swallowed."""
        try:
            with subject.make() as pool:
                pool.submit(_double, 1)
                raise _LeftError  # noqa: TRY301 - that it passes the context is the test
        except _LeftError:
            return
        subject.wrong("its context swallows an error of the block", "return nothing from __exit__")

    def test_converts_to_the_same_bytes_as_serial(
        self, subject: Subject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """A conversion by this executor writes the same shards as one task after the other."""
        reader = MadeUpReader(n=40)
        digests = {}
        for name, executor in (("serial", "serial"), (self.name, subject.make())):
            directory = tmp_path_factory.mktemp("shards")
            with subject.trying(f"conversion by {name}", "correct the cause above"):
                shards = convert_samples(reader, reader.names(), str(directory), executor=executor, n_shards=5)
            digests[name] = [
                (Path(path).name, hashlib.sha256(Path(path).read_bytes()).hexdigest()) for path in shards.paths
            ]
        if digests["serial"] != digests[self.name]:
            subject.wrong("its shards are not those of 'serial'", "run each task once, with its own arguments")


class _LeftError(Exception):
    """What leaves a ``with`` block in a test."""


def _double(number: int) -> int:
    return 2 * number


def _echo(value: Any) -> Any:
    return value


def _refuse(key: str) -> None:
    raise InputError("this sample is bad", key=key)
