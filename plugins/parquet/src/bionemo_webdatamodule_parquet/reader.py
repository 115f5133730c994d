"""What the writer ``parquet`` takes and how it walks the files; pyarrow is imported when rows are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError

if TYPE_CHECKING:
    from bionemo_webdatamodule_parquet.fields import Rows


@dataclass(frozen=True, kw_only=True)
class ParquetReader:
    """Reads rows of Parquet files as samples, and each of their columns as a field.

    Args:
        paths: A file, a directory (searched at any depth for ``.parquet``, ``.parq`` and ``.pq``), a glob, or a list
            of them. Each may be any fsspec URL, such as ``s3://bucket/table``. In directories and globs, names that
            begin with ``.`` or ``_``, such as ``_temporary``, are left out.
        columns: Which columns to read: names, or a mapping from name to suffix; by default all but the key.
            A name alone gets the suffix ``<name>.bin`` for bytes, ``<name>.txt`` for text
            and ``<name>.pyd`` for everything else. A struct of ``bytes`` and ``path``, which Hugging Face's
            datasets store for an image, is bytes.
        key: The column of strings or integers that names the rows. By default a row is named by its file
            and number, ``<file>/000000000`` first.
        cast: Arrow types by column, such as ``{"age": "float64"}``, to read columns as that differ between files.
            In lists the type of the values is cast. A value that would change is an error.

    Each column has one type in all files, or the files are refused before anything is written.
    In ``.pyd`` fields the value of a row is pickled: a number as a numpy scalar of the column's type, a list of
    numbers as a numpy array, nested fixed-size lists as an array of more dimensions, other nested lists
    as a list, a struct as a dict, a null as ``None``.

    Raises:
        ConfigError: If ``paths``, ``columns`` or ``cast`` is empty or of the wrong type.
    """

    paths: str | Sequence[str]
    columns: Sequence[str] | Mapping[str, str] | None = None
    key: str | None = None
    cast: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = [self.paths] if isinstance(self.paths, str) else list(self.paths)
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ConfigError(f"paths is a path or a list of paths, not {self.paths!r}")
        if isinstance(self.columns, str) or (self.columns is not None and not self.columns):
            raise ConfigError(f"columns is a list of names or a mapping to suffixes, not {self.columns!r}")
        if not isinstance(self.cast, Mapping):
            raise ConfigError(f"cast is a mapping from columns to types, not {self.cast!r}")
        if self.columns is not None and (unread := [name for name in self.cast if name not in self.columns]):
            raise ConfigError(f"cast names the column {unread[0]!r}, which columns does not")

    def names(self) -> Sequence[str]:
        """Return the name of every row, file by file.

        Raises:
            InputError: If there is no file, a column differs between files, or the key column holds a null or a
                value twice.
        """
        from bionemo_webdatamodule_parquet import schema, source

        files = source.files(self.paths)
        schema.check(files, *self._chosen)
        return source.names(files, self.key)

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return for each row the size and modification time (or the like) of its file; ``""`` for no row.

        Raises:
            InputError: If a column differs between the files of these rows.
        """
        from bionemo_webdatamodule_parquet import schema, source

        files = source.files(self.paths)
        places = source.locate(files, self.key, names)
        schema.check([files[i] for i in sorted({place.file for place in places if place})], *self._chosen)
        return [files[place.file].fingerprint if place else "" for place in places]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the rows of these names, in this order.

        Each row group is read once and only as far as the last row wanted of it.
        It is let go when the last of its rows was yielded, so names in the order of the file take
        the memory of one group's rows.

        Raises:
            InputError: If no row, or more than one, has such a name, or a value fits no field.
            ConfigError: If a file lacks a column, or two columns get one suffix.
        """
        from bionemo_webdatamodule_parquet import fields, schema, source

        files = source.files(self.paths)
        places = source.locate(files, self.key, names)
        wanted: dict[tuple[int, int], list[int]] = {}
        for found in filter(None, places):
            wanted.setdefault((found.file, found.group), []).append(found.row)
        waiting = {group: len(rows) for group, rows in wanted.items()}
        held: dict[tuple[int, int], Rows] = {}
        with source.opener(files) as open_file:
            for name, place in zip(names, places, strict=True):
                if place is None:
                    named = f"has {name!r} in the key column {self.key!r}" if self.key else f"is named {name!r}"
                    raise InputError(f"no row {named}", key=name)
                group = (place.file, place.group)
                if group not in held:
                    path, parquet = files[place.file].path, open_file(place.file)
                    read = fields.chosen(parquet.schema_arrow, self.columns, self.key, path)
                    types = schema.target(files, parquet.schema_arrow, read, self.cast)
                    suffixes = fields.suffixes_of(types, self.columns, path)
                    held[group] = fields.read_rows(parquet, place.group, wanted.pop(group), suffixes, types, file=path)
                yield Sample(name, held[group].files(place.row, name))
                waiting[group] -= 1
                if not waiting[group]:
                    del held[group]

    @property
    def _chosen(self) -> tuple[Sequence[str] | Mapping[str, str] | None, str | None, Mapping[str, str]]:
        return self.columns, self.key, self.cast
