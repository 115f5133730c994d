"""What pickles may name of numpy, and the checking constructor behind each name.

``numpy.ndarray`` called by a file with ``dtype=object`` makes pointers out of bytes, and a crafted dtype state reads
beyond the array.
So the library sees dtypes of plain numbers, text and times only, shapes that fit their data exactly, and objects
only as a list of values that this codec built.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.limits import Fresh, Global, expect, names, table
from bionemo.webdatamodule.errors import RefusedPickleError

MAX_EMPTY: Final = 1 << 26  # product of the other sizes of an empty array: a sum over the empty axis has as many

_SPEC: Final = re.compile(r"[<>=|]?([biufcSUmMO?]\d{0,9}|[mM]8\[\d{0,9}[a-zA-Zμ]{1,7}\])")
_UNITS: Final = frozenset(b"Y M W D h m s ms us ns ps fs as generic".split())


def check_dtype(dtype: Any, *, objects: bool = False) -> np.dtype[Any]:
    """Return the argument if it is a dtype of plain numbers, text or times.

    Structured dtypes and sub-arrays place their fields by offsets of their own, which numpy believes.
    They exist here only where the user allowed ``numpy.dtype`` itself, and numpy has checked those.
    """
    expect(isinstance(dtype, np.dtype), "an array without a dtype")
    if dtype.hasobject and not (objects and dtype.kind == "O"):
        raise RefusedPickleError("the pickle has bytes where an array of objects must have a list")
    return dtype  # type: ignore[no-any-return]


def check_shape(shape: Any) -> int:
    """Return the number of elements of a shape: a tuple of plain integers, none negative."""
    expect(type(shape) is tuple and len(shape) <= 32, "a shape that is no short tuple")
    expect(all(type(size) is int and size >= 0 for size in shape), "a shape of no sizes")
    expect(math.prod(filter(None, shape)) <= MAX_EMPTY or 0 not in shape, "an empty array of absurd shape")
    return math.prod(shape)


def _check_extent(shape: Any, dtype: np.dtype[Any], data: Any) -> None:
    """Check that data are exactly those of an array; text of no width needs none, however many there are."""
    count = check_shape(shape)
    expect(count * dtype.itemsize == len(data), "an array and data of two sizes")
    expect(dtype.itemsize > 0 or count <= MAX_EMPTY, "an empty array of absurd shape")


def _dtype(spec: str, align: Any = False, copy: Any = True) -> Fresh:
    if type(spec) is not str or not _SPEC.fullmatch(spec):
        shown = spec if type(spec) is str else type(spec).__name__
        raise RefusedPickleError(
            f"the pickle has the numpy dtype {shown!r}, which the safe codec does not build; "
            'if you trust where the data come from, pass allow_pickle=["numpy.dtype"]'
        )
    expect(align in (False, 0) and copy in (True, 1), "an aligned dtype")
    # A copy, because numpy writes the state into the object, and the dtypes of numpy are shared by the process.
    return Fresh(np.dtype(spec, copy=True), _dtype_state)


def _dtype_state(made: np.dtype[Any], state: Any) -> None:
    # numpy reads some malformed states from memory that it never wrote (numpy issue 30476), so the state has
    # to be what numpy itself says for this dtype, but for the byte order and the unit of a time
    expect(type(state) is tuple and len(state) in (8, 9) and state[0] in (3, 4), "a bad dtype state")
    expect(type(state[1]) is str and state[1] in "<>=|" and len(state[1]) == 1, "a dtype without byte order")
    if state[2:5] != (None, None, None):
        raise RefusedPickleError(
            "the pickle has a structured numpy dtype, which the safe codec does not build; "
            'if you trust where the data come from, pass allow_pickle=["numpy.dtype"]'
        )
    native = made.__reduce__()[2]
    expect(state[5:8] == native[5:8], "a dtype state that contradicts its dtype")
    if made.kind in "mM":
        expect(len(state) == 9 and type(state[8]) is tuple and len(state[8]) == 2, "a time without a unit")
        extra, unit = state[8]
        expect(extra in (None, {}) and type(unit) is tuple and 3 <= len(unit) <= 4, "a time without a unit")
        expect(type(unit[0]) is bytes and unit[0] in _UNITS, "a time of an unknown unit")
        expect(all(type(n) is int and 0 < n < 1 << 31 for n in unit[1:]), "a time of an absurd unit")
    else:
        expect(len(state) == 8, "a dtype with metadata")
    made.__setstate__(state)  # type: ignore[attr-defined]


def _reconstruct(cls: Any, shape: Any, code: Any) -> Fresh:
    # numpy up to protocol 4: an empty array first, then its state
    if not names(cls, "numpy.ndarray"):
        name = cls.name if type(cls) is Global else type(cls).__name__
        raise RefusedPickleError(f"the pickle has a numpy array of the class {name}, which is not built here")
    expect(shape == (0,) and code in (b"b", "b"), "an array that begins in an unknown way")
    return Fresh(np.ndarray((0,), np.int8), _array_state)


def _array_state(made: np.ndarray[Any, Any], state: Any) -> None:
    expect(type(state) is tuple and len(state) == 5 and state[0] == 1, "an array without a state")
    _, shape, dtype, fortran, data = state
    check_dtype(dtype, objects=True)
    expect(type(fortran) in (bool, int), "an array without an order")
    if dtype.kind == "O":
        check_dtype(dtype, objects=type(data) is list)
        expect(len(data) == check_shape(shape), "an array of objects with more or fewer than its shape says")
    else:
        expect(type(data) is bytes, "an array without data")
        _check_extent(shape, dtype, data)
    made.__setstate__(state)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> Any:
    # numpy with protocol 5; the copy makes the array writable whatever the pickle holds
    check_dtype(dtype)
    expect(type(data) in (bytes, bytearray), "an array without data")
    _check_extent(shape, dtype, data)
    flat = np.frombuffer(bytearray(data), dtype) if data else np.empty(0, dtype)
    if order == "K":
        expect(type(axes) is tuple and sorted(axes) == list(range(len(shape))), "axes that are none")
        return flat.reshape(shape).transpose(axes)
    expect(order in ("C", "F") and axes is None, "an array of an unknown order")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    check_dtype(dtype)
    expect(type(data) is bytes and len(data) == dtype.itemsize, "a number and data of two sizes")
    return np.frombuffer(data, dtype)[0] if data else dtype.type()


def _ndarray(shape: Any, spec: Any, data: Any) -> Any:
    # the form that this package writes: numpy.ndarray(shape, "<f4", bytearray), no objects whatever the spec
    expect(type(spec) is str, "an array without a dtype")
    dtype = _dtype(spec).value
    check_dtype(dtype)
    expect(type(data) is bytearray, "an array without data")
    _check_extent(shape, dtype, data)
    return np.ndarray(shape, dtype, data)


TABLE: Final[dict[tuple[str, str], Any]] = table(
    (
        ("numpy.dtype", _dtype),
        ("numpy.ndarray", _ndarray),
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
