"""The default store keeps what the kit asks of every store."""

import pytest

from bionemo.webdatamodule.testing import StoreConformance


class TestInMemory(StoreConformance):
    """fsspec's memory:// stands for object stores."""

    name = "fsspec"

    @pytest.fixture
    def base_url(self):
        """A directory in memory."""
        return "memory://conformance"


class TestFiles(StoreConformance):
    """file:// stands for mounted file systems."""

    name = "fsspec"

    @pytest.fixture
    def base_url(self, tmp_path):
        """A directory on the disk."""
        return f"file://{tmp_path}"
