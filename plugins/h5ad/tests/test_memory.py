from __future__ import annotations

import json
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

N_OBS, N_VARS, STORED = 200_000, 2_000, 150

CHILD = """
import json, pickle, resource, sys
import numpy as np
from bionemo_webdatamodule_h5ad import H5adReader
from bionemo_webdatamodule_h5ad import cells, matrix  # so that libraries are part of the base
from bionemo.webdatamodule import pickles

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

path, form = sys.argv[1:]
reader = H5adReader(path=path, form=form)
wanted = [f"cell{row}" for row in np.random.default_rng(0).choice(200_000, 5_000, replace=False)]
cells.read_obs(path, ())  # names take what they take
next(reader(wanted[:1]))
base, total, count = peak(), 0.0, 0
for sample in reader(wanted):
    total += float(pickle.loads(sample.files["x.pyd" if form == "dense" else "data.pyd"]).sum())
    count += 1
print(json.dumps({"grown": peak() - base, "total": total, "count": count}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write 200 000 cells of 2 000 genes, 240 MB of stored values, a block at a time."""
    path = tmp_path_factory.mktemp("large") / "large.h5ad"
    obs = anndata.AnnData(sparse.csr_matrix((N_OBS, N_VARS), dtype=np.float32))
    obs.obs_names = [f"cell{row}" for row in range(N_OBS)]
    obs.write_h5ad(path)
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name, kind in (("data", "f4"), ("indices", "i4")):
            del group[name]
            group.create_dataset(name, (N_OBS * STORED,), kind, chunks=(1 << 16,))
        group["indptr"][:] = np.arange(N_OBS + 1) * STORED
        genes = np.sort(rng.choice(N_VARS, STORED, replace=False)).astype("i4")
        for start in range(0, N_OBS * STORED, 10_000 * STORED):
            stop = start + 10_000 * STORED
            group["indices"][start:stop] = np.tile(genes, 10_000)
            group["data"][start:stop] = np.repeat(np.arange(start // STORED, stop // STORED) % 7, STORED)
    return path


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_a_shard_takes_the_memory_of_a_block(large, form):
    """5 000 cells from all over a file of 240 MB, in a process of their own, take less than 80 MB at the peak."""
    run = subprocess.run([sys.executable, "-c", CHILD, str(large), form], check=True, capture_output=True, text=True)
    result = json.loads(run.stdout)
    rows = np.random.default_rng(0).choice(N_OBS, 5_000, replace=False)

    assert large.stat().st_size > 240_000_000
    assert (5_000, float((rows % 7).sum() * STORED)) == (result["count"], result["total"])
    assert result["grown"] < 80 << 20
