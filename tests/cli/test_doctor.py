"""The check of a machine: what is found, how it is judged, and that a healthy one passes."""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule._cli.doctor import machine, system
from bionemo.webdatamodule._cli.doctor.findings import findings
from bionemo.webdatamodule._cli.doctor.machine import Cache, DataSet, Gpus, Machine
from bionemo.webdatamodule._cli.doctor.system import Limits
from bionemo.webdatamodule._cli.doctor.trial import Trial, try_worker
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.testing.stores import serving

GIB = 1 << 30
LIMITS = Limits(
    cores=16,
    affinity=16,
    quota=None,
    memory=64 * GIB,
    memory_free=60 * GIB,
    memory_limit=None,
    memory_used=None,
    address_space=None,
    open_files=1024,
    open_files_hard=4096,
    shm=32 * GIB,
    shm_free=32 * GIB,
)
MACHINE = Machine(
    system="Linux",
    versions={"python": "3.11.7"},
    broken={},
    components=7,
    left_out=(),
    disabled=(),
    start_method="fork",
    checksum="zlib-ng",
    limits=LIMITS,
    open_shards=248,
    gpus=Gpus(build="", usable=0, present=False),
    cache=Cache(path="/home/me/.cache", writable=True, used=0, free=100 * GIB, file_system="ext4"),
    environment={},
)
DATA = DataSet(directory="/data/train", prefix="p", samples=1000, shards=10, bytes=GIB, file_system="ext4")
WELL = Trial(seconds=0.1, problem=None)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """Whatever the machine of the tests has set does not come in."""
    for name in list(os.environ):
        if name.startswith(("WDS_", "GOPEN_", "SLURM_", "OMPI_")) or name in machine._VARIABLES:
            monkeypatch.delenv(name)


def judged(*, limits=None, data=(), trial=WELL, **changed):
    """Return the levels and texts of the findings on a healthy machine after some changes."""
    there = dataclasses.replace(MACHINE, limits=dataclasses.replace(LIMITS, **(limits or {})), **changed)
    return [(finding.level, f"{finding.what}; {finding.do}") for finding in findings(there, trial, data)]


def test_a_healthy_machine_has_no_findings():
    """Nothing is complained of, and nothing noted."""
    assert [] == judged(data=[DATA])


@pytest.mark.parametrize(
    ("changed", "level", "text"),
    [
        ({"shm": None, "shm_free": None}, "problem", "there is no /dev/shm"),
        ({"shm": 64 << 20, "shm_free": 1000}, "problem", "/dev/shm has 1 kB left, too little"),
        ({"shm": 64 << 20, "shm_free": 64 << 20}, "note", "docker run --shm-size"),
        ({"open_files": 200}, "problem", "ulimit -n 4096"),
        ({"open_files": 200, "open_files_hard": 200}, "problem", "ask who runs the machine"),
        ({"open_files": 200, "open_files_hard": None}, "problem", "ulimit -n 65536"),
        ({"affinity": 1}, "problem", "may run on 1 of 16 cores"),
        ({"quota": 3.5}, "note", "take at most 2 workers for all ranks together"),
        ({"memory_free": 1000}, "problem", "only 1 kB of memory are left"),
        ({"memory_limit": 8 * GIB, "memory_used": 8 * GIB - 1000}, "problem", "only 1 kB of memory are left"),
        ({"address_space": 4 * GIB}, "problem", "ulimit -v"),
        ({"address_space": 400 * GIB}, "note", "ulimit -v"),
    ],
)
def test_limits_are_judged(changed, level, text):
    """Each low limit is one finding, with what to do."""
    ((found, said),) = judged(limits=changed)
    assert level == found
    assert text in said


def test_what_is_not_known_is_not_judged():
    """Where the system has no limit, or does not tell, there is nothing to say."""
    unknown = dict.fromkeys(("memory", "memory_free", "open_files", "open_files_hard"))
    assert [] == judged(limits=unknown)
    assert [] == judged(limits={"cores": 1, "affinity": 1})


def test_more_shards_than_may_be_open_are_a_problem():
    """Only where a process may have few maps."""
    many = dataclasses.replace(DATA, shards=300)
    ((level, said),) = judged(data=[many])
    assert "problem" == level
    assert "a process keeps 248 of 300 shards open" in said
    assert "sysctl -w vm.max_map_count=900" in said
    assert [] == judged(data=[dataclasses.replace(DATA, shards=5000)], open_shards=5000)


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("fuse.gcsfuse", "problem"),
        ("fuse.s3fs", "problem"),
        ("cifs", "note"),
        ("vfat", "note"),
        ("tmpfs", "note"),
        ("overlay", "note"),
    ],
)
def test_file_systems_that_lose_something_are_named(kind, level):
    """What is lost, and where to put the data instead."""
    ((found, said),) = judged(data=[dataclasses.replace(DATA, file_system=kind)])
    assert level == found
    assert f"/data/train is on {kind}" in said


@pytest.mark.parametrize("kind", ["ext4", "xfs", "nfs4", "lustre", "btrfs", "zfs", ""])
def test_ordinary_file_systems_are_fine(kind):
    """Local ones, and those of clusters."""
    assert [] == judged(data=[dataclasses.replace(DATA, file_system=kind)])


def test_data_that_cannot_be_opened_are_a_problem():
    """With the reader's own message."""
    ((level, said),) = judged(data=[DataSet(directory="/data", prefix="p", problem="/data is not a directory")])
    assert "problem" == level
    assert "/data is not a directory" in said


@pytest.mark.parametrize(
    ("gpus", "environment", "expected"),
    [
        (Gpus(build="CUDA 12.8", usable=0, present=False), {}, ["note"]),
        (Gpus(build="CUDA 12.8", usable=0, present=True), {}, ["problem"]),
        (Gpus(build="", usable=0, present=True), {}, ["problem"]),
        (Gpus(build="CUDA 12.8", usable=2, present=True), {}, []),
        (Gpus(build="CUDA 12.8", usable=0, present=True), {"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_builds_of_torch_are_compared_with_gpus(gpus, environment, expected):
    """A GPU that cannot be used is a problem; a build for GPUs without one may be meant."""
    assert expected == [level for level, _ in judged(gpus=gpus, environment=environment)]


@pytest.mark.parametrize(
    ("environment", "texts"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "SLURM_NTASKS": "2"}, []),
        ({"RANK": "0", "WORLD_SIZE": "1"}, []),
        ({"SLURM_NTASKS": "4"}, []),
        ({"RANK": "1"}, ["RANK is set and WORLD_SIZE is not"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE is set and RANK is not"]),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, ["RANK is 2 and WORLD_SIZE is 2"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR is not set"]),
        ({"RANK": "one", "WORLD_SIZE": "1"}, ["RANK is 'one', which is not a number"]),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "SLURM_NTASKS": "8"},
            ["WORLD_SIZE is 2 and SLURM_NTASKS is 8"],
        ),
        ({"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, ["LOCAL_RANK is 4 and LOCAL_WORLD_SIZE is 4"]),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "LOCAL_WORLD_SIZE": "2"},
            [],
        ),
    ],
)
def test_launchers_that_disagree_are_problems(environment, texts):
    """Ranks that do not fit together are told before a run waits for ever."""
    found = judged(environment=environment)
    assert len(texts) == len(found)
    for text, (level, said) in zip(texts, found, strict=True):
        assert "problem" == level
        assert text in said


def test_variables_of_webdataset_are_noted_with_what_takes_their_place():
    """They change nothing here, which may surprise."""
    found = judged(environment={"WDS_SEED": "…", "GOPEN_REWRITE": "…", "WDS_WHATEVER": "…"})
    assert ["note"] * 3 == [level for level, _ in found]
    assert ["give the data module a seed", "give the URL itself", "give the data module arguments"] == [
        said.rpartition("; ")[2] for _, said in found
    ]


def test_software_that_is_broken_is_a_problem():
    """Packages, plugins and workers; what the user switched off is a note, and notes come last."""
    found = judged(
        disabled=("fasta",),
        broken={"torch": "ImportError: libcudart"},
        left_out=("plugin 'bad' of x 1 is left out: boom",),
        trial=Trial(seconds=1, problem="WorkerError: died"),
    )
    assert ["problem", "problem", "problem", "note"] == [level for level, _ in found]
    for text, (_, said) in zip(["torch", "plugin 'bad'", "a worker failed", "plugins left out by"], found, strict=True):
        assert said.startswith(text)


def test_workers_that_spawn_are_noted():
    """Then stages have to pickle."""
    assert ["note"] == [level for level, _ in judged(start_method="spawn")]


def test_the_extra_with_faster_checksums_is_recommended():
    """The package has the extra, it brings zlib-ng, and checksums use that where it is there."""
    (found,) = findings(dataclasses.replace(MACHINE, checksum="zlib"), WELL)

    assert ("note", 'pip install "bionemo-webdatamodule[fast]"') == (found.level, found.do)
    requirements = [text.replace('"', "'") for text in metadata.requires("bionemo-webdatamodule")]
    assert "zlib-ng>=0.5; extra == 'fast'" in requirements
    with_it = "import sys, types, zlib; m = types.ModuleType('zlib_ng'); n = types.ModuleType('zlib_ng.zlib_ng'); "
    with_it += "n.crc32 = zlib.crc32; sys.modules.update({'zlib_ng': m, 'zlib_ng.zlib_ng': n}); "
    without = "import sys; sys.modules['zlib_ng'] = None; "
    for before, library in ((with_it, "zlib-ng"), (without, "zlib")):
        code = f"{before}from bionemo.webdatamodule._engine.format import checksum; print(checksum.LIBRARY)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert library == done.stdout.strip()


def test_caches_are_judged():
    """One that cannot be written, is too small for what is behind URLs, or lies in memory."""
    remote = dataclasses.replace(DATA, directory="s3://x", is_remote=True, file_system="", bytes=200 * GIB)
    cache = MACHINE.cache
    assert ["problem"] == [level for level, _ in judged(cache=dataclasses.replace(cache, writable=False))]
    assert ["problem"] == [level for level, _ in judged(data=[remote])]
    assert ["note"] == [level for level, _ in judged(cache=dataclasses.replace(cache, file_system="tmpfs"))]


@pytest.mark.parametrize("place", ["/proc", "file"])
def test_a_cache_that_cannot_be_made_is_a_problem_whatever_is_free_there(place, tmp_path, monkeypatch):
    """It is tried, for there is no room in /proc, though an administrator may write there."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(place).absolute() / "cache"))
    remote = dataclasses.replace(DATA, directory="s3://x", is_remote=True, file_system="")
    problems = [text for level, text in judged(cache=machine.look().cache, data=[remote]) if level == "problem"]
    assert ["cannot be made or written"] == re.findall("cannot be made or written|do not fit", " ".join(problems))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "made"))
    assert machine.look().cache.writable
    assert not Path("made").exists()


def write(root, files):
    """Write files below a root, by their paths."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_limits_of_control_groups_are_found(tmp_path):
    """The strictest of a group and those around it, in version 2."""
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
        "sys/fs/cgroup/jobs/mine/memory.current": "1000\n",
        "sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/jobs/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/jobs/memory.current": "5000\n",
        "sys/fs/cgroup/jobs/cpu.max": "max 100000\n",
        "proc/meminfo": "MemTotal:       1024 kB\nMemAvailable:    512 kB\nHugePages_Total: 0\n",
    }
    write(tmp_path, files)
    found = system.limits(tmp_path)
    assert (4.0, GIB, 1 << 20, 1 << 19) == (found.quota, found.memory_limit, found.memory, found.memory_free)
    assert (None, None) == (found.shm, found.shm_free)


def test_limits_of_control_groups_of_version_1_are_found(tmp_path):
    """In a container only the top of each hierarchy is to be seen; huge numbers are no limit."""
    files = {
        "proc/self/cgroup": "4:memory:/far/away\n3:cpu,cpuacct:/far/away\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, files)
    found = system.limits(tmp_path)
    assert (0.5, GIB, 1000) == (found.quota, found.memory_limit, found.memory_used)
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    found = system.limits(tmp_path)
    assert (None, None) == (found.quota, found.memory_limit)


def test_file_systems_are_told_by_the_innermost_mount(tmp_path):
    """Of two on one place the later lies on top; spaces in names are written as numbers."""
    place = tmp_path / "my data" / "train"
    place.mkdir(parents=True)
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        f"2 1 0:1 / {tmp_path} rw shared:1 - nfs4 server:/x rw",
        f"3 2 0:2 / {str(place.parent).replace(' ', chr(92) + '040')} rw - xfs /dev/sdb rw",
        f"4 2 0:3 / {str(place.parent).replace(' ', chr(92) + '040')} rw master:2 - fuse.gcsfuse bucket rw",
        "nonsense",
    ]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines))
    assert "fuse.gcsfuse" == system.file_system(place / "not" / "there", tmp_path)
    assert "nfs4" == system.file_system(tmp_path, tmp_path)
    assert "ext4" == system.file_system(Path("/"), tmp_path)
    assert "" == system.file_system(Path("/"), tmp_path / "nowhere")


@pytest.fixture
def fake(monkeypatch):
    """Return a function that makes the system tell low limits."""

    def make(*, open_files=1024, affinity=(0, 1), shm=32 * GIB):
        monkeypatch.setattr(
            resource,
            "getrlimit",
            lambda what: (open_files, 8192) if what == resource.RLIMIT_NOFILE else (resource.RLIM_INFINITY,) * 2,
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(affinity))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        real = os.statvfs
        small = types.SimpleNamespace(f_frsize=1, f_blocks=shm, f_bavail=shm)
        monkeypatch.setattr(os, "statvfs", lambda path: small if str(path) == "/dev/shm" else real(path))

    return make


@pytest.mark.parametrize(
    ("low", "text"),
    [
        ({"open_files": 100}, "problem: a process may have only 100 files open"),
        ({"affinity": (3,)}, "problem: this process may run on 1 of 64 cores"),
        ({"shm": 1000}, "problem: /dev/shm has 1 kB left"),
    ],
)
def test_the_command_finds_low_limits(fake, capsys, low, text):
    """It asks the system, says what is too low, and exits with 1."""
    fake(**low)
    assert 1 == main(["doctor"])
    assert text in capsys.readouterr().out


def made(directory):
    """Convert a few samples."""

    def reader(names):
        return (Sample(name, {"txt": b"x"}) for name in names)

    convert(
        reader=reader,
        names={"train": ["a", "b", "c"]},
        directories={"train": str(directory)},
        prefix="p",
        n_shards=2,
        key_encoder=encode_dashes,
        executor=Serial(),
    )
    return str(directory)


def test_the_command_prints_what_there_is(fake, tmp_path, capsys):
    """Versions, plugins, start method, limits, cache and data, a line each."""
    fake()
    main(["doctor", made(tmp_path / "train")])
    lines = capsys.readouterr().out.splitlines()
    titles = [line[:15].strip() for line in lines[: lines.index("")]]
    expected = ["system", "versions", "plugins", "workers", "checksums", "cores", "memory", "open files"]
    assert [*expected, "shared memory", "GPUs", "cache", "data"] == titles
    assert f"python {sys.version.split()[0]}, bionemo-webdatamodule" in lines[1]
    assert "start by" in lines[3]
    assert "p: 3 samples in 2 shards" in lines[11]


def test_the_command_prints_json(fake, tmp_path, capsys):
    """All of it, for machines; the exit code says whether there is a problem."""
    fake()
    code = main(["doctor", "--json", str(tmp_path / "missing")])
    reported = json.loads(capsys.readouterr().out)
    assert 1 == code
    assert ["machine", "trial", "data", "findings"] == list(reported)
    assert (1024, 8192) == (
        reported["machine"]["limits"]["open_files"],
        reported["machine"]["limits"]["open_files_hard"],
    )
    assert reported["trial"]["problem"] is None
    assert "is not a directory" in reported["data"][0]["problem"]
    assert {"level", "what", "do"} == set(reported["findings"][0])


def test_a_url_that_cannot_be_asked_is_a_problem(fake, capsys, monkeypatch):
    """The report has it, as it has a directory that is not there."""

    def refuse(self, url):
        raise OSError("the line is cut")

    fake()
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0.001, attempts=2))
    monkeypatch.setattr("bionemo.webdatamodule.builtins.stores.FsspecStore.list", refuse)
    assert 1 == main(["doctor", "--json", "memory://nowhere"])
    (found,) = json.loads(capsys.readouterr().out)["data"]
    assert "the line is cut" in found["problem"]


def test_a_server_that_sends_no_parts_of_files_is_a_problem(fake, tmp_path, capsys):
    """Opening needs none; the first batch would fail."""
    fake()
    made(tmp_path / "train")
    with serving(tmp_path) as url:
        assert 1 == main(["doctor", "--prefix", "p", f"{url}/train"])
    assert "the server does not send parts of files" in capsys.readouterr().out


def test_values_that_may_be_secret_are_not_printed(fake, capsys, monkeypatch):
    """A rewriting rule may hold a token; that it is set is enough to know."""
    fake()
    monkeypatch.setenv("GOPEN_REWRITE", "a=https://token@b")
    main(["doctor", "--json"])
    assert "token" not in capsys.readouterr().out


def test_broken_packages_and_plugins_are_looked_for(monkeypatch):
    """One that does not import is told, and does not end the check."""
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setenv("WEBDATAMODULE_DISABLED_PLUGINS", "*")
    found = machine.look()
    assert ["webdataset"] == list(found.broken)
    assert () == found.left_out


def test_a_worker_that_cannot_start_is_a_problem(monkeypatch):
    """Whatever keeps it from starting is told as it would be in a run."""

    def refuse(*_):
        raise OSError("no shared memory")

    monkeypatch.setattr("bionemo.webdatamodule.builtins.webloader.loader.StatusTable", refuse)
    assert "OSError: no shared memory" == try_worker().problem


def test_a_worker_sends_its_batches():
    """On the machine of the tests, as in a run."""
    assert try_worker().problem is None
