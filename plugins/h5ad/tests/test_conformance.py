from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bionemo.webdatamodule import pickles
from bionemo.webdatamodule.testing import StageConformance, WriterConformance

X = np.array([[0, 1.5, 0], [2, 0, 3], [0, 0, 0]], np.float32)


class TestH5ad(WriterConformance):
    """The writer does what every writer has to do."""

    name = "h5ad"

    @pytest.fixture
    def options(self, write):
        return {"path": write(X, {"kind": pd.Categorical(["T", "B", "T"])}), "obs": ["kind"]}

    @pytest.fixture
    def expected(self):
        return {
            f"cell{number}": {
                "indices.pyd": pickles.dumps(np.flatnonzero(row).astype(np.int32)),
                "data.pyd": pickles.dumps(row[row != 0]),
                "obs.pyd": pickles.dumps({"kind": kind}),
            }
            for number, (row, kind) in enumerate(zip(X, [1, 0, 1], strict=True))
        }


class TestDensify(StageConformance):
    """The stage does what every stage has to do."""

    name = "densify"

    @pytest.fixture
    def options(self):
        return {"size": 3}

    @pytest.fixture
    def samples(self):
        return [(np.flatnonzero(row), row[row != 0], number) for number, row in enumerate(X)]

    @pytest.fixture
    def expected(self):
        return [(row, number) for number, row in enumerate(X)]
