"""The cells of an h5ad file: their names and the chosen columns of ``obs``, read without the rest of it."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError, count


@dataclass(frozen=True, kw_only=True, eq=False)
class Obs:
    """Cells.

    Attributes:
        path: The file.
        stamp: Its size and modification time.
        names: ``(n_obs,)``, the names of the cells, each only once.
        columns: The value of every cell, by column.
    """

    path: str
    stamp: str
    names: pd.Index
    columns: Mapping[str, Sequence[Any]]

    def rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of these cells, -1 for one that is not there."""
        rows: NDArray[np.int64] = self.names.get_indexer(pd.Index(names, dtype=object)).astype(np.int64)
        return rows


def open_file(path: str) -> Any:
    """Open an h5ad file for reading; where the file system knows no locks, without.

    Raises:
        InputError: If it is missing or no HDF5 file.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise InputError(f"not readable as HDF5: {error}", file=path) from error


def read_obs(path: str, columns: tuple[str, ...], ending: str = "") -> Obs:
    """Return the cells of a file with these columns; both are kept for the next shard of the same process.

    Args:
        path: The file.
        columns: Columns of ``obs``.
        ending: What is added to the name of each cell.

    Raises:
        InputError: If a name occurs twice, a column is missing, or its values are not what a sample can hold.
    """
    return _read_obs(path, stamp_of(path), columns, ending)


def stamp_of(path: str) -> str:
    """Return the size and modification time of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", file=path) from error
    return f"{status.st_size}-{status.st_mtime_ns}"


@functools.lru_cache(maxsize=1024)
def _read_obs(path: str, stamp: str, columns: tuple[str, ...], ending: str) -> Obs:
    with open_file(path) as file:
        frame = _frame(file, path, columns)
    names = frame.index.astype(object)
    if ending:
        names = pd.Index([f"{name}{ending}" for name in names], dtype=object)
    if not names.is_unique:
        twice = [str(name) for name, count in Counter(names).items() if count > 1]
        more = f" and {len(twice) - 20} more" if len(twice) > 20 else ""
        raise InputError(
            f"obs_names occur more than once: {', '.join(twice[:20])}{more}; "
            "adata.obs_names_make_unique() renames them",
            file=path,
        )
    values = {column: _values(frame[column], path) for column in columns}
    return Obs(path=path, stamp=stamp, names=names, columns=values)


def categories(path: str, column: str) -> list[str]:
    """Return the categories of a column.

    Raises:
        InputError: If there is no such column, or it is not categorical.
    """
    with open_file(path) as file:
        values = _frame(file, path, (column,))[column]
    if not isinstance(values.dtype, pd.CategoricalDtype):
        raise InputError(f"the column {column!r} of obs holds {values.dtype}, not categories", file=path)
    return [str(category) for category in values.cat.categories]


def features(path: str, *, raw: bool) -> list[str]:
    """Return the names of the matrix's columns.

    Raises:
        InputError: If the file has no ``raw``.
    """
    with open_file(path) as file:
        if raw and not {"raw", "raw.X"} & set(file):
            raise InputError("there is no raw", file=path)
        if _is_old(file):
            old = _read_old(path)
            return [*(old.raw.var_names if raw else old.var_names)]
        return [*_index(file["raw/var" if raw else "var"])]


def kinds(path: str, column: str) -> str:
    """Return what a column of ``obs`` holds: ``"categories"``, ``"text"`` or the name of its type.

    Raises:
        InputError: If there is no such column.
    """
    with open_file(path) as file:
        dtype = _frame(file, path, (column,))[column].dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories"
    return str(dtype).lower() if pd.api.types.is_numeric_dtype(dtype) else "text"


def _frame(file: h5py.File, path: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the chosen columns of ``obs``, indexed by the names of the cells."""
    old = _read_old(path).obs if _is_old(file) else None
    known = [*old] if old is not None else [str(name) for name in file["obs"].attrs["column-order"]]
    if missing := [column for column in columns if column not in known]:
        raise InputError(f"obs has no column {missing[0]!r}; it has {', '.join(known)}", file=path)
    if old is not None:
        return old[[*columns]]
    obs = file["obs"]
    index = _index(obs)
    return pd.DataFrame({column: _column(obs, column) for column in columns}, index=index)


def _column(obs: h5py.Group, column: str) -> Any:
    """Return a column; anndata 0.7 keeps the categories of all columns in a group of their own."""
    values = _read(obs[column])
    if column not in obs.get("__categories", ()):
        return values
    stored = obs["__categories"][column]
    return pd.Categorical.from_codes(values, _read(stored), ordered=bool(stored.attrs.get("ordered", False)))


def _index(frame: h5py.Group) -> pd.Index:
    return pd.Index(_read(frame[frame.attrs["_index"]]), dtype=object)


def _read(stored: h5py.Group | h5py.Dataset) -> Any:
    from anndata.io import read_elem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was written by anndata 0.7
        return read_elem(stored)


def _is_old(file: h5py.File) -> bool:
    """Say whether the file is of anndata before 0.7, which wrote ``obs`` as one table."""
    return isinstance(file["obs"], h5py.Dataset)


def _read_old(path: str) -> Any:
    """Return an old file as anndata's backed mode reads it; the matrix stays on disk."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old, and about graphs, which are not used here
        adata = anndata.read_h5ad(path, backed="r")
    adata.file.close()
    return adata


def _values(values: pd.Series, path: str) -> Sequence[Any]:
    """Return a column as Python's own values, categories as numbers."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [*values.cat.codes.to_list()]
    if not pd.api.types.is_float_dtype(values.dtype) and values.isna().any():
        raise InputError(
            f"the column {values.name!r} of obs lacks a value in {count(int(values.isna().sum()), 'cell')}; fill it, "
            "leave the cells out, or make the column categorical, where a missing category is -1",
            file=path,
        )
    listed: list[Any] = values.to_list()
    if wrong := {type(value).__name__ for value in listed if not isinstance(value, bool | int | float | str)}:
        raise InputError(
            f"the column {values.name!r} of obs holds {', '.join(sorted(wrong))}, no numbers or text", file=path
        )
    return listed
