import pytest

from bionemo.webdatamodule.testing import ExecutorConformance


class TestExecutor(ExecutorConformance):
    """The executor does what every executor has to do."""

    name = "$name"

    @pytest.fixture
    def options(self):
        return {"workers": 2}
