"""What all tests share."""

import pytest


def pytest_collection_modifyitems(items):
    """Run the quick tests first, and those with processes of their own last."""
    items.sort(key=lambda item: "integration" in item.path.parts)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Tests neither see nor fill the user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
