"""The stage ``decode_image``: from the bytes of an image to an array; Pillow is imported when it runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bionemo.webdatamodule.errors import ConfigError, DecodeError

_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""Pillow's 8-bit modes that make an image, and their channels."""


@dataclass(frozen=True, kw_only=True)
class DecodeImage:
    """Decodes one image of each sample to ``uint8`` of the shape (height, width, channels).

    A sample that is bytes becomes the image; in a tuple, one value does and the others stay.
    As the codec of a suffix, ``codecs={"jpg": DecodeImage(...)}``, it decodes while samples are read, so that
    ``on_error="skip"`` skips bad images, which it does not for a stage.
    Images of 16 or 32 bits a channel are refused, since 8 bits would change them.
    Rotation notes of cameras (EXIF) are not followed.

    Args:
        field: Which value of a tuple is the image.
        mode: ``"L"`` for grey, ``"LA"``, ``"RGB"`` or ``"RGBA"``; images of other modes are converted.
        size: Height and width to scale to, with Pillow's bilinear filter; by default as they are.
        output: ``"numpy"`` for an array, ``"tensor"`` for a torch tensor.
        max_pixels: Larger images are refused before they are unpacked: a file of a few kB can hold
            billions of pixels. Pillow's own limit, ``PIL.Image.MAX_IMAGE_PIXELS``, holds besides.
        formats: Pillow's names of the formats to accept.

    Raises:
        ConfigError: If an option has a value that it does not take.
    """

    field: int = 0
    mode: Literal["L", "LA", "RGB", "RGBA"] = "RGB"
    size: tuple[int, int] | None = None
    output: Literal["numpy", "tensor"] = "numpy"
    max_pixels: int = 50_000_000
    formats: Sequence[str] = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"mode is one of {', '.join(_MODES)}, not {self.mode!r}")
        if self.output not in ("numpy", "tensor"):
            raise ConfigError(f"output is 'numpy' or 'tensor', not {self.output!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ConfigError(f"size is a height and a width, not {self.size!r}")

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the samples with their image decoded.

        Raises:
            DecodeError: If the bytes are not an image that these options accept.
        """
        for sample in samples:
            if isinstance(sample, tuple):
                image = self.decode(sample[self.field])
                yield (*sample[: self.field], image, *sample[self.field :][1:])
            else:
                yield self.decode(sample)

    def decode(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the pixels of one image.

        Raises:
            DecodeError: If the bytes are not an image that these options accept.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise DecodeError(
                f"decode_image takes the bytes of an image, not {type(data).__name__}; in tuples of several "
                "suffixes, give the image's position with field="
            )
        import numpy as np
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data), formats=tuple(self.formats)) as image:
                if image.width * image.height > self.max_pixels:
                    raise DecodeError(
                        f"an image of {image.width} x {image.height} pixels has more than max_pixels={self.max_pixels}"
                    )
                if image.mode.startswith(("I", "F")) or _is_deep(image):
                    raise DecodeError(f"an image of mode {image.mode!r} has more than 8 bits a channel")
                found = image.convert(self.mode) if image.mode != self.mode else image
                if self.size is not None:
                    height, width = self.size
                    found = found.resize((width, height), Image.Resampling.BILINEAR)
                pixels = np.array(found).reshape(found.height, found.width, _MODES[self.mode])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"these {len(data)} bytes are not a readable image: {error}") from error
        if self.output == "numpy":
            return pixels
        import torch

        return torch.from_numpy(pixels)


def _is_deep(image: Any) -> bool:
    """Whether a channel has more than 8 bits in the file, of which Pillow would drop the lower ones."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return False
    args = image.tile[0][3]
    raw = args if isinstance(args, str) else args[0]
    return any(bits in raw for bits in ("16", "32"))
