"""What pickles may name of Python itself, and the checking constructor behind each name.

A list of permitted names alone is not safe: ``bytearray(10**12)`` and ``set(range(10**12))`` are a few bytes in a
file, and ``datetime`` takes an hour of 255.
So every name leads to a function here that looks at each argument before Python sees it, takes exact types only,
and never makes more than its arguments hold.
"""

from __future__ import annotations

import array
import datetime as dt
import enum
import pathlib
import re
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.builtins.pickle.safe.tokens import (
    MAX_INTEGER,
    TRUST,
    Fresh,
    Global,
    Owned,
    as_bytes,
    expect,
    is_named,
    real,
    table,
)
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    import zoneinfo
    from collections.abc import Callable

    from bionemo.webdatamodule.builtins.pickle.safe.budget import Budget

MAX_MODULES: Final = 10_000  # of a torch.nn.Module whose state_dict() this is
MAX_EXPONENT: Final = 10_000  # of a Decimal: int(Decimal("1e999999999")) would need 400 MB


# -- builtins and collections


def _encode(text: str, encoding: str) -> bytes:
    # how protocols 0 to 2 spell bytes
    expect(type(text) is type(encoding) is str, "bytes in an unknown encoding")
    expect(encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    return text.encode("latin-1")


def _bytes(*args: Any) -> bytes:
    expect(args == (), "bytes made of something")
    return b""


def _bytearray(data: Any = b"", encoding: str = "latin-1") -> bytearray:
    # bytearray(10**12) is an allocation that costs the file ten bytes
    expect(type(encoding) is str and encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    data = as_bytes(data)
    expect(type(data) is bytes, "a bytearray not made of bytes")
    return bytearray(data)


def _items(items: Any) -> Any:
    # a range would be 100 bytes in the file and any number of items in memory
    expect(type(items) in (list, tuple), "a set or sequence not made of a list")
    return items


def _set(budget: Budget, items: Any = ()) -> set[Any]:
    budget.charge_keys(_items(items))
    return set(items)


def _frozenset(budget: Budget, items: Any = ()) -> frozenset[Any]:
    budget.charge_keys(_items(items))
    return frozenset(items)


def _complex(real: float, imag: float) -> complex:
    expect({type(real), type(imag)} <= {int, float}, "a complex not made of numbers")
    return complex(real, imag)


def _range(start: int, stop: int, step: int) -> range:
    expect(type(start) is type(stop) is type(step) is int, "a range of other things than integers")
    return range(start, stop, step)


def _slice(start: Any, stop: Any, step: Any) -> slice:
    expect({type(start), type(stop), type(step)} <= {int, float, str, type(None)}, "a slice of objects")
    return slice(start, stop, step)


def _ordered_dict(pairs: Any = ()) -> Fresh:
    expect(type(pairs) in (list, tuple) and not pairs, "an OrderedDict made of something")
    return Fresh(OrderedDict(), _ordered_dict_state)


def _ordered_dict_state(made: OrderedDict[Any, Any], state: Any) -> int:
    # torch.nn.Module.state_dict() notes the version of each of its modules in an attribute
    if type(state) is not dict or list(state) != ["_metadata"]:
        raise RefusedPickleError("the pickle has an OrderedDict with attributes, which the safe codec does not build")
    modules = state["_metadata"]
    expect(type(modules) in (dict, OrderedDict) and len(modules) <= MAX_MODULES, "a state_dict with unknown metadata")
    for name, facts in modules.items():
        expect(type(name) is str and type(facts) is dict and len(facts) < 16, "a state_dict with unknown metadata")
        kinds = {*map(type, facts), *map(type, facts.values())}
        expect(kinds <= {str, int, float, bool, type(None)}, "a state_dict with unknown metadata")
    made._metadata = modules  # type: ignore[attr-defined]  # noqa: SLF001  # as torch's own
    return 200 * len(modules)


def _defaultdict(factory: Any = None) -> defaultdict[Any, Any]:
    # a class that the user allowed is here itself, and nothing else can be
    made = factory.real if type(factory) is Global else factory
    if (made is None and factory is not None) or not isinstance(made, type | None):
        raise RefusedPickleError("the pickle has a defaultdict whose factory is not a plain type")
    return defaultdict(made)


def _counter(budget: Budget, counts: Any = None) -> Counter[Any]:
    expect(counts is None or type(counts) is dict, "a Counter not made of a dict")
    budget.charge_keys(counts or ())
    return Counter(counts)


def _deque(items: Any = (), maxlen: int | None = None) -> deque[Any]:
    expect(maxlen is None or (type(maxlen) is int and maxlen >= 0), "a deque without a length")
    return deque(_items(items), maxlen)


_CODES: Final = frozenset("bBhHiIlLqQfd")


def _array(cls: Any, code: str, machine_format: int, data: bytes) -> array.array[Any]:
    # machine formats 0 to 15 are the integers and floats of known size; "u" may hold what is not text
    data = as_bytes(data)
    expect(is_named(cls, "array.array") and type(code) is str and code in _CODES, "an unknown array")
    made = array.array(code)
    native = made.__reduce_ex__(3)[1][2]  # of (type, code, machine format, bytes)
    expect(type(machine_format) is int and type(data) is bytes, "an array of another machine")
    expect(machine_format == native, "an array of another machine")
    made.frombytes(data)
    return made


def _array_of_list(code: str, items: list[Any]) -> array.array[Any]:
    expect(type(code) is str and code in _CODES and type(items) is list, "an unknown array")
    return array.array(code, items)


# -- numbers, times, paths

_DECIMAL: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(E[+-]?\d{1,6})?|[+-]?(Infinity|s?NaN\d*)")


def _decimal(text: str) -> Decimal:
    expect(type(text) is str and len(text) <= MAX_EXPONENT and bool(_DECIMAL.fullmatch(text)), "a bad Decimal")
    made = Decimal(text)
    expect(not made.is_finite() or abs(made.adjusted()) <= MAX_EXPONENT, "a Decimal out of bounds")
    return made


def _fraction(numerator: Any, denominator: Any = 1) -> Fraction:
    if type(numerator) is str:
        expect(len(numerator) <= MAX_INTEGER >> 4, "a Fraction of large numbers")
        expect(bool(re.fullmatch(r"[+-]?\d+(/\d+)?", numerator)), "a bad Fraction")
        return Fraction(numerator)
    expect(type(numerator) is type(denominator) is int, "a Fraction of other things than integers")
    return Fraction(numerator, denominator)


def _state(data: Any, size: int, what: str) -> bytes:
    # Python's own constructors look at the month only and take an hour of 255
    data = as_bytes(data)
    expect(type(data) is bytes and len(data) == size, f"a bad {what}")
    return bytes(data)


def _timezone_or_none(zone: Any) -> dt.tzinfo | None:
    expect(zone is None or isinstance(zone, dt.tzinfo), "a time zone that is none")  # the user may allow others
    return zone  # type: ignore[no-any-return]


def _datetime(data: bytes, zone: Any = None) -> dt.datetime:
    year1, year2, month, day, hour, minute, second, *micro = _state(data, 10, "datetime")
    return dt.datetime(
        year1 << 8 | year2, month & 0x7F, day, hour, minute, second, int.from_bytes(micro, "big"),
        _timezone_or_none(zone), fold=month >> 7,
    )  # fmt: skip


def _date(data: bytes) -> dt.date:
    year1, year2, month, day = _state(data, 4, "date")
    return dt.date(year1 << 8 | year2, month, day)


def _time(data: bytes, zone: Any = None) -> dt.time:
    hour, minute, second, *micro = _state(data, 6, "time")
    return dt.time(hour & 0x7F, minute, second, int.from_bytes(micro, "big"), _timezone_or_none(zone), fold=hour >> 7)


def _timedelta(days: int, seconds: int, microseconds: int) -> dt.timedelta:
    expect(type(days) is type(seconds) is type(microseconds) is int, "a timedelta of other things than integers")
    return dt.timedelta(days, seconds, microseconds)


def _timezone(offset: dt.timedelta, *name: str) -> dt.timezone:
    expect(type(offset) is dt.timedelta and all(type(part) is str for part in name), "a bad time zone")
    return dt.timezone(offset, *name)


_ZONE: Final = re.compile(r"[\w+-]{1,32}(/[\w+-]{1,32}){0,3}", re.ASCII)


def _zone(budget: Budget, key: str, from_cache: Any) -> zoneinfo.ZoneInfo:
    # always that of the cache: a file of the database for a few bytes is not read more than once
    expect(type(key) is str and bool(_ZONE.fullmatch(key)), "a time zone without a name")
    expect(type(from_cache) in (bool, int), "a time zone without a name")
    budget.take(1 << 13)
    import zoneinfo  # which takes longer to import than all the rest

    try:
        return zoneinfo.ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        raise DecodeError(
            f"the pickle has the time zone {key}, which this machine does not know; install the package tzdata"
        ) from None


_MAKE_ZONE: Final = Global(name="zoneinfo.ZoneInfo._unpickle", call=_zone, real=_zone, charged=True)


def _is_zone(owner: Any) -> bool:
    return isinstance(owner, type) and (owner.__module__, owner.__qualname__) == ("zoneinfo", "ZoneInfo")


def _getattr(owner: Any, name: str) -> Any:
    # how a ZoneInfo names its constructor, and some versions of Python the member of an enumeration
    expect(type(name) is str, "an attribute without a name")
    if name == "_unpickle" and (is_named(owner, "zoneinfo.ZoneInfo") or _is_zone(owner)):
        return _MAKE_ZONE
    if isinstance(owner, enum.EnumMeta) and name in owner.__members__:  # the user allowed it
        return owner.__members__[name]
    raise RefusedPickleError(
        f"the pickle takes the attribute {name[:40]!r} of an object, which the safe codec does not do; {TRUST}"
    )


def _uuid() -> Fresh:
    return Fresh(uuid.UUID(int=0), _uuid_state)


def _uuid_state(made: uuid.UUID, state: Any) -> None:
    known = type(state) is dict and "int" in state and set(state) <= {"int", "is_safe"}
    expect(known and all(type(value) is int for value in state.values()), "a bad UUID")
    expect(0 <= state["int"] < 1 << 128, "a UUID out of bounds")
    made.__setstate__(state)  # type: ignore[attr-defined]


def _path(cls: type[pathlib.PurePath]) -> Callable[..., pathlib.PurePath]:
    def make(*parts: str) -> pathlib.PurePath:
        expect(all(type(part) is str for part in parts), "a path of other things than text")
        return cls(*parts)

    return make


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    # how protocols 0 and 1 spell NEWOBJ
    if isinstance(cls, type):  # the user allowed it
        base = real(base)
        if base is object:
            return Owned(object.__new__(cls))
        made = base.__new__(cls, state)
        base.__init__(made, state)
        return Owned(made)
    return _newobj(cls)


def _newobj(cls: Any, *args: Any) -> Any:
    return _newobj_ex(cls, args, {})


def _newobj_ex(cls: Any, args: Any, kwargs: Any) -> Any:
    if isinstance(cls, type):  # the user allowed it
        return Owned(cls.__new__(cls, *map(real, args), **kwargs))
    expect(type(cls) is Global and type(args) is tuple and type(kwargs) is dict, "an object without a class")
    if cls.new is None or kwargs:
        raise RefusedPickleError(f"the pickle makes a {cls.name} in a way that the safe codec does not know")
    return cls.new(*args)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "_codecs.encode": _encode,
    "array._array_reconstructor": _array,
    "array.array": _array_of_list,
    "builtins.complex": _complex,
    "builtins.range": _range,
    "builtins.slice": _slice,
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
    "pathlib.PurePosixPath": _path(pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _path(pathlib.PureWindowsPath),
    "pathlib._local.PurePosixPath": _path(pathlib.PurePosixPath),  # Python 3.13
    "pathlib._local.PureWindowsPath": _path(pathlib.PureWindowsPath),
}

TABLE: Final[dict[tuple[str, str], Any]] = {
    **table(_FUNCTIONS.items()),
    **table([("collections.Counter", _counter)], charged=True),
}
"""``(module, name)`` as pickles spell it, to a token or to a harmless constant."""

# Types that may also be arguments, such as the factory of a defaultdict.
for _type, _call in (
    (OrderedDict, _ordered_dict),
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
):
    _module, _name = _type.__module__, _type.__name__
    _charged = _type in (set, frozenset)
    TABLE[_module, _name] = Global(name=f"{_module}.{_name}", call=_call, real=_type, charged=_charged)

# What an allowed class gets for the name is the function of this module, too.
TABLE["builtins", "getattr"] = Global(name="builtins.getattr", call=_getattr, real=_getattr)
TABLE["zoneinfo", "ZoneInfo"] = Global(name="zoneinfo.ZoneInfo")
TABLE["uuid", "UUID"] = Global(name="uuid.UUID", new=_uuid)
TABLE["builtins", "Ellipsis"] = Ellipsis
TABLE["builtins", "NotImplemented"] = NotImplemented
