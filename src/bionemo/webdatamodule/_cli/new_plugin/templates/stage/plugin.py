"""The stage ``$name``: replace the multiplication by what you want to do to samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule import Stage, hookimpl


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Multiplies every sample, a number or an array, by a factor.

    The fields of the class are the options that users give: ``Use("$name", factor=2.0)``.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        factor: The factor.
    """

    factor: float = 1.0

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the new samples, one at a time."""
        for sample in samples:
            yield self.factor * sample


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stage."""
    yield Stage(name="$name", summary="multiply every sample", factory=Scale)
