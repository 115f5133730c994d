import pytest

from bionemo.webdatamodule.testing import PlannerConformance


class TestPlanner(PlannerConformance):
    """The planner does what every planner has to do."""

    name = "$name"

    @pytest.fixture
    def options(self):
        return {"size": len, "samples": 4}

    @pytest.fixture
    def other_options(self):
        return {"samples": 8}

    @pytest.fixture
    def samples(self):
        return ["a", "bb", "ccc"]

    @pytest.fixture
    def expected(self):
        return ["a", "bb", "ccc"]
