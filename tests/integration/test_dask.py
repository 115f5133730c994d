"""Executors of other projects, passed as they are: Dask's and MPI's."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from bionemo.webdatamodule import Sample, SourceDataWDS
from bionemo.webdatamodule.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A source of numbered samples.

    Args:
        n: How many.
        bad: Number of one that cannot be read.
        deadly: Number of one whose reading stops for good the first time, after its process wrote down its id.
        marker: Where it does that.
        parent: The process in which nothing stops.
    """

    n: int
    bad: int | None = None
    deadly: int | None = None
    marker: str = ""
    parent: int = 0

    def names(self):
        """Return the names."""
        return [str(number) for number in range(self.n)]

    def __call__(self, names):
        """Yield the samples."""
        for name in names:
            if int(name) == self.bad:
                raise InputError(f"{name} is bad")
            if int(name) == self.deadly and os.getpid() != self.parent and not Path(self.marker).exists():
                Path(f"{self.marker}.tmp").write_text(str(os.getpid()))
                Path(f"{self.marker}.tmp").rename(self.marker)
                time.sleep(600)
            yield Sample(name, {"bin": name.encode() * 1000})


@pytest.fixture(scope="module")
def client():
    """Start a Dask cluster of two worker processes."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        # Workers get the classes of this module whole, since they cannot import it.
        from distributed.protocol.pickle import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield client
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def convert(reader, directory, executor):
    """Convert a source to six shards, and return the bytes of shards and indexes, by name."""
    data = SourceDataWDS(reader, {"train": 1.0}, f"{directory}/", "bin", 4, n_tars_wds=6, executor=executor)
    data.prepare_data()
    return {path.name: path.read_bytes() for path in Path(directory, "train").glob("*.tar*")}


def test_dask_writes_what_serial_writes(client, tmp_path):
    """The executor is passed as it is, stays open, and serves the next conversion."""
    executor = client.get_executor(pure=False)
    by_dask = convert(Numbers(n=40), tmp_path / "dask", executor)
    serially = convert(Numbers(n=40), tmp_path / "serial", "serial")

    assert 12 == len(serially)
    assert serially == by_dask
    assert serially == convert(Numbers(n=40), tmp_path / "again", executor)


def test_bad_samples_are_listed_through_dask(client, tmp_path):
    """Errors arrive as in a process pool, and nothing is published."""
    with pytest.raises(InputError, match="7 is bad"):
        convert(Numbers(n=40, bad=7), tmp_path / "out", client.get_executor(pure=False))

    assert [] == list((tmp_path / "out" / "train").glob("*.tar"))


def test_a_killed_dask_worker_changes_nothing(client, tmp_path):
    """Dask runs its task again elsewhere, and the shards are those of ``serial``."""
    marker = tmp_path / "marker"
    killed = []

    def kill():
        while not marker.exists():
            time.sleep(0.02)
        killed.append(int(marker.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    reader = Numbers(n=40, deadly=25, marker=str(marker), parent=os.getpid())
    by_dask = convert(reader, tmp_path / "dask", client.get_executor(pure=False))
    serially = convert(reader, tmp_path / "serial", "serial")

    assert 1 == len(killed)
    assert serially == by_dask


@pytest.mark.parametrize("place", ["as a script", "as a program of MPI"])
def test_the_page_on_clusters_does_what_it_says(place, tmp_path):
    """The blocks on Dask and on MPI convert the source of the page; the plugin's tests run that on Ray."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    source = next(code for language, code in blocks if language == "python")
    (dask,) = (code for language, code in blocks if language == "python" and "LocalCluster" in code)
    (mpi,) = (code for language, code in blocks if language == "py" and "MPIPoolExecutor" in code)
    command = [sys.executable, "convert.py"]
    if place == "as a program of MPI":
        (line,) = (code for language, code in blocks if language == "bash" and "mpiexec" in code)
        command = [str(Path(sys.executable).with_name("mpiexec")), *line.split()[1:]]
        command[command.index("python")] = sys.executable
    (tmp_path / "convert.py").write_text(source + (dask if place == "as a script" else mpi))
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=240)

    assert (0, "8 shards\n") == (result.returncode, result.stdout), result.stderr
