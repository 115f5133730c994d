"""What every loader has to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from torch.utils.data import IterableDataset, get_worker_info

from bionemo.webdatamodule.components import Loader
from bionemo.webdatamodule.plugins import build
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject

if TYPE_CHECKING:
    _Dataset = IterableDataset[Any]
else:
    _Dataset = IterableDataset


class Numbers(_Dataset):
    """A data set of the numbers below ``n``, each read by one worker, as our data sets are.

    Args:
        n: How many.
        broken: A number that raises :class:`BrokenItemError` instead.
    """

    def __init__(self, n: int, *, broken: int | None = None) -> None:
        self.n = n
        self.broken = broken

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, self.n, step):
            if number == self.broken:
                raise BrokenItemError(f"item {number} is broken")
            yield number


class BrokenItemError(RuntimeError):
    """What a broken data set raises in a test."""


class LoaderConformance(ComponentConformance):
    """Checks of a loader.

    Attributes:
        workers: Name of the option that sets the number of worker processes; ``None`` if there is none.
        items: How many items the data set of the checks has.
    """

    kind: ClassVar[type[Loader]] = Loader
    workers: ClassVar[str | None] = "num_workers"
    items: ClassVar[int] = 23

    @pytest.fixture(params=[0, 1, 2], ids=lambda count: f"workers={count}")
    def loader(self, request: pytest.FixtureRequest, subject: Subject, options: Mapping[str, Any]) -> Any:
        """The working object with 0, 1 and 2 workers."""
        chosen = {} if self.workers is None else {self.workers: request.param}
        return build(subject.registered.component, {**options, **chosen})

    def test_gives_every_item_once(self, subject: Subject, loader: Any) -> None:
        """Every item arrives once, whatever the number of workers, in each of two epochs."""
        batches = loader(Numbers(self.items))
        for epoch in ("first", "second"):
            got = self._numbers(subject, batches)
            if sorted(got) != list(range(self.items)):
                lost = sorted(set(range(self.items)) - set(got))
                twice = sorted({number for number in got if got.count(number) > 1})
                subject.wrong(
                    f"its {epoch} epoch loses the items {lost} and repeats {twice}",
                    "give the workers the data set as it is, since it deals its items itself; start anew each epoch",
                )

    def test_starts_anew_after_an_epoch_was_left(self, subject: Subject, loader: Any) -> None:
        """An epoch that is left early, as ``limit_train_batches`` does, leaves nothing behind for the next."""
        batches = loader(Numbers(self.items))
        with subject.trying("iterating", "make it an iterable of the data set's items"):
            list(itertools.islice(batches, 3))
        got = self._numbers(subject, batches)
        if sorted(got) != list(range(self.items)):
            subject.wrong(
                f"after an epoch that was left early the next has {len(got)} items of {self.items}",
                "make __iter__ start a new pass",
            )

    def test_errors_of_the_data_arrive(self, subject: Subject, loader: Any) -> None:
        """An error in a worker reaches the training loop with its message; items do not just end."""
        try:
            got = list(loader(Numbers(self.items, broken=5)))
        except Exception as error:  # noqa: BLE001 - any type will do, as long as it tells the cause
            if "item 5 is broken" not in f"{error} {error.__cause__}":
                subject.wrong(
                    f"an error while reading becomes {type(error).__name__}: {error}",
                    "keep the message of the cause",
                    error,
                )
            return
        subject.wrong(f"it swallows an error while reading and gives {len(got)} items", "let errors pass")

    def _numbers(self, subject: Subject, batches: Iterable[Any]) -> list[int]:
        with subject.trying("iterating", "make it an iterable of the data set's items"):
            got = list(batches)
        if wrong := [item for item in got if not isinstance(item, int)]:
            subject.wrong(
                f"an item arrives as {wrong[0]!r:.80}", "give items as they are; the data module's stages make batches"
            )
        return got
