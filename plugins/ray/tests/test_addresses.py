from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from bionemo.webdatamodule.errors import ConversionError
from bionemo_webdatamodule_ray import RayCluster
from bionemo_webdatamodule_ray.cluster import _connected


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CONVERT = """
import sys
from bionemo.webdatamodule.testing.conversion import MadeUpReader, convert_samples
from bionemo_webdatamodule_ray import RayCluster

reader = MadeUpReader(n=30)
convert_samples(reader, reader.names(), sys.argv[2], executor=RayCluster(address=sys.argv[1]), n_shards=4)
convert_samples(reader, reader.names(), sys.argv[3], n_shards=4)
"""


def wait_for_cluster(log, process):
    """Wait until the whole cluster runs: clients that come to its open port before are turned away."""
    for _ in range(1200):
        assert process.poll() is None, f"the cluster ended: {log.read_text()}"
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"the cluster does not start: {log.read_text()}")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Start a cluster as an administrator would; return its addresses for clients and for its own nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # tokens would be read from, and put into, the home directory
    # Or some of its forks die: github.com/ray-project/ray/issues/63202
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    port, client = free_port(), free_port()
    options = ["--head", "--block", f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    options += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    # --block keeps the program in the foreground, and stops this cluster and no other when it ends.
    with (path := tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_cluster(path, process)
            yield f"ray://127.0.0.1:{client}", f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def run(address, by_ray, serially):
    """Convert in a process of its own: the client of ``ray://`` leaves threads behind that forbid forking."""
    command = [sys.executable, "-c", CONVERT, address, str(by_ray), str(serially)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)


def shards(folder):
    """Return the bytes of all shards and indexes in a folder, by name."""
    return {path.name: path.read_bytes() for path in (folder / "train").glob("*.tar*")}


def test_a_running_cluster_is_reached_by_its_addresses(cluster, tmp_path):
    """``ray://`` from outside and ``host:port`` from a node; both write what ``serial`` writes."""
    serially = tmp_path / "serial"
    for number, address in enumerate(cluster):
        by_ray = tmp_path / f"ray-{number}"
        result = run(address, by_ray, serially)

        assert 0 == result.returncode, result.stdout + result.stderr
        assert 8 == len(shards(serially))
        assert shards(serially) == shards(by_ray)


def test_a_cluster_that_is_not_there_is_an_error(tmp_path):
    """It names the address, after the half minute for which Ray tries."""
    address = f"ray://127.0.0.1:{free_port()}"
    result = run(address, tmp_path / "ray", tmp_path / "serial")

    assert 1 == result.returncode
    assert f"ConversionError: Ray at {address} cannot be reached" in result.stderr


@pytest.mark.parametrize(("failures", "attempts"), [(0, 1), (2, 3), (3, 3)])
def test_a_server_that_the_head_node_fails_to_start_is_asked_for_again(monkeypatch, caplog, failures, attempts):
    """Twice; then the error says how to start the cluster."""
    asked = []

    def init(address, **arguments):
        asked.append((address, arguments))
        if len(asked) <= failures:
            raise ConnectionAbortedError("RuntimeError: Starting Ray client server failed. See ray_client_server_1.err")

    monkeypatch.setattr("ray.init", init)
    error = pytest.raises(ConversionError, match="GRPC_ENABLE_FORK_SUPPORT=0") if failures == 3 else nullcontext()
    with error, _connected("ray://head:10001", {"namespace": "x"}):
        pass

    assert [("ray://head:10001", {"namespace": "x"})] * attempts == asked
    assert attempts - 1 == len([r for r in caplog.records if "failed to start a server" in r.message])


def test_other_failures_are_not_repeated(monkeypatch):
    """A cluster that refuses its client would refuse it again."""
    asked = []

    def init(**_):
        asked.append(1)
        raise ConnectionAbortedError("Failed to create runtime_env")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConversionError, match=r"reached: Failed to create runtime_env \["):
        RayCluster(address="ray://head:10001").__enter__()
    assert [1] == asked
