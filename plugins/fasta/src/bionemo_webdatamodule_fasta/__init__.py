"""FASTA and FASTQ files for bionemo-webdatamodule: the writer ``fasta`` and the stage ``tokenize``."""

from __future__ import annotations

from collections.abc import Iterable

from bionemo.webdatamodule import Stage, Writer, hookimpl
from bionemo_webdatamodule_fasta.reader import FastaReader
from bionemo_webdatamodule_fasta.tokens import Tokenize

__all__ = ["FastaReader", "Tokenize", "webdatamodule_stages", "webdatamodule_writers"]


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer."""
    yield Writer(name="fasta", summary="records of FASTA and FASTQ files, also gzipped", factory=FastaReader)


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the stage."""
    yield Stage(name="tokenize", summary="residues or nucleotides become numbers", factory=Tokenize)
