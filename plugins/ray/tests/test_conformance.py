from __future__ import annotations

import pytest

from bionemo.webdatamodule.testing import ExecutorConformance


@pytest.mark.usefixtures("ray")
class TestRay(ExecutorConformance):
    name = "ray"
