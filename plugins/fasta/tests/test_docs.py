from __future__ import annotations

from bionemo_webdatamodule_fasta.tokens import NUCLEOTIDES, RESIDUES


def test_readme_gives_the_vocabularies():
    """Each token has the number that the table says."""
    special = dict(zip(("<cls>", "<pad>", "<eos>", "<unk>"), range(4), strict=True))
    residues = dict(zip("LAGVSERTIDPKQNFYMHWCXBUZO.-", range(4, 31), strict=True))
    nucleotides = dict(zip("ACGTNRYSWKMBDHV.-", range(4, 21), strict=True))

    assert {**special, **residues, "<null_1>": 31, "<mask>": 32} == RESIDUES
    assert {**special, **nucleotides, "<mask>": 21, "U": 7} == NUCLEOTIDES
