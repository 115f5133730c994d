import numpy as np
import pytest

from bionemo.webdatamodule.testing import StageConformance


class TestStage(StageConformance):
    """The stage does what every stage has to do."""

    name = "$name"

    @pytest.fixture
    def options(self):
        return {"factor": 2.0}

    @pytest.fixture
    def samples(self):
        return [1.5, np.array([1.0, 2.0]), -3.0]

    @pytest.fixture
    def expected(self):
        return [3.0, np.array([2.0, 4.0]), -6.0]
