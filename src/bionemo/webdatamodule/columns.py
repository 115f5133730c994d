"""The columnar form: fields of many samples that become a batch without single samples.

A codec returns a :class:`Column` for the bytes of one field of many samples.
Stages with ``columns(fields)`` return columns or a batch.
``fields`` has the structure of a sample, with a column for each value:

```text
a sample                      its fields
(a, b)                        (Column, Column)        for the first stage
a                             Column                  after ``untuple``
{"x": a, "y": b}              {"x": Column, "y": Column}    after ``named``
```

From the first stage without ``columns``, or whose ``columns`` returns ``NotImplemented``, stages are called with an
iterator of samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, TypeAlias, runtime_checkable

from bionemo.webdatamodule.errors import DecodeError, count


@runtime_checkable
class Column(Protocol):
    """One field of several samples, in their order, before decoding.

    A column may also have ``__getitem__(slice) -> Column``, see :class:`SliceableColumn`.
    Any method may raise the codec's error for a field that cannot be decoded. The engine then decodes the fields one by
    one to name the sample.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def values(self) -> list[Any]:
        """Return the value of each sample. Arrays and tensors own their memory."""
        ...

    def stack(self) -> Any:
        """Return the batch of :func:`torch.utils.data.default_collate` for the values."""
        ...

    def pad(self) -> Any:
        """Return the batch after padding tensors with zeros to the longest, see :func:`pad_values`."""
        ...


@runtime_checkable
class SliceableColumn(Column, Protocol):
    """A column that can be sliced.

    The engine then decodes the fields of several batches together, and slices.
    """

    def __getitem__(self, where: slice, /) -> Column:
        """Return the column of consecutive samples."""
        ...


Fields: TypeAlias = "Column | tuple[Column, ...] | dict[str, Column]"
"""The columns of samples, in the structure that the samples have."""


@dataclass(frozen=True)
class ValueColumn:
    """A column of decoded values, or of fields that are decoded one by one.

    Attributes:
        fields: The values, or the arguments of ``decode``.
        decode: Returns the value of one field; ``None`` where ``fields`` are the values.
    """

    fields: Sequence[Any]
    decode: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, where: slice) -> ValueColumn:
        return ValueColumn(self.fields[where], self.decode)

    def values(self) -> list[Any]:
        """Return the values."""
        decode = self.decode
        return list(self.fields) if decode is None else [decode(field) for field in self.fields]

    def stack(self) -> Any:
        """Return :func:`collate_values` of the values."""
        return collate_values(self.values())

    def pad(self) -> Any:
        """Return :func:`pad_values` of the values."""
        return pad_values(self.values())


@lru_cache(maxsize=256)
def _makes_columns(kind: type) -> bool:  # isinstance takes long for a protocol, and this is asked for every share
    return all(callable(getattr(kind, name, None)) for name in ("values", "stack", "pad"))


def is_fields(value: object) -> bool:
    """Return whether a value is a column, or a tuple or dictionary of columns."""
    if not isinstance(value, tuple | dict):
        kind: Any = type(value)
        return _makes_columns(kind)
    kinds: list[Any] = list(map(type, value.values() if isinstance(value, dict) else value))
    return bool(kinds) and all(map(_makes_columns, kinds))


def length_of(fields: Fields) -> int:
    """Return the number of samples."""
    if isinstance(fields, tuple):
        return len(fields[0])
    return len(next(iter(fields.values()))) if isinstance(fields, dict) else len(fields)


def samples_of(fields: Fields) -> list[Any]:
    """Return the samples whose columns these are."""
    if isinstance(fields, tuple):
        return list(zip(*[column.values() for column in fields], strict=True))
    if isinstance(fields, dict):
        names, columns = list(fields), [column.values() for column in fields.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return fields.values()


def stack_fields(fields: Fields) -> Any:
    """Return the batch that torch's ``default_collate`` makes of the samples: a list for tuples, a dict for dicts."""
    if isinstance(fields, tuple):
        return [_joined(number, column.stack) for number, column in enumerate(fields)]
    if isinstance(fields, dict):
        return {name: _joined(name, column.stack) for name, column in fields.items()}
    return fields.stack()


def pad_fields(fields: Fields) -> Any:
    """Return the batch that :func:`pad_values` makes of the samples."""
    if isinstance(fields, tuple):
        return [_joined(number, column.pad) for number, column in enumerate(fields)]
    if isinstance(fields, dict):
        return {name: _joined(name, column.pad) for name, column in fields.items()}
    return fields.pad()


def collate_values(values: Sequence[Any]) -> Any:
    """Return the batch that torch's ``default_collate`` makes of values.

    Args:
        values: At least one value; all of one structure: tensors, arrays, numbers, strings, or tuples, lists and
            dictionaries of them.

    Raises:
        TypeError: If there is a masked array, whose mask ``default_collate`` would drop, or what has no tensor.
        RuntimeError: If shapes differ.
    """
    if len(values) == 1 and (only := _of_one(values[0])) is not None:
        return only
    return _collated(list(values))


def _of_one(value: Any) -> Any:
    """Return the batch of one large tensor or array, or a dictionary of such, which shows its memory; else ``None``."""
    if type(value) is dict and any(getattr(part, "nbytes", 0) >= _LARGE for part in value.values()):
        return {name: collate_values([part]) for name, part in value.items()}
    if getattr(value, "nbytes", 0) < _LARGE:
        return None
    import numpy as np
    import torch

    if type(value) is np.ndarray and value.flags.c_contiguous and value.flags.writeable and value.dtype.kind in "biufc":
        value = torch.as_tensor(value)
    if type(value) is torch.Tensor and value.layout is torch.strided and not value.is_nested:
        return value.unsqueeze(0)
    return None


_LARGE = 1 << 24  # bytes of a value whose copy would matter


def pad_values(values: Sequence[Any]) -> Any:
    """Collate values as torch's ``default_collate`` does, after filling tensors with zeros to the longest.

    Args:
        values: At least one value; all of one structure: tensors, arrays, numbers, strings, or tuples, lists and
            dictionaries of them. Tensors may differ in their first dimension.

    Returns:
        The batch; a tensor of shape ``(n, longest, ...)`` where lengths differ.

    Raises:
        TypeError: As :func:`collate_values`.
        RuntimeError: If shapes differ otherwise.
    """
    batch = _padded(values)
    _refuse_masks(values)
    return batch


def _collated(values: Any) -> Any:
    """Return what ``default_collate`` does, which takes its time with numbers, text and containers of Python."""
    import numpy as np
    import torch

    kinds = set(map(type, values))
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in (str, bytes):
        return values
    if kind in (int, float, bool):
        with suppress(OverflowError):  # torch's is another error
            return torch.from_numpy(np.array(values, np.int64 if kind is int else kind))
    if kind is dict:
        return {
            name: _joined(name, lambda name=name: _collated([value[name] for value in values]))  # type: ignore[misc]
            for name in values[0]
        }
    if kind in (list, tuple) and len(set(map(len, values))) == 1:
        columns = enumerate(zip(*values, strict=True))
        return [_joined(number, lambda column=column: _collated(column)) for number, column in columns]  # type: ignore[misc]
    from torch.utils.data._utils.collate import collate, default_collate_fn_map  # which torch documents for extension

    try:
        batch = collate(values, collate_fn_map={Counter: _counts, **default_collate_fn_map})
    except RuntimeError as error:
        if kind is torch.Tensor and (why := _not_in_workers(values)):
            raise _PlacedError(why) from error
        raise
    if kind is not torch.Tensor:
        _refuse_masks(values)
    return batch


def _counts(values: Sequence[Counter[Any]], **_: Any) -> Counter[Any]:
    """Return the counts of each key that any counter has; torch would add to those of the first."""
    keys = dict.fromkeys(chain.from_iterable(values))
    return Counter({key: _collated([value[key] for value in values]) for key in keys})


def _not_in_workers(values: Sequence[Any]) -> str:
    """Return why torch joins tensors in the main process and not in this worker; empty where that is not why."""
    import torch

    if torch.utils.data.get_worker_info() is None:
        return ""
    if any(value.requires_grad for value in values):
        return "require gradients, and torch joins such tensors in no worker; in a stage, pass on tensor.detach()"
    if any(value.is_conj() for value in values):
        return "are conjugate views, and torch joins those in no worker; in a stage, pass on tensor.resolve_conj()"
    if any(value.is_quantized for value in values):
        return "are quantized, and torch joins those in no worker; in a stage, pass on tensor.dequantize()"
    return ""


def _padded(values: Sequence[Any]) -> Any:
    import numpy as np
    import torch

    first = values[0]
    if isinstance(first, np.ndarray):
        return _padded([torch.as_tensor(value) for value in values])
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    if isinstance(first, Mapping) and not isinstance(first, Counter):
        return {name: _padded([value[name] for value in values]) for name in first}
    if isinstance(first, tuple | list):
        return [_padded(list(column)) for column in zip(*values, strict=True)]
    return _collated(list(values))


class _PlacedError(TypeError):
    """Values that cannot be joined, by why and by their place in the samples, such as ``[0]['x']``."""

    def __str__(self) -> str:
        why, *parts = self.args
        place = "".join(f"[{part!r}]" for part in parts)
        return f"the values{' at sample' * bool(place)}{place} {why}"


def _refuse_masks(values: Sequence[Any]) -> None:
    """Raise where one of the values, of which a batch could be made, holds a masked array."""
    import numpy as np

    first = values[0]
    if isinstance(first, Mapping):
        for name in first:
            _joined(name, lambda name=name: _refuse_masks([value[name] for value in values]))  # type: ignore[misc]
    elif isinstance(first, tuple | list):
        for number, column in enumerate(zip(*values, strict=False)):
            _joined(number, lambda column=column: _refuse_masks(column))  # type: ignore[misc]
    elif any(issubclass(kind, np.ma.MaskedArray) for kind in set(map(type, values))):
        raise _PlacedError(
            "are masked, and tensors have no masks; "
            "in a stage, fill them with array.filled(), or pass on array.data and array.mask"
        )


def unlike(n_samples: int, error: Exception) -> DecodeError:
    """Return the error of samples that cannot be joined into one batch, for the reason in another error."""
    remedy = "; make them alike in a stage, or batch them with a function of your own"
    if isinstance(error, _PlacedError):  # which has one
        remedy = ""
    return DecodeError(f"these {count(n_samples, 'sample')} do not fit into one batch: {error}{remedy}")


def _joined(name: Any, join: Callable[[], Any]) -> Any:
    """Return what a function of one field returns; an error says which field it is."""
    try:
        return join()
    except _PlacedError as error:
        why, *parts = error.args
        raise _PlacedError(why, name, *parts) from error.__cause__
