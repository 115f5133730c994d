"""What pickles may name, and the checking constructor behind each name: Python's own types and numpy's.

A list of permitted names alone is not safe: ``numpy.ndarray`` called by a file with a buffer of its choice and
``dtype=object`` makes pointers out of bytes, and a crafted dtype state reads beyond the array.
So every name leads to a function here that looks at each argument before the library sees it, takes exact types
only, and never makes more than its arguments hold.
The tables for tensors are in :mod:`~bionemo.webdatamodule.safe_tensors`, which is imported when a pickle names
torch.
"""

from __future__ import annotations

import array
import datetime
import math
import pathlib
import re
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True, eq=False)
class Global:
    """A token for what a pickle named; inert, whatever a pickle does to it.

    Attributes:
        name: ``module.name``, as the user would write it in ``allow_pickle``.
        call: What REDUCE calls.
        new: What NEWOBJ calls, without the class.
        real: The type, where a pickle may pass it as an argument, as in ``defaultdict(list)``.
        allowed: The user allowed the class, so it is used as :mod:`pickle` would.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None
    real: Any = None
    allowed: bool = False


@dataclass(frozen=True, eq=False)
class Fresh:
    """An object that may take its state from one BUILD, through ``build(value, state)``."""

    value: Any
    build: Callable[[Any, Any], None]


@dataclass(frozen=True, eq=False)
class Owned:
    """An object of a class that the user allowed."""

    value: Any


MAX_DEPTH: Final = 200
"""Nesting of containers in a value; deep enough for data, shallow enough for everybody's recursion."""

MAX_KEY: Final = 10_000
"""Leaves of one tuple that serves as a key: hashing follows shared parts again and again."""

MAX_EXPONENT: Final = 10_000  # of a Decimal: int(Decimal("1e999999999")) would need 400 MB
MAX_EMPTY: Final = 1 << 26  # product of the other sizes of an empty array: a sum over the empty axis has as many

_SPEC: Final = re.compile(r"[<>=|]?([biufcSUmMO?]\d{0,9}|[mM]8\[\d{0,9}[a-zA-Zμ]{1,7}\])")
_UNITS: Final = frozenset(b"Y M W D h m s ms us ns ps fs as generic".split())


def expect(good: bool, what: str) -> None:
    """Raise :class:`DecodeError` unless an argument is as its constructor takes it."""
    if not good:
        raise DecodeError(f"the pickle has {what}")


def weigh(value: Any, limit: int) -> int:
    """Count the leaves of a value, shared parts as often as they appear.

    Raises:
        DecodeError: It is nested deeper than :data:`MAX_DEPTH`, contains itself, or has more than ``limit``.
    """
    known: dict[int, int | None] = {}  # None while a container is being counted

    def count(item: Any, depth: int) -> int:
        kind = type(item)
        if kind in (list, tuple, set, frozenset, deque):
            parts = item
        elif kind in (dict, OrderedDict, defaultdict, Counter):
            parts = item.values()
        elif kind is np.ndarray and item.dtype.hasobject:
            parts = item.flat
        else:
            return 1
        expect(depth < MAX_DEPTH, f"containers nested deeper than {MAX_DEPTH} levels")
        if id(item) in known:
            size = known[id(item)]
            if size is None:
                raise DecodeError("the pickle has a container that contains itself")
            return size
        known[id(item)] = None
        size = 1
        for part in parts:
            size += count(part, depth + 1)
        expect(size <= limit, f"shared containers that unfold to more than {limit} parts")
        known[id(item)] = size
        return size

    return count(value, 0)


def check_keys(keys: list[Any]) -> None:
    """Refuse keys whose hashing would overflow the stack or never end; all other keys hash in no time."""
    for key in keys:
        if type(key) is tuple:
            weigh(key, MAX_KEY)


# -- builtins and collections


def _encode(text: str, encoding: str) -> bytes:
    # how protocols 0 to 2 spell bytes
    expect(type(text) is str and encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    return text.encode("latin-1")


def _bytes(*args: Any) -> bytes:
    expect(args == (), "bytes made of something")
    return b""


def _bytearray(data: Any = b"", encoding: str = "latin-1") -> bytearray:
    # bytearray(10**12) is an allocation that costs the file ten bytes
    if type(data) is str:
        data = _encode(data, encoding)
    expect(type(data) is bytes, "a bytearray made of no bytes")
    return bytearray(data)


def _items(items: Any) -> Any:
    # a range would be 100 bytes in the file and any number of items in memory
    expect(type(items) in (list, tuple), "a set or sequence made of no list")
    return items


def _set(items: Any = ()) -> set[Any]:
    check_keys(_items(items))
    return set(items)


def _frozenset(items: Any = ()) -> frozenset[Any]:
    check_keys(_items(items))
    return frozenset(items)


def _complex(real: float, imag: float) -> complex:
    expect({type(real), type(imag)} <= {int, float}, "a complex made of no numbers")
    return complex(real, imag)


def _range(start: int, stop: int, step: int) -> range:
    expect(type(start) is type(stop) is type(step) is int, "a range of no integers")
    return range(start, stop, step)


def _slice(start: Any, stop: Any, step: Any) -> slice:
    expect({type(start), type(stop), type(step)} <= {int, float, str, type(None)}, "a slice of objects")
    return slice(start, stop, step)


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    expect(pairs in ([], ()), "an OrderedDict made of something")
    return OrderedDict()


def _defaultdict(factory: Any = None) -> defaultdict[Any, Any]:
    known = type(factory) is Global and isinstance(factory.real, type)
    if factory is not None and not known:
        raise RefusedPickleError("the pickle has a defaultdict whose factory is no plain type")
    return defaultdict(factory.real if known else None)


def _counter(counts: Any = None) -> Counter[Any]:
    expect(counts is None or type(counts) is dict, "a Counter made of no dict")
    return Counter(counts)


def _deque(items: Any = (), maxlen: int | None = None) -> deque[Any]:
    expect(maxlen is None or (type(maxlen) is int and maxlen >= 0), "a deque without a length")
    return deque(_items(items), maxlen)


def _array(cls: Any, code: str, machine_format: int, data: bytes) -> array.array[Any]:
    # machine formats 0 to 15 are the integers and floats of known size; "u" may hold what is no text
    expect(_names(cls, "array.array") and type(code) is str and code in "bBhHiIlLqQfd", "an unknown array")
    made = array.array(code)
    native = made.__reduce_ex__(3)[1][2]  # type: ignore[index]  # (type, code, machine format, bytes)
    expect(machine_format == native and type(data) is bytes, "an array of another machine")
    made.frombytes(data)
    return made


def _array_of_list(code: str, items: list[Any]) -> array.array[Any]:
    expect(type(code) is str and code in "bBhHiIlLqQfd" and type(items) is list, "an unknown array")
    return array.array(code, items)


def _names(token: Any, name: str) -> bool:
    return type(token) is Global and token.name == name


# -- numbers, times, paths

_DECIMAL: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(E[+-]?\d{1,6})?|[+-]?(Infinity|s?NaN\d*)")


def _decimal(text: str) -> Decimal:
    expect(type(text) is str and len(text) <= MAX_EXPONENT and bool(_DECIMAL.fullmatch(text)), "a bad Decimal")
    made = Decimal(text)
    expect(not made.is_finite() or abs(made.adjusted()) <= MAX_EXPONENT, "a Decimal out of bounds")
    return made


def _fraction(numerator: Any, denominator: Any = 1) -> Fraction:
    if type(numerator) is str:
        expect(bool(re.fullmatch(r"[+-]?\d+(/\d+)?", numerator)), "a bad Fraction")
        return Fraction(numerator)
    expect(type(numerator) is type(denominator) is int, "a Fraction of no integers")
    return Fraction(numerator, denominator)


def _state(data: Any, size: int, what: str) -> bytes:
    # Python's own constructors look at the month only and take an hour of 255
    expect(type(data) is bytes and len(data) == size, f"a bad {what}")
    return bytes(data)


def _timezone_or_none(zone: Any) -> datetime.tzinfo | None:
    expect(zone is None or type(zone) is datetime.timezone, "a time zone of an unknown type")
    return zone  # type: ignore[no-any-return]


def _datetime(data: bytes, zone: Any = None) -> datetime.datetime:
    year1, year2, month, day, hour, minute, second, *micro = _state(data, 10, "datetime")
    return datetime.datetime(
        year1 << 8 | year2, month & 0x7F, day, hour, minute, second, int.from_bytes(micro, "big"),
        _timezone_or_none(zone), fold=month >> 7,
    )  # fmt: skip


def _date(data: bytes) -> datetime.date:
    year1, year2, month, day = _state(data, 4, "date")
    return datetime.date(year1 << 8 | year2, month, day)


def _time(data: bytes, zone: Any = None) -> datetime.time:
    hour, minute, second, *micro = _state(data, 6, "time")
    return datetime.time(
        hour & 0x7F, minute, second, int.from_bytes(micro, "big"), _timezone_or_none(zone), fold=hour >> 7
    )


def _timedelta(days: int, seconds: int, microseconds: int) -> datetime.timedelta:
    expect(type(days) is type(seconds) is type(microseconds) is int, "a timedelta of no integers")
    return datetime.timedelta(days, seconds, microseconds)


def _timezone(offset: datetime.timedelta, *name: str) -> datetime.timezone:
    expect(type(offset) is datetime.timedelta and all(type(part) is str for part in name), "a bad time zone")
    return datetime.timezone(offset, *name)


def _uuid() -> Fresh:
    return Fresh(uuid.UUID(int=0), _uuid_state)


def _uuid_state(made: uuid.UUID, state: Any) -> None:
    known = type(state) is dict and "int" in state and set(state) <= {"int", "is_safe"}
    expect(known and all(type(value) is int for value in state.values()), "a bad UUID")
    expect(0 <= state["int"] < 1 << 128, "a UUID out of bounds")
    made.__setstate__(state)  # type: ignore[attr-defined]


def _path(cls: type[pathlib.PurePath]) -> Callable[..., pathlib.PurePath]:
    def make(*parts: str) -> pathlib.PurePath:
        expect(all(type(part) is str for part in parts), "a path of no text")
        return cls(*parts)

    return make


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    # how protocols 0 and 1 spell NEWOBJ
    expect(type(cls) is Global and type(base) is Global, "an object of no class")
    if cls.allowed:
        if base.real is object:
            return Owned(object.__new__(cls.real))
        made = base.real.__new__(cls.real, state)
        base.real.__init__(made, state)
        return Owned(made)
    if cls.new is None:
        raise RefusedPickleError(f"the pickle makes a {cls.name} in a way that the safe codec does not know")
    return cls.new()


def _newobj(cls: Any, *args: Any) -> Any:
    return _newobj_ex(cls, args, {})


def _newobj_ex(cls: Any, args: Any, kwargs: Any) -> Any:
    if type(cls) is not Global or cls.new is None or not (cls.allowed or kwargs == {}):
        raise RefusedPickleError("the pickle makes an object in a way that the safe codec does not know")
    made = cls.new(*args, **kwargs)
    return Owned(made) if cls.allowed else made


# -- numpy


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
    native = made.__reduce__()[2]  # type: ignore[index]
    expect(state[5:8] == native[5:8], "a dtype state that contradicts its dtype")
    if made.kind in "mM":
        expect(len(state) == 9 and type(state[8]) is tuple and len(state[8]) == 2, "a time without a unit")
        extra, unit = state[8]
        expect(extra in (None, {}) and type(unit) is tuple and 3 <= len(unit) <= 4, "a time without a unit")
        expect(type(unit[0]) is bytes and unit[0] in _UNITS, "a time of an unknown unit")
        expect(all(type(n) is int and 0 < n < 1 << 31 for n in unit[1:]), "a time of an absurd unit")
    else:
        expect(len(state) == 8, "a dtype with metadata")
    made.__setstate__(state)


def _reconstruct(cls: Any, shape: Any, code: Any) -> Fresh:
    # numpy up to protocol 4: an empty array first, then its state
    if not _names(cls, "numpy.ndarray"):
        name = cls.name if type(cls) is Global else type(cls).__name__
        raise RefusedPickleError(f"the pickle has a numpy array of the class {name}, which is not built here")
    expect(shape == (0,) and code in (b"b", "b"), "an array that begins in an unknown way")
    return Fresh(np.ndarray((0,), np.int8), _array_state)


def _array_state(made: np.ndarray[Any, Any], state: Any) -> None:
    expect(type(state) is tuple and len(state) == 5 and state[0] == 1, "an array without a state")
    _, shape, dtype, fortran, data = state
    check_dtype(dtype, objects=True)
    size = check_shape(shape)
    expect(type(fortran) in (bool, int), "an array without an order")
    if dtype.kind == "O":
        check_dtype(dtype, objects=type(data) is list)
        expect(len(data) == size, "an array of objects with more or fewer than its shape says")
    else:
        expect(type(data) is bytes and len(data) == size * dtype.itemsize, "an array and data of two sizes")
    made.__setstate__(state)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray[Any, Any]:
    # numpy with protocol 5; the copy makes the array writable whatever the pickle holds
    check_dtype(dtype)
    expect(type(data) in (bytes, bytearray), "an array without data")
    expect(check_shape(shape) * dtype.itemsize == len(data), "an array and data of two sizes")
    flat = np.frombuffer(bytearray(data), dtype) if data else np.empty(0, dtype)
    if order == "K":
        expect(type(axes) is tuple and sorted(axes) == list(range(len(shape))), "axes that are none")
        return flat.reshape(shape).transpose(axes)
    expect(order in ("C", "F") and axes is None, "an array of an unknown order")
    return flat.reshape(shape, order=order)  # type: ignore[arg-type, call-overload]


def _scalar(dtype: Any, data: Any) -> Any:
    check_dtype(dtype)
    expect(type(data) is bytes and len(data) == dtype.itemsize, "a number and data of two sizes")
    return np.frombuffer(data, dtype)[0] if data else dtype.type()


def _ndarray(shape: Any, spec: Any, data: Any) -> np.ndarray[Any, Any]:
    # the form that this package writes: numpy.ndarray(shape, "<f4", bytearray), no objects whatever the spec
    expect(type(spec) is str, "an array without a dtype")
    dtype = _dtype(spec).value
    check_dtype(dtype)
    expect(type(data) is bytearray, "an array without data")
    expect(check_shape(shape) * dtype.itemsize == len(data), "an array and data of two sizes")
    return np.ndarray(shape, dtype, data)


def _token(name: str, call: Any = None, new: Any = None, real: Any = None) -> tuple[tuple[str, str], Any]:
    module, _, last = name.rpartition(".")
    return (module, last), Global(name=name, call=call, new=new, real=real)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "_codecs.encode": _encode,
    "array._array_reconstructor": _array,
    "builtins.complex": _complex,
    "builtins.range": _range,
    "builtins.slice": _slice,
    "collections.Counter": _counter,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _deque,
    "copyreg.__newobj__": _newobj,
    "copyreg.__newobj_ex__": _newobj_ex,
    "copyreg._reconstructor": _reconstructor,
    "datetime.date": _date,
    "datetime.datetime": _datetime,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "datetime.timezone": _timezone,
    "decimal.Decimal": _decimal,
    "fractions.Fraction": _fraction,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _ndarray,
    "pathlib.PurePosixPath": _path(pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _path(pathlib.PureWindowsPath),
    "pathlib._local.PurePosixPath": _path(pathlib.PurePosixPath),  # Python 3.13
    "pathlib._local.PureWindowsPath": _path(pathlib.PureWindowsPath),
    **{
        f"numpy.{core}.{name}": function  # numpy 1 says core, numpy 2 says _core
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
}

TABLE: Final[dict[tuple[str, str], Any]] = {
    **dict(_token(name, call) for name, call in _FUNCTIONS.items()),
    **dict(
        _token(f"builtins.{real.__name__}", call, real=real)
        for real, call in (
            (bool, None),
            (bytearray, _bytearray),
            (bytes, _bytes),
            (dict, None),
            (float, None),
            (frozenset, _frozenset),
            (int, None),
            (list, None),
            (object, None),
            (set, _set),
            (str, None),
            (tuple, None),
        )
    ),  # fmt: skip
    **dict(
        (
            _token("array.array", _array_of_list),
            _token("collections.OrderedDict", _ordered_dict, real=OrderedDict),
            _token("uuid.UUID", new=_uuid),
        )
    ),
    ("builtins", "Ellipsis"): Ellipsis,
    ("builtins", "NotImplemented"): NotImplemented,
}
"""``(module, name)`` as pickles spell it, to a token or to a harmless constant."""
