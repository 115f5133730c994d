"""The kit applied to every component of the bad plugin."""

import pytest
from bad_plugin import FACTORIES, SOURCE

from bionemo.webdatamodule.testing import (
    ExecutorConformance,
    KeyEncoderConformance,
    LoaderConformance,
    StageConformance,
    WriterConformance,
)


class Writers(WriterConformance):
    light = ("numpy", "bad_plugin")

    @pytest.fixture
    def expected(self):
        return SOURCE


class Stages(StageConformance):
    ahead = 100

    @pytest.fixture
    def samples(self):
        return [[number] for number in range(5)]

    @pytest.fixture
    def expected(self):
        return [[number + 1] for number in range(5)]


SUITES = {
    "writer": Writers,
    "key encoder": KeyEncoderConformance,
    "stage": Stages,
    "loader": LoaderConformance,
    "executor": ExecutorConformance,
}

for kind, factories in FACTORIES.items():
    for component in (*factories, "unknown", *(("heavy",) if kind == "writer" else ())):
        label = f"Test {kind}: {component}"
        globals()[label] = type(label, (SUITES[kind],), {"name": component, "__test__": True})

label = "Test stage: a-list-of-a-share"
globals()[label] = type(label, (Stages,), {"name": "a-list", "ahead": None, "__test__": True})
