"""What would go wrong on a machine, and what to do about it: pure judgements of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bionemo.webdatamodule._cli.doctor.machine import Cache, DataSet, Gpus, Machine
from bionemo.webdatamodule._cli.doctor.system import Limits
from bionemo.webdatamodule._cli.doctor.trial import Trial
from bionemo.webdatamodule._engine import humanize
from bionemo.webdatamodule._engine.reading.open_shards import MOST_OPEN
from bionemo.webdatamodule.errors import count

_MIB, _GIB = 1 << 20, 1 << 30
_FEW_FILES = 256
_SHM_LEAST, _SHM_NCCL = _MIB, 512 * _MIB  # what a loader's workers share is some kilobytes
_MEMORY_LEAST = _GIB

_IGNORED = {
    "GOPEN_BUFFER": "shards are mapped into memory, not streamed",
    "GOPEN_REWRITE": "give the URL itself",
    "GOPEN_VERBOSE": "set the level of the logger bionemo.webdatamodule",
    "USE_AIS_FOR": "give the URL itself",
    "WDS_CACHE": "say kwargs_wds={split: {'cache_dir': …}}, or set XDG_CACHE_HOME",
    "WDS_CACHE_SIZE": "say kwargs_wds={split: {'cache_size': …}}",
    "WDS_PYTORCH_WEIGHTS_ONLY": "data run no code unless pickles='trusted' is given",
    "WDS_SECURE": "data run no code unless pickles='trusted' is given",
    "WDS_SEED": "give the data module a seed",
    "WDS_VERBOSE_CACHE": "set the level of the logger bionemo.webdatamodule",
}
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
_MEMORY_SYSTEMS = frozenset(("ramfs", "tmpfs"))
_NO_LINKS = frozenset(("cifs", "exfat", "msdos", "smb3", "smbfs", "vfat"))
_OBJECT_STORES = ("blobfuse", "gcsfuse", "geesefs", "goofys", "juicefs", "mountpoint-s3", "rclone", "s3fs")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know.

    Attributes:
        level: ``"problem"`` if something would go wrong, ``"note"`` if it only might surprise.
        what: What there is.
        do: What to do.
    """

    level: Literal["problem", "note"]
    what: str
    do: str


def findings(machine: Machine, trial: Trial | None, data: Sequence[DataSet] = ()) -> list[Finding]:
    """Return what would go wrong, and what might surprise; problems first.

    Args:
        machine: What there is.
        trial: How a worker did; ``None`` where it was not tried.
        data: The data sets that are to be read.
    """
    found = [
        *_software(machine),
        *_worker(trial),
        *_cores(machine.limits),
        *_memory(machine.limits, data),
        *_files(machine.limits, machine.open_shards, data),
        *_shared_memory(machine.limits),
        *_gpus(machine.gpus, machine.environment),
        *_cache(machine.cache, data),
        *_data(data),
        *_ranks(machine.environment),
        *_variables(machine.environment),
    ]
    return sorted(found, key=lambda finding: finding.level == "note")


def _problem(what: str, do: str) -> Finding:
    return Finding(level="problem", what=what, do=do)


def _note(what: str, do: str) -> Finding:
    return Finding(level="note", what=what, do=do)


def _software(machine: Machine) -> Iterator[Finding]:
    for name, reason in machine.broken.items():
        yield _problem(f"{name} cannot be imported: {reason}", f"install {name} again in this environment")
    for left in machine.left_out:
        yield _problem(left, "update or uninstall it, or name it in WEBDATAMODULE_DISABLED_PLUGINS")
    if machine.disabled:
        yield _note(
            f"plugins left out by WEBDATAMODULE_DISABLED_PLUGINS: {', '.join(machine.disabled)}",
            "unset it to have them again",
        )
    if machine.checksum == "zlib":
        yield _note(
            "checksums are computed by zlib, and zlib-ng takes less time for each sample",
            'pip install "bionemo-webdatamodule[fast]"',
        )
    if machine.start_method not in ("", "fork"):
        yield _note(
            f"workers start by {machine.start_method}, so stages have to pickle and each worker imports them again",
            "define stages at the top level of modules, or give kwargs_wld a multiprocessing_context",
        )


def _worker(trial: Trial | None) -> Iterator[Finding]:
    if trial is not None and trial.problem is not None:
        yield _problem(f"a worker failed to send a batch: {trial.problem}", "fix that, or set num_workers=0")


def _cores(limits: Limits) -> Iterator[Finding]:
    if limits.affinity == 1 < limits.cores:
        yield _problem(
            f"this process may run on 1 of {count(limits.cores, 'core')}, so training and all workers would take turns",
            "ask the scheduler for more, such as srun --cpus-per-task, or lift the affinity with taskset",
        )
    if limits.quota is not None and limits.quota < limits.affinity:
        yield _note(
            f"the container may take the time of {limits.quota:.3g} cores, though {limits.affinity} are to be seen",
            f"take at most {count(max(1, int(limits.quota) - 1), 'worker')} for all ranks together, or raise its limit",
        )


def _memory(limits: Limits, data: Iterable[DataSet]) -> Iterator[Finding]:
    free = [limits.memory_free] if limits.memory_free is not None else []
    if limits.memory_limit is not None and limits.memory_used is not None:
        free.append(max(0, limits.memory_limit - limits.memory_used))
    if free and min(free) < _MEMORY_LEAST:
        yield _problem(
            f"only {humanize.size(min(free))} of memory are left, and the kernel kills workers when there is none",
            "end other processes, or give the job or container more memory",
        )
    if limits.address_space is not None:
        size = sum(found.bytes for found in data)
        about = (
            f"a process may map {humanize.size(limits.address_space)} (ulimit -v), and shards are read by mapping them"
        )
        tight = limits.address_space < size + 16 * _GIB
        yield (_problem if tight else _note)(about, "lift the limit with ulimit -v unlimited")


def _files(limits: Limits, open_shards: int, data: Iterable[DataSet]) -> Iterator[Finding]:
    if limits.open_files is None:
        return
    hard = 65536 if limits.open_files_hard is None else min(65536, limits.open_files_hard)
    do = f"raise it with ulimit -n {hard}" if hard > limits.open_files else "ask who runs the machine for a higher one"
    shards = sum(found.shards for found in data)
    if limits.open_files < _FEW_FILES:
        yield _problem(f"a process may have only {limits.open_files} files open (ulimit -n)", do)
    elif open_shards < min(shards, MOST_OPEN):
        yield _problem(
            f"a process keeps {open_shards} of {count(shards, 'shard')} open, since it may have few maps "
            "(vm.max_map_count), and opens the others again and again",
            f"raise it with sysctl -w vm.max_map_count={3 * min(shards, MOST_OPEN)}",
        )


def _shared_memory(limits: Limits) -> Iterator[Finding]:
    where = "/dev/shm"  # noqa: S108 - it is looked at only
    do = "give the container more, with docker run --shm-size=8g, or in Kubernetes an emptyDir of medium Memory there"
    if limits.shm is None or limits.shm_free is None:
        yield _problem(f"there is no {where}, without which no worker starts", do)
    elif limits.shm_free < _SHM_LEAST:
        yield _problem(f"{where} has {humanize.size(limits.shm_free)} left, too little to start workers", do)
    elif limits.shm_free < _SHM_NCCL:
        yield _note(
            f"{where} has {humanize.size(limits.shm_free)} left; batches of this package do not pass through it, "
            "but those of other loaders and NCCL's do",
            do,
        )


def _gpus(gpus: Gpus, environment: Mapping[str, str]) -> Iterator[Finding]:
    if gpus.usable or environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    if gpus.present and gpus.build:
        yield _problem(
            f"there is a GPU, and torch, built for {gpus.build}, cannot use it",
            "compare the driver's version, in nvidia-smi, with what that build needs",
        )
    elif gpus.present:
        yield _problem("there is a GPU, and this torch is a build for CPUs", "install a build of torch for this GPU")
    elif gpus.build:
        yield _note(
            f"torch is built for {gpus.build}, and there is no GPU, so training takes the CPU",
            "nothing, if that is meant; in a container, pass the GPUs on, with docker run --gpus all",
        )


def _cache(cache: Cache, data: Iterable[DataSet]) -> Iterator[Finding]:
    if not cache.writable:
        yield _problem(
            f"the cache directory {cache.path} cannot be made or written, so shards behind URLs cannot be kept, "
            "and every process makes its own indexes of other tools' shards",
            "set XDG_CACHE_HOME to a directory that can be written",
        )
    remote = sum(found.bytes for found in data if found.is_remote)
    if cache.writable and cache.free is not None and remote > cache.free:
        yield _problem(
            f"{humanize.size(remote)} behind URLs do not fit into the "
            f"{humanize.size(cache.free)} that are free at {cache.path}",
            "set XDG_CACHE_HOME to a larger disk, or give kwargs_wds a cache_size, and the oldest shards make room",
        )
    if cache.file_system in _MEMORY_SYSTEMS:
        yield _note(
            f"the cache directory is on {cache.file_system}, so it takes memory and is gone after a restart",
            "set XDG_CACHE_HOME to a directory on a disk",
        )


def _data(data: Iterable[DataSet]) -> Iterator[Finding]:
    for found in data:
        if found.problem is not None:
            yield _problem(
                f"data set {found.prefix} cannot be opened: {found.problem}",
                "correct that before a run; `webdatamodule preview` shows whether samples can be read"
                if found.is_remote
                else "repair it before a run; `webdatamodule verify` lists all damage",
            )
        kind = found.file_system
        about = f"{found.directory} is on {kind}"
        if any(name in kind for name in _OBJECT_STORES):
            yield _problem(
                f"{about}, an object store mounted as a file system: renames are not atomic, so a stopped conversion "
                "may leave partial data, and mapped reads are slow",
                "give the store's own URL, such as s3://…, which is read through the cache; convert on a disk, "
                "then upload",
            )
        elif kind in _NO_LINKS:
            yield _note(f"{about}, which often has no links, which conversion needs", "convert on another file system")
        elif kind in _MEMORY_SYSTEMS:
            yield _note(f"{about}, so it takes memory and is gone after a restart", "keep a copy on a disk")
        elif kind == "overlay":
            yield _note(f"{about}, the container's own layer, and is gone with the container", "mount a volume there")


def _ranks(environment: Mapping[str, str]) -> Iterator[Finding]:
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *_LAUNCHERS):
        text = environment.get(name)
        if text is None:
            continue
        if not text.isdecimal():
            yield _problem(
                f"{name} is {text!r}, which is not a number", f"unset {name}, or start the run with torchrun"
            )
        else:
            numbers[name] = int(text)
    world = numbers.get("WORLD_SIZE")
    for one, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if one in numbers and other not in environment:
            yield _problem(
                f"{one} is set and {other} is not, so outside of a Trainer this process would take itself for the "
                "only one",
                f"unset {one}, or start the run with torchrun",
            )
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        too_large = numbers.get(rank, -1) >= numbers.get(size, 1 << 60) + (rank == "LOCAL_WORLD_SIZE")
        if too_large:
            yield _problem(
                f"{rank} is {numbers[rank]} and {size} is {numbers[size]}", "unset both, or start the run with torchrun"
            )
    for name in _LAUNCHERS:
        if world is not None and numbers.get(name, world) != world:
            yield _problem(
                f"WORLD_SIZE is {world} and {name} is {numbers[name]}: two launchers disagree on the number of ranks",
                "unset WORLD_SIZE, or take one launcher",
            )
    if world is not None and world > 1 and "RANK" in numbers and "MASTER_ADDR" not in environment:
        yield _problem(
            f"WORLD_SIZE is {world} and MASTER_ADDR is not set, so ranks would wait for each other forever",
            "unset RANK and WORLD_SIZE, or start the run with torchrun",
        )


def _variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in environment:
        if name in _IGNORED or name.startswith(("WDS_", "GOPEN_")):
            yield _note(
                f"{name} is set, and this package does not read webdataset's variables",
                _IGNORED.get(name, "give the data module arguments"),
            )
