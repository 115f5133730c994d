"""The loader without worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.webloader import buffer_pool
from bionemo.webdatamodule.components import Item, ItemDataset


class InProcessLoader:
    """The loader without workers: the dataset itself, as torch's would cost 10 µs an item.

    Args:
        dataset: What to iterate.
        pin_memory: Copy tensors to page-locked memory where there is an accelerator.
    """

    def __init__(self, dataset: ItemDataset, *, pin_memory: bool) -> None:
        self.dataset = dataset
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[Item]:
        pin = self.pin_memory and torch.accelerator.is_available()
        for item in _reading(self.dataset):
            made = item
            if isinstance(item.values, Iterator):  # batches that are made when they are asked for
                made = replace(item, values=_reading(item.values))
            yield made.pin_memory() if pin else made


_MAIN = context.Worker(empty=buffer_pool.empty)


def _reading(source: Iterable[Any]) -> Iterator[Any]:
    """Yield what is made in the main process, in memory that is used again."""
    values = iter(source)
    while True:
        with context.working(_MAIN):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value
