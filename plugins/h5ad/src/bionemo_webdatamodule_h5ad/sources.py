"""Several h5ad files as one source: which files, which cells are where, and whether they fit each other."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError
from bionemo.webdatamodule.files import walk_files
from bionemo_webdatamodule_h5ad import cells, matrix


def paths_of(given: str | Sequence[str]) -> list[str]:
    """Return the files that are meant: a directory stands for the ``.h5ad`` files in it and below.

    Raises:
        InputError: If a directory holds none.
    """
    found: list[str] = []
    for path in [given] if isinstance(given, str) else given:
        if Path(path).is_dir():
            inside = [str(Path(path, name)) for name in walk_files(path, wanted=lambda name: name.endswith(".h5ad"))]
            if not inside:
                raise InputError("the directory holds no .h5ad file", file=path)
            found += inside
        else:
            found.append(path)
    return found


def read_all(paths: Sequence[str], columns: tuple[str, ...], index_unique: str | None) -> list[cells.Obs]:
    """Return the cells of each file.

    Args:
        paths: The files.
        columns: Columns of ``obs``.
        index_unique: What stands between the name of a cell and that of its file, ``None`` for names as they are.
    """
    endings = ["" if index_unique is None else f"{index_unique}{Path(path).stem}" for path in paths]
    return [cells.read_obs(path, columns, ending) for path, ending in zip(paths, endings, strict=True)]


def locate(files: Sequence[cells.Obs], names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the file and the row of each cell, -1 for one that is nowhere.

    Raises:
        InputError: If a cell is in more than one file.
    """
    file, row = (np.full(len(names), -1, np.int64) for _ in range(2))
    for number, obs in enumerate(files):
        found = obs.rows(names)
        here = found >= 0
        if (twice := np.flatnonzero(here & (file >= 0))).size:
            _refuse([names[i] for i in twice.tolist()], [files[file[twice[0]]].path, obs.path])
        file[here], row[here] = number, found[here]
    return file, row


def check_names(files: Sequence[cells.Obs]) -> None:
    """Check that no cell is in two files.

    Raises:
        InputError: If one is.
    """
    seen: dict[str, str] = {}
    for obs in files:
        if twice := [name for name in obs.names if name in seen]:
            _refuse(twice, [seen[twice[0]], obs.path])
        seen |= dict.fromkeys(obs.names, obs.path)


def check_files(paths: Sequence[str], name: str, dtype: str | None, columns: Sequence[str]) -> None:
    """Check that files have the same genes, values of one type, and the same kind of columns.

    Raises:
        InputError: If they differ; the message says in what.
    """
    for path in paths[1:]:
        first, other = (_features(p, cells.stamp_of(p), name == "raw") for p in (paths[0], path))
        if first != other:
            place = next((i for i, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]), None)
            where = "" if place is None else f", first at {place}: {first[place]!r} and {other[place]!r}"
            raise InputError(
                f"the genes of {paths[0]} ({len(first)}) and {path} ({len(other)}) differ{where}; "
                "bring all files to the same genes in the same order, such as with adata[:, genes].copy()"
            )
    if len(paths) < 2:
        return
    kinds: dict[str, Mapping[str, str]] = {
        "the values": {path: matrix.type_of(path, name, dtype) for path in paths},
        **{f"the column {column!r} of obs": {p: cells.kinds(p, column) for p in paths} for column in columns},
    }
    for what, found in kinds.items():
        if len(set(found.values())) > 1:
            shown = ", ".join(f"{kind} in {next(p for p in found if found[p] == kind)}" for kind in set(found.values()))
            advice = "; dtype='float64' reads all as one type" if what == "the values" else "; give it one type"
            raise InputError(f"{what} differ between files: {shown}{advice}")


def categories(paths: Sequence[str], column: str) -> list[str]:
    """Return the categories of a column, those of the first file first.

    Raises:
        InputError: If there is no such column, or it is not categorical.
    """
    return list(dict.fromkeys(c for path in paths for c in _categories(path, cells.stamp_of(path), column)))


def values(obs: cells.Obs, paths: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Return the columns of a file, with categories numbered as in all files."""
    found = dict(obs.columns)
    for column in found if len(paths) > 1 else ():
        if cells.kinds(obs.path, column) == "categories":
            numbers = {name: number for number, name in enumerate(categories(paths, column))}
            table = [numbers[name] for name in _categories(obs.path, obs.stamp, column)]
            found[column] = [-1 if code < 0 else table[code] for code in found[column]]
    return found


def fingerprint(paths: Sequence[str], columns: Sequence[str]) -> str:
    """Return a hash of the categories in all files, which their numbers depend on; ``""`` for one file."""
    if len(paths) < 2:
        return ""
    found = [categories(paths, c) if cells.kinds(paths[0], c) == "categories" else [] for c in columns]
    return "-" + hashlib.sha256(repr(found).encode()).hexdigest()[:16] if any(found) else ""


@functools.lru_cache(maxsize=1024)
def _features(path: str, stamp: str, raw: bool) -> list[str]:
    del stamp
    return cells.features(path, raw=raw)


@functools.lru_cache(maxsize=1024)
def _categories(path: str, stamp: str, column: str) -> list[str]:
    del stamp
    return cells.categories(path, column)


def _refuse(names: Sequence[str], paths: Sequence[str]) -> None:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise InputError(
        f"{' and '.join(paths)} both have the cells {', '.join(names[:20])}{more}; "
        "index_unique='-' adds the name of the file to that of each cell"
    )
