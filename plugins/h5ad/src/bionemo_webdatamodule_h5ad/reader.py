"""What the writer ``h5ad`` takes, and how a cell becomes a sample; anndata is imported when cells are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class H5adReader:
    """Reads the cells of h5ad files as samples, a block of neighbouring cells at a time.

    All fields are pickles that plain ``pickle.loads`` reads. A cell has

    * ``x.pyd``, its row of the matrix as an array of ``dtype`` and shape ``(n_vars,)``, if ``form="dense"``;
    * ``indices.pyd`` and ``data.pyd`` if ``form="csr"``: the positions of the stored values, increasing,
      as int32, and the values as ``dtype``, both of shape ``(n_stored,)``;
    * ``obs.pyd``, a dictionary with the chosen columns of ``obs``, if there are any.

    Args:
        path: A file, a directory of ``.h5ad`` files at any depth, or a list of these. All files have the same
            genes in the same order, and columns of ``obs`` of one kind.
        matrix: ``"X"``, ``"raw"`` or ``"layers/<name>"``, dense, CSR or CSC. For CSC, each shard reads all of it.
        form: ``"csr"`` or ``"dense"``, however the matrix lies in the file.
        dtype: Type of the values. By default float64 where the file has that, and float32 for others. With float32,
            fractions of float64 are rounded; whole numbers that it cannot hold, above 2**24, are an error.
        obs: Columns to read. Numbers, booleans and texts become Python's own,
            categories their number, counted from 0 in the order of :meth:`categories`, -1 for a missing one.
            Texts that repeat are categories too, since that is how anndata stores them.
            Of several files, those of the first come first.
        index_unique: As in ``anndata.concat``: what stands between the name of a cell and that of its file, without
            ``.h5ad``, where cells of several files have the same names. By default names stay as they are.

    Raises:
        ConfigError: If an option is wrong.
    """

    path: str | Sequence[str]
    matrix: str = "X"
    form: Literal["csr", "dense"] = "csr"
    dtype: Literal["float32", "float64"] | None = None
    obs: Sequence[str] = ()
    index_unique: str | None = None

    def __post_init__(self) -> None:
        if not self.path or not all(isinstance(path, str) for path in self.path):
            raise ConfigError(f"path is a path or a list of paths, not {self.path!r}")
        if self.form not in ("csr", "dense"):
            raise ConfigError(f"form is 'csr' or 'dense', not {self.form!r}")
        if self.matrix not in ("X", "raw") and not self.matrix.startswith("layers/"):
            raise ConfigError(f"matrix is 'X', 'raw' or 'layers/<name>', not {self.matrix!r}")
        if self.dtype not in ("float32", "float64", None):
            raise ConfigError(f"dtype is 'float32', 'float64' or None, not {self.dtype!r}")
        if isinstance(self.obs, str) or len(set(self.obs)) < len(self.obs):
            raise ConfigError(f"obs is a list of different columns, not {self.obs!r}")

    def names(self) -> Sequence[str]:
        """Return the name of every cell, which is its ``obs_names``, in the order of the file.

        Raises:
            InputError: If a name occurs twice or the file cannot be read.
        """
        from bionemo_webdatamodule_h5ad import sources

        paths = sources.paths_of(self.path)
        files = sources.read_all(paths, (), self.index_unique)
        sources.check_names(files)
        sources.check_files(paths, self.matrix, self.dtype, self.obs)
        return [name for obs in files for name in obs.names]

    def categories(self, column: str) -> Sequence[str]:
        """Return the categories of a column of ``obs``; a sample holds the position in this list.

        Raises:
            InputError: If there is no such column, or it is not categorical.
        """
        from bionemo_webdatamodule_h5ad import sources

        return sources.categories(sources.paths_of(self.path), column)

    def features(self) -> Sequence[str]:
        """Return the name of each column of the matrix, which is its ``var_names``."""
        from bionemo_webdatamodule_h5ad import cells, sources

        return cells.features(sources.paths_of(self.path)[0], raw=self.matrix == "raw")

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return the size and modification time of its file for each cell, ``""`` for one that is in none.

        Raises:
            InputError: If a cell is in two files, or the files of these cells do not fit each other.
        """
        from bionemo_webdatamodule_h5ad import sources

        paths = sources.paths_of(self.path)
        files = sources.read_all(paths, (), self.index_unique)
        found, _ = sources.locate(files, names)
        used = sorted(set(found.tolist()) - {-1})
        sources.check_files([paths[number] for number in used], self.matrix, self.dtype, self.obs)
        common = sources.fingerprint(paths, self.obs)
        return [files[number].stamp + common if number >= 0 else "" for number in found.tolist()]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the cells of these names, in this order; the order of the file is the fastest.

        Raises:
            InputError: If there is no such cell, matrix or column, or a value does not fit ``dtype``.
        """
        from bionemo.webdatamodule import pickles
        from bionemo_webdatamodule_h5ad import matrix, sources

        paths = sources.paths_of(self.path)
        files = sources.read_all(paths, tuple(self.obs), self.index_unique)
        found, rows = sources.locate(files, names)
        with ExitStack() as stack:
            readers = {}
            for number in sorted(set(found.tolist()) - {-1}):
                path, mine = paths[number], rows[found == number].tolist()
                opened = stack.enter_context(matrix.open_matrix(path, self.matrix))
                dtype = matrix.type_of(path, self.matrix, self.dtype)
                readers[number] = zip(
                    mine,
                    matrix.read_rows(opened, mine, form=self.form, dtype=dtype),
                    itertools.repeat(sources.values(files[number], paths)),
                )
            for name, number in zip(names, found.tolist(), strict=True):
                if number < 0:
                    raise InputError(f"there is no cell named {name!r}", file=", ".join(paths))
                row, fields, columns = next(readers[number])
                pickled = {f"{field}.pyd": pickles.dumps(array) for field, array in fields.items()}
                if self.obs:
                    pickled["obs.pyd"] = pickles.dumps({column: values[row] for column, values in columns.items()})
                yield Sample(name, pickled)
