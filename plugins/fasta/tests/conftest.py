"""Fixtures: sequence files in a temporary directory, and a cache of their own for every test."""

from __future__ import annotations

import gzip

import pysam
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep indexes out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bionemo-webdatamodule" / "fasta"


@pytest.fixture(params=["plain", "gzip", "bgzip"])
def write(request, tmp_path):
    """Return a function that writes text to a file, compressed in each way, and gives its path."""
    (tmp_path / "source").mkdir()

    def write(text, name="records"):
        path = tmp_path / "source" / name
        if request.param == "gzip":
            path.write_bytes(gzip.compress(text))
        elif request.param == "bgzip":
            with pysam.BGZFile(str(path), "wb") as file:
                file.write(text)
        else:
            path.write_bytes(text)
        return str(path)

    return write
