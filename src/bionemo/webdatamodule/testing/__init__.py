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
    from bionemo.webdatamodule.testing.checkpoints import Resumable as Resumable
    from bionemo.webdatamodule.testing.checkpoints import checkpoint_every_step as checkpoint_every_step
    from bionemo.webdatamodule.testing.compare import same as same
    from bionemo.webdatamodule.testing.component import ComponentConformance as ComponentConformance
    from bionemo.webdatamodule.testing.component import NonconformingError as NonconformingError
    from bionemo.webdatamodule.testing.component import Subject as Subject
    from bionemo.webdatamodule.testing.executors import ExecutorConformance as ExecutorConformance
    from bionemo.webdatamodule.testing.faults import Faults as Faults
    from bionemo.webdatamodule.testing.faults import KilledError as KilledError
    from bionemo.webdatamodule.testing.keys import KeyEncoderConformance as KeyEncoderConformance
    from bionemo.webdatamodule.testing.loaders import LoaderConformance as LoaderConformance
    from bionemo.webdatamodule.testing.processes import ProcessError as ProcessError
    from bionemo.webdatamodule.testing.processes import imported_with as imported_with
    from bionemo.webdatamodule.testing.processes import in_fresh_process as in_fresh_process
    from bionemo.webdatamodule.testing.readme import Example as Example
    from bionemo.webdatamodule.testing.readme import examples as examples
    from bionemo.webdatamodule.testing.readme import run_examples as run_examples
    from bionemo.webdatamodule.testing.stages import StageConformance as StageConformance
    from bionemo.webdatamodule.testing.writers import WriterConformance as WriterConformance

_MODULES = {
    "ComponentConformance": "component",
    "Example": "readme",
    "ExecutorConformance": "executors",
    "Faults": "faults",
    "KeyEncoderConformance": "keys",
    "KilledError": "faults",
    "LoaderConformance": "loaders",
    "NonconformingError": "component",
    "ProcessError": "processes",
    "Resumable": "checkpoints",
    "StageConformance": "stages",
    "Subject": "component",
    "WriterConformance": "writers",
    "checkpoint_every_step": "checkpoints",
    "examples": "readme",
    "imported_with": "processes",
    "in_fresh_process": "processes",
    "run_examples": "readme",
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
