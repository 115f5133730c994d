"""The writer ``$name``: replace the lines of a text file by what you want to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bionemo.webdatamodule import Sample, Writer, hookimpl
from bionemo.webdatamodule.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads the lines of a text file; each is a sample with the field ``txt``.

    The fields of the class are the options that users give: ``Use("$name", path="lines.txt")``.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        path: The file, in UTF-8. Lines are named by their number, ``line-1`` first.
    """

    path: str

    def names(self) -> Sequence[str]:
        """Return the name of every sample. Leave it out if your source cannot list them."""
        return list(self._lines())

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return something that changes when a sample does, so that only its shard is rewritten.

        A sample that is not there has an empty one. Leave it out if your source cannot know without reading all.
        """
        lines = self._lines()
        return [f"line: {lines[name]}" if name in lines else "" for name in names]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names, in this order, one at a time.

        Raises:
            InputError: If there is no such sample.
        """
        lines = self._lines()
        for name in names:
            if name not in lines:
                raise InputError(f"no line is named {name!r}; there are {len(lines)}", file=self.path)
            yield Sample(name, {"txt": lines[name].encode()})

    def _lines(self) -> dict[str, str]:
        with Path(self.path).open(encoding="utf-8") as file:
            return {f"line-{number}": line.rstrip("\n") for number, line in enumerate(file, start=1)}


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="$name", summary="lines of a text file, one sample each", factory=Reader)
