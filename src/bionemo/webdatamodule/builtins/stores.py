"""The default store: every file system of fsspec."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from bionemo.webdatamodule.components import Store, StoredFile
from bionemo.webdatamodule.errors import ConfigError, RemoteError
from bionemo.webdatamodule.hookspecs import hookimpl

_SILENCE = 20  # seconds without a byte, after which a connection is given up
_BEYOND_THE_END = 416  # the status of an answer to a range behind the end of a file
_DENIED, _MISSING = (401, 403), (404, 410)
_BUFFER = 4 << 20  # bytes of an answer that are taken before the reader has to ask for more
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "md5", "generation", "content_md5", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "created"),
)
"""Names that file systems of fsspec give to what differs where the content of a file does, the best first."""


class FsspecStore:
    """Files behind any URL that fsspec knows; keys and endpoints come from where fsspec finds them."""

    def __init__(self) -> None:
        self._filesystems: dict[tuple[str, str], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecStore, ()

    def list(self, url: str) -> Sequence[StoredFile]:
        """Return the files in a directory."""
        if url.startswith(("http://", "https://")):
            raise NotImplementedError("web servers do not list their files")
        with self._open(url) as (filesystem, path):
            filesystem.invalidate_cache()
            entries = filesystem.ls(path, detail=True)
        return [_stored(entry) for entry in entries if entry["type"] == "file"]

    def stat(self, url: str) -> StoredFile:
        """Return the size and version of a file."""
        with self._open(url) as (filesystem, path):
            filesystem.invalidate_cache()
            entry = filesystem.info(path)
        if entry["type"] != "file":
            raise FileNotFoundError(f"{path} is a directory")
        if entry["size"] is None:
            raise ValueError("the server does not give the size of the file")
        return _stored(entry)

    def get(self, url: str) -> bytes:
        """Return the content of a file."""
        with self._open(url) as (filesystem, path):
            return bytes(filesystem.cat_file(path))

    def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory."""
        with self._open(url) as (filesystem, path):
            for (begin, end), memory in zip(ranges, into, strict=True):
                try:
                    data = filesystem.cat_file(path, start=begin, end=end)
                except Exception as error:
                    if _status(error) == _BEYOND_THE_END:
                        raise EOFError(f"the file ends before byte {begin + 1}") from error
                    raise
                if len(data) > end - begin:
                    raise NotImplementedError(f"{len(data)} bytes came where {end - begin} were asked for")
                if len(data) < end - begin:
                    raise EOFError(f"{len(data)} bytes came of the {end - begin} from byte {begin} on")
                memory[:] = data

    def put(self, data: bytes | str | os.PathLike[str], url: str) -> None:
        """Write a file as a whole."""
        with self._open(url) as (filesystem, path):
            if filesystem.protocol == "memory" or "file" in filesystem.protocol:  # where directories are real
                filesystem.makedirs(filesystem._parent(path), exist_ok=True)  # noqa: SLF001 - subclasses define it
            if isinstance(data, bytes):
                filesystem.pipe_file(path, data)
            else:
                filesystem.put_file(os.fspath(data), path)

    def delete(self, url: str) -> None:
        """Delete a file."""
        with self._open(url) as (filesystem, path):
            filesystem.rm_file(path)

    @contextlib.contextmanager
    def _open(self, url: str) -> Iterator[tuple[Any, str]]:
        """Yield the file system of a URL and the path in it; errors say for how long the server asked to wait."""
        parts = urlsplit(url)
        key = parts.scheme, parts.netloc
        filesystem = self._filesystems.get(key)
        if filesystem is None:
            filesystem = self._filesystems.setdefault(key, _connect(url))
        try:
            yield filesystem, filesystem._strip_protocol(url)  # noqa: SLF001 - what fsspec.core.url_to_fs does
        except Exception as error:
            missing = _missing_bucket(error)
            if missing is not None:  # the core looks at the cause as well
                raise RemoteError(f"the bucket of {url} does not exist; create it, or correct the URL") from missing
            meant = _meant(error, url)
            wait = _retry_after(error)
            if wait is not None:
                meant.retry_after = wait  # type: ignore[attr-defined]  # read by the core
            if meant is error:
                raise
            raise meant from error.__cause__


def _connect(url: str) -> Any:
    """Return a new file system that makes one attempt at each request.

    Raises:
        ConfigError: If the kind of URL is not known, or the package for it is not installed.
    """
    import fsspec

    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if scheme in {"http", "https"}:
            import aiohttp  # fsspec needs it for these URLs

            # the default ends a download after five minutes, however well it goes
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": timeout, "read_bufsize": _BUFFER}
        elif scheme in {"s3", "s3a"}:
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": _SILENCE,
                "read_timeout": _SILENCE,
                "max_pool_connections": 64,
            }
        filesystem, _ = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{scheme}:// URLs cannot be opened: {error}") from error
    if hasattr(filesystem, "retries"):  # s3fs and gcsfs try again by themselves
        filesystem.retries = 1
    return filesystem


def _stored(entry: dict[str, Any]) -> StoredFile:
    version = next((str(entry[name]) for name in _VERSIONS if entry.get(name)), "")
    return StoredFile(name=str(entry["name"]).rpartition("/")[2], size=int(entry["size"] or 0), version=version)


def _missing_bucket(error: BaseException) -> BaseException | None:
    """Return the error in which S3 says that there is no such bucket."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        said = response.get("Error", {}) if isinstance(response, dict) else {}
        if said.get("Code") == "NoSuchBucket":
            return cause
    return None


def _meant(error: Exception, url: str) -> Exception:
    """Return the error that the core expects: for web servers fsspec calls every failure a missing file."""
    status = _status(error)
    if status in _DENIED and not isinstance(error, PermissionError):
        return PermissionError(f"the server answers {status}")
    is_web = url.startswith(("http://", "https://"))
    if is_web and isinstance(error, FileNotFoundError) and error.__cause__ is not None and status not in _MISSING:
        return OSError(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return error


def _status(error: BaseException) -> int | None:
    """Return the status of a server's answer, wherever the client keeps it."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = metadata.get("HTTPStatusCode")
        for name in ("status", "status_code", "code"):  # aiohttp deprecates its code
            status = status or getattr(cause, name, None)
        if isinstance(status, int):
            return status
    return None


def _retry_after(error: BaseException) -> float | None:
    """Return what a server's ``Retry-After`` header says, wherever the client keeps it."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        headers = getattr(cause, "headers", None) or metadata.get("HTTPHeaders") or {}
        with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError):
            return float({str(k).lower(): v for k, v in headers.items()}["retry-after"])
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@hookimpl
def webdatamodule_stores() -> Iterable[Store]:
    """Register the store ``fsspec``."""
    yield Store(name="fsspec", summary="any URL that fsspec knows", schemes=("*",), factory=FsspecStore)
