import pytest

from bionemo.webdatamodule.testing import StageConformance, WriterConformance

TEXT = "MKTAYIAKQR\nGSHMASMTGG\nMVLSPADKTN\n"


class TestLines(WriterConformance):
    """The writer does what every writer has to do."""

    name = "lines"

    @pytest.fixture
    def options(self, tmp_path):
        (tmp_path / "text").write_text(TEXT)
        return {"path": str(tmp_path / "text")}

    @pytest.fixture
    def expected(self):
        return {"line-1": {"txt": b"MKTAYIAKQR"}, "line-2": {"txt": b"GSHMASMTGG"}, "line-3": {"txt": b"MVLSPADKTN"}}


class TestReplace(StageConformance):
    """The stage does what every stage has to do."""

    name = "replace"

    @pytest.fixture
    def options(self):
        return {"old": "M", "new": "m"}

    @pytest.fixture
    def samples(self):
        return TEXT.splitlines()

    @pytest.fixture
    def expected(self):
        return ["mKTAYIAKQR", "GSHmASmTGG", "mVLSPADKTN"]
