"""Shards behind a URL: the manifest is read there, and each shard comes down once into a bounded local store."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from bionemo.webdatamodule._engine.format.index import index_name
from bionemo.webdatamodule._engine.format.manifest import Manifest, journal_path, manifest_path
from bionemo.webdatamodule._engine.format.tar_write import file_sha256
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.shard_cache import Store
from bionemo.webdatamodule.errors import ConfigError, ManifestError, NoShardsError, RemoteError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.format.manifest import ShardEntry

_log = logging.getLogger("bionemo.webdatamodule")
_T = TypeVar("_T")

ATTEMPTS = 5
"""How often anything is tried before it is an error."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further wait is twice as long, and a little random."""

AT_ONCE = 4
"""Shards that one process fetches at the same time, at most."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_READ_TIMEOUT = 60  # seconds without a byte of a web server
_HTTP = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The shards behind a URL that a manifest lists.

    Attributes:
        url: URL of the directory.
        manifest: The manifest there.
        store: Where shards are kept.
    """

    url: str
    manifest: Manifest
    store: Store

    def path(self, number: int) -> str:
        """Return where a shard is kept, or will be."""
        return self.store.path(self.manifest.shards[number].name)

    def fetch(self, number: int) -> str:
        """Return the local path of a shard that is there and verified, after fetching it where needed.

        Raises:
            RemoteError: If it cannot be fetched, or is not what the manifest says.
        """
        entry = self.manifest.shards[number]
        sidecar = index_name(entry.name)
        try:
            self.store.fetch(sidecar, None, lambda path: self._download(sidecar, path, entry.index_sha256))
        except RemoteError as error:
            decided("the index is made from the shard instead: %s", error)
        return self.store.fetch(entry.name, entry.bytes, lambda path: self._download(entry.name, path, entry.sha256))

    def fetch_all(self, numbers: Iterable[int]) -> None:
        """Fetch several shards, a few at the same time."""
        missing = [number for number in numbers if not self._is_here(self.manifest.shards[number])]
        if len(missing) > 1:
            with futures.ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self.fetch, missing))

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Start to fetch shards in the background, one after another; what goes wrong is tried again when needed."""
        missing = [number for number in numbers if not self._is_here(self.manifest.shards[number])]
        if missing:
            threading.Thread(
                target=self._fetch_quietly, args=(missing,), name="webdatamodule-ahead", daemon=True
            ).start()

    def _is_here(self, entry: ShardEntry) -> bool:
        return self.store.has(entry.name, entry.bytes)

    def _fetch_quietly(self, numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                self.fetch(number)
        except Exception as error:  # noqa: BLE001 - whoever needs the shard tries again, and says what is wrong
            _log.debug("fetching ahead: %s", error)

    def _download(self, name: str, path: str, sha256: str) -> None:
        url = join(self.url, name)

        def attempt() -> None:
            filesystem, remote = open_filesystem(url)
            filesystem.get_file(remote, path)
            if file_sha256(path) != sha256:
                raise _OtherContentError(f"{os.path.getsize(path)} bytes came, whose hash is not in the manifest")

        started = time.monotonic()
        retried(attempt, url)
        _log.debug("fetched %s, %d bytes in %.1f s", shown(url), os.path.getsize(path), time.monotonic() - started)


class _OtherContentError(Exception):
    """A file came down with other bytes than the manifest says."""


def is_url(path: str) -> bool:
    """Tell whether a directory is a URL: a scheme and ``://``. All else is a local path, whatever is in it."""
    return _URL.match(path) is not None


def open_remote(url: str, prefix: str, *, cache_dir: str | None = None, cache_size: int | None = None) -> Remote:
    """Read the manifest behind a URL.

    Args:
        url: An fsspec URL of a directory.
        prefix: Beginning of the shards' names.
        cache_dir: Where to keep shards; by default in the user's cache directory.
        cache_size: Bytes that they may take there, at most.

    Raises:
        NoShardsError: If there is no manifest.
        ManifestError: If it cannot be used, or a conversion is being published.
        RemoteError: If it cannot be fetched.
        ConfigError: If the kind of URL is not known, or the package for it is not installed.
    """
    place = join(url, manifest_path("", prefix))
    text = read(place)
    if text is None:
        raise NoShardsError(
            f"there is no manifest at {shown(place)}; remote shards need one: convert the data to this place, "
            "or run `webdatamodule index` on a local copy and upload what it writes"
        )
    if read(join(url, journal_path("", prefix))) is not None:
        raise ManifestError(f"a conversion into {shown(url)} is being published; wait for it or run it again")
    manifest = Manifest.from_json(text, source=shown(place), prefix=prefix)
    store = Store.of(f"{url.rstrip('/')}\0{manifest.digest}", root=cache_dir, size=cache_size)
    decided("shards of %s are kept in %s, which may take %d bytes", shown(url), store.root, store.size)
    return Remote(url=url, manifest=manifest, store=store)


def read(url: str) -> bytes | None:
    """Return the content of a small remote file, or ``None`` where there is none.

    Raises:
        RemoteError: If it cannot be fetched.
        ConfigError: If the kind of URL is not known.
    """

    def attempt() -> bytes:
        filesystem, path = open_filesystem(url)
        return bytes(filesystem.cat_file(path))

    try:
        return retried(attempt, url)
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    fsspec makes it anew in a forked process, and takes settings such as keys and endpoints from where it always does.

    Raises:
        ConfigError: If the kind of URL is not known, or the package for it is not installed.
    """
    import fsspec

    options: dict[str, Any] = {}
    try:
        if url.startswith(_HTTP):
            import aiohttp  # fsspec needs it for these URLs

            # the default ends a download after five minutes, however well it goes
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_READ_TIMEOUT, sock_read=_READ_TIMEOUT)
            options["client_kwargs"] = {"timeout": timeout}
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{shown(url)} cannot be opened: {error}") from error
    return filesystem, str(path)


def retried(attempt: Callable[[], _T], url: str) -> _T:
    """Return what an attempt returns, trying again where waiting may help.

    Args:
        attempt: Does one try.
        url: What is fetched, for messages.

    Raises:
        RemoteError: If it is not there, not permitted, or does not work after all attempts.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except (ConfigError, MemoryError, ImportError):  # noqa: PERF203 - a loop of attempts
            raise
        except (FileNotFoundError, PermissionError) as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else "is not permitted"
            raise RemoteError(f"{shown(url)} {why}") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace(url, shown(url)).rstrip(": ")
            if number == ATTEMPTS:
                raise RemoteError(f"{shown(url)} cannot be fetched, tried {ATTEMPTS} times; {reason}") from error
            wait = FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.5, 1.5)
            _log.warning("%s: %s; trying again in %.1f s", shown(url), reason, wait)
            time.sleep(wait)
    raise AssertionError


def join(url: str, name: str) -> str:
    """Return the URL of a file in a directory; what follows a ``?``, such as a signature, stays at the end."""
    if not url.startswith(_HTTP):
        return f"{url.rstrip('/')}/{name}"
    directory, mark, query = url.partition("?")
    return f"{directory.rstrip('/')}/{quote(name)}{mark}{query}"


def shown(url: str) -> str:
    """Return a URL for messages, without user name, password and signature."""
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
