from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from bionemo.webdatamodule.errors import ConfigError, UsageError
from bionemo_webdatamodule_ray import RayCluster


def test_a_cluster_of_its_own_ends_with_the_block(small):
    """Without an address nothing else is needed, and nothing stays."""
    import ray

    with RayCluster(address="local", init=small) as pool:
        assert [0, 1, 4] == list(pool.map(pow, [0, 1, 2], [2] * 3))
        assert 2 == ray.cluster_resources()["CPU"]

    assert not ray.is_initialized()


def test_a_connection_that_is_there_is_used_and_left(ray):
    """Users of Ray have one; what would be ignored is refused."""
    with RayCluster() as pool:
        assert 3 == pool.submit(len, "abc").result(60)

    assert ray.is_initialized()
    with pytest.raises(ConfigError, match="connected to Ray already"), RayCluster(address="auto"):
        pass


def test_one_cluster_runs_once_at_a_time(ray):
    """Entered twice it would not know which to leave."""
    cluster = RayCluster()

    with cluster:
        with pytest.raises(UsageError, match="runs already"), cluster:
            pass
        assert cluster == pickle.loads(pickle.dumps(cluster))
    with cluster as pool:
        assert 3 == pool.submit(len, "abc").result(60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": -1}, "retries is a whole number"),
        ({"retries": True}, "retries is a whole number"),
        ({"cpus": 0}, "cpus is a number above 0"),
        ({"resources": {"CPU": 1}}, "say it with cpus="),
        ({"init": {"address": "auto"}}, "say it with address="),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    """Before Ray is imported."""
    with pytest.raises(ConfigError, match=message):
        RayCluster(**options)


def test_importing_the_plugin_does_not_import_ray():
    """An installed plugin must not slow every program down."""
    code = (
        "import sys, bionemo_webdatamodule_ray as p; p.RayCluster(retries=1)\n"
        "print(sorted({'ray', 'numpy', 'torch'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert "[]" == printed.strip()
