from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo_webdatamodule_h5ad import H5adReader, matrix


def read(reader, names=None):
    """Return the unpickled fields of cells, by name, in the order they come."""
    names = reader.names() if names is None else names
    return {
        sample.name: {suffix: pickle.loads(data) for suffix, data in sample.files.items()} for sample in reader(names)
    }


def stacked(reader, names=None):
    """Return the dense rows of cells as one array."""
    return np.stack([fields["x.pyd"] for fields in read(reader, names).values()])


@pytest.fixture(params=["old", "new"])
def path(request, pbmc_path, pbmc_new_path):
    """Return the real cells in the format of anndata 0.6 and in today's."""
    return pbmc_path if request.param == "old" else pbmc_new_path


def test_real_cells_are_read_dense(path, pbmc):
    """X of this set is a dense, scaled matrix."""
    values = stacked(H5adReader(path=path, form="dense"))

    assert np.float32 == values.dtype
    np.testing.assert_array_equal(pbmc.X, values)


def test_real_cells_are_read_sparse(path, pbmc):
    """The raw matrix of this set is CSR; its rows together are the matrix."""
    cells = read(H5adReader(path=path, matrix="raw"))

    assert [*pbmc.obs_names] == [*cells]
    for row, fields in enumerate(cells.values()):
        expected = pbmc.raw.X[row].sorted_indices()
        np.testing.assert_array_equal(expected.indices, fields["indices.pyd"])
        np.testing.assert_array_equal(expected.data, fields["data.pyd"])
        assert (np.int32, np.float32) == (fields["indices.pyd"].dtype, fields["data.pyd"].dtype)


def test_each_form_is_had_from_each_matrix(path, pbmc):
    """Dense from CSR and CSR from dense hold the same numbers."""
    names = [*pbmc.obs_names[:30]]
    dense = stacked(H5adReader(path=path, matrix="raw", form="dense"), names)
    cells = read(H5adReader(path=path), names)

    np.testing.assert_array_equal(pbmc.raw.X[:30].toarray(), dense)
    for row, fields in enumerate(cells.values()):
        x = np.zeros(pbmc.n_vars, np.float32)
        x[fields["indices.pyd"]] = fields["data.pyd"]
        np.testing.assert_array_equal(pbmc.X[row], x)


def test_cells_come_in_the_order_asked(path, pbmc):
    """Random splits ask for cells all over the file, and may ask twice."""
    rng = np.random.default_rng(1)
    names = [*rng.permutation(pbmc.obs_names)[:200]]
    reader = H5adReader(path=path, matrix="raw", form="dense")

    np.testing.assert_array_equal(pbmc[names].raw.X.toarray(), stacked(reader, names))
    assert [names[3], names[3]] == [sample.name for sample in reader([names[3], names[3]])]


def test_columns_of_obs_become_python_values(path, pbmc):
    """Categories are their numbers, whose meaning the reader tells."""
    reader = H5adReader(path=path, obs=["bulk_labels", "n_genes", "percent_mito"])
    obs = [fields["obs.pyd"] for fields in read(reader).values()]
    labels = reader.categories("bulk_labels")

    assert [*pbmc.obs["bulk_labels"]] == [labels[cell["bulk_labels"]] for cell in obs]
    assert pbmc.obs["n_genes"].tolist() == [cell["n_genes"] for cell in obs]
    assert pbmc.obs["percent_mito"].tolist() == [cell["percent_mito"] for cell in obs]
    assert ["bulk_labels", "n_genes", "percent_mito"] == [*obs[0]]
    assert (int, int, float) == tuple(map(type, obs[0].values()))


def test_genes_are_told(path, pbmc):
    """Columns of the matrix are named by ``features``, those of raw by its own."""
    assert [*pbmc.var_names] == H5adReader(path=path).features()
    assert [*pbmc.raw.var_names] == H5adReader(path=path, matrix="raw").features()


def test_layers_are_read(pbmc_new_path, pbmc):
    """A layer is named as in the file."""
    reader = H5adReader(path=pbmc_new_path, matrix="layers/scaled", form="dense")

    np.testing.assert_array_equal(pbmc.X[:5], stacked(reader, [*pbmc.obs_names[:5]]))


def test_text_booleans_and_missing_values(write, counts):
    """Texts and booleans stay what they are; a missing category is -1, a missing float NaN."""
    path = write(
        counts[:3],
        {
            "donor": ["a", "b", "c"],
            "ok": [True, False, True],
            "kind": pd.Categorical(["T", None, "B"]),
            "score": [0.5, np.nan, 1.5],
        },
    )
    cells = read(H5adReader(path=path, obs=["donor", "ok", "kind", "score"]))
    obs = [fields["obs.pyd"] for fields in cells.values()]

    assert ["a", "b", "c"] == [cell["donor"] for cell in obs]
    assert [True, False, True] == [cell["ok"] for cell in obs]
    assert ([1, -1, 0], ["B", "T"]) == ([cell["kind"] for cell in obs], H5adReader(path=path).categories("kind"))
    assert (0.5, True, 1.5) == (obs[0]["score"], np.isnan(obs[1]["score"]), obs[2]["score"])


def test_missing_numbers_and_texts_are_refused(write, counts):
    """A sample cannot hold nothing, so the user decides."""
    path = write(counts[:3], {"age": pd.array([30, None, 31], "Int64")})

    with pytest.raises(InputError, match="the column 'age' of obs lacks a value in 1 cell;"):
        read(H5adReader(path=path, obs=["age"]))


def test_empty_cells_have_empty_rows(write, counts):
    """No value is stored, and the dense row is zero."""
    path = write(counts)

    assert ([], []) == tuple(field.tolist() for field in read(H5adReader(path=path), ["cell7"])["cell7"].values())
    assert [0.0] * 20 == stacked(H5adReader(path=path, form="dense"), ["cell7"])[0].tolist()


def test_values_keep_more_digits_on_request(write):
    """float64 is for what float32 would round."""
    x = np.array([[1 / 3, 2**24 + 1]])

    assert x.tolist() == stacked(H5adReader(path=write(x), form="dense", dtype="float64")).tolist()
    assert x.tolist() == stacked(H5adReader(path=write(x), form="dense")).tolist()
    assert [[np.float32(1 / 3), 2**24]] == stacked(
        H5adReader(path=write(x - [[0, 1]]), form="dense", dtype="float32")
    ).tolist()


@pytest.mark.parametrize(
    ("values", "stored", "options"),
    [
        ([16777217], "int64", {}),
        ([-16777217], "int32", {}),
        ([2**32 - 1], "uint32", {}),
        ([16777217.0], "float64", {"dtype": "float32"}),
        ([1e300], "float64", {"dtype": "float32"}),
        ([2**53 + 1], "int64", {"dtype": "float64"}),
    ],
)
@pytest.mark.parametrize("lies", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_numbers_that_would_change_are_refused(write, values, stored, options, lies):
    """Counts are exact or an error, whose advice works where there is any."""
    path = write(lies(np.array([values], stored)))

    with pytest.raises(InputError, match=r"the matrix holds .*, which float\d\d cannot hold.*small\.h5ad") as caught:
        read(H5adReader(path=path, **options))
    if "dtype='float64' keeps it" in str(caught.value):
        assert [values] == stacked(H5adReader(path=path, form="dense", dtype="float64")).tolist()
    assert ("dtype='float64' keeps it" in str(caught.value)) == (options.get("dtype") != "float64")


def test_whole_numbers_that_fit_are_exact_whatever_their_type(write):
    """Large powers of two fit float32; infinities and missing values stay what they are."""
    whole = np.array([[2**24, 2**40, -(2**30), 0]])
    odd = np.array([[np.inf, -np.inf, np.nan]])

    assert whole.tolist() == stacked(H5adReader(path=write(whole), form="dense")).tolist()
    np.testing.assert_array_equal(odd, stacked(H5adReader(path=write(odd), form="dense", dtype="float32")))


def test_positions_in_disorder_or_twice_are_put_right(write, counts):
    """Some tools write such rows; the values of one place add up, as everywhere in scipy."""
    path = write(counts[:1])
    with h5py.File(path, "r+") as file:
        for name, values in (("data", [1.0, 2.0, 3.0]), ("indices", [5, 2, 5]), ("indptr", [0, 3])):
            attributes = dict(file["X"][name].attrs)
            del file["X"][name]
            file["X"][name] = np.array(values, {"data": "f4"}.get(name, "i4"))
            file["X"][name].attrs.update(attributes)

    fields = read(H5adReader(path=path))["cell0"]
    assert ([2, 5], [2.0, 4.0]) == (fields["indices.pyd"].tolist(), fields["data.pyd"].tolist())


def test_positions_beyond_the_matrix_are_refused(write, counts):
    """A model would fail on them much later, or worse, not at all."""
    path = write(counts[:1])
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 20

    with pytest.raises(InputError, match="20 columns and a value in column 20"):
        read(H5adReader(path=path))


def test_names_that_occur_twice_are_refused_by_name(tmp_path, counts):
    """Two samples of one name would be one key."""
    with pytest.warns(UserWarning, match="not unique"):
        anndata.AnnData(counts[:3], obs=pd.DataFrame(index=["a", "b", "a"])).write_h5ad(tmp_path / "twice.h5ad")

    with pytest.raises(InputError, match=r"obs_names occur more than once: a; adata\.obs_names_make_unique"):
        H5adReader(path=str(tmp_path / "twice.h5ad")).names()


@pytest.mark.parametrize("window", [1, 300, 32 << 20])
def test_matrices_by_genes_are_read(write, counts, caplog, monkeypatch, window):
    """A CSC matrix gives the same cells in any order, twice too, with advice in the log."""
    monkeypatch.setattr(matrix, "_WINDOW", window)
    path = write(sparse.csc_matrix(counts))
    names = [f"cell{row}" for row in (7, 3, 49, 3, 0)]

    assert counts.toarray().tolist() == stacked(H5adReader(path=path, form="dense")).tolist()
    found = [pickle.loads(sample.files["indices.pyd"]).tolist() for sample in H5adReader(path=path)(names)]
    assert [counts[row].sorted_indices().indices.tolist() for row in (7, 3, 49, 3, 0)] == found
    assert "X lies by genes (CSC), so each shard reads all of it; adata.X = adata.X.tocsr()" in caplog.text


def test_damaged_matrices_by_genes_are_refused(write, counts):
    """A value in a row that does not exist is an error."""
    path = write(sparse.csc_matrix(counts))
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 50

    with pytest.raises(InputError, match="50 rows and a value in row 50"):
        read(H5adReader(path=path))


def as_anndata_07(path, columns):
    """Rewrite the categories of a file as anndata 0.7 did: codes, and a group with the categories of all columns."""
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.create_group("__categories")
        for column in columns:
            codes, names = obs[column]["codes"][:], obs[column]["categories"].asstr()[:]
            ordered = bool(obs[column].attrs["ordered"])
            del obs[column]
            obs["__categories"].create_dataset(column, data=names, dtype=h5py.string_dtype())
            obs["__categories"][column].attrs["ordered"] = ordered
            obs[column] = codes
            obs[column].attrs["categories"] = obs["__categories"][column].ref
        obs.attrs["encoding-version"] = "0.1.0"
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pd.Categorical(["T", None, "B"]),
        pd.Categorical(["T", "B", "B"], categories=["T", "B"], ordered=True),
        pd.Categorical(["a", "b", "c"]),
    ],
)
def test_categories_of_anndata_07_are_read(write, counts, kind):
    """They are the same as in a file of today."""
    new = H5adReader(path=write(counts[:3], {"kind": kind, "n": [1, 2, 3]}), obs=["kind", "n"])
    expected, labels = read(new), new.categories("kind")
    old = H5adReader(path=as_anndata_07(new.path, ["kind"]), obs=["kind", "n"])

    assert [cell["obs.pyd"] for cell in expected.values()] == [cell["obs.pyd"] for cell in read(old).values()]
    assert labels == old.categories("kind") == [*kind.categories]


@pytest.fixture
def several(tmp_path):
    """Return a function that writes several files of cells into a directory, and gives its path."""

    def several(**files):
        for name, (x, obs, more) in files.items():
            frame = pd.DataFrame(obs, index=more.get("names", [f"{name}{row}" for row in range(len(x))]))
            genes = pd.DataFrame(index=more.get("genes", [f"gene{column}" for column in range(x.shape[1])]))
            path = tmp_path / "files" / f"{name}.h5ad"
            path.parent.mkdir(exist_ok=True)
            anndata.AnnData(x, obs=frame, var=genes).write_h5ad(path)
        return str(tmp_path / "files")

    return several


EYE = np.eye(2, 3, dtype=np.float32)


def test_several_files_are_one_source(several):
    """Cells come file by file or in any order, and a category has one number in all files."""
    path = several(
        b=(EYE, {"kind": pd.Categorical(["T", "B"])}, {}),
        a=(2 * EYE, {"kind": pd.Categorical(["T", "NK"])}, {}),
    )
    reader = H5adReader(path=path, form="dense", obs=["kind"])

    assert ["a0", "a1", "b0", "b1"] == reader.names()
    assert ["NK", "T", "B"] == reader.categories("kind")
    cells = read(reader, ["b1", "a1", "b0", "a0"])
    assert {"b1": "B", "a1": "NK", "b0": "T", "a0": "T"} == {
        name: reader.categories("kind")[cell["obs.pyd"]["kind"]] for name, cell in cells.items()
    }
    assert [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0]] == [cell["x.pyd"].tolist() for cell in cells.values()]
    files = [f"{path}/b.h5ad", f"{path}/a.h5ad"]
    assert ["b0", "b1", "a0", "a1"] == H5adReader(path=files).names()
    assert ["B", "T", "NK"] == H5adReader(path=files).categories("kind")


def test_new_categories_change_the_fingerprint(several):
    """A cell's number of its category depends on the other files."""
    path = several(a=(EYE, {"kind": pd.Categorical(["T", "B"])}, {}), b=(EYE, {"kind": pd.Categorical(["T", "B"])}, {}))
    reader = H5adReader(path=path, obs=["kind"])
    before = reader.fingerprints(["b0", "nobody"])
    several(a=(EYE, {"kind": pd.Categorical(["A", "B"])}, {}))

    assert "" == before[1]
    assert before[0] != reader.fingerprints(["b0"])[0]


def test_cells_of_one_name_in_two_files_are_refused(several):
    """The advice works: each name gets that of its file."""
    path = several(a=(EYE, {}, {"names": ["x", "y"]}), b=(EYE, {}, {"names": ["y", "z"]}))

    for ask in (H5adReader.names, lambda reader: reader.fingerprints(["y"]), lambda reader: list(reader(["y"]))):
        with pytest.raises(InputError, match=r"a\.h5ad and .*b\.h5ad both have the cells y; index_unique='-' adds"):
            ask(H5adReader(path=path))
    reader = H5adReader(path=path, index_unique="-")
    assert ["x-a", "y-a", "y-b", "z-b"] == reader.names() == [sample.name for sample in reader(reader.names())]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ((EYE, {}, {}), (EYE[:, :2], {}, {}), r"genes of .*a\.h5ad \(3\) and .*b\.h5ad \(2\) differ; bring"),
        ((EYE, {}, {"genes": list("uvw")}), (EYE, {}, {"genes": list("uwv")}), r"differ, first at 1: 'v' and 'w'"),
        ((EYE, {}, {}), (EYE.astype("f8"), {}, {}), r"the values differ between files: .*dtype='float64' reads all"),
        ((EYE, {"n": [1, 2]}, {}), (EYE, {"n": [0.5, 1]}, {}), r"column 'n' of obs differ between files: .*float64 in"),
        ((EYE, {"n": [1, 2]}, {}), (EYE, {"n": pd.Categorical(["a", "b"])}, {}), r"categories in .*b\.h5ad"),
    ],
)
def test_files_that_do_not_fit_are_refused(several, one, other, message):
    """Genes, values and columns are compared before anything is written."""
    reader = H5adReader(path=several(a=one, b=other), obs=[*one[1]])

    with pytest.raises(InputError, match=message):
        reader.names()
    with pytest.raises(InputError, match=message):
        reader.fingerprints(["a0", "b0"])


def test_directories_without_files_are_refused(tmp_path):
    """The message names the directory."""
    with pytest.raises(InputError, match=r"holds no \.h5ad file"):
        H5adReader(path=str(tmp_path)).names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "layers/none"}, "no matrix 'layers/none'; there are X"),
        ({"matrix": "raw"}, "no matrix 'raw'; there are X"),
        ({"obs": ["none"]}, "obs has no column 'none'; it has kind"),
    ],
)
def test_what_is_not_in_the_file_is_refused(write, counts, options, message):
    """The message says what there is."""
    path = write(counts, {"kind": pd.Categorical(["T"] * 50)})

    with pytest.raises(InputError, match=message):
        read(H5adReader(path=path, **options), ["cell1"])


def test_other_mistakes_are_refused(write, counts, tmp_path):
    """Each with the file and what is wrong with it."""
    path = write(counts, {"n": range(50)})
    (tmp_path / "text.h5ad").write_text("no HDF5")

    with pytest.raises(InputError, match="no cell named 'cell50'"):
        read(H5adReader(path=path), ["cell1", "cell50"])
    assert "" == H5adReader(path=path).fingerprints(["cell1", "cell50"])[1]
    with pytest.raises(InputError, match="holds int64, not categories"):
        H5adReader(path=path).categories("n")
    with pytest.raises(InputError, match="there is no raw"):
        H5adReader(path=path, matrix="raw").features()
    with pytest.raises(InputError, match="not readable as HDF5"):
        H5adReader(path=str(tmp_path / "text.h5ad")).names()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        H5adReader(path=str(tmp_path / "none.h5ad")).names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "csc"}, "form is 'csr' or 'dense'"),
        ({"matrix": "scaled"}, "matrix is 'X', 'raw' or"),
        ({"dtype": "int8"}, "dtype is"),
        ({"path": []}, "path is a path or a list"),
        ({"obs": "kind"}, "obs is a list"),
        ({"obs": ["kind", "kind"]}, "obs is a list"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    """Before the file is opened."""
    with pytest.raises(ConfigError, match=message):
        H5adReader(**{"path": "none.h5ad", **options})


def test_fingerprints_are_one_for_each_name(write, counts):
    """All cells share those of the file, and a new file gives new ones."""
    reader = H5adReader(path=write(counts))
    before = reader.fingerprints(["cell1", "cell2"])
    write(counts[:20])

    assert 2 == len(before)
    assert before != reader.fingerprints(["cell1", "cell2"])
    assert 20 == len(reader.names())


@pytest.fixture
def both(write, counts, tmp_path):
    """Return the path of a matrix that lies sparse in a file, and of the same one that lies dense."""
    sparse_path = Path(write(counts)).rename(tmp_path / "sparse.h5ad")
    return str(sparse_path), write(counts.toarray())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 49), max_size=80), data=st.data())
def test_any_rows_are_read_whatever_the_blocks(both, counts, monkeypatch, rows, data):
    """Windows and runs change how the file is read, and nothing else."""
    monkeypatch.setattr(matrix, "_WINDOW", data.draw(st.integers(1, 3000)))
    monkeypatch.setattr(matrix, "_GAP", data.draw(st.integers(0, 400)))
    reader = H5adReader(path=data.draw(st.sampled_from(both)), form="dense")
    names = [f"cell{row}" for row in rows]

    actual = [pickle.loads(sample.files["x.pyd"]).tolist() for sample in reader(names)]

    assert counts[rows].toarray().tolist() == actual


def test_the_reader_pickles(write, counts):
    """One shard is one task, whose reader opens the file where it runs."""
    reader = H5adReader(path=write(counts), obs=[])
    reader.names()

    assert reader == pickle.loads(pickle.dumps(reader))


def test_importing_the_plugin_imports_nothing_heavy():
    """An installed plugin must not slow every program down."""
    code = (
        "import sys, bionemo_webdatamodule_h5ad\n"
        "print(sorted({'anndata', 'h5py', 'numpy', 'pandas', 'torch', 'lightning'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert "[]" == printed.strip()
