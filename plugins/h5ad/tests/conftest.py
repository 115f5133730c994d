"""Fixtures: the set of real cells that scanpy ships, and small files of our own."""

from __future__ import annotations

import warnings
from importlib import resources

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse


@pytest.fixture(scope="session")
def pbmc_path():
    """Return the path of 700 blood cells of 10x Genomics, in a file that anndata 0.6 wrote."""
    return str(resources.files("scanpy") / "datasets" / "10x_pbmc68k_reduced.h5ad")


@pytest.fixture(scope="session")
def pbmc(pbmc_path):
    """Return the same cells as anndata reads them whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an older format
        return anndata.read_h5ad(pbmc_path)


@pytest.fixture(scope="session")
def pbmc_new_path(pbmc, tmp_path_factory):
    """Return the path of the same cells in a file of today's format, with a layer."""
    adata = pbmc.copy()
    adata.layers["scaled"] = adata.X.copy()
    path = tmp_path_factory.mktemp("pbmc") / "new.h5ad"
    adata.write_h5ad(path)
    return str(path)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a small file and gives its path."""

    def write(x, obs=None, layers=None):
        names = [f"cell{number}" for number in range(x.shape[0])]
        frame = pd.DataFrame(obs or {}, index=names)
        adata = anndata.AnnData(x, obs=frame, layers=layers)
        path = tmp_path / "small.h5ad"
        adata.write_h5ad(path)
        return str(path)

    return write


@pytest.fixture
def counts():
    """Return a small sparse matrix with an empty row."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (50, 20)).astype(np.float32)
    dense[7] = 0
    return sparse.csr_matrix(dense)
