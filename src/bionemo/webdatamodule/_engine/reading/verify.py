"""Verification of a directory against its manifest: sizes, hashes, and optionally decoding of every sample."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.format.index import ShardIndex, index_name
from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    ShardEntry,
    manifest_path,
    read_manifest,
    staging_path,
)
from bionemo.webdatamodule._engine.format.tar_headers import member_name
from bionemo.webdatamodule._engine.format.tar_write import file_sha256
from bionemo.webdatamodule._engine.reading.columns import column_of
from bionemo.webdatamodule._engine.storage.index_cache import is_within
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.listing import parent_of_pattern
from bionemo.webdatamodule._engine.storage.remote.listing import read_manifest as read_remote_manifest
from bionemo.webdatamodule._engine.storage.remote.urls import is_url, shown
from bionemo.webdatamodule._engine.storage.targets import LocalTarget, target_of
from bionemo.webdatamodule.components import FieldCodec
from bionemo.webdatamodule.errors import (
    ConfigError,
    CorruptShardError,
    ManifestError,
    NoShardsError,
    WebDataModuleError,
)
from bionemo.webdatamodule.names import split_member
from bionemo.webdatamodule.pickles import Policy

_ENDING = manifest_path("", "")
_STAGING = staging_path("", "").removeprefix(".")
_TOGETHER = 256  # samples that are decoded at a time


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of :func:`verify`.

    Attributes:
        directory: What was looked at.
        prefix: Beginning of the shards' names.
        shards: Shards that the manifest lists.
        samples: Samples that the manifest counts.
        bytes: Size of the shards as the manifest has it.
        problems: What is wrong, a sentence each; empty where all is as it should be.
        notes: What is there beside the data and does no harm to them.
    """

    directory: str
    prefix: str
    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def find_prefixes(directory: str) -> list[str]:
    """Return the sorted prefixes of which a directory, or a URL of one, holds a manifest.

    Raises:
        NoShardsError: If there is none, or the URL is a pattern of shards.
        ConfigError: If the URL cannot be listed.
    """
    try:
        names = [file.name for file in _directory_at(directory).list()] if is_url(directory) else os.listdir(directory)
    except WebDataModuleError:
        raise
    except OSError as error:
        raise NoShardsError(f"{directory} cannot be listed: {error.strerror}; correct the path") from error
    found = sorted(name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING))
    if not found and any(name.startswith(".") and name.endswith(_STAGING) for name in names):
        raise NoShardsError(
            f"a conversion into {directory} was stopped before it finished; run it again, finished shards are kept"
        )
    if not found:
        raise NoShardsError(
            f"{directory} holds no manifest; for shards that another tool wrote, run `webdatamodule index` first"
        )
    return found


def verify(
    directory: str, prefix: str, *, deep: bool = False, policy: Policy | None = None, progress: bool = False
) -> Report:
    """Compare a directory with its manifest, byte for byte. What is behind a URL is fetched for that and not kept.

    Args:
        directory: The split's directory, or a URL of it.
        prefix: Beginning of the shards' names.
        deep: Also decode every sample.
        policy: What pickles may hold, for ``deep``.
        progress: Whether to show a progress bar on standard error.

    Raises:
        ManifestError: If there is no manifest, or it cannot be read.
        NoShardsError: If the URL is a pattern of shards.
    """
    if deep and is_url(directory):
        raise ConfigError(f"samples behind {directory} are not decoded; verify a local copy, or leave --deep out")
    manifest = manifest_of(directory, prefix)
    if manifest is None:
        raise ManifestError(
            f"{directory} holds no {prefix}.manifest.json; convert into it, or index what another tool wrote"
        )
    problems: list[str] = []
    total = manifest.n_bytes
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=not progress, leave=False) as bar,
        futures.ThreadPoolExecutor() as pool,  # hashing releases the interpreter's lock
    ):
        for entry, found in zip(
            manifest.shards, pool.map(lambda entry: shard_problem(directory, entry), manifest.shards), strict=True
        ):
            if found is not None:
                problems.append(f"{entry.name}: {found}")
            bar.update(entry.bytes)
    if deep and not problems:
        problems += _undecodable(directory, manifest, policy or Policy(), progress=progress)
    return Report(
        directory=directory,
        prefix=prefix,
        shards=len(manifest.shards),
        samples=manifest.n_samples,
        bytes=total,
        problems=tuple(problems),
        notes=tuple(_notes(directory, manifest)),
    )


def manifest_of(directory: str, prefix: str) -> Manifest | None:
    """Return the manifest of a directory or URL, or ``None`` where there is none.

    Raises:
        ManifestError: If it cannot be used.
        NoShardsError: If the URL is a pattern of shards.
    """
    if is_url(directory):
        return read_remote_manifest(_directory_at(directory), prefix)
    return read_manifest(directory, prefix)


def _directory_at(url: str) -> RemoteDirectory:
    """Return the directory at a URL, which is no pattern of shards: a manifest is of a directory."""
    parent = parent_of_pattern(url)
    if parent is not None:
        raise NoShardsError(
            f"{shown(url)} is a pattern of shards, and a manifest is of a directory; give its URL, {shown(parent)}"
        )
    return RemoteDirectory.at(url)


def shard_problem(directory: str, entry: ShardEntry) -> str | None:
    """Return how a shard or its index differs from what the manifest says, or ``None``."""
    if is_url(directory):
        target = target_of(directory, "")
        for what, name, expected in (
            ("it", entry.name, entry.sha256),
            ("its index", index_name(entry.name), entry.index_sha256),
        ):
            found = target.sha256(name)
            if found != expected:
                return f"{what} is missing" if found is None else f"{what} has other bytes than were written"
        return None
    path = os.path.join(directory, entry.name)
    if os.path.isfile(path) and os.path.getsize(path) != entry.bytes:
        return f"it has {os.path.getsize(path)} bytes instead of {entry.bytes}"
    return _difference("it", path, entry.sha256) or _difference("its index", index_name(path), entry.index_sha256)


def _difference(what: str, path: str, sha256: str) -> str | None:
    try:
        return None if file_sha256(path) == sha256 else f"{what} has other bytes than were written"
    except FileNotFoundError:
        return f"{what} is missing"
    except OSError as error:
        return f"{what} cannot be read: {error.strerror}"


def _notes(directory: str, manifest: Manifest) -> Iterator[str]:
    listed = {entry.name for entry in manifest.shards}
    for name in sorted(LocalTarget(directory=directory, prefix=manifest.prefix).sizes()):
        if name not in listed and name.removesuffix(index_name("")) not in listed:
            yield f"{name} is not listed by the manifest, so it is not read"
    if os.path.lexists(staging_path(directory, manifest.prefix)):
        yield "a conversion is at work, or was stopped; the next one clears it away"


def _undecodable(directory: str, manifest: Manifest, policy: Policy, *, progress: bool) -> Iterator[str]:
    """Decode every field of every sample and yield what cannot be."""
    found = Codecs(policy=policy)
    codecs = {suffix: found.of(suffix, manifest.codecs.get(suffix)).codec for suffix in manifest.suffixes}
    with tqdm(total=manifest.n_samples, unit=" samples", desc="decoding", disable=not progress, leave=False) as bar:
        for entry in manifest.shards:
            with open(os.path.join(directory, entry.name), "rb") as file:
                tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = memoryview(tar)
            index = ShardIndex.from_buffer(Path(directory, index_name(entry.name)).read_bytes())
            if not is_within(index, len(data)) or index.n_samples != entry.samples:
                yield f"{entry.name}: its index is not that of this shard"
                continue
            for first in range(0, index.n_samples, _TOGETHER):
                rows = slice(first, first + _TOGETHER)
                for sample in range(first, min(first + _TOGETHER, index.n_samples)):
                    if _stored_key(tar, index, sample) is None:
                        yield f"{entry.name}: sample {sample} has no key, so it cannot be read"
                for column, suffix in enumerate(index.suffixes):
                    offsets, sizes = index.offsets[rows, column].tolist(), index.sizes[rows, column].tolist()
                    fields = {
                        sample: data[offset : offset + size]
                        for sample, (offset, size) in enumerate(zip(offsets, sizes, strict=True), first)
                        if offset >= 0
                    }
                    for sample, reason in _bad_fields(codecs[suffix], fields):
                        yield f"{entry.name}: {_key(tar, index, sample)}, {suffix}: {reason}"
                bar.update(min(_TOGETHER, index.n_samples - first))


def _key(tar: mmap.mmap, index: ShardIndex, sample: int) -> str:
    """Return the key of a sample, or which one it is where its header is damaged."""
    key = _stored_key(tar, index, sample)
    return f"sample {sample}" if key is None else key.decode("utf-8", "backslashreplace")


def _stored_key(tar: mmap.mmap, index: ShardIndex, sample: int) -> bytes | None:
    """Return the key of a sample as it is stored; ``None`` where its header is damaged or has none."""
    try:
        parts = split_member(member_name(tar, int(index.headers[sample])))
    except CorruptShardError:
        return None
    return None if parts is None else parts[0]


def _bad_fields(codec: FieldCodec, fields: Mapping[int, memoryview]) -> Iterator[tuple[int, str]]:
    """Decode fields, together if all goes well, and yield which cannot be, and why."""
    try:
        column_of(codec, list(fields.values())).values()
    except WebDataModuleError as error:
        reason = error.message
    except Exception as error:  # noqa: BLE001 - decoders of many formats raise what they like
        reason = f"{type(error).__name__}: {error}"
    else:
        return
    if len(fields) == 1:
        yield next(iter(fields)), reason
        return
    for sample, field in fields.items():
        yield from _bad_fields(codec, {sample: field})
