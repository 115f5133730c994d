"""Files behind URLs through obstore, in the process that uses them: one attempt at each request.

Helper processes import it, so that it has no part of the core.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_SILENCE = "30s"
_WEB = ("http", "https")
_PERMISSION = re.compile(r"\b(401|403)\b|AccessDenied|Forbidden|ExpiredToken|InvalidAccessKeyId|SignatureDoesNotMatch")
_MISSING = re.compile(r"\b(404|410)\b|NoSuchKey|NoSuchBucket")
_WHOLE = re.compile(r"Range request not supported|non-partial response")
_BEYOND = re.compile(r"\b416\b|Invalid ?Range|[Rr]ange")


class Client:
    """A client of this process. It is used by several threads."""

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}

    def list(self, url: str) -> list[tuple[str, int, str]]:
        """Return name, size and version of the files directly in a directory."""
        import obstore

        if urlsplit(url).scheme in _WEB:
            raise NotImplementedError("web servers do not list their files")
        store, path = self._open(url)
        try:
            found = obstore.list_with_delimiter(store, path or None)
        except Exception as error:
            raise _named(error) from error
        return [_stored(entry) for entry in found["objects"]]

    def stat(self, url: str) -> tuple[str, int, str]:
        """Return name, size and version of a file."""
        import obstore

        store, path = self._open(url)
        try:
            return _stored(obstore.head(store, path))
        except Exception as error:
            raise _named(error) from error

    def get(self, url: str) -> bytes:
        """Return the content of a file."""
        import obstore

        store, path = self._open(url)
        try:
            return bytes(obstore.get(store, path).bytes())
        except Exception as error:
            raise _named(error) from error

    def ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> Sequence[memoryview]:
        """Return byte ranges of a file."""
        import obstore

        if not ranges:
            return []
        store, path = self._open(url)
        try:
            if len(ranges) == 1:
                found = [obstore.get_range(store, path, start=ranges[0][0], end=ranges[0][1])]
            else:
                starts, ends = zip(*ranges, strict=True)
                found = obstore.get_ranges(store, path, starts=starts, ends=ends)
        except Exception as error:
            raise _named(error) from error
        for (begin, end), data in zip(ranges, found, strict=True):
            if len(data) != end - begin:
                raise EOFError(f"{len(data)} bytes came of the {end - begin} from byte {begin} on")
        return [memoryview(data) for data in found]

    def put(self, data: bytes | str, url: str) -> None:
        """Write a file as a whole."""
        import obstore

        store, path = self._open(url)
        try:
            obstore.put(store, path, data if isinstance(data, bytes) else Path(data))
        except Exception as error:
            raise _named(error) from error

    def delete(self, url: str) -> None:
        """Delete a file."""
        import obstore

        store, path = self._open(url)
        try:
            obstore.delete(store, path)
        except Exception as error:
            raise _named(error) from error

    def _open(self, url: str) -> tuple[Any, str]:
        """Return the store of a URL's bucket, container or server, and the path in it."""
        from obstore import store as stores

        connect: Any = stores.from_url  # its overloads take no mapping made here
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        store = self._stores.get(base)
        if store is None:
            options: Any = {"timeout": _SILENCE, "connect_timeout": _SILENCE}
            endpoints = (base, os.environ.get("AWS_ENDPOINT_URL", ""), os.environ.get("AWS_ENDPOINT", ""))
            if any(endpoint.startswith("http://") for endpoint in endpoints):
                options["allow_http"] = True
            retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
            store = self._stores.setdefault(base, connect(base, client_options=options, retry_config=retries))
        path = unquote(parts.path) if parts.scheme in _WEB else parts.path
        return store, path.strip("/")


def _stored(entry: Any) -> tuple[str, int, str]:
    version = entry.get("version") or entry.get("e_tag") or str(entry.get("last_modified") or "")
    return entry["path"].rpartition("/")[2], int(entry["size"]), version


def _named(error: Exception) -> Exception:
    """Return the error that the core expects, with what the server said in one line."""
    if isinstance(error, (FileNotFoundError, PermissionError, EOFError)):
        return type(error)(_short(error))
    from obstore import exceptions

    text = str(error)
    if isinstance(error, exceptions.NotFoundError) or _MISSING.search(text):
        return FileNotFoundError(_short(error))
    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, denied) or _PERMISSION.search(text):
        return PermissionError(_short(error))
    if _WHOLE.search(text):
        return NotImplementedError(_short(error))
    if _BEYOND.search(text):
        return EOFError(_short(error))
    return OSError(_short(error))


def _short(error: Exception) -> str:
    return " ".join(str(error).partition("Debug source")[0].split())[:300]
