"""Items of a loader: what it gets to iterate, and what it passes on, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.data import IterableDataset

from bionemo.webdatamodule._engine.allocator import keep_freed_memory
from bionemo.webdatamodule._engine.stages import add_note, describe
from bionemo.webdatamodule.components import Closable, Item, ItemLoader
from bionemo.webdatamodule.errors import ConfigError, PluginError, UsageError, WebDataModuleError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.loading.dataset import Position
    from bionemo.webdatamodule._engine.ranks import Topology
    from bionemo.webdatamodule.components import ItemDataset, LoaderFunction

_ATTRIBUTES = ("num_workers", "keeps_workers", "in_order")


class ItemSource(Protocol):
    """A dataset that gives its samples in items."""

    split: str
    topology: Topology
    position: Position

    def items(self) -> Iterator[Item]:
        """Yield this worker's items of the epoch."""
        ...


class Items(IterableDataset):  # type: ignore[type-arg]  # torch's class is generic in its stub alone
    """The view of a dataset that a loader gets: its items, whatever they hold."""

    def __init__(self, dataset: ItemSource) -> None:
        super().__init__()
        self.dataset = dataset

    @property
    def where(self) -> dict[str, object]:
        """Split and rank, for the errors of workers."""
        return {"split": self.dataset.split, "rank": self.dataset.topology.rank}

    def __iter__(self) -> Iterator[Item]:
        keep_freed_memory()  # of the process that reads, a worker or not
        return self.dataset.items()


@dataclass(frozen=True, kw_only=True)
class InMainProcess:
    """A plain function as a loader: it is taken to have no workers.

    Args:
        function: Returns an iterable of a dataset's items.
    """

    function: LoaderFunction
    num_workers: int = 0
    keeps_workers: bool = False
    in_order: bool = True

    def __call__(self, dataset: ItemDataset, /) -> Iterable[Item]:
        """Call the function."""
        return self.function(dataset)


def as_loader(function: LoaderFunction, name: str = "") -> ItemLoader:
    """Return a loader that can be asked for its workers.

    Args:
        function: A loader, or a function that has none of a loader's attributes.
        name: Its name, for the message.

    Raises:
        ConfigError: If it has some of them.
    """
    if isinstance(function, ItemLoader):
        return function
    if found := [attribute for attribute in _ATTRIBUTES if hasattr(function, attribute)]:
        missing = [attribute for attribute in _ATTRIBUTES if attribute not in found]
        raise ConfigError(
            f"the loader {name or describe(function)} has {' and '.join(found)} and no {' or '.join(missing)}; "
            f"give it {', '.join(_ATTRIBUTES)}, or none of them if it has no workers"
        )
    return InMainProcess(function=function)


class LoaderItems:
    """The items of a dataset that come out of a loader.

    Args:
        dataset: The dataset. No other loader may have it.
        loader: The loader.
        name: What the loader is called, for messages.
        plugin: Plugin and distribution that it is of, for errors; empty for a default loader and for an object.

    Raises:
        PluginError: If the loader raises an error of its own.
        UsageError: If it returns no iterable.
    """

    def __init__(
        self, dataset: ItemSource, loader: LoaderFunction, name: str = "", plugin: Mapping[str, str] | None = None
    ) -> None:
        self.name = name or describe(loader)
        self._dataset = dataset
        self._plugin = dict(plugin or {})
        self._where = {**self._plugin, **Items(dataset).where}
        function = as_loader(loader, self.name)
        try:
            self._items = function(Items(dataset))
        except Exception as error:
            if _is_explained(error):  # an error of the dataset, which the loader iterates already
                raise
            raise PluginError(
                f"the loader {self.name} fails with {type(error).__name__}: {error}; correct it, or use the loader "
                "'webloader'",
                **self._where,
            ) from error
        if not isinstance(self._items, Iterable):
            raise UsageError(
                f"the loader {self.name} returned {self._items!r:.60}, not an iterable of items; "
                "return an object with __iter__ that passes on the dataset's items",
                **self._where,
            )
        self._keeps_workers = function.keeps_workers
        self._latest: object = None  # the iteration that began last
        if function.keeps_workers:
            dataset.position.share()

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Add the loader of a plugin to an exception. It keeps its type, since it may be one of the user's stage."""
        try:
            yield
        except Exception as error:
            if self._plugin and not _is_explained(error):
                place = ", ".join(f"{name}={value}" for name, value in self._where.items())
                add_note(error, f"raised while the loader {self.name} was iterated ({place})")
            raise

    def begin(self, epoch: int, start: int) -> Generator[Item]:
        """Yield the items from a place on. When the generator is closed, so is the loader's iterator.

        Args:
            epoch: Number of the epoch.
            start: Samples of the epoch that were consumed before, or in shards order the passes.

        Raises:
            UsageError: If the loader passes on something else.
        """
        keep_freed_memory()  # of the process that takes the batches
        self._dataset.position.set(epoch, start)
        with self._noted():
            source = iter(self._items)
            try:
                for item in self._while_latest(source):
                    if not isinstance(item, Item):
                        raise UsageError(
                            f"the loader {self.name} passed on {item!r:.60}; pass on the dataset's items as they are",
                            **self._where,
                        )
                    if (item.epoch, item.start) != (epoch, start):
                        raise UsageError(
                            f"the loader {self.name} passed on an item of epoch {item.epoch} from {item.start} on, "
                            f"and epoch {epoch} from {start} on is due; it iterates the dataset once and must do so "
                            "for each epoch, or its workers live on after an iteration: it must have "
                            "keeps_workers = True then",
                            **self._where,
                        )
                    yield item
            finally:
                if isinstance(source, Closable):
                    source.close()

    def _while_latest(self, source: Iterator[Item]) -> Iterator[Item]:
        """Yield items until another iteration takes over the workers that are kept."""
        this = self._latest = object()
        for item in source:
            yield item
            if self._keeps_workers and self._latest is not this:
                raise UsageError(
                    "another iteration of this loader began, and its workers, which it keeps, serve that one; end one "
                    "iteration before the next, leave persistent_workers out of kwargs_wld, or make two loaders",
                    **self._where,
                )

    def check(self, item: Item, due: int, *, of: str = "") -> None:
        """Check the number of an item.

        Args:
            item: The item.
            due: The number that is due.
            of: Whose number it is, for the message.

        Raises:
            UsageError: If it is another.
        """
        if item.number != due:
            raise self.out_of_turn(
                f"passed on item {item.number}{of} where item {due} is due, "
                + ("which was passed on before" if item.number < due else "which is lost or comes later")
            )

    def delivered(self, item: Item, number: int) -> Any:
        """Return what says which samples a value of an item was made of.

        Raises:
            UsageError: If the loader passed on the item without it.
        """
        if number >= len(item.delivered):
            raise UsageError(
                f"the loader {self.name} passed on item {item.number} without what the dataset put into "
                "Item.delivered; pass items on as they are, or change them by dataclasses.replace(item, values=…)",
                **self._where,
            )
        return item.delivered[number]

    def out_of_turn(self, what: str) -> UsageError:
        """Return the error of a loader that loses, repeats or reorders items."""
        return UsageError(
            f"the loader {self.name} {what}; it must pass on every item once, in the order of Item.number: take the "
            "items of each worker in turn, or use the loader 'webloader'",
            **self._where,
        )

    def close(self) -> None:
        """End the workers that the loader keeps."""
        if isinstance(self._items, Closable):
            with self._noted():
                self._items.close()


def _is_explained(error: Exception) -> bool:
    """Return whether an exception says where it is from, as those of this package and of stages do."""
    return isinstance(error, WebDataModuleError) or hasattr(error, "__notes__")
