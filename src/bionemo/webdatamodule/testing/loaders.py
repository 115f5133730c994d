"""What every loader has to do."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch.utils.data import IterableDataset

from bionemo.webdatamodule import context
from bionemo.webdatamodule.components import Closable, Item, ItemLoader, Loader
from bionemo.webdatamodule.errors import count
from bionemo.webdatamodule.plugins import build
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject

if TYPE_CHECKING:
    _Dataset = IterableDataset[Any]
else:
    _Dataset = IterableDataset

_WAIT = 10.0  # seconds that workers get to end


class Numbers(_Dataset):
    """A dataset of items that hold the numbers below ``n``, dealt to workers as those of a data module are.

    Args:
        n: How many.
        broken: A number that raises :class:`BrokenItemError` instead.
    """

    where: ClassVar[Mapping[str, object]] = {"split": "train", "rank": 0}

    def __init__(self, n: int, *, broken: int | None = None) -> None:
        self.n = n
        self.broken = broken
        # What changes from one iteration to the next is seen by workers that live on.
        self._place = torch.zeros(2, dtype=torch.int64).share_memory_()

    def seek(self, epoch: int, start: int) -> None:
        """Begin the next iteration at a number of an epoch."""
        self._place[0], self._place[1] = epoch, start

    def __iter__(self) -> Iterator[Item]:
        epoch, start = self._place.tolist()
        worker = context.worker()
        for number in range(start + worker.number, self.n, max(1, worker.count)):
            if number == self.broken:
                raise BrokenItemError(f"item {number} is broken")
            values = [(number, worker.count)]
            place = {"epoch": epoch, "start": start, "worker": worker.number, "number": number - start}
            yield Item(**place, values=values, delivered=[number])


class BrokenItemError(RuntimeError):
    """What a broken data set raises in a test."""


class LoaderConformance(ComponentConformance):
    """Checks of a loader.

    Attributes:
        workers: Name of the option that sets the number of workers; ``None`` if there is none.
        keeping: Options with which the loader keeps its workers; ``None`` if it never does.
        items: How many items the dataset of the checks has.
    """

    kind: ClassVar[type[Loader]] = Loader
    workers: ClassVar[str | None] = "num_workers"
    keeping: ClassVar[Mapping[str, Any] | None] = None
    items: ClassVar[int] = 23

    @pytest.fixture(params=[0, 1, 2], ids=lambda count: f"workers={count}")
    def count(self, request: pytest.FixtureRequest) -> int:
        """The number of workers that is asked for."""
        return int(request.param)

    @pytest.fixture
    def loader(self, subject: Subject, count: int, options: Mapping[str, Any]) -> Any:
        """The working object with 0, 1 and 2 workers."""
        chosen = {} if self.workers is None else {self.workers: count}
        return build(subject.registered.component, {**options, **chosen})

    def test_says_how_many_workers_it_has(self, subject: Subject, loader: Any, count: int) -> None:
        """``num_workers`` is the number of workers that the dataset is dealt to."""
        wanted = 0 if self.workers is None else count
        if isinstance(loader, ItemLoader) and loader.num_workers != wanted:
            subject.wrong(f"num_workers is {loader.num_workers} where {wanted} are asked for", "return the option")
        with self._closing(loader(Numbers(self.items))) as items:
            self._deals(subject, items, wanted)

    def test_gives_every_item_once_and_in_order(self, subject: Subject, loader: Any) -> None:
        """Every item arrives once and in the order of its number, in each of two epochs."""
        dataset = Numbers(self.items)
        with self._closing(loader(dataset)) as items:
            for epoch in range(2):
                dataset.seek(epoch, 0)
                self._compare(subject, self._taken(subject, items), epoch, 0)

    def test_goes_on_in_the_middle(self, subject: Subject, loader: Any) -> None:
        """After an iteration that was left early, the next begins where the dataset says, and loses nothing."""
        dataset = Numbers(self.items)
        with self._closing(loader(dataset)) as items:
            self._begin(subject, items, 3)
            dataset.seek(1, 5)
            self._compare(subject, self._taken(subject, items), 1, 5)
            dataset.seek(2, 0)
            self._compare(subject, self._taken(subject, items), 2, 0)

    def test_frees_its_workers(self, subject: Subject, loader: Any) -> None:
        """An iteration that is closed early leaves no process and no thread."""
        before = _alive()
        with self._closing(loader(Numbers(self.items))) as items:
            self._begin(subject, items, 3)
            if not getattr(loader, "keeps_workers", False):
                self._wait(subject, before, "close() of its iterator")
        self._wait(subject, before, "close() of what it returned")

    def test_keeps_its_workers(self, subject: Subject, options: Mapping[str, Any]) -> None:
        """Where it keeps workers it says so, later epochs are right, and ``close()`` ends the workers."""
        if self.keeping is None:
            if isinstance(made := subject.make(), ItemLoader) and made.keeps_workers:
                subject.wrong("keeps_workers is true by default", "set 'keeping' in its test, so that this is tested")
            return
        loader = build(subject.registered.component, {**options, **self.keeping})
        if not (isinstance(loader, ItemLoader) and loader.keeps_workers):
            subject.wrong(
                f"keeps_workers is not true with {dict(self.keeping)}",
                "the data module must know, so that these workers see where later epochs begin",
            )
        self.test_goes_on_in_the_middle(subject, loader)
        self.test_frees_its_workers(subject, loader)

    def test_errors_of_the_data_arrive(self, subject: Subject, loader: Any) -> None:
        """An error in a worker reaches the training loop with its message, behind the items before it."""
        got: list[Item] = []
        with self._closing(loader(Numbers(self.items, broken=5))) as items:
            try:
                got.extend(items)
            except Exception as error:  # noqa: BLE001 - any type will do, as long as it has the cause
                if "item 5 is broken" not in f"{error} {error.__cause__}":
                    subject.wrong(
                        f"an error while reading becomes {type(error).__name__}: {error}",
                        "keep the message of the cause",
                        error,
                    )
                return
        subject.wrong(f"it swallows an error while reading and gives {count(len(got), 'item')}", "let errors pass")

    def _deals(self, subject: Subject, items: Iterable[Item], wanted: int) -> None:
        for item in self._taken(subject, items):
            ((_, workers),) = item.values
            if workers != wanted:
                subject.wrong(
                    f"the dataset is iterated by {count(workers, 'worker')} where num_workers says {wanted}",
                    "say which worker it is with context.working or context.join, and define num_workers",
                )

    def _begin(self, subject: Subject, items: Iterable[Item], count: int) -> None:
        with subject.trying("iterating", "make it an iterable of the dataset's items"):
            iterator = iter(items)
            list(itertools.islice(iterator, count))
            if isinstance(iterator, Closable):
                iterator.close()

    def _taken(self, subject: Subject, items: Iterable[Item]) -> list[Item]:
        with subject.trying("iterating", "make it an iterable of the dataset's items"):
            got = list(items)
        if wrong := [item for item in got if not isinstance(item, Item)]:
            subject.wrong(
                f"an item arrives as {wrong[0]!r:.80}", "give items as they are; the data module's stages make batches"
            )
        return got

    def _compare(self, subject: Subject, got: list[Item], epoch: int, start: int) -> None:
        what = f"iterating epoch {epoch} from {start} on, it "
        if stale := [item for item in got if (item.epoch, item.start) != (epoch, start)]:
            subject.wrong(
                f"{what}passes on an item of epoch {stale[0].epoch} from {stale[0].start} on",
                "iterate the dataset again each time; if workers live on, define keeps_workers",
            )
        numbers = [item.number for item in got]
        expected = list(range(self.items - start))
        if sorted(numbers) != expected:
            lost = sorted(set(expected) - set(numbers))
            twice = sorted({number for number in numbers if numbers.count(number) > 1})
            subject.wrong(
                f"{what}loses the items {lost} and repeats {twice}",
                "give every worker the dataset as it is, since it deals its items itself; pass on all of them",
            )
        if numbers != expected:
            late = next(number for number, due in zip(numbers, expected, strict=True) if number != due)
            subject.wrong(
                f"{what}passes on item {late} in the place of item {expected[numbers.index(late)]}",
                "take an item of each worker in turn",
            )
        if values := [item for item in got if [value for value, _ in item.values] != [item.number + start]]:
            subject.wrong(f"{what}changes item {values[0].number}", "pass on items as they are")
        if bare := [item for item in got if list(item.delivered) != [item.number + start]]:
            subject.wrong(
                f"{what}passes on item {bare[0].number} with delivered={bare[0].delivered!r:.40}",
                "make a changed item by dataclasses.replace(item, values=…)",
            )

    @contextlib.contextmanager
    def _closing(self, items: Any) -> Iterator[Any]:
        try:
            yield items
        finally:
            if isinstance(items, Closable):
                items.close()

    def _wait(self, subject: Subject, before: set[object], closed: str) -> None:
        deadline = time.monotonic() + _WAIT
        while left := _alive() - before:
            if time.monotonic() > deadline:
                subject.wrong(
                    f"after {closed} it leaves {', '.join(sorted(map(str, left)))}",
                    "end workers in close(); a generator does it in 'finally'",
                )
            time.sleep(0.01)


def _alive() -> set[object]:
    """Return the processes and threads that this process started and that are alive."""
    return {*multiprocessing.active_children(), *threading.enumerate()}
