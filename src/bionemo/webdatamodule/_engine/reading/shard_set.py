"""The shards of a split's directory: those of its manifest, or those of another tool."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bionemo.webdatamodule._engine.format.index import ShardIndex, build_index
from bionemo.webdatamodule._engine.format.manifest import Manifest, ShardEntry, read_manifest, staging_path
from bionemo.webdatamodule._engine.format.shard_files import unlisted
from bionemo.webdatamodule._engine.reading.foreign import index_foreign
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, cached_index, check_stamp, is_within
from bionemo.webdatamodule._engine.storage.remote.listing import open_remote
from bionemo.webdatamodule._engine.storage.remote.shards import Remote
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule._engine.storage.sidecars import listed_index
from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    CorruptShardError,
    ManifestError,
    NoShardsError,
    ShardError,
    count,
)
from bionemo.webdatamodule.plugins import Registered

__all__ = ["ShardSet", "is_url"]

_log = logging.getLogger("bionemo.webdatamodule")

_NUMBERED = re.compile(r"(.+)-(?:\d+|\{.*\}|\*)\.tar")
"""The name of a shard, or a pattern of such names; the group is their prefix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """The shards of one split's directory; light, and it pickles.

    Attributes:
        directory: The directory of the shards, as the user gave it.
        prefix: Beginning of the shards' names.
        split: The split's name, for messages.
        paths: The shards as local files, or what messages call remote ones, in the order in which their samples are
            numbered.
        samples: Number of samples of each shard.
        suffixes: Every suffix that occurs, sorted.
        digest: Hash of what identifies the data, as hexadecimal digits: the manifest's digest,
            or for foreign shards that of their names, sizes and indexes.
        manifest: The manifest, or ``None`` for foreign shards.
        stamps: The state of each shard when the set was opened; empty where they are behind a URL.
        remote: How to fetch the shards, where they are behind a URL.
        kept: Indexes that could not be kept in the user's cache, by the number of the shard.
    """

    directory: str
    prefix: str
    split: str | None
    paths: tuple[str, ...]
    samples: tuple[int, ...]
    suffixes: tuple[str, ...]
    digest: str
    manifest: Manifest | None
    stamps: tuple[Stamp, ...] = ()
    remote: Remote | None = None
    kept: Mapping[int, ShardIndex] = field(default_factory=dict, repr=False)

    @property
    def n_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(self.samples)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each shard."""
        if self.remote is not None:
            return tuple(shard.bytes for shard in self.remote.shards)
        return (
            tuple(shard.bytes for shard in self.manifest.shards)
            if self.manifest
            else tuple(stamp.size for stamp in self.stamps)
        )

    @property
    def codecs(self) -> Mapping[str, str]:
        """What the manifest says of the codec of each suffix; empty for foreign shards."""
        return self.manifest.codecs if self.manifest else {}

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        prefix: str,
        *,
        split: str | None = None,
        expect: str | None = None,
        store: Registered | None = None,
        cache_dir: str | None = None,
        cache_size: int | None = None,
    ) -> ShardSet:
        """Look at a directory, or a URL of one, and say what it holds.

        With a manifest these are exactly the shards that it lists, and their sizes are checked.
        Without one the shards are foreign (see :func:`.find_shards`), and all their headers are checked, once for
        each state of a file.

        Args:
            directory: A local path, where ``~`` stands for the home directory, or a URL such as ``s3://…``.
                Without a manifest a web server needs a pattern of the shards, such as
                ``https://host/t-{000000..000023}.tar``.
            prefix: Beginning of the shards' names.
            split: The split's name, for messages.
            expect: The digest that the data must have, with or without ``sha256:`` before it;
                for data that travelled. ``None`` takes what is there.
            store: The store that serves a URL; by default the one that the installed plugins have for it.
            cache_dir: Where shards behind a URL are kept; by default in the user's cache directory.
            cache_size: Bytes that they may take there, at most.

        Raises:
            NoShardsError: If there are none.
            ManifestError: If the manifest cannot be used, or a conversion never finished.
            CorruptShardError: If shards are missing, or are not what the manifest says, or are not valid tars.
            ChangedDataError: If the digest is not the expected one.
            RemoteError: If a URL cannot be read.
        """
        directory = os.fspath(directory)
        with _located(split):
            if is_url(directory):
                found = _remote(directory, prefix, split, store=store, cache_dir=cache_dir, cache_size=cache_size)
            else:
                found = _local(os.path.expanduser(directory), prefix, split)
            if expect is not None and expect.removeprefix("sha256:").lower() != found.digest:
                raise ChangedDataError(
                    f"{directory} holds other data than expected: its digest is {found.digest}, not {expect}"
                )
        return found

    def ready(self, number: int) -> tuple[str, Stamp]:
        """Return the path of a whole shard that can be opened now, and the state in which it must be.

        Raises:
            RemoteError: If it is behind a URL and cannot be fetched.
        """
        if self.remote is None:
            return self.paths[number], self.stamps[number]
        path = self.remote.whole(number)
        return path, Stamp.of(path)

    def index(self, number: int, stamp: Stamp | None = None) -> ShardIndex:
        """Return the index of a shard.

        Args:
            number: The shard.
            stamp: The state in which the caller opens it; ``None`` for that in which the set was opened, which is
                checked here.

        Raises:
            CorruptShardError: If the shard is not what the manifest says, or is not a valid tar.
            ChangedDataError: If it was changed or removed since the set was opened.
        """
        path = self.paths[number]
        if self.remote is not None:
            return self.remote.index(number)
        if stamp is None or self.manifest is None:
            stamp = stamp or self.stamps[number]
            check_stamp(path, stamp)
        if self.manifest is None:
            index = self.kept.get(number) or cached_index(path, stamp) or build_index(path)
        else:
            index = listed_index(path, self.manifest.shards[number], stamp)
        if index.n_samples != self.samples[number] or not is_within(index, stamp.size):
            raise CorruptShardError(
                f"{path} has an index of {count(index.n_samples, 'sample')} in {index.tar_bytes} bytes, "
                f"expected are {self.samples[number]} in {stamp.size}; restore the shard",
                shard=path,
            )
        return index


def _advice(path: str) -> str:
    """Return what to do about a path that is not a directory; a tar, or a pattern of tars, is a mistake of its own."""
    parent, name = os.path.split(path)
    if name.endswith(".tar") and os.path.isdir(parent or "."):
        found = _NUMBERED.fullmatch(name)
        prefix = f", and prefix_tars_wds={found[1]!r}" if found else ""
        return f"give the directory that the shards lie in, {parent or '.'!r}{prefix}"
    ran = "commands are never run; " if path.startswith("pipe:") else ""
    return f"{ran}convert the data first, or correct the path"


def _local(directory: str, prefix: str, split: str | None) -> ShardSet:
    if not os.path.isdir(directory):
        raise NoShardsError(f"{directory} is not a directory; {_advice(directory)}")
    place = os.path.abspath(directory)  # shards are opened when they are read, wherever the process is by then
    manifest = read_manifest(directory, prefix)
    if manifest is None:
        if os.path.lexists(staging_path(directory, prefix)):
            raise ManifestError(
                f"a conversion into {directory} was stopped before it finished; run it again, finished shards are kept",
                file=staging_path(directory, prefix),
            )
        found = index_foreign(place, prefix)
        return ShardSet(directory=directory, prefix=prefix, split=split, manifest=None, **vars(found))
    extra = unlisted(directory, prefix, (entry.name for entry in manifest.shards))
    if extra:
        _log.warning(
            "%s holds %s that its manifest does not list, such as %s", directory, count(len(extra), "shard"), extra[0]
        )
    paths = tuple(os.path.join(place, entry.name) for entry in manifest.shards)
    stamps = tuple(map(_stamp_listed, paths, manifest.shards))
    return _listed(directory, manifest, split, paths=paths, stamps=stamps)


def _remote(url: str, prefix: str, split: str | None, **options: Any) -> ShardSet:
    remote, digest, suffixes = open_remote(url, prefix, **options)
    return ShardSet(
        directory=url,
        prefix=prefix,
        split=split,
        paths=tuple(map(remote.path, range(len(remote.shards)))),
        samples=tuple(shard.samples for shard in remote.shards),
        suffixes=suffixes,
        digest=digest,
        manifest=remote.manifest,
        remote=remote,
    )


def _listed(directory: str, manifest: Manifest, split: str | None, **more: Any) -> ShardSet:
    return ShardSet(
        directory=directory,
        prefix=manifest.prefix,
        split=split,
        samples=tuple(entry.samples for entry in manifest.shards),
        suffixes=manifest.suffixes,
        digest=manifest.digest,
        manifest=manifest,
        **more,
    )


def _stamp_listed(path: str, entry: ShardEntry) -> Stamp:
    try:
        stamp = Stamp.of(path)
    except OSError as error:
        raise CorruptShardError(
            f"{path} is listed in the manifest and cannot be opened ({error.strerror}); "
            "restore it or run the conversion again",
            shard=path,
        ) from error
    if stamp.size != entry.bytes:
        raise CorruptShardError(
            f"{path} has {stamp.size} bytes, the manifest says {entry.bytes}; restore it or run the conversion again",
            shard=path,
        )
    return stamp


@contextmanager
def _located(split: str | None) -> Iterator[None]:
    """Add the split to errors."""
    try:
        yield
    except (ShardError, ConfigError) as error:
        raise error.located(split=split) from error.__cause__
