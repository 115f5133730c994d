r"""The conformance kit: what a plugin author's tests need, and what the core's own tests use.

It needs pytest, which the extra brings: ``pip install "bionemo-webdatamodule[testing]"``.
A test module of a plugin derives a class from the suite of each of its components::

    class TestLines(WriterConformance):
        name = "lines"

        @pytest.fixture
        def options(self, tmp_path):
            (tmp_path / "text").write_text("one\ntwo\nthree\n")
            return {"path": str(tmp_path / "text")}

        @pytest.fixture
        def expected(self):
            return {"line-1": {"txt": b"one"}, "line-2": {"txt": b"two"}, "line-3": {"txt": b"three"}}
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bionemo.webdatamodule.testing.codecs import CodecConformance as CodecConformance
    from bionemo.webdatamodule.testing.compare import same as same
    from bionemo.webdatamodule.testing.component import ComponentConformance as ComponentConformance
    from bionemo.webdatamodule.testing.component import NonconformingError as NonconformingError
    from bionemo.webdatamodule.testing.component import Subject as Subject
    from bionemo.webdatamodule.testing.executors import ExecutorConformance as ExecutorConformance
    from bionemo.webdatamodule.testing.keys import KeyEncoderConformance as KeyEncoderConformance
    from bionemo.webdatamodule.testing.loaders import LoaderConformance as LoaderConformance
    from bionemo.webdatamodule.testing.planners import PlannerConformance as PlannerConformance
    from bionemo.webdatamodule.testing.processes import ProcessError as ProcessError
    from bionemo.webdatamodule.testing.processes import imported_with as imported_with
    from bionemo.webdatamodule.testing.processes import in_fresh_process as in_fresh_process
    from bionemo.webdatamodule.testing.stages import StageConformance as StageConformance
    from bionemo.webdatamodule.testing.stores import StoreConformance as StoreConformance
    from bionemo.webdatamodule.testing.writers import WriterConformance as WriterConformance

_MODULES = {
    "CodecConformance": "codecs",
    "ComponentConformance": "component",
    "ExecutorConformance": "executors",
    "KeyEncoderConformance": "keys",
    "LoaderConformance": "loaders",
    "NonconformingError": "component",
    "PlannerConformance": "planners",
    "ProcessError": "processes",
    "StageConformance": "stages",
    "StoreConformance": "stores",
    "Subject": "component",
    "WriterConformance": "writers",
    "imported_with": "processes",
    "in_fresh_process": "processes",
    "same": "compare",
}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - a list of strings, kept in one place


def __getattr__(name: str) -> Any:
    # Loaded when used: a fresh process that checks a writer needs no torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
