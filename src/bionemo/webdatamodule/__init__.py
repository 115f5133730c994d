"""Lightning data modules over WebDataset tar shards, built from plugins.

Importing this package imports neither torch nor any plugin: public names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bionemo.webdatamodule.callbacks import DataWaitMonitor as DataWaitMonitor
    from bionemo.webdatamodule.components import Codec as Codec
    from bionemo.webdatamodule.components import Executor as Executor
    from bionemo.webdatamodule.components import KeyEncoder as KeyEncoder
    from bionemo.webdatamodule.components import Loader as Loader
    from bionemo.webdatamodule.components import Sample as Sample
    from bionemo.webdatamodule.components import Stage as Stage
    from bionemo.webdatamodule.components import Store as Store
    from bionemo.webdatamodule.components import Use as Use
    from bionemo.webdatamodule.components import Writer as Writer
    from bionemo.webdatamodule.datamodule import PickledDataWDS as PickledDataWDS
    from bionemo.webdatamodule.datamodule import SourceDataWDS as SourceDataWDS
    from bionemo.webdatamodule.datamodule import WebDataModule as WebDataModule
    from bionemo.webdatamodule.hookspecs import hookimpl as hookimpl
    from bionemo.webdatamodule.splits import Split as Split

_MODULES = {
    "Codec": "components",
    "DataWaitMonitor": "callbacks",
    "Executor": "components",
    "KeyEncoder": "components",
    "Loader": "components",
    "PickledDataWDS": "datamodule",
    "Sample": "components",
    "SourceDataWDS": "datamodule",
    "Split": "splits",
    "Stage": "components",
    "Store": "components",
    "Use": "components",
    "WebDataModule": "datamodule",
    "Writer": "components",
    "hookimpl": "hookspecs",
}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - a list of strings, kept in one place


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("bionemo-webdatamodule")
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
