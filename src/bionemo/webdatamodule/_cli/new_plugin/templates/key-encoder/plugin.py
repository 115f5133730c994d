"""The key encoder ``$name``: replace the hexadecimal digits by the keys that you want."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bionemo.webdatamodule import KeyEncoder, hookimpl


@dataclass(frozen=True, kw_only=True)
class Hexadecimal:
    """Makes a key of the name's bytes in hexadecimal, so any name will do and no two share a key.

    The fields of the class are the options that users give: ``Use("$name", prefix="id-")``.

    Args:
        prefix: What each key begins with. It must hold no dot.
    """

    prefix: str = ""

    def __call__(self, name: str) -> str:
        """Return the key of a sample's name."""
        return self.prefix + (name.encode("utf-8", "surrogatepass").hex() or "-")


@hookimpl
def webdatamodule_key_encoders() -> Iterable[KeyEncoder]:
    """Register the key encoder."""
    yield KeyEncoder(name="$name", summary="the name's bytes in hexadecimal", factory=Hexadecimal)
