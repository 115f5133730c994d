"""The codec ``$name``: replace the comma-separated numbers by the format that you want to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bionemo.webdatamodule import Codec, hookimpl
from bionemo.webdatamodule.errors import DecodeError


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Decodes numbers in decimal digits with a separator between them.

    The fields of the class are the options that users give: ``Use("$name", separator=";")``.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        separator: What stands between two numbers.
    """

    separator: str = ","

    def decode(self, view: memoryview) -> list[float]:
        """Return the value of a field. It owns its memory, since the view ends with the call.

        Raises:
            DecodeError: If the bytes are no such numbers; the core adds sample and shard.
        """
        try:
            return [float(word) for word in str(view, "utf-8").split(self.separator)]
        except ValueError as error:
            raise DecodeError(f"these are not numbers: {error}") from error

    def encode(self, value: list[float]) -> bytes:
        """Return the bytes of a value. Leave it out if your codec only reads."""
        return self.separator.join(map(repr, value)).encode()


@hookimpl
def webdatamodule_codecs() -> Iterable[Codec]:
    """Register the codec for the extension ``.$extension``."""
    yield Codec(name="$name", summary="comma-separated numbers", suffixes=("$extension",), factory=Numbers)
