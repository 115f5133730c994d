"""What the tests of storage share."""

import pytest

from bionemo.webdatamodule.plugins import installed_plugins


@pytest.fixture(autouse=True)
def _default_store(monkeypatch):
    """Test the default store, also where another one is installed."""
    monkeypatch.setenv("WEBDATAMODULE_DISABLED_PLUGINS", "obstore")
    installed_plugins.cache_clear()
    yield
    installed_plugins.cache_clear()
