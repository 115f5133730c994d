"""The hook of the plugin."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import hookimpl
from bionemo.webdatamodule.components import Store
from bionemo_webdatamodule_obstore.store import SCHEMES, ObstoreStore


@hookimpl
def webdatamodule_stores() -> Iterable[Store]:
    """Register the store."""
    yield Store(
        name="obstore",
        summary="S3, Google Cloud Storage, Azure and HTTP, through obstore",
        schemes=SCHEMES,
        factory=ObstoreStore,
    )
