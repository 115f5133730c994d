"""What one split's directory holds: the shards that its manifest lists, or those that another tool wrote."""

from __future__ import annotations

import glob
import hashlib
import logging
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    CorruptShardError,
    ManifestError,
    NoShardsError,
    ShardError,
)
from bionemo.webdatamodule.shards.cache import Stamp, cached_index, check_stamp, is_within, store_index
from bionemo.webdatamodule.shards.index import ShardIndex, build_index, index_name
from bionemo.webdatamodule.shards.manifest import read_manifest, staging_path

if TYPE_CHECKING:
    from bionemo.webdatamodule.shards.manifest import Manifest, ShardEntry

_log = logging.getLogger("bionemo.webdatamodule")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """The shards of one split's directory; light, and it pickles.

    Attributes:
        directory: Where the shards are, as it was given.
        prefix: Beginning of the shards' names.
        split: The split's name, for messages.
        paths: The shards as local files, in the order in which their samples are numbered.
        samples: Number of samples of each shard.
        suffixes: Every suffix that occurs, sorted.
        digest: Hash of what identifies the data, as hexadecimal digits: the manifest's digest,
            or for foreign shards that of their names, sizes and indexes.
        manifest: The manifest, or ``None`` for foreign shards.
        stamps: The state of each shard when the set was opened.
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
    stamps: tuple[Stamp, ...]
    kept: Mapping[int, ShardIndex] = field(default_factory=dict, repr=False)

    @property
    def n_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(self.samples)

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
    ) -> ShardSet:
        """Look at a directory, or a URL of one, and say what it holds.

        With a manifest these are exactly the shards that it lists, and their sizes are checked.
        Without one the shards are foreign: the files ``{prefix}-*.tar``, sorted by name, and all their headers
        are checked, once for each state of a file. Where some are named ``{prefix}-<digits>.tar`` only these count,
        so that prefix ``t`` does not take the shards of prefix ``t-val``.

        Args:
            directory: A local path, where ``~`` stands for the home directory, or an fsspec URL such as ``s3://…``.
            prefix: Beginning of the shards' names.
            split: The split's name, for messages.
            expect: The digest that the data must have, with or without ``sha256:`` before it;
                for data that travelled. ``None`` takes what is there.

        Raises:
            NoShardsError: If there are none.
            ManifestError: If the manifest cannot be used, or a conversion never finished.
            CorruptShardError: If shards are missing, or are not what the manifest says, or no good tars.
            ChangedDataError: If the digest is not the expected one.
            RemoteError: If a URL cannot be read.
        """
        directory = os.fspath(directory)
        with _located(split):
            if is_url(directory):
                from bionemo.webdatamodule.shards.remote import open_remote

                found = open_remote(directory, prefix, split=split)
            else:
                local = os.path.expanduser(directory)
                if not os.path.isdir(local):
                    raise NoShardsError(f"{directory} is no directory; convert the data first, or correct the path")
                manifest = read_manifest(local, prefix)
                found = _listed(local, manifest, split) if manifest else _foreign(local, prefix, split)
            if expect is not None and expect.removeprefix("sha256:").lower() != found.digest:
                raise ChangedDataError(
                    f"{directory} holds other data than expected: its digest is {found.digest}, not {expect}"
                )
        return found

    def index(self, number: int) -> ShardIndex:
        """Return the index of one shard.

        For listed shards it is the sidecar that conversion wrote, if its hash is the manifest's.
        Where it is missing or was changed, the shard itself is hashed, and a new index made of it:
        a shard whose hash is the manifest's has the checksums that conversion saw.

        Raises:
            CorruptShardError: If the shard is not what the manifest says, or no good tar.
            ChangedDataError: If it was changed or removed since the set was opened.
        """
        path, stamp = self.paths[number], self.stamps[number]
        check_stamp(path, stamp)
        if self.manifest is None:
            index = self.kept.get(number) or cached_index(path, stamp) or build_index(path)
        else:
            entry = self.manifest.shards[number]
            index = _sidecar(path, entry) or cached_index(path, stamp) or _rebuilt(path, entry, stamp)
        if index.n_samples != self.samples[number] or not is_within(index, stamp.size):
            raise CorruptShardError(
                f"{path} has an index of {index.n_samples} samples in {index.tar_bytes} bytes, "
                f"expected are {self.samples[number]} in {stamp.size}; restore the shard",
                shard=path,
            )
        return index


def is_url(path: str) -> bool:
    """Tell whether a directory is a URL: a scheme and ``://``. All else is a local path, whatever is in it."""
    return _URL.match(path) is not None


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def listed_set(
    directory: str, manifest: Manifest, paths: tuple[str, ...], stamps: tuple[Stamp, ...], split: str | None
) -> ShardSet:
    """Return the set that a manifest lists."""
    return ShardSet(
        directory=directory,
        prefix=manifest.prefix,
        split=split,
        paths=paths,
        samples=tuple(entry.samples for entry in manifest.shards),
        suffixes=manifest.suffixes,
        digest=manifest.digest,
        manifest=manifest,
        stamps=stamps,
    )


def _listed(directory: str, manifest: Manifest, split: str | None) -> ShardSet:
    paths = tuple(os.path.join(directory, entry.name) for entry in manifest.shards)
    stamps = tuple(map(_stamp_listed, paths, manifest.shards))
    return listed_set(directory, manifest, paths, stamps, split)


def _stamp_listed(path: str, entry: ShardEntry) -> Stamp:
    if os.path.basename(entry.name) != entry.name:
        raise ManifestError(f"the manifest lists {entry.name!r}, which is not in its directory")
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


def _foreign(directory: str, prefix: str, split: str | None) -> ShardSet:
    if os.path.lexists(staging_path(directory, prefix)):
        raise ManifestError(
            f"a conversion into {directory} was stopped before it finished; run it again, it goes on where it stopped",
            file=staging_path(directory, prefix),
        )
    paths = _find(directory, prefix)
    samples: list[int] = []
    stamps: list[Stamp] = []
    suffixes: set[str] = set()
    digest = hashlib.sha256()
    kept: dict[int, ShardIndex] = {}
    for number, path in enumerate(paths):
        stamp = Stamp.of(path)
        index = cached_index(path, stamp)
        if index is None:
            index = build_index(path)
            check_stamp(path, stamp)
            stored = store_index(path, stamp, index)
            if stored is None:
                kept[number] = index
        samples.append(index.n_samples)
        stamps.append(stamp)
        suffixes.update(index.suffixes)
        identity = replace(index, crcs=None).to_bytes()
        digest.update(f"{os.path.basename(path)}\0{hashlib.sha256(identity).hexdigest()}\n".encode(errors="replace"))
    return ShardSet(
        directory=directory,
        prefix=prefix,
        split=split,
        paths=tuple(paths),
        samples=tuple(samples),
        suffixes=tuple(sorted(suffixes)),
        digest=digest.hexdigest(),
        manifest=None,
        stamps=tuple(stamps),
        kept=kept,
    )


def _find(directory: str, prefix: str) -> list[str]:
    """Return the foreign shards of a directory in their order."""
    found = sorted(glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(prefix)}-*.tar")))
    start = len(prefix) + 1
    numbers = [os.path.basename(path)[start:-4] for path in found]
    numbered = [(int(number), path) for number, path in zip(numbers, found, strict=True) if _is_number(number)]
    if numbered:
        if len(numbered) < len(found):
            _log.info("%s: %d tars are not numbered and left out", directory, len(found) - len(numbered))
        return [path for _, path in sorted(numbered)]
    if not found:
        others = sorted(os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(directory), "*.tar")))
        hint = f"it has {others[0]}" + (f" and {len(others) - 1} more" if others[1:] else "") if others else "no tar"
        raise NoShardsError(f"{directory} has no {prefix}-*.tar and no manifest; {hint}. Convert the data first")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _sidecar(path: str, entry: ShardEntry) -> ShardIndex | None:
    """Return the index beside a shard, if it is the one that the manifest knows."""
    try:
        with open(index_name(path), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # missing, not readable, or empty
        return None
    return ShardIndex.from_buffer(data) if hashlib.sha256(data).hexdigest() == entry.index_sha256 else None


def _rebuilt(path: str, entry: ShardEntry, stamp: Stamp) -> ShardIndex:
    """Return a new index of a listed shard, after checking the shard's hash."""
    _log.info("%s is missing or changed, so the whole shard is checked", index_name(path))
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptShardError(
            f"{path} is not the shard in the manifest, its hash differs; restore it or run the conversion again",
            shard=path,
        )
    index = with_crcs(build_index(path), data)
    return store_index(path, stamp, index) or index


def with_crcs(index: ShardIndex, data: mmap.mmap) -> ShardIndex:
    """Return an index with the checksums of what the tar holds now."""
    view = memoryview(data)
    crcs = [
        zlib.crc32(view[offset : offset + size]) if offset >= 0 else 0
        for offset, size in zip(index.offsets.ravel().tolist(), index.sizes.ravel().tolist(), strict=True)
    ]
    return replace(index, crcs=np.array(crcs, np.uint32).reshape(index.offsets.shape))


@contextmanager
def _located(split: str | None) -> Iterator[None]:
    """Add the split to errors."""
    try:
        yield
    except (ShardError, ConfigError) as error:
        raise error.located(split=split) from error.__cause__
