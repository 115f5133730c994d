"""Types of columns: compared over all files, made the same where the user asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo_webdatamodule_parquet.source import File, footer

_SHOWN = 3  # files named for each type, and columns listed, in a message


def check(
    files: Sequence[File], columns: Sequence[str] | Mapping[str, str] | None, key: str | None, cast: Mapping[str, str]
) -> None:
    """Check that each column has the same type in all files.

    Types are the same if their values are: text is text, however it is encoded, and a column without any value
    fits each type.

    Raises:
        InputError: If a column is missing in a file, or its type differs; the message lists every such column.
        ConfigError: If a column cannot be cast as asked.
    """
    schemas = [footer(file).schema for file in files]
    every = dict.fromkeys(name for schema in schemas for name in schema.names)
    faults = []
    for name in every:
        if name == key or (columns is not None and name not in columns):
            continue
        kinds: dict[str, list[str]] = {}
        merged: pa.DataType | None = pa.null()
        for file, schema in zip(files, schemas, strict=True):
            kind = _type(schema, name, cast)
            kinds.setdefault(_plain_type(kind) if kind else "", []).append(file.path)
            merged = kind and merged and _merged(merged, kind)
        if not merged:
            faults.append(_fault(name, kinds))
    if faults:
        more = f"\n… and {count(len(faults) - _SHOWN, 'more column')}" if len(faults) > _SHOWN else ""
        raise InputError("the files differ in their columns:\n" + "\n".join(faults[:_SHOWN]) + more)


def target(
    files: Sequence[File], schema: Any, columns: Iterable[str], cast: Mapping[str, str]
) -> Mapping[str, pa.DataType]:
    """Return the type that each of these columns of a file is read as.

    It is the one that the user asks for, or the file's own; where a file has no value in a column, the type comes
    from the others.

    Raises:
        ConfigError: If a column cannot be cast as asked.
    """
    types = {}
    for name in columns:
        kind = _type(schema, name, cast)
        others = iter(files)
        while _has_null(kind) and (file := next(others, None)):
            other = _type(footer(file).schema, name, cast)
            kind = (other and _merged(kind, other)) or kind
        types[name] = kind
    return types


def casted(column: Any, kind: pa.DataType) -> Any:
    """Return an Arrow array as another type, every value unchanged.

    Raises:
        ValueError: If a value would change.
    """
    if column.type.equals(kind):
        return column
    try:
        new = column.cast(kind)
        exact = _merged(column.type, kind) is not None or new.cast(column.type).equals(column)
        if not exact and pa.types.is_floating(column.type):  # NaN is not a fault
            back = new.cast(column.type)
            exact = pc.all(pc.or_(pc.equal(back, column), pc.is_nan(column))).as_py() is not False
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"cannot be cast from {column.type} to {kind}: {error}") from error
    if not exact:
        raise ValueError(f"cannot be cast from {column.type} to {kind}: values would change")
    return new


def _fault(name: str, kinds: Mapping[str, list[str]]) -> str:
    shown = ", ".join(
        f"{kind or 'missing'} in {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        for kind, paths in kinds.items()
    )
    remedy = _common([kind for kind in kinds if kind != "null"])
    advice = f"read it as one type with cast={{{name!r}: {remedy!r}}}, or " if remedy else ""
    return f"column {name!r}: {shown}; {advice}name the columns to read, without it, in columns"


def _common(kinds: Iterable[str]) -> str | None:
    """Return a type that values of all these types can be cast to."""
    if all(kind in _NUMBERS for kind in kinds):
        return str(np.result_type(*(_NUMBERS[kind] for kind in kinds)).name)
    return "string" if all(kind in _NUMBERS or kind == "text" for kind in kinds) else None


_NUMBERS = {
    str(kind): np.dtype(kind.to_pandas_dtype())
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
    )
}


def _type(schema: Any, name: str, cast: Mapping[str, str]) -> pa.DataType | None:
    """Return the type that a column is read as, ``None`` where it is missing."""
    if schema.get_field_index(name) < 0:
        return None
    kind = schema.field(name).type
    return _retyped(kind, cast[name], name) if name in cast else kind


def _has_null(kind: pa.DataType) -> bool:
    """Whether it, or something in it, is the type of columns without a value."""
    nested = pa.types.is_nested(kind)
    return bool(
        pa.types.is_null(kind) or (nested and any(_has_null(kind.field(i).type) for i in range(kind.num_fields)))
    )


def _merged(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type whose values are those of both types, ``None`` where there is none."""
    if pa.types.is_null(one) or _plain_type(one) == _plain_type(other):
        return other if pa.types.is_null(one) else one
    if pa.types.is_null(other):
        return one
    if pa.types.is_struct(one) and pa.types.is_struct(other) and {f.name for f in one} == {f.name for f in other}:
        fields = {field.name: _merged(field.type, other.field(field.name).type) for field in one}
        return None if None in fields.values() else pa.struct(fields)
    if _is_list(one) and _is_list(other):
        inner = _merged(one.value_type, other.value_type)
        return inner and pa.list_(inner)
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _plain_type(kind: pa.DataType) -> str:
    """Return the name of a type, without what does not change its values."""
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_timestamp(kind):
        return f"timestamp[{kind.unit}{', with a zone' if kind.tz else ''}]"  # values with a zone are in UTC
    if types.is_decimal(kind):
        return "decimal"
    if types.is_struct(kind):
        return f"struct<{', '.join(sorted(f'{field.name}: {_plain_type(field.type)}' for field in kind))}>"
    if types.is_fixed_size_list(kind) and (types.is_nested(kind.value_type)):
        return f"fixed_size_list<{_plain_type(kind.value_type)}>[{kind.list_size}]"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"list<{_plain_type(kind.value_type)}>"
    return str(kind)


def _retyped(kind: pa.DataType, wanted: str, name: str) -> pa.DataType:
    """Return a type with another one for its values, in lists too."""
    try:
        return _with_leaf(kind, pa.type_for_alias(wanted))
    except ValueError as error:
        raise ConfigError(
            f"cast={{{name!r}: {wanted!r}}} names no type; give one such as 'int64', 'float32', 'float64' or 'string'"
        ) from error


def _with_leaf(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    makers: tuple[tuple[Callable[[Any], bool], Callable[..., pa.DataType]], ...] = (
        (pa.types.is_fixed_size_list, lambda inner: pa.list_(inner, kind.list_size)),
        (pa.types.is_large_list, pa.large_list),
        (pa.types.is_list, pa.list_),
    )
    for fits, make in makers:
        if fits(kind):
            return make(_with_leaf(kind.value_type, leaf))
    return leaf
