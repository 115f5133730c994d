"""What the tests of storage share."""

import pytest

from bionemo.webdatamodule._engine.storage.remote import directory as remote_directory
from bionemo.webdatamodule.plugins import installed_plugins


@pytest.fixture(autouse=True)
def _default_store(monkeypatch):
    """Test the default store, also where another one is installed, with a client of its own for each test."""
    monkeypatch.setenv("WEBDATAMODULE_DISABLED_PLUGINS", "obstore")
    monkeypatch.setattr(remote_directory, "_clients", {})
    installed_plugins.cache_clear()
    yield
    installed_plugins.cache_clear()
