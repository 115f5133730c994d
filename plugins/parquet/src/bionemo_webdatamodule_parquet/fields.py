"""From columns to the bytes of fields."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bionemo.webdatamodule import pickles
from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo_webdatamodule_parquet import schema

Values: TypeAlias = "Sequence[Any] | NDArray[Any]"
"""Something with a value for each row."""

_PICKLED = ("pickle", "pkl", "pt", "pyd")  # what conversion takes for pickles
_BATCH = 1024  # rows decoded at a time while looking for the wanted ones


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The wanted rows of one row group, decoded.

    Attributes:
        file: Path of their file, for messages.
        slots: Where in the columns a row of the group is.
        columns: Name, suffix, encoder and values of each column.
    """

    file: str
    slots: Mapping[int, int]
    columns: Sequence[tuple[str, str, Callable[[Any], bytes], Values]]

    def files(self, row: int, name: str) -> dict[str, bytes]:
        """Return the fields of a row of the group; its name is for messages.

        Raises:
            InputError: If a value does not fit its suffix.
        """
        slot = self.slots[row]
        fields = {}
        for column, suffix, encode, values_ in self.columns:
            try:
                fields[suffix] = encode(values_[slot])
            except (TypeError, ValueError) as error:  # noqa: PERF203 - which column it was is part of the message
                raise InputError(
                    f"column {column!r} holds {type(values_[slot]).__name__} here, which the suffix {suffix!r} cannot "
                    f"store: {error}; give the column the suffix '{_plain(column)}.pyd'",
                    key=name,
                    file=self.file,
                ) from error
        return fields


def read_rows(
    parquet: Any,
    group: int,
    rows: Iterable[int],
    suffixes: Mapping[str, str],
    types: Mapping[str, Any],
    *,
    file: str,
) -> Rows:
    """Read some rows of a row group, in one pass that ends with the last of them.

    Args:
        parquet: The open ``pyarrow.parquet.ParquetFile``.
        group: Number of the row group.
        rows: Numbers of the rows in the group, in any order.
        suffixes: The suffix of each column.
        types: The Arrow type that each column is read as.
        file: Path of the file, for messages.

    Raises:
        InputError: If a list of numbers has a null in it, a value does not fit its type, or the file is damaged.
    """
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    try:
        taken = _take(parquet, group, wanted, list(suffixes))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"row group {group} cannot be read: {error}", file=file) from error
    decoded = []
    for name, suffix in suffixes.items():
        try:
            column = schema.casted(taken.column(name).combine_chunks(), types[name])
            read = _images(column) if _is_image(column.type) and not _is_pickled(suffix) else values(column)
        except ValueError as error:
            raise InputError(f"column {name!r} {error}", file=file) from error
        decoded.append((name, suffix, _ENCODERS.get(suffix.rpartition(".")[2], _as_bytes), read))
    return Rows(file=file, slots={int(row): slot for slot, row in enumerate(wanted)}, columns=tuple(decoded))


def _take(parquet: Any, group: int, wanted: Any, columns: list[str]) -> Any:
    batches = parquet.iter_batches(batch_size=_BATCH, row_groups=[group], columns=columns, use_threads=False)
    parts = []
    first = 0
    for batch in batches:
        low, high = np.searchsorted(wanted, (first, first + batch.num_rows))
        if low < high:
            parts.append(batch.take(pa.array(wanted[low:high] - first)))
        if high == len(wanted):
            break
        first += batch.num_rows
    return pa.Table.from_batches(parts)


def chosen(available: Any, columns: Sequence[str] | Mapping[str, str] | None, key: str | None, file: str) -> list[str]:
    """Return the names of the columns to read, given the Arrow schema of a file.

    Raises:
        ConfigError: If there is no such column.
    """
    names = [name for name in available.names if name != key] if columns is None else list(columns)
    if missing := [name for name in names if available.get_field_index(name) < 0]:
        raise ConfigError(
            f"there is no column {missing[0]!r} (or there are several); the columns are {', '.join(available.names)}",
            file=file,
        )
    return names


def suffixes_of(
    types: Mapping[str, Any], columns: Sequence[str] | Mapping[str, str] | None, file: str
) -> dict[str, str]:
    """Return the suffix of each column, given the Arrow types.

    Raises:
        ConfigError: If two columns get one suffix.
    """
    given = columns if isinstance(columns, Mapping) else {}
    suffixes = {name: given.get(name) or _default_suffix(name, kind) for name, kind in types.items()}
    for (one, suffix), (other, same) in itertools.combinations(suffixes.items(), 2):
        if suffix == same:
            raise ConfigError(
                f"columns {one!r} and {other!r} both get the suffix {suffix!r}; "
                "give each its own with columns={name: suffix}",
                file=file,
            )
    return suffixes


def _default_suffix(name: str, kind: Any) -> str:
    if _is_bytes(kind) or _is_image(kind):
        return f"{_plain(name)}.bin"
    return f"{_plain(name)}.{'txt' if _is_text(kind) else 'pyd'}"


def _is_pickled(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _PICKLED


def _is_image(kind: Any) -> bool:
    """Whether it is what Hugging Face's datasets store for a file: a struct of its bytes and its path."""
    return bool(
        pa.types.is_struct(kind)
        and {field.name for field in kind} == {"bytes", "path"}
        and (_is_bytes(kind.field("bytes").type))
    )


def _images(column: Any) -> Sequence[Any]:
    """Return the bytes of each file."""
    present = column.is_valid().to_pylist()
    found = [data if here else None for here, data in zip(present, column.field("bytes").to_pylist(), strict=True)]
    if missing := sum(present) - sum(data is not None for data in found):
        raise ValueError(f"holds paths without bytes in {count(missing, 'row')}; store the files' bytes in the table")
    return found


def _plain(name: str) -> str:
    """Return a column's name as a part of a suffix: webdataset reads suffixes in lower case, dots divide them."""
    return re.sub(r"[^a-z0-9_-]+", "_", name.lower()) or "_"


def values(column: Any) -> Values:
    """Return the Python value of each row of an Arrow array: a numpy array with a row each, or a list.

    Raises:
        ValueError: If a list of numbers holds a null.
    """
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        _refuse_nulls(column.storage.flatten())
        return _with_nulls(column, column.drop_null().to_numpy_ndarray())
    if pa.types.is_dictionary(kind):
        return values(column.dictionary_decode())
    if pa.types.is_struct(kind):
        parts = {field.name: values(part) for field, part in zip(kind, column.flatten(), strict=True)}
        present = column.is_valid().to_pylist()
        return [{name: part[row] for name, part in parts.items()} if here else None for row, here in enumerate(present)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(column)
    if _is_number(kind):
        return _with_nulls(column, column.drop_null().to_numpy(zero_copy_only=False))
    return column.to_pylist()  # type: ignore[no-any-return]


def _lists(column: Any) -> Values:
    inner = column.flatten()  # leaves out what lies under nulls
    if _is_number(inner.type):
        _refuse_nulls(inner)
    flat = values(inner)
    fixed = pa.types.is_fixed_size_list(column.type)
    if fixed and isinstance(flat, np.ndarray):
        return _with_nulls(column, flat.reshape(-1, column.type.list_size, *flat.shape[1:]))
    sizes = [column.type.list_size] * len(column) if fixed else pc.list_value_length(column).to_pylist()
    rows: list[Any] = []
    start = 0
    for here, size in zip(column.is_valid().to_pylist(), sizes, strict=True):
        end = start + size if here else start
        rows.append(flat[start:end] if here else None)
        start = end
    return rows


def _with_nulls(column: Any, filled: NDArray[Any]) -> Values:
    """Return the rows that are not nulls, with ``None`` for those that are."""
    if not column.null_count:
        return filled
    rest = iter(filled)
    return [next(rest) if here else None for here in column.is_valid().to_pylist()]


def _refuse_nulls(inner: Any) -> None:
    if inner.null_count:
        raise ValueError("has a null inside a list of numbers, which no array can hold; fill the nulls first")


def _is_number(kind: Any) -> bool:
    """Whether numpy has a type for it; time zones are left out, so such times are in UTC."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_date(kind)
        or pa.types.is_duration(kind)
    )


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("only bytes go under a suffix that is not .pyd, .txt or .cls")
    return value


def _as_pickle(value: Any) -> bytes:
    return value if isinstance(value, bytes) else pickles.dumps(value)


def _as_text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError("it is not text")
    return value.encode()


def _as_class(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError("it is not a whole number")
    return str(int(value)).encode()


_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {
    **dict.fromkeys(_PICKLED, _as_pickle),
    "txt": _as_text,
    "cls": _as_class,
}
