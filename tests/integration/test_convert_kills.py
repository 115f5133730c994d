"""Real conversions that are killed, interrupted or run out of disk, as other processes on a real file system."""

import errno
import hashlib
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule._engine.format.manifest import read_manifest, staging_path
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.reading.verify import verify
from bionemo.webdatamodule.builtins.executors import Processes
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.errors import ConversionError, ManifestError, NoShardsError

N_SAMPLES = 120
N_SHARDS = 6

CONVERT = [
    sys.executable,
    "-c",
    "import sys; from bionemo.webdatamodule._cli.main import main; sys.exit(main())",
    "convert",
    "--option",
    "suffixes=pyd",
    "--shards",
    str(N_SHARDS),
    "--prefix",
    "p",
    "--workers",
    "2",
]

SLOW = """
import sys, time
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule.builtins.pickle import plugin
read = plugin._read
def slowly(path, *rest):
    time.sleep(0.01)
    return read(path, *rest)
plugin._read = slowly
sys.exit(main())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A directory of pickles of 20 kB each."""
    directory = tmp_path_factory.mktemp("source")
    for number in range(N_SAMPLES):
        (directory / f"s{number:04d}.pyd").write_bytes(pickle.dumps(bytes([number % 256]) * 20_000))
    return directory


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The files of an undisturbed conversion and their hashes."""
    out = tmp_path_factory.mktemp("expected")
    run(source, out)
    return contents(out / "train")


def run(source, out, **more):
    """Convert in this process."""
    reader = PickleReader(directory=source, suffixes="pyd")
    return convert(
        reader=reader,
        names={"train": reader.names()},
        directories={"train": f"{out}/train"},
        prefix="p",
        n_shards=N_SHARDS,
        key_encoder=encode_dashes,
        executor=Processes(workers=2),
        writer="pickles",
        options={"suffixes": "pyd", "directory": str(source)},
        key_encoder_name="dashes",
        provider={
            "plugin": "pickles",
            "distribution": "bionemo-webdatamodule",
            "version": read_version(),
        },
        **more,
    )["train"]


def read_version():
    """Return the version that the manifest should name."""
    from importlib import metadata

    return metadata.version("bionemo-webdatamodule")


def contents(directory):
    """Return the hash of every file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


def start(source, out):
    """Start a slow conversion as a process of its own."""
    command = [CONVERT[0], "-c", SLOW, *CONVERT[3:], "--option", f"directory={source}", f"{out}/"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_shards(out, number):
    """Wait until so many shards are finished."""
    staging = Path(staging_path(f"{out}/train", "p"))
    deadline = time.monotonic() + 60
    while len(list(staging.glob("*.json"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_a_refusal_and_a_rerun_finishes(processes_of, signum, source, expected, tmp_path):
    """[10, 11] Nothing is readable, nothing runs on, and the rerun uses what was finished and gives the same bytes."""
    process = start(source, tmp_path)
    wait_for_shards(tmp_path, 2)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum] == process.returncode, error
    deadline = time.monotonic() + 20
    while processes_of(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises((ManifestError, NoShardsError)):
        ShardSet.open(f"{tmp_path}/train", "p")
    staging = Path(staging_path(f"{tmp_path}/train", "p"))
    finished = {path.stat().st_ino for path in staging.glob("*.tar")}
    assert 2 <= len(finished) < N_SHARDS
    if signum != signal.SIGKILL:
        assert [] == list(staging.glob("*.part"))
    run(source, tmp_path)
    assert expected == contents(tmp_path / "train")
    assert finished <= {path.stat().st_ino for path in (tmp_path / "train").glob("*.tar")}
    assert [] == [path.name for path in (tmp_path / "train").iterdir() if path.name.startswith(".")]


def test_a_kill_over_old_data_keeps_them(source, expected, tmp_path):
    """[10] While a killed conversion waits for its rerun, readers go on with the old data."""
    run(source, tmp_path)
    before = read_manifest(f"{tmp_path}/train", "p")
    others = tmp_path / "others"
    others.mkdir()
    for path in source.iterdir():
        (others / path.name).write_bytes(pickle.dumps(path.name))
    process = start(others, tmp_path)
    wait_for_shards(tmp_path, 1)
    process.kill()
    process.communicate(timeout=60)
    assert before == ShardSet.open(f"{tmp_path}/train", "p").manifest
    assert () == verify(f"{tmp_path}/train", "p").problems
    assert expected == contents(tmp_path / "train")
    run(others, tmp_path)
    assert before.digest != read_manifest(f"{tmp_path}/train", "p").digest
    assert () == verify(f"{tmp_path}/train", "p", deep=True).problems


def test_processes_with_different_inputs_end_in_one_whole_result(source, tmp_path):
    """[16] Two command lines at once into one directory: one waits for the other."""
    commands = [
        [*CONVERT, "--option", f"directory={source}", "--split", f"train={part}", f"{tmp_path}/"] for part in (0.5, 1)
    ]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert 0 == process.returncode, error
    assert read_manifest(f"{tmp_path}/train", "p").n_samples in {N_SAMPLES // 2, N_SAMPLES}
    assert () == verify(f"{tmp_path}/train", "p", deep=True).problems
    assert [] == [path.name for path in (tmp_path / "train").iterdir() if path.name.startswith(".")]


def limit_files():
    """Let files of this process grow to 100 kB only."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_limit_on_file_sizes_is_named_and_publishes_nothing(source, tmp_path):
    """[13] As a quota does it: the write fails, the error names the file, the rerun without the limit works."""
    command = [*CONVERT, "--option", f"directory={source}", f"{tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_files, check=False, timeout=120)
    assert 2 == done.returncode
    assert "File too large" in done.stderr
    assert f"file={tmp_path}/train/.p.staging/" in done.stderr
    with pytest.raises((ManifestError, NoShardsError)):
        ShardSet.open(f"{tmp_path}/train", "p")
    assert N_SAMPLES == run(source, tmp_path).n_samples


@pytest.mark.parametrize("seen", [True, False])
def test_a_full_disk_is_told_and_old_data_stay(seen, source, tmp_path, monkeypatch):
    """[12] Whether it is seen before the start or met on the way."""
    few = tmp_path / "few"
    few.mkdir()
    (few / "a.pyd").write_bytes(pickle.dumps("old"))
    first = convert(
        reader=PickleReader(directory=few, suffixes="pyd"),
        names={"train": ["a"]},
        directories={"train": f"{tmp_path}/train"},
        prefix="p",
        n_shards=1,
        key_encoder=encode_dashes,
        executor=Processes(workers=1),
    )["train"]
    if seen:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1e6}))
    else:
        monkeypatch.setattr("os.write", full_after(2**20))
    said = "has 1 MB free, and the shards need about 2" if seen else "No space left on device"
    with pytest.raises(ConversionError, match=said):
        run(source, tmp_path)
    assert first == read_manifest(f"{tmp_path}/train", "p")
    assert () == verify(f"{tmp_path}/train", "p").problems


def full_after(n_bytes):
    """Return a write that works for so many bytes of files and then finds the disk full, as a small disk does."""
    real, left = os.write, n_bytes

    def write(descriptor, data):
        nonlocal left
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            left -= memoryview(data).nbytes
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    return write


def test_cli_rerun_touches_nothing(source, expected, tmp_path):
    """[3] The command line and the data module agree on what is unchanged."""
    command = [*CONVERT, "--option", f"directory={source}", f"{tmp_path}/"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert expected == contents(tmp_path / "train")
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "train").iterdir()}
    run(source, tmp_path)
    assert before == {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "train").iterdir()
    }
