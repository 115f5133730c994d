"""The store ``$name``: replace the directory by the service that you want to read shards from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bionemo.webdatamodule import Store, hookimpl
from bionemo.webdatamodule.components import StoredFile


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Serves the URLs ``$name://...`` from a directory.

    Each method makes one attempt: the core retries. Raise ``FileNotFoundError`` for what is not there,
    ``PermissionError`` for what may not be done and ``NotImplementedError`` for what the service cannot do; any other
    exception is tried again.
    Import big packages inside the methods, since this module is imported wherever plugins are looked up.

    Args:
        root: The directory; by default the one that ``${ROOT}`` names.
    """

    root: str = ""

    def list(self, url: str) -> Sequence[StoredFile]:
        """Return the files directly in a directory."""
        return [_stored(path) for path in sorted(self._path(url).iterdir()) if path.is_file()]

    def stat(self, url: str) -> StoredFile:
        """Return name, size and version of a file."""
        return _stored(self._path(url))

    def get(self, url: str) -> bytes:
        """Return the bytes of a file."""
        return self._path(url).read_bytes()

    def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory.

        Raises:
            EOFError: If the file is shorter.
        """
        if not ranges:
            return
        with self._path(url).open("rb", buffering=0) as file:
            for (start, _), memory in zip(ranges, into, strict=True):
                file.seek(start)
                if file.readinto(memory) != len(memory):
                    raise EOFError(f"{url} ends before byte {start + len(memory)}")

    def put(self, data: bytes | str | os.PathLike[str], url: str) -> None:
        """Write a file as a whole: bytes, or a local file by its path."""
        path = self._path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f"{path.name}.part")
        written.write_bytes(data if isinstance(data, bytes) else Path(data).read_bytes())
        written.replace(path)

    def delete(self, url: str) -> None:
        """Delete a file."""
        self._path(url).unlink()

    def _path(self, url: str) -> Path:
        return Path(self.root or os.environ["${ROOT}"], url.partition("://")[2])


def _stored(path: Path) -> StoredFile:
    status = path.stat()
    return StoredFile(name=path.name, size=status.st_size, version=str(status.st_mtime_ns))


@hookimpl
def webdatamodule_stores() -> Iterable[Store]:
    """Register the store for the URLs ``$name://...``."""
    yield Store(name="$name", summary="files in a directory", schemes=("$name",), factory=Directory)
