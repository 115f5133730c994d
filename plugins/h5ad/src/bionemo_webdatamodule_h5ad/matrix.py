"""Rows of a matrix on disk, dense, CSR or CSC, read with bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError, count
from bionemo_webdatamodule_h5ad.cells import open_file

_log = logging.getLogger("bionemo.webdatamodule")
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
        data: HDF5 dataset of the values: ``(n_obs, n_vars)`` of a dense matrix, ``(n_stored,)`` of a sparse one.
        indices: HDF5 dataset ``(n_stored,)`` of the columns (CSR) or rows (CSC) of the values; ``None`` for a dense
            matrix.
        indptr: ``(n_obs + 1,)``, how many values lie before each row, and all values; of a CSC matrix
            ``(n_vars + 1,)``, before each column.
        by_genes: Whether it is CSC.
        n_obs: Rows.
        itemsize: Bytes of a value, with its column.
        n_vars: Columns.
    """

    data: h5py.Dataset
    indices: h5py.Dataset | None
    indptr: NDArray[np.int64]
    itemsize: int
    n_obs: int
    n_vars: int
    by_genes: bool = False


@contextmanager
def open_matrix(path: str, name: str) -> Iterator[Matrix]:
    """Open a matrix of an h5ad file.

    Args:
        path: The file.
        name: ``"X"``, ``"raw"`` or ``"layers/<name>"``.

    Raises:
        InputError: If there is none of this name.
    """
    with open_file(path) as file:
        places = ("raw/X", "raw.X") if name == "raw" else (name,)  # with a dot before anndata 0.7
        place = next((place for place in places if place in file), None)
        if place is None:
            layers = [f"layers/{layer}" for layer in file.get("layers", ())]
            known = [*(["X"] if "X" in file else []), *(["raw"] if "raw" in file or "raw.X" in file else []), *layers]
            raise InputError(f"there is no matrix {name!r}; there are {', '.join(known)}", file=path)
        yield _matrix(file[place], path, name)


def type_of(path: str, name: str, dtype: str | None) -> str:
    """Return the type that values of a matrix are read as.

    Args:
        path: The file.
        name: The matrix.
        dtype: The type asked for; ``None`` for float64 of a matrix that holds it and float32 of others.
    """
    if dtype is not None:
        return dtype
    with open_matrix(path, name) as matrix:
        return "float64" if matrix.data.dtype == np.float64 else "float32"


def _matrix(stored: h5py.Dataset | h5py.Group, path: str, name: str) -> Matrix:
    if isinstance(stored, h5py.Dataset):
        n_obs, n_vars = stored.shape
        indptr = np.arange(n_obs + 1, dtype=np.int64) * n_vars
        size = stored.dtype.itemsize
        return Matrix(data=stored, indices=None, indptr=indptr, itemsize=size, n_obs=n_obs, n_vars=n_vars)
    from anndata.io import sparse_dataset

    # anndata knows how each of its versions marks formats. Rows are read without it, which is 20 times as fast:
    # they lie one behind the other, as its description of the on-disk format says.
    about = sparse_dataset(stored)
    if about.format == "csc":
        _log.warning(
            "%s: %s lies by genes (CSC), so each shard reads all of it; adata.X = adata.X.tocsr() before "
            "adata.write_h5ad(...) makes this faster",
            path,
            name,
        )
    data, indices = stored["data"], stored["indices"]
    return Matrix(
        data=data,
        indices=indices,
        indptr=stored["indptr"][:].astype(np.int64),
        itemsize=data.dtype.itemsize + indices.dtype.itemsize,
        n_obs=int(about.shape[0]),
        n_vars=int(about.shape[1]),
        by_genes=about.format == "csc",
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
    if matrix.by_genes:
        yield from _transposed(matrix, rows, form=form, dtype=dtype)
        return
    ends = matrix.indptr * matrix.itemsize
    for window in _windows(np.asarray(rows, np.int64), ends):
        held: dict[int, Fields] = {}
        for run in _runs(np.unique(window), ends):
            block = _dense(matrix, run) if matrix.indices is None else _sparse(matrix, matrix.indices, run)
            for row, (places, values) in zip(run.tolist(), block, strict=True):
                held[row] = _fields(places, _converted(matrix, values, dtype), matrix.n_vars, form)
        for row in window.tolist():
            yield held[row]


def _transposed(matrix: Matrix, rows: Sequence[int], *, form: str, dtype: str) -> Iterator[Fields]:
    """Yield rows of a CSC matrix: for as many rows as fit into memory, all of it is read, some columns at a time."""
    most = max(1, int(4 * _WINDOW / (1 + int(matrix.indptr[-1]) * (8 + matrix.itemsize) / max(1, matrix.n_obs))))
    for start in range(0, len(rows), most):
        window = np.asarray(rows[start : start + most], np.int64)
        wanted = np.unique(window)
        slots = np.full(matrix.n_obs, -1, np.int64)
        slots[wanted] = np.arange(len(wanted))
        parts = list(_columns(matrix, slots))
        slot, places, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(slot, kind="stable")  # columns stay in order
        places, values = places[order], values[order]
        ends = np.searchsorted(slot[order], np.arange(len(wanted) + 1))
        for row in slots[window].tolist():
            inside = slice(ends[row], ends[row + 1])
            found = _summed(places[inside], values[inside])
            yield _fields(found[0], _converted(matrix, found[1], dtype), matrix.n_vars, form)


def _columns(matrix: Matrix, slots: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Yield slot, column and value of the values that lie in rows with a slot, some columns at a time."""
    if matrix.indices is None:
        raise TypeError("a dense matrix has no columns of its own")
    empty = np.zeros(0, np.int64)
    yield empty, empty, np.zeros(0, matrix.data.dtype)
    first = 0
    while first < matrix.n_vars:
        limit = matrix.indptr[first] + _WINDOW // matrix.itemsize
        last = max(first + 1, int(np.searchsorted(matrix.indptr, limit, side="right")) - 1)
        inside = slice(int(matrix.indptr[first]), int(matrix.indptr[last]))
        rows, values = matrix.indices[inside], matrix.data[inside]
        if len(rows) and not 0 <= rows.min() <= rows.max() < matrix.n_obs:
            raise InputError(
                f"the matrix is damaged: it has {count(matrix.n_obs, 'row')} and a value in row {rows.max()}",
                file=matrix.data.file.filename,
            )
        slot = slots[rows]
        columns = np.repeat(np.arange(first, last), np.diff(matrix.indptr[first : last + 1]))
        chosen = slot >= 0
        yield slot[chosen], columns[chosen], values[chosen]
        first = last


def _converted(matrix: Matrix, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return values as another type; fractions are rounded where a narrower type was asked for.

    Raises:
        InputError: If a whole number would change, or a number would become infinite.
    """
    with np.errstate(over="ignore"):
        new = values.astype(dtype)
    if values.dtype == new.dtype or not len(values):
        return new
    limit = 2 ** (np.finfo(dtype).nmant + 1)  # whole numbers up to here are exact
    large = np.flatnonzero((values > limit) | (values < -limit))
    for old, now in zip(values[large].tolist(), new[large].tolist(), strict=True):
        if np.isfinite(old) and (np.isinf(now) or (old == int(old) and int(now) != int(old))):
            wider = "; dtype='float64' keeps it" if dtype == "float32" and float(old) == old else ""
            raise InputError(
                f"the matrix holds {old!r}, which {dtype} cannot hold{wider}", file=matrix.data.file.filename
            )
    return new


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
        places, values = _summed(places, values)
        if len(places) and not 0 <= places[0] <= places[-1] < matrix.n_vars:
            raise InputError(
                f"the matrix is damaged: it has {count(matrix.n_vars, 'column')} and a value in column {places[-1]}",
                file=matrix.data.file.filename,
            )
        yield places, values


def _summed(places: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return positions in order and only once; values of one position add up."""
    if not (places[1:] <= places[:-1]).any():
        return places, values
    unique, where = np.unique(places, return_inverse=True)
    sums = np.zeros(len(unique), values.dtype)
    np.add.at(sums, where, values)
    return unique, sums


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
