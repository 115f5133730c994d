"""What pickles may name of numpy, and the checking constructor behind each name.

``numpy.ndarray`` called by a file with ``dtype=object`` makes pointers out of bytes, and a crafted dtype state reads
beyond the array.
So numpy gets dtypes of plain numbers, text, times and records of them only, shapes that fit their data exactly, and
objects only as a list of values that this codec built.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.tokens import (
    TRUST,
    Fresh,
    Global,
    Owned,
    as_bytes,
    expect,
    is_named,
    is_size,
    table,
)
from bionemo.webdatamodule.errors import RefusedPickleError

MAX_EMPTY: Final = 1 << 26  # product of the other sizes of an empty array: a sum over the empty axis has as many
MAX_FIELDS: Final = 1000  # of a structured dtype, those of its fields included
MAX_RECORD: Final = 1 << 28  # bytes of an element of a structured dtype

STRINGS: Final = (
    "the pickle has an array of numpy's StringDType, which the safe codec does not build; "
    f"save it as numpy.array(array.tolist()), or {TRUST}"
)
"""What is said of text without a width, whose pickles hold it as objects."""

_ALIGNED: Final = 0x80  # NPY_ALIGNED_STRUCT among the flags of a dtype
_SPEC: Final = re.compile(r"[<>=|]?([biufcSUmMO?]\d{0,9}|V\d{1,9}|[mM]8\[\d{0,9}[a-zA-Zμ]{1,7}\])")
_UNITS: Final = frozenset(b"Y M W D h m s ms us ns ps fs as generic".split())


def check_dtype(dtype: Any, *, objects: bool = False) -> np.dtype[Any]:
    """Return the argument if it is a dtype of plain numbers, text or times, or a record of them."""
    expect(isinstance(dtype, np.dtype), "an array without a dtype")
    if dtype.kind == "T":
        raise RefusedPickleError(STRINGS)
    if dtype.hasobject and not (objects and dtype.kind == "O"):
        raise RefusedPickleError("the pickle has bytes where an array of objects must have a list")
    return dtype  # type: ignore[no-any-return]


def check_shape(shape: Any) -> int:
    """Return the number of elements of a shape: a tuple of plain integers, none negative."""
    expect(type(shape) is tuple and len(shape) <= 32, "a shape that is not a short tuple")
    expect(all(map(is_size, shape)), "a shape with an invalid size")
    expect(math.prod(filter(None, shape)) <= MAX_EMPTY or 0 not in shape, "an empty array of absurd shape")
    return math.prod(shape)


def _check_extent(shape: Any, dtype: np.dtype[Any], data: Any) -> None:
    """Check that data are exactly those of an array; text of no width needs none, however many there are."""
    count = check_shape(shape)
    expect(count * dtype.itemsize == len(data), "an array and data of two sizes")
    expect(dtype.itemsize > 0 or count <= MAX_EMPTY, "an empty array of absurd shape")


def _dtype(spec: Any, align: Any = False, copy: Any = True) -> Fresh:
    if spec is np.record:  # the user allowed it; the dtype of a recarray, whose size is in its state
        return Fresh(np.dtype(np.record, copy=True), _dtype_state)
    if type(spec) is not str or not _SPEC.fullmatch(spec):
        shown = repr(spec[:40]) if type(spec) is str else type(spec).__name__
        raise RefusedPickleError(
            f"the pickle has the numpy dtype {shown}, which the safe codec does not build; "
            'if you trust where the data come from, pass allow_pickle=["numpy.dtype"]'
        )
    expect(type(align) in (bool, int) and type(copy) in (bool, int), "an unknown dtype")
    expect(not align and bool(copy), "an aligned dtype")
    # A copy, because numpy writes the state into the object, and the dtypes of numpy are shared by the process.
    return Fresh(np.dtype(spec, copy=True), _dtype_state)


def _dtype_state(made: np.dtype[Any], state: Any) -> int:
    # numpy reads some malformed states from memory that it never wrote (numpy issue 30476), so the state has
    # to be what numpy itself says for this dtype, but for the byte order and the unit of a time
    expect(type(state) is tuple and len(state) in (8, 9) and type(state[0]) is int, "a bad dtype state")
    expect(state[0] in (3, 4), "a bad dtype state")
    expect(type(state[1]) is str and state[1] in "<>=|" and len(state[1]) == 1, "a dtype without byte order")
    if made.kind == "V" and any(part is not None for part in state[2:5]):
        return _record_state(made, state)
    expect(all(type(part) in (int, type(None)) for part in state[2:8]), "a bad dtype state")
    native = made.__reduce__()[2]
    expect(state[2:8] == native[2:8], "a dtype state that contradicts its dtype")
    if made.kind in "mM":
        expect(len(state) == 9 and type(state[8]) is tuple and len(state[8]) == 2, "a time without a unit")
        extra, unit = state[8]
        expect(extra is None or (type(extra) is dict and not extra), "a time without a unit")
        expect(type(unit) is tuple and 3 <= len(unit) <= 4, "a time without a unit")
        name, *numbers = unit
        expect(type(as_bytes(name)) is bytes and as_bytes(name) in _UNITS, "a time of an unknown unit")
        expect(all(type(n) is int and 0 < n < 1 << 31 for n in numbers), "a time of an absurd unit")
        state = (*state[:8], ({}, (as_bytes(name), *numbers)))
    else:
        expect(len(state) == 8, "a dtype with metadata")
    made.__setstate__(state)  # type: ignore[attr-defined]
    return 0


def _record_state(made: np.dtype[Any], state: tuple[Any, ...]) -> int:
    """Make a structured dtype, or a sub-array, by numpy's constructor; then numpy's own state of it is the state."""
    _, _, inner, names, fields, size, align, flags, *more = state
    expect(all(part is None for part in more) and type(size) is int, "a record with metadata")
    expect(size == made.itemsize or made.type is np.record, "a record of another size")
    expect(size <= MAX_RECORD and type(align) is type(flags) is int, "a record of absurd size")
    if inner is not None:
        expect(names is None and fields is None and made.type is np.void, "a record that is a sub-array")
        expect(type(inner) is tuple and len(inner) == 2, "a sub-array without a dtype")
        _check_field(inner[0])
        expect(check_shape(inner[1]) * inner[0].itemsize == size and 0 not in inner[1], "a sub-array of another size")
        clean = np.dtype(inner)
    else:
        expect(type(names) is tuple and type(fields) is dict and len(names) == len(fields), "a record without fields")
        expect(all(type(name) is str for name in names) and set(names) == set(fields), "a record without names")
        parts = [fields[name] for name in names]
        expect(all(type(part) is tuple and len(part) == 2 for part in parts), "a record with titles")
        for dtype, offset in parts:
            _check_field(dtype)
            expect(is_size(offset) and offset + dtype.itemsize <= size, "a field beyond its record")
        clean = np.dtype(
            {
                "names": list(names),
                "formats": [dtype for dtype, _ in parts],
                "offsets": [offset for _, offset in parts],
                "itemsize": size,
            },
            align=bool(flags & _ALIGNED),
        )
    count = _count_fields(clean, MAX_FIELDS)
    expect(clean.itemsize == size, "a record of two sizes")
    made.__setstate__(clean.__reduce__()[2])  # type: ignore[attr-defined]
    return 100 * count


def _check_field(dtype: Any) -> None:
    expect(isinstance(dtype, np.dtype), "a field without a dtype")
    if dtype.hasobject:
        raise RefusedPickleError(
            "the pickle has a structured numpy dtype with Python objects, which the safe codec does not build; "
            'if you trust where the data come from, pass allow_pickle=["numpy.dtype"]'
        )


def _count_fields(dtype: np.dtype[Any], most: int, depth: int = 0) -> int:
    """Count the fields of a dtype and of its fields, which are counted as often as they appear."""
    expect(depth < 16, "a record nested deeper than 16 levels")
    count = 1
    below = [field[0] for field in dtype.fields.values()] if dtype.fields else [dtype.base] if dtype.subdtype else ()
    for part in below:
        count += _count_fields(part, most - count, depth + 1)
        expect(count <= most, f"a record of more than {MAX_FIELDS} fields")
    return count


def _reconstruct(cls: Any, shape: Any, code: Any) -> Fresh | Owned:
    # numpy up to protocol 4: an empty array first, then its state
    _check_beginning(shape, code)
    if isinstance(cls, type) and issubclass(cls, np.ndarray):  # the user allowed it
        made = np.ndarray.__new__(cls, (0,), np.int8)
        return Fresh(made, _array_state) if cls.__setstate__ is np.ndarray.__setstate__ else Owned(made)
    if not is_named(cls, "numpy.ndarray"):
        name = cls.name if type(cls) is Global else getattr(cls, "__name__", type(cls).__name__)
        raise RefusedPickleError(
            f"the pickle has a numpy array of the class {name}, which is no class of arrays; {TRUST}"
        )
    return Fresh(np.ndarray((0,), np.int8), _array_state)


def _check_beginning(shape: Any, code: Any) -> None:
    expect(type(shape) is tuple and len(shape) == 1 and type(shape[0]) is int, "an array that begins in an unknown way")
    expect(shape == (0,) and type(code) in (bytes, str), "an array that begins in an unknown way")
    expect(code in (b"b", "b"), "an array that begins in an unknown way")


def _array_state(made: np.ndarray[Any, Any], state: Any) -> None:
    expect(type(state) is tuple and len(state) == 5, "an array without a state")
    version, shape, dtype, fortran, data = state
    expect(type(version) is int and version == 1, "an array without a state")
    data = as_bytes(data)
    check_dtype(dtype, objects=True)
    expect(type(fortran) in (bool, int), "an array without an order")
    if dtype.kind == "O":
        check_dtype(dtype, objects=type(data) is list)
        expect(len(data) == check_shape(shape), "an array of objects with more or fewer than its shape says")
    else:
        expect(type(data) in (bytes, memoryview), "an array without data")
        _check_extent(shape, dtype, data)
        if type(data) is memoryview:
            if not fortran and dtype.isnative:  # numpy brings others into the order of this machine
                _fill(made, shape, dtype, data)
                return
            data = bytes(data)
    made.__setstate__((1, shape, dtype, fortran, data))


def _fill(made: np.ndarray[Any, Any], shape: Any, dtype: np.dtype[Any], data: memoryview) -> None:
    """Make an empty array of bytes one of other elements, without another copy of them."""
    made.resize(len(data), refcheck=False)
    made[:] = np.frombuffer(data, np.int8)
    made.dtype = dtype  # type: ignore[misc]  # the pickle refers to this object, so it cannot be a view
    made.resize(shape, refcheck=False)


def _masked(cls: Any, base: Any, shape: Any, code: Any) -> Fresh:
    # numpy.ma.core._mareconstruct
    if not (type(cls) is Global and cls.name.endswith(".MaskedArray") and is_named(base, "numpy.ndarray")):
        raise RefusedPickleError("the pickle has a masked array of a class that is not built here")
    _check_beginning(shape, code)
    return Fresh(np.ma.MaskedArray(np.ndarray((0,), np.int8), mask=np.ndarray((0,), np.bool_)), _masked_state)


def _masked_state(made: np.ma.MaskedArray[Any, Any], state: Any) -> None:
    expect(type(state) is tuple and len(state) == 7, "a masked array without a state")
    version, shape, dtype, fortran, data, mask, fill = state
    expect(type(version) is int and version == 1 and type(fortran) in (bool, int), "a masked array without a state")
    data, mask = as_bytes(data), as_bytes(mask)
    check_dtype(dtype)
    expect(type(data) is type(mask) is bytes, "a masked array without data")
    _check_extent(shape, dtype, data)
    _check_extent(shape, np.ma.make_mask_descr(dtype), mask)
    plain = fill is None or (type(fill) is np.ndarray and fill.shape == ())
    expect(plain, "a masked array with an unknown fill value")
    if fill is not None:
        alike = fill.dtype == dtype or (fill.dtype.kind == dtype.kind and dtype.kind in "SU")
        expect(alike, "a masked array with a fill value of another type")
    made.__setstate__((1, shape, dtype, fortran, data, mask, fill))  # type: ignore[arg-type]  # of its base class


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    # numpy with protocol 5; the copy makes the array writable whatever the pickle holds
    check_dtype(dtype)
    expect(type(data) in (bytes, bytearray, memoryview), "an array without data")
    _check_extent(shape, dtype, data)
    own = data if type(data) is bytearray else bytearray(data)
    flat = np.frombuffer(own, dtype) if data else np.empty(0, dtype)
    if type(order) is str and order == "K":
        expect(type(axes) is tuple and all(map(is_size, axes)), "axes that are none")
        expect(sorted(axes) == list(range(len(shape))), "axes that are none")
        return flat.reshape(shape).transpose(axes)
    expect(type(order) is str and order in ("C", "F") and axes is None, "an array of an unknown order")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    check_dtype(dtype)
    data = as_bytes(data)
    expect(type(data) is bytes and len(data) == dtype.itemsize, "a number and data of two sizes")
    return np.frombuffer(bytearray(data), dtype)[0] if data else dtype.type()


def _ndarray(shape: Any, spec: Any, data: Any) -> Any:
    # the form that this package writes: numpy.ndarray(shape, "<f4", bytearray), no objects whatever the spec
    expect(type(spec) is str, "an array without a dtype")
    dtype = _dtype(spec).value
    check_dtype(dtype)
    expect(type(data) is bytearray, "an array without data")
    _check_extent(shape, dtype, data)
    return np.ndarray(shape, dtype, data)


TABLE: Final[dict[tuple[str, str], Any]] = {
    (module, "MaskedArray"): Global(name=f"{module}.MaskedArray", real=np.ma.MaskedArray)
    for module in ("numpy.ma", "numpy.ma.core")  # numpy 2.3 says the shorter
} | table(
    (
        ("numpy.dtype", _dtype),
        ("numpy.ndarray", _ndarray),
        ("numpy.ma.core._mareconstruct", _masked),
        ("numpy.ma.core.MaskedConstant", lambda: np.ma.masked),
        *(
            (f"numpy.{core}.{name}", function)  # numpy 1 says core, numpy 2 says _core
            for core in ("core", "_core")
            for name, function in (
                ("multiarray._reconstruct", _reconstruct),
                ("multiarray.scalar", _scalar),
                ("numeric._frombuffer", _frombuffer),
            )
        ),
    )
)
"""``(module, name)`` as pickles spell it, to a token."""
