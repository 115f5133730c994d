"""Everything that a report says of a data set, gathered from the manifest, the plan and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bionemo.webdatamodule._cli.report.survey import Survey, evenly, survey
from bionemo.webdatamodule._engine.format.manifest import Manifest, read_manifest
from bionemo.webdatamodule._engine.reading import verify
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet, is_url
from bionemo.webdatamodule._engine.sampling.plan import Plan, Source
from bionemo.webdatamodule._engine.sampling.summary import report_global
from bionemo.webdatamodule._engine.storage.remote.urls import shown
from bionemo.webdatamodule.errors import ConfigError, NoShardsError, ShardError
from bionemo.webdatamodule.pickles import Policy

SAMPLES = 1000
"""Samples that are decoded by default."""

MOST_BYTES = 1 << 30
"""Bytes that these samples may have together, about; of larger ones fewer are decoded."""

REMOTE_SHARDS = 4
"""Shards behind a URL that are fetched, unless all of them are asked for."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A run whose plan is shown: ranks, workers of each, and samples of a global batch."""

    ranks: int
    workers: int
    global_batch_size: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard as the report lists it; ``sha256`` is empty where no manifest has it."""

    name: str
    samples: int
    bytes: int
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the report says.

    Attributes:
        directory: The directory, or the URL without what is secret in it.
        prefix: Beginning of the shards' names.
        digest: What identifies the data.
        shards: The shards, in their order.
        manifest: The manifest, or ``None`` for shards of another tool.
        survey: What the data look like, or ``None`` where they could not be opened.
        unread: Why they could not be opened.
        verification: What comparing all bytes with the manifest found, or ``None`` where that was not done.
        unverified: Why it was not done.
        topology: The run that was asked about.
        plan: What :func:`~bionemo.webdatamodule._engine.sampling.summary.report_global` says of it.
    """

    directory: str
    prefix: str
    digest: str
    shards: tuple[Shard, ...]
    manifest: Manifest | None
    survey: Survey | None
    unread: str = ""
    verification: verify.Report | None
    unverified: str = ""
    topology: Topology | None
    plan: Mapping[str, Any] | None

    @property
    def n_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the data, a sentence each."""
        found = list(self.verification.problems) if self.verification else []
        if self.survey is None:
            return found or [self.unread]
        found += [problem for problem in self.survey.problems if problem not in found]
        for each in self.survey.fields:
            if each.failures:
                found.append(f"{each.suffix}: {each.failures} of {each.failures + each.decoded} cannot be decoded")
        return found


def gather(
    directory: str,
    prefix: str,
    *,
    samples: int | None = None,
    deep: bool = False,
    hashes: bool = True,
    policy: Policy | None = None,
    topology: Topology | None = None,
    progress: bool = False,
) -> Facts:
    """Look at a data set.

    Args:
        directory: A local directory, or a URL.
        prefix: Beginning of the shards' names.
        samples: Samples to decode, spread evenly over all; by default :data:`SAMPLES`, or fewer if they are large.
        deep: Decode all, and of a URL fetch all.
        hashes: Compare the bytes of all shards with the manifest's hashes; local directories only.
        policy: What pickles may do.
        topology: The run whose plan to show.
        progress: Whether to show progress bars on standard error.

    Raises:
        ShardError: If there is nothing to report: no shards, or a manifest that cannot be read.
    """
    local = not is_url(directory)
    directory = str(Path(directory).expanduser().absolute()) if local else directory
    manifest = read_manifest(directory, prefix) if local and Path(directory).is_dir() else None
    verification = None
    if manifest is not None and hashes:
        verification = verify.verify(directory, prefix, progress=progress)
    found, unread = None, ""
    try:
        found = ShardSet.open(directory, prefix)
        manifest = found.manifest
    except ShardError as error:
        if manifest is None:
            raise
        unread = error.message
    shards = _of_manifest(manifest) if manifest is not None else _of_files(found)
    if not sum(shard.samples for shard in shards):
        raise NoShardsError(f"{directory} lists no samples under the prefix {prefix!r}")
    looked_at = None
    if found is not None:
        looked_at = survey(
            found,
            policy or Policy(),
            shards=evenly(0, len(shards), len(shards), len(shards) if local or deep else REMOTE_SHARDS),
            samples=found.n_samples if deep else samples or _default(shards),
            progress=progress,
        )
    return Facts(
        directory=directory if local else shown(directory),
        prefix=prefix,
        digest=manifest.digest if manifest is not None else found.digest if found else "",
        shards=shards,
        manifest=manifest,
        survey=looked_at,
        unread=unread,
        verification=verification,
        unverified=_why_unverified(manifest, local=local),
        topology=topology,
        plan=_plan(shards, topology),
    )


def _of_manifest(manifest: Manifest) -> tuple[Shard, ...]:
    return tuple(
        Shard(name=entry.name, samples=entry.samples, bytes=entry.bytes, sha256=entry.sha256)
        for entry in manifest.shards
    )


def _of_files(found: ShardSet | None) -> tuple[Shard, ...]:
    rows = zip(found.paths, found.samples, found.stamps, strict=True) if found else ()
    return tuple(Shard(name=Path(path).name, samples=samples, bytes=stamp.size) for path, samples, stamp in rows)


def _default(shards: tuple[Shard, ...]) -> int:
    samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
    return min(SAMPLES, max(1, MOST_BYTES * samples // max(1, size)))


def _why_unverified(manifest: Manifest | None, *, local: bool) -> str:
    if not local:
        return "shards behind a URL are compared with the manifest's hashes as they are fetched"
    if manifest is None:
        return (
            "another tool wrote these shards, and no manifest says what they should be; all headers were checked, "
            "and `webdatamodule index` makes a manifest"
        )
    return "it was left out"


def _plan(shards: tuple[Shard, ...], topology: Topology | None) -> Mapping[str, Any] | None:
    if topology is None:
        return None
    counts = tuple(shard.samples for shard in shards)
    try:
        plan = Plan(sources=(Source(samples=sum(counts), shards=counts),), global_batch_size=topology.global_batch_size)
    except ConfigError as error:
        return {"problems": [error.message], "notes": []}
    return report_global(plan, ranks=topology.ranks, workers=topology.workers)
