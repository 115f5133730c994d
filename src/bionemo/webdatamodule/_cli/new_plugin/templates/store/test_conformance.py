import pytest

from bionemo.webdatamodule.testing import StoreConformance


class TestStore(StoreConformance):
    """The store does what every store has to do."""

    name = "$name"

    @pytest.fixture
    def options(self, tmp_path):
        return {"root": str(tmp_path)}

    @pytest.fixture
    def base_url(self):
        return "$name://bucket"
