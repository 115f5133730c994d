"""Lightning data modules over WebDataset tar shards, built from plugins.

Importing this package imports neither torch nor any plugin: public names are loaded when first used.

The files of this folder are the public interface. Where to make a change:

| change | place |
|---|---|
| the data modules' arguments | ``datamodule`` |
| which sample goes to which split | ``splits`` |
| what plugins register, and the protocols of their objects | ``components``, ``hookspecs`` |
| how plugins are found, checked, disabled and looked up | ``plugins`` |
| batches made from columns, without samples | ``columns`` |
| place, random numbers and worker of running code | ``context`` |
| epoch plans of planner stages | ``planning`` |
| what plugins share: checks of options, keys and suffixes, listing of folders | ``options``, ``names``, ``files`` |
| reading and writing pickles by hand | ``pickles`` |
| callbacks for a ``Trainer`` | ``callbacks`` |
| functions of bionemo-webdatamodule 1.0.0 | ``utils`` |
| errors and warnings | ``errors`` |
| a default stage, codec, loader, writer, key encoder, executor or store | ``builtins`` |
| bytes on disk: tars, indexes, manifests | ``_engine/format`` |
| URLs, downloads, caches, locks | ``_engine/storage`` |
| conversion: names to published shards | ``_engine/writing`` |
| decoding of samples, damage, skipping, verification | ``_engine/reading`` |
| the sample of each step and rank | ``_engine/sampling`` |
| datasets, loaders, epochs, resume | ``_engine/loading`` |
| a command | ``_cli`` |
| the conformance kit | ``testing`` |

``builtins`` and ``testing`` import only public modules, as plugins do; ``_engine`` imports nothing of ``builtins``.
A folder of ``_engine`` imports only folders above it in this table; ``sampling`` imports none.
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
