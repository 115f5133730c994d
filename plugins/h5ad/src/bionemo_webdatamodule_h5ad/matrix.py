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
_GAP = 128 << 10  # bytes that are quicker read than skipped

Fields: TypeAlias = Mapping[str, NDArray[Any]]
"""A row: ``x``, or ``indices`` and ``data``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """A matrix on disk.

    Attributes:
        data: An HDF5 dataset for a dense matrix, anndata's ``CSRDataset`` for a sparse one.
        ends: ``(n_obs + 1,)``, how many bytes lie before each row, and all bytes.
    """

    data: Any
    ends: NDArray[np.int64]


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
        ends = np.arange(n_obs + 1, dtype=np.int64) * n_vars * stored.dtype.itemsize
        return Matrix(data=stored, ends=ends)
    from anndata.io import sparse_dataset

    data = sparse_dataset(stored)
    if data.format != "csr":
        raise InputError(
            f"{name} lies by genes ({data.format.upper()}), so that reading a cell means reading everything; "
            "store it by cells: adata.X = adata.X.tocsr(); adata.write_h5ad(...)",
            file=path,
        )
    size = stored["data"].dtype.itemsize + stored["indices"].dtype.itemsize
    ends = stored["indptr"][:].astype(np.int64) * size
    return Matrix(data=data, ends=ends)


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
    for window in _windows(np.asarray(rows, np.int64), matrix.ends):
        held: dict[int, Fields] = {}
        for run in _runs(np.unique(window), matrix.ends):
            block = matrix.data[int(run[0]) : int(run[-1]) + 1]
            held |= zip(run.tolist(), _fields(block, run - run[0], form, dtype), strict=True)
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


def _fields(block: Any, rows: NDArray[np.int64], form: str, dtype: str) -> Iterator[Fields]:
    """Yield the fields of some rows of a block, a numpy array or a scipy CSR matrix."""
    sparse = not isinstance(block, np.ndarray)
    if sparse:
        block.sum_duplicates()  # puts positions in order, too
    for row in rows.tolist():
        if sparse:
            stored = slice(block.indptr[row], block.indptr[row + 1])
            places, values = block.indices[stored], block.data[stored]
            if form == "dense":
                x = np.zeros(block.shape[1], dtype)
                x[places] = values
        elif form == "dense":
            x = block[row].astype(dtype)
        else:
            places = np.flatnonzero(block[row])
            values = block[row, places]
        yield {"x": x} if form == "dense" else {"indices": places.astype(np.int32), "data": values.astype(dtype)}
