"""The smallest plugin: a writer that reads the lines of a text file, and a stage that changes text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bionemo.webdatamodule import Sample, Stage, Writer, hookimpl
from bionemo.webdatamodule.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LineReader:
    """Reads the lines of a text file; each is a sample with the field ``txt``.

    Args:
        path: The file, in UTF-8. Lines are named by their number, ``line-1`` first.
    """

    path: str

    def names(self) -> Sequence[str]:
        """Return the name of every line."""
        return list(self._lines())

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the lines of these names, one at a time.

        Raises:
            InputError: If the file has no such line.
        """
        lines = self._lines()
        for name in names:
            if name not in lines:
                raise InputError(f"no line is named {name!r}; there are {len(lines)}", file=self.path)
            yield Sample(name, {"txt": lines[name].encode()})

    def _lines(self) -> dict[str, str]:
        with Path(self.path).open(encoding="utf-8") as file:
            return {f"line-{number}": line.rstrip("\n") for number, line in enumerate(file, start=1)}


@dataclass(frozen=True, kw_only=True)
class Replace:
    """Replaces a piece of text in every sample, which is a string.

    Args:
        old: What to look for.
        new: What to put there.
    """

    old: str
    new: str

    def __call__(self, samples: Iterator[str]) -> Iterator[str]:
        """Yield the changed samples."""
        return (sample.replace(self.old, self.new) for sample in samples)


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="lines", summary="lines of a text file, one sample each", factory=LineReader)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stage."""
    yield Stage(name="replace", summary="replace a piece of text", factory=Replace)
