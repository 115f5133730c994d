"""What the writer ``h5ad`` takes, and how a cell becomes a sample; anndata is imported when cells are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class H5adReader:
    """Reads the cells of an h5ad file as samples, a block of neighbouring cells at a time.

    All fields are pickles that plain ``pickle.loads`` reads. A cell has

    * ``x.pyd``, its row of the matrix as an array of ``dtype`` and shape ``(n_vars,)``, if ``form="dense"``;
    * ``indices.pyd`` and ``data.pyd`` if ``form="csr"``: the positions of the stored values, increasing,
      as int32, and the values as ``dtype``, both of shape ``(n_stored,)``;
    * ``obs.pyd``, a dictionary with the chosen columns of ``obs``, if there are any.

    Args:
        path: The file.
        matrix: ``"X"``, ``"raw"`` or ``"layers/<name>"``. It lies in the file by cells, dense or as CSR.
        form: ``"csr"`` or ``"dense"``, however the matrix lies in the file.
        dtype: Type of the values; float32 keeps whole numbers up to 2**24.
        obs: Columns to read. Numbers, booleans and texts become Python's own,
            categories their number, counted from 0 in the order of :meth:`categories`, -1 for a missing one.
            Texts that repeat are categories too, since that is how anndata stores them.

    Raises:
        ConfigError: If an option is wrong.
    """

    path: str
    matrix: str = "X"
    form: Literal["csr", "dense"] = "csr"
    dtype: Literal["float32", "float64"] = "float32"
    obs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.form not in ("csr", "dense"):
            raise ConfigError(f"form is 'csr' or 'dense', not {self.form!r}")
        if self.matrix not in ("X", "raw") and not self.matrix.startswith("layers/"):
            raise ConfigError(f"matrix is 'X', 'raw' or 'layers/<name>', not {self.matrix!r}")
        if self.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype is 'float32' or 'float64', not {self.dtype!r}")
        if isinstance(self.obs, str) or len(set(self.obs)) < len(self.obs):
            raise ConfigError(f"obs is a list of different columns, not {self.obs!r}")

    def names(self) -> Sequence[str]:
        """Return the name of every cell, which is its ``obs_names``, in the order of the file.

        Raises:
            InputError: If a name occurs twice or the file cannot be read.
        """
        from bionemo_webdatamodule_h5ad import cells

        return [*cells.read_obs(self.path, ()).names]

    def categories(self, column: str) -> Sequence[str]:
        """Return the categories of a column of ``obs``; a sample holds the position in this list.

        Raises:
            InputError: If there is no such column, or it is not categorical.
        """
        from bionemo_webdatamodule_h5ad import cells

        return cells.categories(self.path, column)

    def features(self) -> Sequence[str]:
        """Return the name of each column of the matrix, which is its ``var_names``."""
        from bionemo_webdatamodule_h5ad import cells

        return cells.features(self.path, raw=self.matrix == "raw")

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return the size and modification time of the file for each of its cells, ``""`` for others."""
        from bionemo_webdatamodule_h5ad import cells

        obs = cells.read_obs(self.path, ())
        return [obs.stamp if row >= 0 else "" for row in obs.rows(names).tolist()]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the cells of these names, in this order; the order of the file is the fastest.

        Raises:
            InputError: If there is no such cell, matrix or column, or the matrix lies by genes (CSC).
        """
        from bionemo.webdatamodule import pickles
        from bionemo_webdatamodule_h5ad import cells, matrix

        obs = cells.read_obs(self.path, tuple(self.obs))
        found = list(itertools.takewhile(lambda row: row >= 0, obs.rows(names).tolist()))
        with matrix.open_matrix(self.path, self.matrix) as opened:
            values = matrix.read_rows(opened, found, form=self.form, dtype=self.dtype)
            for name, row, fields in zip(names, found, values, strict=False):
                files = {f"{field}.pyd": pickles.dumps(array) for field, array in fields.items()}
                if self.obs:
                    files["obs.pyd"] = pickles.dumps(_of_cell(obs.columns, row))
                yield Sample(name, files)
        if len(found) < len(names):
            raise InputError(f"there is no cell named {names[len(found)]!r}", file=self.path)


def _of_cell(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    return {column: values[row] for column, values in columns.items()}
