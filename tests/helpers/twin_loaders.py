"""Loaders as a third party writes them, with nothing but the public files: of threads, and around the default one."""

import pickle
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from bionemo.webdatamodule import Loader, context, hookimpl
from bionemo.webdatamodule.components import Closable, Item, ItemDataset
from bionemo.webdatamodule.plugins import Plugins, build, find

_END = object()


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Read in threads of the main process.

    Args:
        num_workers: Threads; 0 reads where the items are asked for.
        ahead: Items that each thread prepares ahead.
    """

    num_workers: int = 0
    ahead: int = 2
    keeps_workers: ClassVar[bool] = False
    in_order: ClassVar[bool] = True

    def __call__(self, dataset: ItemDataset) -> Iterable[Item]:
        """Return an iterable of the dataset's items."""
        return _Threaded(dataset, self) if self.num_workers else dataset


class _Threaded:
    def __init__(self, dataset, options):
        self.dataset = dataset
        self.options = options

    def __iter__(self) -> Iterator[Item]:
        count = self.options.num_workers
        stop, queues = threading.Event(), [queue.Queue(self.options.ahead) for _ in range(count)]
        threads = [
            threading.Thread(target=_work, args=(number, count, pickle.dumps(self.dataset), queues[number], stop))
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            working = list(range(count))
            while working:
                for number in list(working):
                    item = queues[number].get()
                    if isinstance(item, Exception):
                        raise item
                    if item is _END:
                        working.remove(number)
                    else:
                        yield item
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _work(number, count, dataset, items, stop):
    with context.working(context.Worker(number=number, count=count)):
        try:
            for item in pickle.loads(dataset):  # a copy of its own
                if not _put(items, item, stop):
                    return
            _put(items, _END, stop)
        except Exception as error:  # noqa: BLE001 - raised where the items are taken
            _put(items, error, stop)


def _put(items, item, stop):
    while not stop.is_set():
        try:
            items.put(item, timeout=0.02)
        except queue.Full:
            continue
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The default loader, with a count of what passed.

    Args:
        num_workers: Worker processes.
        persistent: Keep them from one epoch to the next.
    """

    num_workers: int = 0
    persistent: bool = False
    in_order: ClassVar[bool] = True
    passed: ClassVar[list[int]] = []

    @property
    def keeps_workers(self) -> bool:
        """Whether workers live on after an iteration."""
        return self.persistent

    def __call__(self, dataset: ItemDataset) -> Iterable[Item]:
        """Return an iterable of the dataset's items."""
        options = {"num_workers": self.num_workers, "persistent_workers": self.persistent}
        return _Counting(build(find(Loader, "webloader"), options)(dataset), self.passed)


class _Counting:
    def __init__(self, items, passed):
        self.items = items
        self.passed = passed

    def __iter__(self) -> Iterator[Item]:
        source = iter(self.items)
        try:
            for item in source:
                self.passed.append(item.number)
                yield item
        finally:
            if isinstance(source, Closable):
                source.close()

    def close(self) -> None:
        if isinstance(self.items, Closable):
            self.items.close()


class TwinLoaders:
    """The plugin."""

    @hookimpl
    def webdatamodule_loaders(self) -> Iterable[Loader]:
        """Register both."""
        yield Loader(name="threads", summary="threads of the main process", factory=Threads)
        yield Loader(name="counted", summary="the default loader, counted", factory=Counted)


def plugins() -> Plugins:
    """Return the default plugins and the twins."""
    made = Plugins()
    made.register(TwinLoaders(), "twin-loaders", distribution="twins", version="1")
    return made
