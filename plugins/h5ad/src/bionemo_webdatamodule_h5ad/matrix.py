"""Rows of a matrix on disk, dense or CSR, read in runs of neighbours with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError
from bionemo_webdatamodule_h5ad.cells import open_file

_WINDOW = 32 << 20  # bytes of rows held at a time
_GAP = 64 << 10  # bytes that are quicker read than skipped

Fields: TypeAlias = Mapping[str, NDArray[Any]]
"""A row: ``x``, or ``indices`` and ``data``."""

Row: TypeAlias = tuple[NDArray[Any] | None, NDArray[Any]]
"""A row as it is stored: values and their positions, which are all of them where there is ``None``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """A matrix on disk.

    Attributes:
        data: HDF5 dataset of the values: ``(n_obs, n_vars)`` of a dense matrix, ``(n_stored,)`` of a CSR one.
        indices: HDF5 dataset ``(n_stored,)`` of the columns of the values; ``None`` for a dense matrix.
        indptr: ``(n_obs + 1,)``, how many values lie before each row, and all values.
        itemsize: Bytes of a value, with its column.
        n_vars: Columns.
    """

    data: h5py.Dataset
    indices: h5py.Dataset | None
    indptr: NDArray[np.int64]
    itemsize: int
    n_vars: int


@contextmanager
def open_matrix(path: str, name: str) -> Iterator[Matrix]:
    """Open a matrix of an h5ad file.

    Args:
        path: The file.
        name: ``"X"``, ``"raw"`` or ``"layers/<name>"``.

    Raises:
        InputError: If there is none of this name, or it lies by genes (CSC).
    """
    with open_file(path) as file:
        places = ("raw/X", "raw.X") if name == "raw" else (name,)  # with a dot before anndata 0.7
        place = next((place for place in places if place in file), None)
        if place is None:
            layers = [f"layers/{layer}" for layer in file.get("layers", ())]
            known = [*(["X"] if "X" in file else []), *(["raw"] if "raw" in file or "raw.X" in file else []), *layers]
            raise InputError(f"there is no matrix {name!r}; there are {', '.join(known)}", file=path)
        yield _matrix(file[place], path, name)


def _matrix(stored: h5py.Dataset | h5py.Group, path: str, name: str) -> Matrix:
    if isinstance(stored, h5py.Dataset):
        n_obs, n_vars = stored.shape
        indptr = np.arange(n_obs + 1, dtype=np.int64) * n_vars
        return Matrix(data=stored, indices=None, indptr=indptr, itemsize=stored.dtype.itemsize, n_vars=n_vars)
    from anndata.io import sparse_dataset

    # anndata knows how each of its versions marks formats. Rows are read without it, which is 20 times as fast:
    # they lie one behind the other, as its description of the on-disk format says.
    about = sparse_dataset(stored)
    if about.format != "csr":
        raise InputError(
            f"{name} lies by genes ({about.format.upper()}), so that reading a cell means reading everything; "
            "store it by cells: adata.X = adata.X.tocsr(); adata.write_h5ad(...)",
            file=path,
        )
    data, indices = stored["data"], stored["indices"]
    return Matrix(
        data=data,
        indices=indices,
        indptr=stored["indptr"][:].astype(np.int64),
        itemsize=data.dtype.itemsize + indices.dtype.itemsize,
        n_vars=int(about.shape[1]),
    )


def read_rows(matrix: Matrix, rows: Sequence[int], *, form: str, dtype: str) -> Iterator[Fields]:
    """Yield the fields of each row, in the order asked.

    Rows are read in windows of bounded size, and in each window in the order of the file:
    runs of neighbours at once, with the rows between them where those are few.

    Args:
        matrix: The matrix.
        rows: Which rows.
        form: ``"csr"`` for the fields ``indices`` and ``data``, ``"dense"`` for ``x``.
        dtype: Type of the values.
    """
    ends = matrix.indptr * matrix.itemsize
    for window in _windows(np.asarray(rows, np.int64), ends):
        held: dict[int, Fields] = {}
        for run in _runs(np.unique(window), ends):
            block = _dense(matrix, run) if matrix.indices is None else _sparse(matrix, matrix.indices, run)
            for row, (places, values) in zip(run.tolist(), block, strict=True):
                held[row] = _fields(places, values.astype(dtype), matrix.n_vars, form)
        for row in window.tolist():
            yield held[row]


def _windows(rows: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut the rows into pieces of at most so many bytes, or one row."""
    sizes = ends[rows + 1] - ends[rows]
    start = total = 0
    for place, size in enumerate(sizes.tolist()):
        if total and total + size > _WINDOW:
            yield rows[start:place]
            start, total = place, 0
        total += size
    if len(rows):
        yield rows[start:]


def _runs(rows: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut increasing rows into runs whose gaps are small, of at most so many bytes or one row."""
    start = 0
    for place in range(1, len(rows)):
        gap = ends[rows[place]] - ends[rows[place - 1] + 1]
        if gap > _GAP or ends[rows[place] + 1] - ends[rows[start]] > _WINDOW // 4:
            yield rows[start:place]
            start = place
    yield rows[start:]


def _dense(matrix: Matrix, rows: NDArray[np.int64]) -> Iterator[Row]:
    """Yield a run of rows of a dense matrix."""
    first = int(rows[0])
    block = matrix.data[first : int(rows[-1]) + 1]
    for row in (rows - first).tolist():
        yield None, block[row]


def _sparse(matrix: Matrix, columns: h5py.Dataset, rows: NDArray[np.int64]) -> Iterator[Row]:
    """Yield a run of rows of a CSR matrix, each with its positions in order and only once."""
    first, last = int(matrix.indptr[rows[0]]), int(matrix.indptr[rows[-1] + 1])
    data, indices = matrix.data[first:last], columns[first:last]
    for start, stop in zip(matrix.indptr[rows] - first, matrix.indptr[rows + 1] - first, strict=True):
        places, values = indices[start:stop], data[start:stop]
        if (places[1:] <= places[:-1]).any():
            places, where = np.unique(places, return_inverse=True)
            values = np.zeros(len(places), data.dtype)
            np.add.at(values, where, data[start:stop])
        if len(places) and not 0 <= places[0] <= places[-1] < matrix.n_vars:
            raise InputError(
                f"the matrix is damaged: it has {matrix.n_vars} columns and a value in column {places[-1]}",
                file=matrix.data.file.filename,
            )
        yield places, values


def _fields(places: NDArray[Any] | None, values: NDArray[Any], n_vars: int, form: str) -> Fields:
    """Return a row's fields, from all its values or from some and their positions."""
    if form == "csr":
        if places is None:
            places = np.flatnonzero(values)
            values = values[places]
        return {"indices": places.astype(np.int32), "data": values}
    if places is None:
        return {"x": values}
    x = np.zeros(n_vars, values.dtype)
    x[places] = values
    return {"x": x}
