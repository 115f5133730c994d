"""A small Ray cluster of two CPUs that all tests of a session share."""

from __future__ import annotations

import os
import sys

import pytest

# Before Ray is imported: no statistics to its makers, and no warning of a change to come in how GPUs are hidden.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

SMALL = {"num_cpus": 2, "object_store_memory": 80 << 20, "log_to_driver": False}


@pytest.fixture
def small():
    """Arguments of ``ray.init`` for a small cluster."""
    return SMALL


@pytest.fixture(scope="module")
def ray():
    """Connect to a running cluster for the tests of a module."""
    import ray

    ray.init(address="local", include_dashboard=False, **SMALL)
    yield ray
    ray.shutdown()


@pytest.fixture
def by_value(request):
    """Send the functions and classes of the test's module whole, since workers cannot import it."""
    from ray import cloudpickle

    module = sys.modules[request.module.__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)
