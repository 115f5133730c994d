"""What there is on this machine: versions, plugins, limits, GPUs, the cache, settings, data sets."""

from __future__ import annotations

import importlib
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bionemo.webdatamodule._cli.doctor import system
from bionemo.webdatamodule._cli.doctor.system import Limits
from bionemo.webdatamodule.errors import PluginWarning, WebDataModuleError
from bionemo.webdatamodule.plugins import DISABLED, STRICT, Plugins

_PACKAGES = ("torch", "lightning", "webdataset", "numpy", "pluggy", "fsspec", "tqdm")
_BEGINNINGS = ("GOPEN_", "WDS_")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "RANK",
    "SLURM_NTASKS",
    DISABLED,
    STRICT,
    "USE_AIS_FOR",
    "WORLD_SIZE",
)


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """Accelerators.

    Attributes:
        build: What torch was built for: ``CUDA 12.8``, ``ROCm 6.4``, or empty for none.
        usable: GPUs that torch can use.
        present: Whether the driver shows any.
    """

    build: str
    usable: int
    present: bool


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The user's cache directory.

    Attributes:
        path: Where it is, or would be made.
        writable: Whether files can be put there.
        used: Bytes of the files in it.
        free: Bytes free on its file system.
        file_system: The type of that.
    """

    path: str
    writable: bool
    used: int
    free: int | None
    file_system: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is.

    Attributes:
        system: The operating system.
        versions: Versions of Python and of packages, in order.
        broken: Packages that cannot be imported, and why.
        components: How many components are registered.
        left_out: Plugins that are not, a sentence each.
        disabled: Those that the user left out.
        start_method: How the loader's workers start.
        checksum: The library that checks members when they are read: ``zlib-ng`` or ``zlib``.
        limits: What this process may use.
        open_shards: Shards that a process keeps open at a time.
        gpus: Accelerators.
        cache: The cache directory.
        environment: Environment variables that matter here, or look as if they did.
    """

    system: str
    versions: Mapping[str, str]
    broken: Mapping[str, str]
    components: int
    left_out: tuple[str, ...]
    disabled: tuple[str, ...]
    start_method: str
    checksum: str
    limits: Limits
    open_shards: int
    gpus: Gpus
    cache: Cache
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One directory that was asked about.

    Attributes:
        directory: The directory, or the URL without what is secret in it.
        prefix: Beginning of the shards' names.
        samples: Samples in it.
        shards: Shards.
        bytes: Bytes of the shards.
        is_remote: Whether it is a URL.
        file_system: Type of the file system, for local ones.
        problem: Why it cannot be opened, or ``None``.
    """

    directory: str
    prefix: str
    samples: int = 0
    shards: int = 0
    bytes: int = 0
    is_remote: bool = False
    file_system: str = ""
    problem: str | None = None


def look(root: Path = Path("/")) -> Machine:
    """Return the facts about this machine.

    Args:
        root: Where ``proc``, ``sys`` and ``dev`` are.
    """
    from bionemo.webdatamodule._engine.format import checksum
    from bionemo.webdatamodule._engine.reading.open_shards import most_open

    broken = {}
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001, PERF203 - what is broken may raise anything
            broken[name] = f"{type(error).__name__}: {error}"
    plugins = Plugins()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # they are findings
        plugins.load_installed()
    chosen = [left for left in plugins.left_out if DISABLED in left.reason]
    return Machine(
        system=platform.platform(),
        versions={"python": platform.python_version(), **_versions()},
        broken=broken,
        components=len(plugins.registered),
        left_out=tuple(str(left) for left in plugins.left_out if left not in chosen),
        disabled=tuple(left.plugin for left in chosen),
        start_method="" if "torch" in broken else _start_method(),
        checksum=checksum.LIBRARY,
        limits=system.limits(root),
        open_shards=most_open(),
        gpus=Gpus(build="", usable=0, present=_has_gpu(root)) if "torch" in broken else _gpus(root),
        cache=_cache(root),
        environment={
            name: value if name in _VARIABLES else "…"  # which may hold what is secret
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name.startswith(_BEGINNINGS)
        },
    )


def open_data(directory: str, prefix: str, root: Path = Path("/")) -> DataSet:
    """Return what a directory or URL holds, without reading the data but for the beginning of one shard behind a URL.

    Args:
        directory: The directory.
        prefix: Beginning of the shards' names.
        root: Where ``proc`` is.
    """
    from bionemo.webdatamodule._engine.format.tar_headers import BLOCK
    from bionemo.webdatamodule._engine.reading.shard_set import ShardSet, is_url
    from bionemo.webdatamodule._engine.storage.remote.urls import shown

    is_remote = is_url(directory)
    name = shown(directory)
    kind = "" if is_remote else system.file_system(Path(directory), root)
    try:
        found = ShardSet.open(directory, prefix)
        if found.remote is not None:
            found.remote.directory.read(found.remote.shards[0].name, [(0, BLOCK)], [memoryview(bytearray(BLOCK))])
    except WebDataModuleError as error:
        return DataSet(directory=name, prefix=prefix, is_remote=is_remote, file_system=kind, problem=error.message)
    return DataSet(
        directory=name,
        prefix=prefix,
        samples=found.n_samples,
        shards=len(found.samples),
        bytes=found.n_bytes,
        is_remote=is_remote,
        file_system=kind,
    )


def _versions() -> Mapping[str, str]:
    found = {}
    for name in ("bionemo-webdatamodule", *_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # noqa: PERF203 - there are eight
            found[name] = "not installed"
    return found


def _start_method() -> str:
    from bionemo.webdatamodule.builtins.webloader.start_method import start_context

    return start_context(None).get_start_method() or ""


def _gpus(root: Path) -> Gpus:
    import torch

    cuda, rocm = torch.version.cuda, torch.version.hip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old; that none is usable is a finding
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    build = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else ""
    return Gpus(build=build, usable=usable, present=_has_gpu(root))


def _has_gpu(root: Path) -> bool:
    return any(name.name[6:].isdecimal() for name in root.glob("dev/nvidia*")) or (root / "dev/kfd").exists()


def _cache(root: Path) -> Cache:
    from bionemo.webdatamodule._engine.storage.index_cache import cache_directory

    path = Path(cache_directory())
    place = system.existing(path)
    used = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                used += Path(directory, name).stat().st_size
            except OSError:  # noqa: PERF203 - others may remove files at any time
                continue
    return Cache(
        path=str(path),
        writable=_is_writable(place),
        used=used,
        free=system.space(place)[1],
        file_system=system.file_system(path, root),
    )


def _is_writable(place: Path) -> bool:
    """Return whether a directory can be made in a place, which rights alone do not say, as of ``/proc``."""
    try:
        with tempfile.TemporaryDirectory(dir=place):
            return True
    except OSError:
        return False
