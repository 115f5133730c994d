"""Parquet files for bionemo-webdatamodule: the writer ``parquet``, whose samples are rows."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import Writer, hookimpl
from bionemo_webdatamodule_parquet.reader import ParquetReader

__all__ = ["ParquetReader", "webdatamodule_writers"]


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="parquet", summary="rows of Parquet files, a field a column", factory=ParquetReader)
