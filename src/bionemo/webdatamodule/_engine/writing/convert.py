"""Conversion of sources to shards: validate, make one task per shard, run them on an executor, publish each split."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from itertools import chain
from typing import Any

from tqdm import tqdm

from bionemo.webdatamodule._engine.format.index import ShardIndex, index_name
from bionemo.webdatamodule._engine.format.manifest import Manifest, NewerManifestError, ShardEntry
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.storage.lock import Lease
from bionemo.webdatamodule._engine.storage.target import Target
from bionemo.webdatamodule._engine.storage.targets import target_of
from bionemo.webdatamodule._engine.writing import checks, publish
from bionemo.webdatamodule._engine.writing.conversion import Conversion, resolve_subsets
from bionemo.webdatamodule._engine.writing.disk_space import Room
from bionemo.webdatamodule._engine.writing.early import early_uploads
from bionemo.webdatamodule._engine.writing.layout import SplitPlan, check_n_shards, plan_split
from bionemo.webdatamodule._engine.writing.recipe import as_json, recipe_of
from bionemo.webdatamodule._engine.writing.run import Workers, run_tasks
from bionemo.webdatamodule._engine.writing.staging import Staged
from bionemo.webdatamodule._engine.writing.tasks import ShardTask
from bionemo.webdatamodule.errors import ConversionError, DataWarning, ManifestError, WebDataModuleError, count


def convert(conversion: Conversion, *, check: bool = False, progress: bool | None = None) -> Mapping[str, Manifest]:
    """Write the samples of each split into tar shards, and return what each split's directory then holds.

    Each split is published as a whole or not at all. Where the sources have not changed nothing is touched,
    where a few have only their shards are rewritten, and shards that a stopped run finished are used.

    Args:
        conversion: What to do.
        check: Compare the hashes of all shards that are there, and rewrite damaged ones.
            Otherwise names and sizes are compared.
        progress: Whether to show progress bars; by default where standard error is a terminal.

    Raises:
        ConfigError: If an argument is wrong.
        InputError: If names, keys, directories or samples are bad; it lists the problems of all splits at once.
        ConversionError: If the disk fails or is full; what was there before stays.
        RemoteError: If a URL cannot be read or written.
        PluginError: If the reader, key encoder or executor breaks its contract.
    """
    progress = _is_watched() if progress is None else progress
    given = resolve_subsets(conversion.names, conversion.writer.object, **conversion.writer.where)
    names = {split: checks.check_names(members, split=split) for split, members in given.items()}
    checks.check_request(list(names), conversion.directories, conversion.prefix)
    check_n_shards(conversion.n_shards)
    targets = {
        split: target_of(os.fspath(conversion.directories[split]), conversion.prefix, conversion.stores.get(split))
        for split in names
    }
    with _disk_errors(), ExitStack() as entered:
        n_shards = sum(min(conversion.n_shards or 0, len(members)) for members in names.values())
        workers = Workers(conversion.executor, entered, n_shards)
        plans, problems = _plan(conversion, names, targets, workers, progress=progress)
        settled = {plan.split: _settled(plan, check=check) for plan in plans}
        manifests = {split: manifest for split, manifest in settled.items() if manifest is not None}
        todo = [plan for plan in plans if plan.split not in manifests or publish.has_leftovers(plan.target)]
        written = {plan.split for plan in todo} | {split for split in names if split not in settled}
        checks.raise_problems(
            chain(
                checks.directory_problems(list(names), conversion.directories),
                problems,
                *(publish.problems(targets[split]) for split in names if split in written),
            )
        )
        _warn_of_few_samples(plans, conversion.n_shards)
        if todo:
            manifests.update(_convert(todo, workers, about=_about(conversion), check=check, progress=progress))
    return {split: manifests[split] for split in names}


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _about(conversion: Conversion) -> Mapping[str, Any]:
    """Return what a manifest says of how its shards were made."""
    writer = conversion.writer
    return {
        "writer": {"name": writer.name, "options": as_json(writer.options), **writer.provider},
        "key_encoder": {"name": conversion.key_encoder.name},
        "versions": {
            "bionemo-webdatamodule": metadata.version("bionemo-webdatamodule"),
            "python": platform.python_version(),
        },
    }


def _warn_of_few_samples(plans: Sequence[SplitPlan], n_shards: int | None) -> None:
    for plan in plans:
        if n_shards is not None and len(plan.wanted) < n_shards:
            warnings.warn(
                f"split {plan.split} has {count(len(plan.wanted), 'sample')}, fewer than the "
                f"{count(n_shards, 'shard')} asked for: every sample gets a shard of its own",
                DataWarning,
                stacklevel=3,
            )


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise what the operating system refuses as an error of the conversion."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WebDataModuleError):  # a RemoteError says it all
            raise
        raise ConversionError(
            f"the disk refused: {error.strerror or error}; correct this and run it again", file=error.filename
        ) from error


def _plan(
    conversion: Conversion,
    names: Mapping[str, Sequence[str]],
    targets: Mapping[str, Target],
    workers: Workers,
    *,
    progress: bool,
) -> tuple[list[SplitPlan], list[str]]:
    """Return the plans of all splits whose names are names, and what is wrong with the names and samples of all."""
    recipe = recipe_of(conversion)
    problems: list[str] = []
    sound = {}
    for split, members in names.items():
        found = list(checks.no_names({split: members}))
        problems += found
        if not found:
            sound[split] = members
    encoder = conversion.key_encoder
    problems += checks.name_problems(sound, recipe.encode, encoder=encoder.name, **encoder.where)
    total = sum(len(members) for members in sound.values())
    with tqdm(total=total, unit=" samples", desc="checking", disable=not progress, leave=False) as bar:
        plans = [
            plan_split(
                recipe,
                members,
                split=split,
                target=targets[split],
                n_shards=conversion.n_shards,
                before=_current(targets[split]),
                look=workers.look,
                progress=bar.update,
            )
            for split, members in sound.items()
        ]
    return plans, problems + [problem for plan in plans for problem in plan.problems]


def _convert(
    plans: Sequence[SplitPlan],
    workers: Workers,
    *,
    about: Mapping[str, Any],
    check: bool,
    progress: bool,
) -> dict[str, Manifest]:
    """Make and publish what the plans still lack, with the right to do so; return the manifests of all plans."""
    manifests: dict[str, Manifest] = {}
    with ExitStack() as held:
        leases: dict[str, Lease] = {}
        kept: dict[str, dict[str, ShardEntry]] = {}
        for plan in sorted(plans, key=lambda plan: place_of(plan.target.lease)):  # one order prevents deadlock
            plan.target.prepare()
            lease = held.enter_context(Lease(plan.target.lease, probe=plan.target.staging))
            leases[plan.split] = lease
            publish.heal(plan.target, check=lease.check)
            manifest = _current(plan.target)
            kept[plan.split] = _kept(plan, manifest, check=check)
            if manifest is not None and _lists(manifest) == plan.wanted and len(kept[plan.split]) == len(plan.wanted):
                manifests[plan.split] = manifest  # another conversion did it while this one waited
                filesystem.remove_directory(plan.target.staging)
        todo = [plan for plan in plans if plan.split not in manifests]
        tasks = {plan.split: [task for task in plan.tasks if task.inputs not in kept[plan.split]] for plan in todo}
        for plan in todo:
            held.callback(publish.tidy, plan.target.staging)
            publish.tidy(plan.target.staging)
            filesystem.make_private_directory(plan.target.staging)
        every = [task for plan in todo for task in tasks[plan.split]]
        room = Room.needed(todo, every)
        room.check()
        uploads = {
            plan.split: held.enter_context(
                early_uploads(
                    plan.target, {inputs: name for name, inputs in plan.wanted}, check=leases[plan.split].check
                )
            )
            for plan in todo
        }

        def upload(task: ShardTask) -> None:
            if early := uploads[task.split]:
                early.put(task.inputs)

        with room.explained():
            staged = run_tasks(every, workers, progress=progress, staged=upload)
        made = {task.inputs: shard for task, shard in zip(every, staged, strict=True)}
        for plan in todo:
            manifest = _manifest(plan, kept[plan.split], made, about)
            with room.explained():
                early = uploads[plan.split]
                there = early.finish() if early else ()
                publish.publish(plan.target, manifest, check=leases[plan.split].check, there=there)
            manifests[plan.split] = manifest
            decided(
                "split %s: %s in %s in %s, %d of them new",
                plan.split,
                count(manifest.n_samples, "sample"),
                count(len(manifest.shards), "shard"),
                plan.target,
                len(tasks[plan.split]),
            )
    return manifests


def _current(target: Target) -> Manifest | None:
    """Return a target's manifest, or ``None`` where there is none that can be read, so nothing that it says counts."""
    try:
        return target.manifest()
    except NewerManifestError:
        raise
    except ManifestError:
        return None


def _lists(manifest: Manifest) -> list[tuple[str, str]]:
    return [(shard.name, shard.inputs) for shard in manifest.shards]


def _settled(plan: SplitPlan, *, check: bool) -> Manifest | None:
    """Return the manifest of a target that holds just what the plan asks for, or ``None``."""
    manifest = _current(plan.target)
    if manifest is None or _lists(manifest) != plan.wanted:
        return None
    if check:
        found = publish.undamaged(plan.target, manifest.shards, check=True)
    else:
        found = publish.in_place(plan.target, manifest.shards)
    return manifest if len(found) == len(manifest.shards) else None


def _kept(plan: SplitPlan, manifest: Manifest | None, *, check: bool) -> dict[str, ShardEntry]:
    """Return the shards that can stay as they are, by their inputs."""
    wanted = set(plan.wanted)
    shards = [shard for shard in (manifest.shards if manifest else ()) if (shard.name, shard.inputs) in wanted]
    return {shard.inputs: shard for shard in publish.undamaged(plan.target, shards, check=check)}


def place_of(lease: str) -> str:
    """Return where a lease is made; it is a link itself, to no file."""
    return os.path.join(os.path.realpath(os.path.dirname(lease)), os.path.basename(lease))


def _manifest(
    plan: SplitPlan, kept: Mapping[str, ShardEntry], made: Mapping[str, Staged], about: Mapping[str, Any]
) -> Manifest:
    shards = []
    suffixes: set[str] = set()
    for name, inputs in plan.wanted:
        if inputs in kept:
            shards.append(kept[inputs])
            suffixes.update(ShardIndex.from_buffer(plan.target.read(index_name(name)) or b"").suffixes)  # checked
        else:
            staged = made[inputs]
            suffixes.update(staged.suffixes)
            shards.append(
                ShardEntry(
                    name=name,
                    bytes=staged.bytes,
                    samples=staged.samples,
                    sha256=staged.sha256,
                    index_sha256=staged.index_sha256,
                    inputs=inputs,
                )
            )
    return Manifest(
        prefix=plan.target.prefix,
        suffixes=tuple(sorted(suffixes)),
        codecs={suffix: plan.tasks[0].recipe.codec(suffix) for suffix in sorted(suffixes)},
        shards=tuple(shards),
        **about,
    )
