"""The kit applied to the examples of docs/plugins/hooks.md and docs/plugins/writing.md."""

import pytest

from bionemo.webdatamodule.testing import (
    CodecConformance,
    ExecutorConformance,
    KeyEncoderConformance,
    LoaderConformance,
    StageConformance,
    StoreConformance,
    WriterConformance,
)


class TestLines(WriterConformance):
    """The writer of the page on hooks."""

    name = "lines"
    key = "line"

    @pytest.fixture
    def options(self, tmp_path):
        (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
        return {"path": str(tmp_path / "lines.txt")}

    @pytest.fixture
    def expected(self):
        return {f"{self.key}{number}": {"txt": text} for number, text in enumerate([b"one", b"two", b"three"])}


class TestMyLines(TestLines):
    """The writer of the page on writing plugins."""

    name = "my-lines"
    key = "line-"


class TestUnderscores(KeyEncoderConformance):
    """The key encoder, which gives ``a.b`` and ``a_b`` one key, as the page says."""

    name = "underscores"
    collides = True


class TestHex(CodecConformance):
    """The codec."""

    name = "hex"

    @pytest.fixture
    def values(self):
        return [0, 255, 4096]


class TestScale(StageConformance):
    """The stage."""

    name = "scale"

    @pytest.fixture
    def options(self):
        return {"factor": 2.0}

    @pytest.fixture
    def samples(self):
        return [1.5, -3.0]

    @pytest.fixture
    def expected(self):
        return [3.0, -6.0]


class TestPlain(LoaderConformance):
    """The loader."""

    name = "plain"


class TestThreads(ExecutorConformance):
    """The executor."""

    name = "threads"


class TestTapes(StoreConformance):
    """The store."""

    name = "tapes"

    @pytest.fixture
    def options(self, tmp_path):
        return {"root": str(tmp_path)}

    @pytest.fixture
    def base_url(self):
        return "tape://shelf"
