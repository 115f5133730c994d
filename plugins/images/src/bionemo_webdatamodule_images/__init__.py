"""Images for bionemo-webdatamodule: the writer ``images`` and the stage ``decode_image``."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import Stage, Writer, hookimpl
from bionemo_webdatamodule_images.decode import DecodeImage
from bionemo_webdatamodule_images.reader import ImageReader

__all__ = ["DecodeImage", "ImageReader", "webdatamodule_stages", "webdatamodule_writers"]


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="images", summary="image files, classes from their folders", factory=ImageReader)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stage."""
    yield Stage(name="decode_image", summary="bytes of an image to an array", factory=DecodeImage)
