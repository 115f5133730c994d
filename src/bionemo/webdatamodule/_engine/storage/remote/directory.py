"""A directory behind a URL, through the store that serves its scheme; every operation is retried."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bionemo.webdatamodule._engine.storage.remote.retry import notice_exit, retried
from bionemo.webdatamodule._engine.storage.remote.urls import join, scheme_of, shown, without_host
from bionemo.webdatamodule.components import ObjectStore, Store, StoredFile
from bionemo.webdatamodule.errors import ChangedDataError, ConfigError, CorruptShardError, PluginError, RemoteError
from bionemo.webdatamodule.plugins import Plugins, Registered, installed_plugins

_T = TypeVar("_T")

_clients: dict[tuple[int, Registered], ObjectStore] = {}
"""The clients of this process. A forked process makes its own: connections and threads stay with their owner."""


@dataclass(frozen=True, kw_only=True)
class RemoteDirectory:
    """A directory of files behind a URL; it pickles, and opens its client in the process that uses it.

    All methods but :meth:`get` raise :class:`RemoteError` for a file that is not there, and all raise
    :class:`PluginError` for a store that breaks its contract.

    Attributes:
        url: The directory's URL.
        store: The store that serves it.
    """

    url: str
    store: Registered

    @classmethod
    def at(cls, url: str, store: Registered | None = None) -> RemoteDirectory:
        """Return the directory at a URL.

        Args:
            url: The URL.
            store: The store that serves it; by default the one that the installed plugins have for it.

        Raises:
            ConfigError: If no store serves the URL's scheme.
        """
        return cls(url=url, store=store or find_store(url))

    def __str__(self) -> str:
        return shown(self.url)

    def list(self) -> list[StoredFile]:
        """Return the files in the directory; none where it is not there.

        Raises:
            ConfigError: If the store cannot list.
            RemoteError: If it does not work.
        """
        try:
            found: Any = self._retried(self._listed, self.url)
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        except NotImplementedError as error:
            raise ConfigError(
                f"the files of {self} cannot be listed; give the shards as a pattern, "
                "such as https://host/data/train-{000000..000023}.tar"
            ) from error
        if not isinstance(found, list) or not all(isinstance(file, StoredFile) for file in found):
            raise self._breach("list", self.url, f"gives {found!r:.60}, not a list of StoredFile")
        return found

    def _listed(self, client: ObjectStore) -> Any:
        found: Any = client.list(self.url)
        return list(found) if isinstance(found, Iterable) else found

    def stat(self, name: str) -> StoredFile:
        """Return the size and version of a file."""
        url = join(self.url, name)
        found: Any = self._called("stat", lambda client: client.stat(url), url)
        if not isinstance(found, StoredFile):
            raise self._breach("stat", url, f"gives {found!r:.60}, not a StoredFile")
        return replace(found, name=name)  # not that with the query

    def get(self, name: str) -> bytes | None:
        """Return the content of a small file, or ``None`` where there is none."""
        url = join(self.url, name)
        try:
            found: Any = self._called("get", lambda client: client.get(url), url)
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if not isinstance(found, bytes):
            raise self._breach("get", url, f"gives {found!r:.60}, not bytes")
        return found

    def get_if_permitted(self, name: str) -> bytes | RemoteError | None:
        """Return the content of a small file, ``None`` where there is none, or the error that it is not permitted.

        A server that does not permit listing says of a missing file, too, that it is not permitted.
        """
        try:
            return self.get(name)
        except RemoteError as error:
            if isinstance(error.__cause__, PermissionError):
                return error
            raise

    def read(self, name: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory; a file that is shorter is not asked for again."""
        url = join(self.url, name)
        n_bytes = sum(end - begin for begin, end in ranges)
        try:
            self._retried(lambda client: _read(client, url, ranges, into), url, n_bytes=n_bytes)
        except NotImplementedError as error:
            raise RemoteError(
                f"{shown(url)}: the server does not send parts of files, by which shards are read; "
                "serve them by one that answers range requests, such as nginx, or copy them to a local disk"
            ) from error

    @contextlib.contextmanager
    def unchanged(self, name: str, version: str) -> Iterator[None]:
        """Check that a file that is read meanwhile is the one that was there before.

        It is asked for its version before and after: bytes that came between two changes are of neither.

        Args:
            name: The file.
            version: What :meth:`stat` gave as its version; where that is empty, nothing is asked.

        Raises:
            ChangedDataError: If it has another version.
        """
        self._check_version(name, version)
        try:
            yield
        except CorruptShardError:  # of two versions
            self._check_version(name, version)
            raise
        self._check_version(name, version)

    def _check_version(self, name: str, version: str) -> None:
        if version and (found := self.stat(name).version) != version:
            url = f"{self}/{name}"
            raise ChangedDataError(
                f"{url} was replaced since the data were set up: its version is {found!r} and was {version!r}; "
                "start again, or write a manifest with `webdatamodule index`, whose checksums are compared instead",
                shard=url,
            )

    def put(self, data: bytes | str, name: str) -> None:
        """Write a file: bytes, or a local file by its path."""
        url = join(self.url, name)
        n_bytes = os.path.getsize(data) if isinstance(data, str) else len(data)
        self._called("put", lambda client: client.put(data, url), url, n_bytes=n_bytes)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        url = join(self.url, name)
        try:
            self._called("delete", lambda client: client.delete(url), url)
        except RemoteError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def _called(self, method: str, call: Callable[[ObjectStore], _T], url: str, *, n_bytes: int = 0) -> _T:
        """Call a method of the store that every server can serve."""
        try:
            return self._retried(call, url, n_bytes=n_bytes)
        except NotImplementedError as error:
            raise RemoteError(
                f"{shown(url)}: {method}() of the store {self.store.component.name!r} is not implemented"
                f"{f': {error}' if str(error) else ''}; use a URL of a server that can do it",
                **self.store.where,
            ) from error

    def _retried(self, call: Callable[[ObjectStore], _T], url: str, *, n_bytes: int = 0) -> _T:
        where = {"store": self.store.component.name, **self.store.where} if self.store.where else {}
        try:
            return retried(lambda: call(self._client()), url, n_bytes=n_bytes, renew=self._renew, where=where)
        except ImportError as error:
            raise PluginError(
                f"the store {self.store.component.name!r} lacks a package: {error}; install what it needs",
                **self.store.where,
            ) from error

    def _breach(self, method: str, url: str, what: str) -> PluginError:
        store = self.store.component.name
        return PluginError(f"{shown(url)}: {method}() of the store {store!r} {what}", **self.store.where)

    def _client(self) -> ObjectStore:
        key = os.getpid(), self.store
        client = _clients.get(key)
        if client is None:
            client = _clients.setdefault(key, self.store.build({}))
            notice_exit()
        return client

    def _renew(self) -> None:
        """Forget the client, so that the next one reads its credentials again."""
        _clients.pop((os.getpid(), self.store), None)


def _read(client: ObjectStore, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
    """Read byte ranges of a file into memory, by one attempt.

    Raises:
        RemoteError: If the file ends before them. Where only the answer does, that is the store's ``EOFError``.
    """
    try:
        client.read(url, ranges, into)
    except EOFError as error:
        size, needed = client.stat(url).size, max(end for _, end in ranges)
        if size >= needed:
            raise
        raise RemoteError(
            f"{shown(url)} has {size} bytes and must have at least {needed}; it was replaced or damaged there: "
            "restore it, or run `webdatamodule convert` with --check",
            shard=shown(url),
        ) from error


def find_store(url: str, plugins: Plugins | None = None) -> Registered:
    """Return the store that serves a URL: one that names the scheme before one that serves ``"*"``.

    Args:
        url: Any URL.
        plugins: Where to look; by default among the installed plugins.

    Raises:
        ConfigError: If there is none, or the URL names no bucket or server.
        PluginError: If several serve it equally.
    """
    if wrong := without_host(url):
        raise ConfigError(f"{shown(url)} {wrong}")
    scheme = scheme_of(url)
    stores = [r for r in (plugins or installed_plugins()).registered if isinstance(r.component, Store)]
    for served in (scheme, "*"):
        found = [r for r in stores if isinstance(r.component, Store) and served in r.component.schemes]
        if len(found) > 1:
            found = [r for r in found if r.component.override] or found
        if len(found) > 1:
            which = " and ".join(f"{r.component.name!r} of the plugin {r.plugin!r}" for r in found)
            raise PluginError(
                f"{scheme}:// is served by the stores {which}; disable one with WEBDATAMODULE_DISABLED_PLUGINS"
            )
        if found:
            return found[0]
    raise ConfigError(f"no store serves {scheme}://; install a plugin that does, or enable the default plugin 'stores'")
