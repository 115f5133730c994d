"""Moves finished shards from the staging directory into place, so that a stop at any moment loses nothing.

The order of steps, each brought to the disk before the next:

1. The shards and their indices lie finished in the staging directory.
2. The new manifest appears as the journal. From here on readers refuse the directory,
   and the next conversion goes on with step 3 whatever happens.
3. Shards are renamed over the old ones, and shards that are no longer needed are removed.
   Readers that have old ones open keep them.
4. The journal is renamed to be the manifest. Readers see the new data.
5. The staging directory is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from bionemo.webdatamodule.errors import ManifestError
from bionemo.webdatamodule.shards import files, tasks
from bionemo.webdatamodule.shards.index import index_name
from bionemo.webdatamodule.shards.manifest import (
    Manifest,
    ShardEntry,
    journal_path,
    lease_path,
    load_manifest,
    manifest_path,
    staging_path,
)
from bionemo.webdatamodule.shards.write import file_sha256


def publish(directory: str, manifest: Manifest, *, check: Callable[[], None]) -> None:
    """Make staged shards the data of a directory.

    Args:
        directory: The split's directory.
        manifest: The new manifest. Its shards are staged, or lie in the directory already.
        check: Raises where this process may no longer change the directory.

    Raises:
        OSError: If the disk fails; the next conversion goes on from there.
    """
    staging = staging_path(directory, manifest.prefix)
    draft = os.path.join(staging, "manifest.json")
    files.write_whole(draft, manifest.to_json().encode())
    files.sync_directory(staging)
    check()
    files.replace(draft, journal_path(directory, manifest.prefix))
    files.sync_directory(directory)
    _move(directory, manifest, check=check)


def heal(directory: str, prefix: str, *, check: Callable[[], None]) -> None:
    """Finish a publication that was stopped, or clear it away where its shards are gone.

    Args:
        directory: The split's directory.
        prefix: Beginning of the shards' names.
        check: See :func:`publish`.
    """
    journal = journal_path(directory, prefix)
    try:
        manifest = load_manifest(journal)
    except ManifestError:
        manifest = None
    if not os.path.lexists(journal):
        return
    if manifest is not None and all(_is_there(directory, prefix, entry) for entry in manifest.shards):
        _move(directory, manifest, check=check)
        return
    for name in owned(directory, prefix):
        check()
        files.remove(os.path.join(directory, name))
    files.remove(manifest_path(directory, prefix))
    files.sync_directory(directory)
    files.remove(journal)
    files.sync_directory(directory)


def problems(directory: str, prefix: str) -> Iterator[str]:
    """Yield why shards cannot be put into a directory, a sentence each."""
    existing = os.path.abspath(directory)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        yield f"{existing} is no directory, so shards cannot go to {directory}"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"{existing} is read-only, so shards cannot go to {directory}"
    strangers = sorted(set(shard_files(directory, prefix)) - set(owned(directory, prefix)))
    if strangers:
        yield (
            f"{directory} holds {strangers[0]} and {len(strangers) - 1} more files that no manifest lists; "
            "move them away or choose another prefix"
        )


def has_leftovers(directory: str, prefix: str) -> bool:
    """Return whether there is something that a stopped conversion left, and that may be removed."""
    paths = staging_path(directory, prefix), lease_path(directory, prefix)
    return any(map(os.path.lexists, paths)) and os.access(directory, os.W_OK)


def tidy(staging: str) -> None:
    """Remove half-written files from a staging directory, and the directory if nothing is left in it."""
    try:
        names = os.listdir(staging)
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith((".tar", ".idx", ".json")):
            files.remove(os.path.join(staging, name))
    files.remove_empty_directory(staging)


def is_in_place(directory: str, entry: ShardEntry) -> bool:
    """Return whether a shard and its index lie in the directory, going by their presence and size."""
    try:
        size = os.stat(os.path.join(directory, entry.name)).st_size
    except FileNotFoundError:
        return False
    return size == entry.bytes and os.path.exists(os.path.join(directory, index_name(entry.name)))


def owned(directory: str, prefix: str) -> Iterator[str]:
    """Yield the names of the shards and indices in a directory that its manifest or journal lists.

    With a manifest that cannot be read, all that look like shards of the prefix are taken for its own.
    """
    known: set[str] = set()
    for path in (manifest_path(directory, prefix), journal_path(directory, prefix)):
        try:
            manifest = load_manifest(path)
        except ManifestError:
            yield from shard_files(directory, prefix)
            return
        if manifest is not None:
            known.update(entry.name for entry in manifest.shards)
    for name in shard_files(directory, prefix):
        if name in known or name.removesuffix(index_name("")) in known:
            yield name


def shard_files(directory: str, prefix: str) -> list[str]:
    """Return the sorted names of all files in a directory that look like shards of a prefix or their indices."""
    pattern = re.compile(rf"{re.escape(prefix)}-\d{{6,}}\.tar({re.escape(index_name(''))})?")
    try:
        return sorted(name for name in os.listdir(directory) if pattern.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _move(directory: str, manifest: Manifest, *, check: Callable[[], None]) -> None:
    staging = staging_path(directory, manifest.prefix)
    obsolete = set(owned(directory, manifest.prefix))
    for entry in manifest.shards:
        for staged, name in _pairs(staging, entry):
            obsolete.discard(name)
            if os.path.lexists(staged):
                check()
                files.replace(staged, os.path.join(directory, name))
    for name in sorted(obsolete):
        check()
        files.remove(os.path.join(directory, name))
    files.sync_directory(directory)
    check()
    files.replace(journal_path(directory, manifest.prefix), manifest_path(directory, manifest.prefix))
    files.sync_directory(directory)
    files.remove_directory(staging)


def _pairs(staging: str, entry: ShardEntry) -> tuple[tuple[str, str], tuple[str, str]]:
    return (
        (tasks.index_path(staging, entry.inputs), index_name(entry.name)),
        (tasks.tar_path(staging, entry.inputs), entry.name),
    )


def _is_there(directory: str, prefix: str, entry: ShardEntry) -> bool:
    """Return whether a shard of an interrupted publication is staged or in place, whole."""
    index, tar = _pairs(staging_path(directory, prefix), entry)
    return _has(directory, *index, entry.index_sha256) and _has(directory, *tar, entry.sha256)


def _has(directory: str, staged: str, name: str, sha256: str) -> bool:
    path = staged if os.path.exists(staged) else f"{directory}/{name}"
    return os.path.exists(path) and file_sha256(path) == sha256
