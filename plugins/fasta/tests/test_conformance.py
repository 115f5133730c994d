from __future__ import annotations

import pytest
import torch

from bionemo.webdatamodule.testing import StageConformance, WriterConformance


class TestFasta(WriterConformance):
    """The writer does what every writer has to do."""

    name = "fasta"

    @pytest.fixture
    def options(self, tmp_path):
        (tmp_path / "records.fa").write_text(">one first\nMK\nV\n>sp|P1.2|TWO\n\n>three\nacgt\n")
        return {"paths": str(tmp_path / "records.fa")}

    @pytest.fixture
    def expected(self):
        return {
            "one": {"seq.txt": b"MKV", "desc.txt": b"first"},
            "sp|P1.2|TWO": {"seq.txt": b"", "desc.txt": b""},
            "three": {"seq.txt": b"acgt", "desc.txt": b""},
        }


class TestTokenize(StageConformance):
    """The stage does what every stage has to do."""

    name = "tokenize"

    @pytest.fixture
    def options(self):
        return {"field": 0, "special": True}

    @pytest.fixture
    def samples(self):
        return [("MKV", "first"), ("", "second")]

    @pytest.fixture
    def expected(self):
        return [(torch.tensor([0, 20, 15, 7, 2]), "first"), (torch.tensor([0, 2]), "second")]
