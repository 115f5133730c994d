from pathlib import Path

import pytest

from bionemo.webdatamodule.testing import WriterConformance


class TestWriter(WriterConformance):
    """The writer does what every writer has to do."""

    name = "$name"

    @pytest.fixture
    def options(self, tmp_path):
        (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
        return {"path": str(tmp_path / "lines.txt")}

    def change_source(self, options):
        Path(options["path"]).write_text("uno\ntwo\nthree\n")
        return "line-1"

    @pytest.fixture
    def expected(self):
        return {"line-1": {"txt": b"one"}, "line-2": {"txt": b"two"}, "line-3": {"txt": b"three"}}
