"""The store: a client of this process in workers, and one in a helper process where this process may fork."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bionemo.webdatamodule import context
from bionemo.webdatamodule.components import StoredFile
from bionemo_webdatamodule_obstore.client import Client
from bionemo_webdatamodule_obstore.helper import Helper

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")
"""The URL schemes that it serves."""


class ObstoreStore:
    """Files in object stores and on web servers; credentials come from where obstore finds them."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._helper: Helper | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ObstoreStore, ()

    def list(self, url: str) -> Sequence[StoredFile]:
        """Return the files in a directory."""
        return [_stored(*found) for found in self._call("list", url)]

    def stat(self, url: str) -> StoredFile:
        """Return the size and version of a file."""
        return _stored(*self._call("stat", url))

    def get(self, url: str) -> bytes:
        """Return the content of a file."""
        found: bytes = self._call("get", url)
        return found

    def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory."""
        if self._is_worker():
            for data, memory in zip(self._own().ranges(url, ranges), into, strict=True):
                memory[:] = data
        elif ranges:
            self._helped().read(url, ranges, into)

    def put(self, data: bytes | str | os.PathLike[str], url: str) -> None:
        """Write a file as a whole."""
        self._call("put", data if isinstance(data, bytes) else str(Path(data).resolve()), url)

    def delete(self, url: str) -> None:
        """Delete a file."""
        self._call("delete", url)

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._is_worker():
            return getattr(self._own(), name)(*arguments)
        return self._helped().call(name, *arguments)

    @staticmethod
    def _is_worker() -> bool:
        """Return whether this is a worker, which forks no other process."""
        return context.worker().count > 0

    def _own(self) -> Client:
        if self._client is None:
            self._client = Client()
        return self._client

    def _helped(self) -> Helper:
        if self._helper is None or not self._helper.is_alive():
            self._helper = Helper()
        return self._helper


def _stored(name: str, size: int, version: str) -> StoredFile:
    return StoredFile(name=name, size=size, version=version)
