"""Single-cell data in h5ad files for bionemo-webdatamodule: the writer ``h5ad`` and the stage ``densify``."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import Stage, Writer, hookimpl
from bionemo_webdatamodule_h5ad.densify import Densify
from bionemo_webdatamodule_h5ad.reader import H5adReader

__all__ = ["Densify", "H5adReader", "webdatamodule_stages", "webdatamodule_writers"]


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="h5ad", summary="cells of an h5ad file, sparse or dense", factory=H5adReader)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stage."""
    yield Stage(name="densify", summary="sparse vectors become dense ones", factory=Densify)
