"""Files behind URLs through obstore, in the process that uses them: one attempt at each request.

Helper processes import it, so that it has no part of the core.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_SILENCE = "30s"
_WEB = ("http", "https")
_STATUS = re.compile(r"non-2xx status code: (\d{3})\b")  # what follows is the server's body
_CODE = re.compile(r"<Code>(\w+)</Code>")
_DELETE_CODE = re.compile(r"\(code: (\w+)\)$")  # S3 answers with it to a request that deletes several files
_DENIED = ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_LIST = "Error performing list request"
_WHOLE = "Received non-partial response when range requested"


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
        with _naming(url):
            found = obstore.list_with_delimiter(store, path or None)
        return [_stored(entry) for entry in found["objects"]]

    def stat(self, url: str) -> tuple[str, int, str]:
        """Return name, size and version of a file."""
        import obstore

        store, path = self._open(url)
        with _naming(url):
            return _stored(obstore.head(store, path))

    def get(self, url: str) -> bytes:
        """Return the content of a file."""
        import obstore

        store, path = self._open(url)
        with _naming(url):
            return bytes(obstore.get(store, path).bytes())

    def ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> Sequence[memoryview]:
        """Return byte ranges of a file."""
        import obstore

        if not ranges:
            return []
        store, path = self._open(url)
        with _naming(url):
            if len(ranges) == 1:
                found = [obstore.get_range(store, path, start=ranges[0][0], end=ranges[0][1])]
            else:
                starts, ends = zip(*ranges, strict=True)
                with _panicking():
                    found = obstore.get_ranges(store, path, starts=starts, ends=ends)
        for (begin, end), data in zip(ranges, found, strict=True):
            if len(data) != end - begin:
                raise EOFError(f"{len(data)} bytes came of the {end - begin} from byte {begin} on")
        return [memoryview(data) for data in found]

    def put(self, data: bytes | str, url: str) -> None:
        """Write a file as a whole."""
        import obstore

        store, path = self._open(url)
        with _naming(url):
            obstore.put(store, path, data if isinstance(data, bytes) else Path(data))

    def delete(self, url: str) -> None:
        """Delete a file."""
        import obstore

        store, path = self._open(url)
        with _naming(url):
            obstore.delete(store, path)

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
    # listings lack the version of a bucket with versioning, and one file must have the same in both
    version = entry.get("e_tag") or str(entry.get("last_modified") or "")
    return entry["path"].rpartition("/")[2], int(entry["size"]), version


@contextlib.contextmanager
def _panicking() -> Iterator[None]:
    """Raise what a panic means: obstore 0.12 panics where a file ends before the last of several ranges."""
    try:
        yield
    except BaseException as error:  # a panic is no Exception, and its class has no name to import
        if type(error).__name__ != "PanicException":
            raise
        raise EOFError(f"the client panics: {error}") from None


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """Raise errors as the core expects them, and without a cause: a missing file there would count as well."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the new error says what it was
        raise _named(error, url) from None


def _named(error: Exception, url: str) -> Exception:
    """Return the error that the core expects, with what the server said in one line.

    The class decides, and else the status and error code; the rest of the text has URLs and whatever a server writes.
    """
    from obstore import exceptions

    text = str(error).partition("Debug source")[0].strip()
    status, code = _answer(text)
    if code in _NO_BUCKET:
        from bionemo.webdatamodule.errors import RemoteError

        return RemoteError(f"the bucket of {_shown(url)} does not exist; create it, or correct the URL")
    missing = (FileNotFoundError, exceptions.NotFoundError)
    denied = (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, missing) or status == 410 or (status == 404 and _LIST in text):  # others are of credentials
        return FileNotFoundError(_short(text))
    if isinstance(error, denied) or status in (401, 403) or code in _DENIED:
        return PermissionError(_short(text))
    if isinstance(error, exceptions.NotSupportedError) or text.endswith(_WHOLE):
        return NotImplementedError(_short(text))
    if isinstance(error, EOFError) or status == 416:
        return EOFError(_short(text))
    return OSError(_short(text))


def _answer(text: str) -> tuple[int, str]:
    """Return the status and the error code of a server's answer; 0 and an empty text where there is none."""
    status = _STATUS.search(text)
    code = _CODE.search(text, status.end()) if status else _DELETE_CODE.search(text)
    return int(status[1]) if status else 0, code[1] if code else ""


def _shown(url: str) -> str:
    """Return a URL for messages, without user name, password and signature; a container may be where these are."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] if parts.scheme in _WEB else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
