"""Which files, row groups and rows there are, and where the row of a name lies."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import logging
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo.webdatamodule.files import HIDDEN_TABLES, is_visible, walk_files

_EXTENSIONS = (".parquet", ".parq", ".pq")
_log = logging.getLogger("bionemo.webdatamodule")


@dataclass(frozen=True, kw_only=True)
class File:
    """A Parquet file.

    Attributes:
        stem: What its rows are named after: the path below the directory that was asked for, no extension.
        path: Where it is on its file system.
        system: The fsspec file system.
        fingerprint: Changes when the file does.
    """

    stem: str
    path: str
    system: Any
    fingerprint: str

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """Open the file as a ``pyarrow.parquet.ParquetFile`` that verifies page checksums where there are any.

        Raises:
            InputError: If it is not a Parquet file.
        """
        with self.system.open(self.path) as stream:
            try:
                parquet = pq.ParquetFile(stream, page_checksum_verification=True)
            except pa.ArrowInvalid as error:
                raise InputError(f"this is not a readable Parquet file: {error}", file=self.path) from error
            yield parquet


class Footer(NamedTuple):
    """What the end of a file says."""

    schema: Any
    group_sizes: list[int]


@functools.lru_cache(maxsize=1 << 14)
def footer(file: File) -> Footer:
    """Return the columns of a file and the number of rows in each of its row groups.

    Raises:
        InputError: If it is not a Parquet file.
    """
    with file.open() as parquet:
        metadata = parquet.metadata
        return Footer(parquet.schema_arrow, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])


@contextlib.contextmanager
def opener(files: Sequence[File]) -> Iterator[Callable[[int], Any]]:
    """Give a function that opens a file by its number, and keeps it open until another one is asked for.

    A footer is parsed as a whole each time a file is opened, however little of the file is read.
    """
    with contextlib.ExitStack() as stack:
        kept: dict[int, Any] = {}

        def open_file(number: int) -> Any:
            if number not in kept:
                stack.close()
                kept.clear()
                kept[number] = stack.enter_context(files[number].open())
            return kept[number]

        yield open_file


class Place(NamedTuple):
    """Where a row lies: file, row group of the file, row of the group."""

    file: int
    group: int
    row: int


def files(paths: str | Sequence[str]) -> list[File]:
    """Return the files that paths, directories and globs mean, each one's sorted.

    Raises:
        InputError: If one of them means no file, or two files would give their rows the same names.
    """
    found: list[File] = []
    for path in [paths] if isinstance(paths, str) else paths:
        found += _files(path)
    seen: dict[str, File] = {}
    for file in found:
        if file.stem in seen:
            raise InputError(
                f"{seen[file.stem].path} and {file.path} would both name their rows {file.stem!r}/…; "
                "give the directory above them instead, and each once"
            )
        seen[file.stem] = file
    return found


def _files(path: str) -> list[File]:
    system, root = fsspec.core.url_to_fs(path)
    if system.isfile(root):
        found, base = [root], posixpath.dirname(root)
    elif system.isdir(root):
        found, base = _below(system, root), root
    else:
        base = posixpath.dirname(root[: min((root.find(c) for c in "*?[" if c in root), default=len(root))])
        hidden = tuple(mark for mark in HIDDEN_TABLES if f"/{mark}" not in root[len(base) :])
        matches = _visible(list(system.glob(root)), base, hidden)
        found = [p for m in matches for p in ([m] if system.isfile(m) else _below(system, m))]
    if not found:
        raise InputError(
            f"paths names {path!r}, which is not a Parquet file, no directory with any, and no glob of any"
        )
    return [
        File(
            stem=posixpath.splitext(posixpath.relpath(p, base or "."))[0],
            path=p,
            system=system,
            fingerprint=_fingerprint(system, p),
        )
        for p in sorted(found)
    ]


def _below(system: Any, root: str) -> list[str]:
    """Return the Parquet files in a folder and below, without what engines keep beside tables."""
    if isinstance(system, LocalFileSystem):
        return [posixpath.join(root, p) for p in walk_files(root, wanted=_is_parquet, hidden=HIDDEN_TABLES)]
    return _visible([p for p in system.find(root) if _is_parquet(p)], root, HIDDEN_TABLES)


def _visible(paths: Sequence[str], base: str, hidden: tuple[str, ...]) -> list[str]:
    """Return the paths that are not hidden; log what is left out."""
    kept = [p for p in paths if is_visible(posixpath.relpath(p, base or "."), hidden=hidden)]
    if left_out := sorted(set(paths) - set(kept)):
        _log.warning("%s: left out %s, first %s", base, count(len(left_out), "hidden file"), left_out[0])
    return kept


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS)


def _fingerprint(system: Any, path: str) -> str:
    info = system.info(path)
    mark = next((info[m] for m in ("mtime", "ETag", "etag", "md5Hash", "LastModified") if m in info), None)
    return f"{info['size']}-{system.ukey(path) if mark is None else mark}"


def names(files: Sequence[File], key: str | None) -> list[str]:
    """Return the names of all rows.

    Raises:
        InputError: If the key column holds a null, or a value twice.
    """
    if key is None:
        return [_row_name(file, row) for file in files for row in range(sum(footer(file).group_sizes))]
    found: dict[str, str] = {}
    for file in files:
        for group, keys in _keys(file, key):
            for row, name in enumerate(keys.to_pylist()):
                place = f"row {row} of row group {group} of {file.path}"
                if name in found:
                    raise InputError(f"the key {name!r} of {place} is taken already, by {found[name]}", key=name)
                found[name] = place
    return list(found)


def locate(files: Sequence[File], key: str | None, names: Sequence[str]) -> list[Place | None]:
    """Return where the rows of these names are, and ``None`` for a name without a row.

    Raises:
        InputError: If a name belongs to more than one row, or the key column holds a null.
        ConfigError: If there is no key column, or it holds neither strings nor integers.
    """
    return _by_number(files, names) if key is None else _by_key(files, key, names)


def _row_name(file: File, row: int) -> str:
    return f"{file.stem}/{row:09d}"


def _by_number(files: Sequence[File], names: Sequence[str]) -> list[Place | None]:
    by_stem = {file.stem: number for number, file in enumerate(files)}
    starts: dict[int, list[int]] = {}  # the first row of each row group, and at last the count of rows
    places: list[Place | None] = []
    for name in names:
        stem, _, digits = name.rpartition("/")
        number = by_stem.get(stem, -1)
        row = int(digits) if digits.isascii() and digits.isdigit() else -1
        if number < 0 or name != _row_name(files[number], row):
            places.append(None)
            continue
        if number not in starts:
            starts[number] = [0, *itertools.accumulate(footer(files[number]).group_sizes)]
        group = bisect.bisect_right(starts[number], row) - 1
        within = row < starts[number][-1]
        places.append(Place(number, group, row - starts[number][group]) if within else None)
    return places


def _by_key(files: Sequence[File], key: str, names: Sequence[str]) -> list[Place | None]:
    wanted = pa.array(list(dict.fromkeys(names)), type=pa.string())
    found: dict[str, Place] = {}
    for number, file in enumerate(files):
        for group, keys in _keys(file, key):
            rows = pc.indices_nonzero(pc.is_in(keys, value_set=wanted))
            for row, name in zip(rows.to_pylist(), keys.take(rows).to_pylist(), strict=True):
                if name in found:
                    raise InputError(
                        f"the key {name!r} names more than one row; a key must be unique", key=name, file=file.path
                    )
                found[name] = Place(number, group, row)
    return [found.get(name) for name in names]


def _keys(file: File, key: str) -> Iterator[tuple[int, Any]]:
    """Yield each row group's number and its keys, as an array of strings."""
    with file.open() as parquet:
        schema = parquet.schema_arrow
        if schema.get_field_index(key) < 0:
            raise ConfigError(
                f"there is no key column {key!r}; the columns are {', '.join(schema.names)}", file=file.path
            )
        for group in range(parquet.num_row_groups):
            column = parquet.read_row_group(group, columns=[key], use_threads=False).column(0)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            if not (text or pa.types.is_integer(kind)):
                raise ConfigError(
                    f"the key column {key!r} holds {column.type}; it must hold strings or integers", file=file.path
                )
            if column.null_count:
                raise InputError(f"the key column {key!r} has a null in row group {group}", file=file.path)
            yield group, column.cast(pa.string()).combine_chunks()
