"""Moves finished shards from the staging directory into place, so that a stop at any moment loses nothing.

The order of steps, each brought to the disk before the next:

1. The shards and their indices lie finished in the staging directory. Where a URL has no data yet, they are uploaded
   from there while others are made (:mod:`.early`), behind a journal that lists nothing.
2. The new manifest appears as the journal. From here on readers refuse the directory or URL,
   and the next conversion continues with step 3 in any case.
3. Shards are put over the old ones, and shards that are no longer needed are removed.
   Readers of a local directory that have old ones open keep them.
4. The journal becomes the manifest. Readers see the new data.
5. The staging directory is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures

from bionemo.webdatamodule._engine.format.index import index_name, made_by_conversion
from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    NewerManifestError,
    ShardEntry,
    journal_path,
    manifest_path,
)
from bionemo.webdatamodule._engine.format.tar_write import file_sha256
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.target import Target
from bionemo.webdatamodule._engine.writing.staging import index_path, tar_path
from bionemo.webdatamodule.errors import ManifestError, RemoteError

Check = Callable[[], None]
"""Raises where this process may no longer change the target."""


def publish(target: Target, manifest: Manifest, *, check: Check, there: Collection[str] = ()) -> None:
    """Make staged shards the data of a target.

    Args:
        target: Where they go.
        manifest: The new manifest. Its shards are staged, or lie in place already.
        check: Raises where this process may no longer change the target.
        there: Names of files that are in place, although they are staged.

    Raises:
        OSError: If the disk fails; the next conversion continues from there.
        RemoteError: If an upload fails; likewise.
    """
    check()
    target.announce(manifest)
    _move(target, manifest, check=check, there=there)


def heal(target: Target, *, check: Check) -> None:
    """Finish a publication that was stopped, or clear it away where its shards are gone.

    Args:
        target: Where shards were to go.
        check: See :func:`publish`.
    """
    journal = target.read(journal_path("", target.prefix))
    if journal is None:
        return
    manifest = _parsed(journal, target)
    if manifest is not None and all(_is_there(target, entry) for entry in manifest.shards):
        _move(target, manifest, check=check)
    else:
        clear(target, check=check)


def clear(target: Target, *, check: Check) -> None:
    """Remove the shards of a publication that was stopped, its manifest and its journal.

    Args:
        target: Where they are.
        check: See :func:`publish`.
    """
    for name in list(owned(target)):
        check()
        target.remove(name)
    check()
    target.retract()


def problems(target: Target) -> Iterator[str]:
    """Yield why shards cannot be put into a target, a sentence each."""
    found = list(target.problems())
    yield from found
    strangers = [] if found else sorted(target.sizes().keys() - set(owned(target)))
    if strangers:
        more = f" and {len(strangers) - 1:,} more file{'s' * (len(strangers) > 2)}" if strangers[1:] else ""
        adopted = "another tool wrote and `webdatamodule index` adopted"
        whose = adopted if _is_adopted(target) else "no manifest lists"
        yield f"{target} holds {strangers[0]}{more} that {whose}; move it away or choose another prefix"


def has_leftovers(target: Target) -> bool:
    """Return whether there is something that a stopped conversion left, and that may be removed."""
    found = any(map(os.path.lexists, (target.staging, target.lease)))
    return found and os.access(os.path.dirname(target.staging), os.W_OK)


def tidy(staging: str) -> None:
    """Remove half-written files from a staging directory, and the directory if nothing is left in it."""
    try:
        names = os.listdir(staging)
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith((".tar", ".idx", ".json")):
            filesystem.remove(os.path.join(staging, name))
    filesystem.remove_empty_directory(staging)


def in_place(target: Target, shards: Iterable[ShardEntry]) -> list[ShardEntry]:
    """Return those of some shards that lie in place with their indices, going by names and sizes."""
    sizes: Mapping[str, int] = target.sizes()
    return [shard for shard in shards if sizes.get(shard.name) == shard.bytes and sizes.get(index_name(shard.name))]


def undamaged(target: Target, shards: Iterable[ShardEntry], *, check: bool) -> list[ShardEntry]:
    """Return those of some shards in place whose indices have the hash in the manifest, and on request they, too."""
    found = in_place(target, shards)

    def is_whole(shard: ShardEntry) -> bool:
        try:
            return target.sha256(index_name(shard.name)) == shard.index_sha256 and (
                not check or target.sha256(shard.name) == shard.sha256
            )
        except RemoteError:
            raise
        except OSError:  # it lies on a bad place of the disk, or it is not readable
            return False

    with futures.ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return [shard for shard, whole in zip(found, pool.map(is_whole, found), strict=True) if whole]


def owned(target: Target) -> Iterator[str]:
    """Yield the names of the shards and indices in a target that its manifest or journal lists as made by conversion.

    With a manifest that cannot be read, those are its own whose indices say that a conversion made them.
    """
    everything = target.sizes()
    known: set[str] = set()
    for path in (manifest_path("", target.prefix), journal_path("", target.prefix)):
        text = target.read(path)
        manifest = None if text is None else _parsed(text, target)
        if text is not None and manifest is None:
            yield from (name for name in everything if _is_made(target, name))
            return
        known.update(entry.name for entry in (manifest.shards if manifest is not None else ()) if entry.inputs)
    yield from (name for name in everything if name in known or name.removesuffix(index_name("")) in known)


def staged_files(target: Target, inputs: str, name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return where index and tar of a shard are staged, each with its name in place."""
    return (
        (index_path(target.staging, inputs), index_name(name)),
        (tar_path(target.staging, inputs), name),
    )


def _is_made(target: Target, name: str) -> bool:
    sidecar = target.read(index_name(name.removesuffix(index_name(""))))
    return sidecar is not None and made_by_conversion(sidecar)


def _is_adopted(target: Target) -> bool:
    text = target.read(manifest_path("", target.prefix))
    manifest = None if text is None else _parsed(text, target)
    return manifest is not None and not all(entry.inputs for entry in manifest.shards)


def _parsed(text: bytes, target: Target) -> Manifest | None:
    try:
        return Manifest.from_json(text, prefix=target.prefix)
    except NewerManifestError:
        raise
    except ManifestError:
        return None


def _move(target: Target, manifest: Manifest, *, check: Check, there: Collection[str] = ()) -> None:
    obsolete = set(owned(target))
    pairs = [pair for entry in manifest.shards for pair in staged_files(target, entry.inputs, entry.name)]
    obsolete.difference_update(name for _, name in pairs)

    def put(pair: tuple[str, str]) -> None:
        check()
        target.put(*pair)

    staged = [pair for pair in pairs if pair[1] not in there and os.path.lexists(pair[0])]
    if target.at_once > 1:
        with futures.ThreadPoolExecutor(target.at_once) as pool:
            list(pool.map(put, staged))
    else:
        for pair in staged:
            put(pair)
    for name in sorted(obsolete):
        check()
        target.remove(name)
    check()
    target.commit(manifest)
    filesystem.remove_directory(target.staging)


def _is_there(target: Target, entry: ShardEntry) -> bool:
    """Return whether a shard of a stopped publication is staged or in place, whole."""
    index, tar = staged_files(target, entry.inputs, entry.name)
    return _has(target, *index, entry.index_sha256) and _has(target, *tar, entry.sha256)


def _has(target: Target, staged: str, name: str, sha256: str) -> bool:
    found = file_sha256(staged) if os.path.exists(staged) else target.sha256(name)
    return found == sha256
