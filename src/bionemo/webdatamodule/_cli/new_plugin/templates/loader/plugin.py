"""The loader ``$name``: replace torch's ``DataLoader`` by what you want to load with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from bionemo.webdatamodule import Loader, hookimpl
from bionemo.webdatamodule.components import Item, ItemDataset


@dataclass(frozen=True, kw_only=True)
class PlainLoader:
    """Loads with torch's own ``DataLoader``.

    The fields of the class are the options that users give: ``Use("$name", num_workers=2)``.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        num_workers: Worker processes; 0 reads in the main process.
    """

    num_workers: int = 0
    keeps_workers: ClassVar[bool] = False
    in_order: ClassVar[bool] = True

    def __call__(self, dataset: ItemDataset) -> Iterable[Item]:
        """Return an iterable of the dataset's items, as they are and in order; each pass over it is an epoch."""
        from torch.utils.data import DataLoader

        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers)  # type: ignore[arg-type]  # any iterable


@hookimpl
def webdatamodule_loaders() -> Iterable[Loader]:
    """Register the loader."""
    yield Loader(name="$name", summary="torch's own DataLoader", factory=PlainLoader)
