"""Conversions without a data module."""

from typing import Any

from bionemo.webdatamodule._engine.writing import convert as engine
from bionemo.webdatamodule._engine.writing.conversion import Chosen, Conversion


def convert(
    *,
    reader: Any,
    key_encoder: Any,
    executor: Any,
    writer: str = "custom",
    options: Any = None,
    provider: Any = None,
    key_encoder_name: str = "custom",
    check: bool = False,
    progress: bool = False,
    **more: Any,
) -> Any:
    """Convert samples that a reader reads, and return the manifest of each split."""
    return engine.convert(
        Conversion(
            writer=Chosen(name=writer, options=options or {}, provider=provider or {}, object=reader),
            key_encoder=Chosen(name=key_encoder_name, object=key_encoder),
            executor=Chosen(name="custom", object=executor),
            **more,
        ),
        check=check,
        progress=progress,
    )
