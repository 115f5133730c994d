from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bionemo.webdatamodule.testing import run_examples
from bionemo_webdatamodule_fasta.tokens import NUCLEOTIDES, RESIDUES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def directory(tmp_path):
    """Return a directory with the example file."""
    shutil.copy(ROOT / "examples" / "chloroplast.faa", tmp_path)
    return tmp_path


def test_readme_does_what_it_says(directory):
    """The example runs and prints what it shows."""
    assert 1 == run_examples(ROOT / "README.md", directory)


def test_readme_gives_the_vocabularies(directory):
    """Each token has the number that the table says."""
    special = dict(zip(("<cls>", "<pad>", "<eos>", "<unk>"), range(4), strict=True))
    residues = dict(zip("LAGVSERTIDPKQNFYMHWCXBUZO.-", range(4, 31), strict=True))
    nucleotides = dict(zip("ACGTNRYSWKMBDHV.-", range(4, 21), strict=True))

    assert {**special, **residues, "<null_1>": 31, "<mask>": 32} == RESIDUES
    assert {**special, **nucleotides, "<mask>": 21, "U": 7} == NUCLEOTIDES


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice; the page has few proteins
@pytest.mark.filterwarnings("ignore:The number of training batches")  # for logging intervals, and there is no logger
def test_tutorial_does_what_it_says(directory):
    """From the file to a trained model, every block runs and prints what the page shows."""
    assert 6 == run_examples(ROOT.parents[1] / "docs" / "tutorial" / "fasta.md", directory)
