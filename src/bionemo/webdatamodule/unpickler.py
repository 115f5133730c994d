"""A pickle machine that builds known types only and never runs what a pickle asks it to run.

Why not subclass :class:`pickle.Unpickler` and override ``find_class``?
Because the name of a class is only one of the ways in.
The stock machine also calls ``__setstate__`` and ``setattr`` on whatever lies on its stack, takes classes from
the process-wide extension registry, reserves memory for lengths and memo numbers that a pickle merely claims,
and hashes tuples that are nested deeply enough to overflow the C stack.
Here every opcode is a few lines of Python, and these rules hold:

1. An opcode that is not below is refused: INST, OBJ, EXT1/2/4, persistent ids, out-of-band buffers, the string
   opcodes of Python 2.
2. A name becomes a :class:`~bionemo.webdatamodule.safe_types.Global`, an inert token, never the thing itself.
   Only REDUCE and NEWOBJ use a token, and what they call is our own checking function.
3. BUILD works on objects that announced it (:class:`~bionemo.webdatamodule.safe_types.Fresh`), once each.
   Otherwise a second state could pull the memory away below an array that is in use.
4. A length must lie inside the data before anything is made of it, and the memo is a dict, so no number in the
   stream reserves memory. What constructors may make is bounded by a multiple of the stream's length.
5. Containers nest at most :data:`MAX_DEPTH` deep and do not contain themselves.
   Tuples are measured before they are hashed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError
from bionemo.webdatamodule.safe_types import MAX_DEPTH, Fresh, Global, Owned, check_keys, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXPANSION: Final = 64
"""What constructors may make in all, in bytes for each byte of the pickle."""

_HEADROOM: Final = 1 << 16  # so that a tiny pickle may hold a tensor expanded from one number
_MAPPINGS: Final = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS: Final = frozenset((list, tuple, set, frozenset, deque, np.ndarray, *_MAPPINGS))
_COST: Final = {bytes: 1, bytearray: 1, str: 4, list: 64, tuple: 64, dict: 128}  # bytes for each item, at most

# A run of numbers and constants, as in a pickled list of token ids. The regular expression proves that nothing
# else is in it, so the stock machine, which is ten times faster, may turn it into a list.
_SCALARS: Final = re.compile(rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89]){4,1000}", re.DOTALL)

_NEWLINE: Final = re.compile(rb"\n")
_STOPPED: Final = -1
_HANDLERS: Final[dict[int, Callable[[Machine, int], int]]] = {}


def _opcode(code: bytes) -> Callable[[Any], Any]:
    """Register a method for an opcode; it gets the position behind the opcode and returns the next one."""

    def register(method: Any) -> Any:
        _HANDLERS[code[0]] = method
        return method

    return register


class Machine:
    """Reads one pickle from a buffer.

    Args:
        data: The buffer.
        find: ``(module, name)`` to a :class:`Global` or a harmless constant; raises for anything else.
        persistent: What to make of persistent ids; without it they are refused.
    """

    def __init__(
        self,
        data: memoryview,
        find: Callable[[str, str], Any],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data = data
        self.find = find
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.fresh: dict[int, Fresh] = {}  # by id; holds the object, so that the id stays its own
        self.own: dict[int, Any] = {}  # objects made by classes that the user allowed, by id
        self.budget = EXPANSION * len(data) + _HEADROOM
        self.loose = 0  # tokens on the stack or in a container that nothing has used
        self.shared = False  # a container came back from the memo
        self.made = 0  # containers, an upper bound of the depth
        self.end = 0

    def run(self, start: int = 0) -> tuple[Any, int]:
        """Execute the pickle that begins at ``start``.

        Returns:
            The value and the position behind its STOP.

        Raises:
            RefusedPickleError: The pickle asks for something that is not allowed.
            DecodeError: It is no well-formed pickle.
        """
        try:
            return self._run(start)
        except (DecodeError, MemoryError, ImportError):
            raise
        except (IndexError, struct.error) as error:
            raise DecodeError("the pickle ends in the middle or takes from an empty stack") from error
        except RecursionError as error:
            raise DecodeError(f"the pickle is nested deeper than {MAX_DEPTH} levels") from error
        except Exception as error:  # a checking constructor or a class of the user's refused its arguments
            raise DecodeError(f"the pickle cannot be decoded: {type(error).__name__}: {error}") from error

    def _run(self, start: int) -> tuple[Any, int]:
        data, handlers = self.data, _HANDLERS
        position = start
        while position >= 0:
            handler = handlers.get(data[position])
            if handler is None:
                raise _refused_opcode(data[position], position)
            position = handler(self, position + 1)
        (value,) = self.stack  # ValueError where a pickle leaves more than its value behind
        if self.loose:
            raise RefusedPickleError(
                "the pickle holds a class or a function as a value, which the safe codec does not build; "
                'store its name instead, or read trusted data with pickles="trusted"'
            )
        if self.shared or self.made > MAX_DEPTH:
            weigh(value, EXPANSION * (len(data) + _HEADROOM))
        return value, self.end

    # -- helpers

    def take(self, position: int, size: int) -> memoryview:
        """Return so many bytes, all of which must be there."""
        if size < 0 or position + size > len(self.data):
            raise DecodeError(f"the pickle ends in the middle: {size} bytes wanted at {position}")
        return self.data[position : position + size]

    def line(self, position: int) -> tuple[str, int]:
        """Return a line of a text opcode and the position behind its newline."""
        raw, position = self.raw_line(position)
        return str(raw, "utf-8"), position

    def raw_line(self, position: int) -> tuple[memoryview, int]:
        """Return the bytes of a line and the position behind its newline."""
        newline = _NEWLINE.search(self.data, position)
        if newline is None:
            raise DecodeError(f"the pickle ends in the middle of a line at {position}")
        return self.data[position : newline.start()], newline.end()

    def push(self, value: Any) -> None:
        """Push a value that came from a name or the memo, which may be a token."""
        if type(value) is Global:
            self.loose += 1
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Return what was pushed since the last MARK."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def charge(self, size: int) -> None:
        """Count bytes that a constructor makes against what the stream may make."""
        self.budget -= size
        if self.budget < 0:
            raise RefusedPickleError(f"the pickle of {len(self.data)} bytes asks for {EXPANSION} times its size")

    def call(self, function: Any, maker: Callable[..., Any] | None, args: Any, kwargs: Any = None) -> None:
        """Call a token with checked arguments and push what it makes."""
        if type(function) is not Global or maker is None:
            name = function.name if type(function) is Global else f"an object of type {type(function).__name__}"
            raise RefusedPickleError(f"the pickle calls {name}, which cannot be called that way")
        if type(args) is not tuple:
            raise DecodeError("the pickle calls something with arguments that are no tuple")
        self.loose -= 1
        for arg in args:
            kind = type(arg)
            if kind is Global:
                self.loose -= 1
            elif kind in _COST:
                self.charge(len(arg) * _COST[kind])
        if function.allowed:
            real = [arg.real if type(arg) is Global else arg for arg in args]
            value = maker(*real, **(kwargs or {}))
            self.own[id(value)] = value
        elif kwargs:
            raise RefusedPickleError(f"the pickle calls {function.name} with keywords")
        else:
            value = maker(*args)
            if type(value) is Fresh:
                self.fresh[id(value.value)] = value
                value = value.value
            if type(value) is Owned:
                value = value.value
                self.own[id(value)] = value
            size = getattr(value, "nbytes", 0)
            if type(size) is int:
                self.charge(size)
        self.made += 1
        self.push(value)

    # -- control

    @_opcode(pickle.PROTO)
    def _proto(self, position: int) -> int:
        if self.data[position] > pickle.HIGHEST_PROTOCOL:
            raise DecodeError(f"pickle protocol {self.data[position]} is unknown to this Python")
        return position + 1

    @_opcode(pickle.FRAME)
    def _frame(self, position: int) -> int:
        self.take(position + 8, int.from_bytes(self.take(position, 8), "little"))
        return position + 8

    @_opcode(pickle.STOP)
    def _stop(self, position: int) -> int:
        self.end = position
        return _STOPPED

    @_opcode(pickle.MARK)
    def _mark(self, position: int) -> int:
        self.marked.append(self.stack)
        run = _SCALARS.match(self.data, position)
        if run is None:
            self.stack = []
            return position
        self.stack = pickle.loads(b"(%bl." % run[0])
        return run.end()

    @_opcode(pickle.POP)
    def _pop(self, position: int) -> int:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()
        return position

    @_opcode(pickle.POP_MARK)
    def _pop_to_mark(self, position: int) -> int:
        self.pop_mark()
        return position

    # -- the memo

    @_opcode(pickle.MEMOIZE)
    def _memoize(self, position: int) -> int:
        self.memo[len(self.memo)] = self.stack[-1]
        return position

    @_opcode(pickle.BINPUT)
    def _binput(self, position: int) -> int:
        self.memo[self.data[position]] = self.stack[-1]
        return position + 1

    @_opcode(pickle.LONG_BINPUT)
    def _long_binput(self, position: int) -> int:
        self.memo[int.from_bytes(self.take(position, 4), "little")] = self.stack[-1]
        return position + 4

    @_opcode(pickle.PUT)
    def _put(self, position: int) -> int:
        text, position = self.line(position)
        self.memo[int(text)] = self.stack[-1]
        return position

    def recall(self, number: int) -> None:
        """Push what the memo holds under a number."""
        try:
            value = self.memo[number]
        except KeyError:
            raise DecodeError(f"the pickle recalls number {number}, which it never stored") from None
        if type(value) in _CONTAINERS:
            self.shared = True
        self.push(value)

    @_opcode(pickle.BINGET)
    def _binget(self, position: int) -> int:
        self.recall(self.data[position])
        return position + 1

    @_opcode(pickle.LONG_BINGET)
    def _long_binget(self, position: int) -> int:
        self.recall(int.from_bytes(self.take(position, 4), "little"))
        return position + 4

    @_opcode(pickle.GET)
    def _get(self, position: int) -> int:
        text, position = self.line(position)
        self.recall(int(text))
        return position

    # -- constants and numbers

    @_opcode(pickle.NONE)
    def _none(self, position: int) -> int:
        self.stack.append(None)
        return position

    @_opcode(pickle.NEWTRUE)
    def _true(self, position: int) -> int:
        self.stack.append(True)
        return position

    @_opcode(pickle.NEWFALSE)
    def _false(self, position: int) -> int:
        self.stack.append(False)
        return position

    @_opcode(pickle.BININT1)
    def _binint1(self, position: int) -> int:
        self.stack.append(self.data[position])
        return position + 1

    @_opcode(pickle.BININT2)
    def _binint2(self, position: int) -> int:
        self.stack.append(int.from_bytes(self.take(position, 2), "little"))
        return position + 2

    @_opcode(pickle.BININT)
    def _binint(self, position: int) -> int:
        self.stack.append(int.from_bytes(self.take(position, 4), "little", signed=True))
        return position + 4

    @_opcode(pickle.INT)
    def _int(self, position: int) -> int:
        text, position = self.line(position)
        self.stack.append({"00": False, "01": True}[text] if text in ("00", "01") else int(text))
        return position

    @_opcode(pickle.LONG)
    def _long(self, position: int) -> int:
        text, position = self.line(position)
        self.stack.append(int(text.removesuffix("L")))
        return position

    @_opcode(pickle.LONG1)
    def _long1(self, position: int) -> int:
        return self.long(position + 1, self.data[position])

    @_opcode(pickle.LONG4)
    def _long4(self, position: int) -> int:
        return self.long(position + 4, int.from_bytes(self.take(position, 4), "little"))

    def long(self, position: int, size: int) -> int:
        """Push an integer of so many bytes, in two's complement."""
        self.stack.append(int.from_bytes(self.take(position, size), "little", signed=True))
        return position + size

    @_opcode(pickle.FLOAT)
    def _float(self, position: int) -> int:
        text, position = self.line(position)
        self.stack.append(float(text))
        return position

    @_opcode(pickle.BINFLOAT)
    def _binfloat(self, position: int) -> int:
        self.stack.append(struct.unpack(">d", self.take(position, 8))[0])
        return position + 8

    # -- bytes and text

    def counted(self, position: int, width: int, make: Callable[[memoryview], Any]) -> int:
        """Push what ``make`` makes of bytes whose number comes first, in ``width`` bytes."""
        size = int.from_bytes(self.take(position, width), "little")
        position += width
        self.stack.append(make(self.take(position, size)))
        return position + size

    @_opcode(pickle.SHORT_BINBYTES)
    def _short_binbytes(self, position: int) -> int:
        return self.counted(position, 1, bytes)

    @_opcode(pickle.BINBYTES)
    def _binbytes(self, position: int) -> int:
        return self.counted(position, 4, bytes)

    @_opcode(pickle.BINBYTES8)
    def _binbytes8(self, position: int) -> int:
        return self.counted(position, 8, bytes)

    @_opcode(pickle.BYTEARRAY8)
    def _bytearray8(self, position: int) -> int:
        return self.counted(position, 8, bytearray)

    @_opcode(pickle.SHORT_BINUNICODE)
    def _short_binunicode(self, position: int) -> int:
        return self.counted(position, 1, _text)

    @_opcode(pickle.BINUNICODE)
    def _binunicode(self, position: int) -> int:
        return self.counted(position, 4, _text)

    @_opcode(pickle.BINUNICODE8)
    def _binunicode8(self, position: int) -> int:
        return self.counted(position, 8, _text)

    @_opcode(pickle.UNICODE)
    def _unicode(self, position: int) -> int:
        raw, position = self.raw_line(position)
        self.stack.append(str(raw, "raw-unicode-escape"))
        return position

    # -- containers

    @_opcode(pickle.EMPTY_TUPLE)
    def _empty_tuple(self, position: int) -> int:
        self.stack.append(())
        return position

    @_opcode(pickle.TUPLE1)
    def _tuple1(self, position: int) -> int:
        return self.tuple_of(1, position)

    @_opcode(pickle.TUPLE2)
    def _tuple2(self, position: int) -> int:
        return self.tuple_of(2, position)

    @_opcode(pickle.TUPLE3)
    def _tuple3(self, position: int) -> int:
        return self.tuple_of(3, position)

    def tuple_of(self, size: int, position: int) -> int:
        """Join the last items of the stack into a tuple."""
        if len(self.stack) < size:
            raise DecodeError("the pickle makes a tuple of more than it has")
        self.made += 1
        self.stack[-size:] = [tuple(self.stack[-size:])]
        return position

    @_opcode(pickle.TUPLE)
    def _tuple(self, position: int) -> int:
        return self.collect(tuple, position)

    @_opcode(pickle.LIST)
    def _list(self, position: int) -> int:
        return self.collect(list, position)

    @_opcode(pickle.DICT)
    def _dict(self, position: int) -> int:
        return self.collect(_pairs, position)

    @_opcode(pickle.FROZENSET)
    def _frozenset(self, position: int) -> int:
        return self.collect(_hashed, position)

    def collect(self, make: Callable[[list[Any]], Any], position: int) -> int:
        """Push what ``make`` makes of everything since the last MARK."""
        self.made += 1
        items = self.pop_mark()
        self.stack.append(make(items))
        return position

    @_opcode(pickle.EMPTY_LIST)
    def _empty_list(self, position: int) -> int:
        self.made += 1
        self.stack.append([])
        return position

    @_opcode(pickle.EMPTY_DICT)
    def _empty_dict(self, position: int) -> int:
        self.made += 1
        self.stack.append({})
        return position

    @_opcode(pickle.EMPTY_SET)
    def _empty_set(self, position: int) -> int:
        self.made += 1
        self.stack.append(set())
        return position

    @_opcode(pickle.APPEND)
    def _append(self, position: int) -> int:
        item = self.stack.pop()
        return self.extend([item], position)

    @_opcode(pickle.APPENDS)
    def _appends(self, position: int) -> int:
        return self.extend(self.pop_mark(), position)

    def extend(self, items: list[Any], position: int) -> int:
        """Append items to the list, or deque, on the stack."""
        target = self.stack[-1]
        if type(target) is list or type(target) is deque:
            target.extend(items)
        else:
            self.owned(target)
            for item in items:
                target.append(item)
        return position

    @_opcode(pickle.ADDITEMS)
    def _additems(self, position: int) -> int:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is not set:
            self.owned(target)
        check_keys(items)
        for item in items:
            target.add(item)
        return position

    @_opcode(pickle.SETITEM)
    def _setitem(self, position: int) -> int:
        value = self.stack.pop()
        return self.update([self.stack.pop(), value], position)

    @_opcode(pickle.SETITEMS)
    def _setitems(self, position: int) -> int:
        return self.update(self.pop_mark(), position)

    def update(self, items: list[Any], position: int) -> int:
        """Put keys and values, in turn, into the dict on the stack."""
        target = self.stack[-1]
        if type(target) not in _MAPPINGS:
            self.owned(target)
        for key, value in _paired(items):
            target[key] = value
        return position

    def owned(self, target: Any) -> None:
        """Refuse to change an object, unless a class that the user allowed made it."""
        if id(target) not in self.own:
            raise RefusedPickleError(f"the pickle changes an object of type {type(target).__name__} in place")

    # -- names and objects

    @_opcode(pickle.GLOBAL)
    def _global(self, position: int) -> int:
        module, position = self.line(position)
        name, position = self.line(position)
        self.push(self.find(module, name))
        return position

    @_opcode(pickle.STACK_GLOBAL)
    def _stack_global(self, position: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise DecodeError("the pickle names a class by something that is no text")
        self.push(self.find(module, name))
        return position

    @_opcode(pickle.REDUCE)
    def _reduce(self, position: int) -> int:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, getattr(function, "call", None), args)
        return position

    @_opcode(pickle.NEWOBJ)
    def _newobj(self, position: int) -> int:
        args, cls = self.stack.pop(), self.stack.pop()
        self.call(cls, getattr(cls, "new", None), args)
        return position

    @_opcode(pickle.NEWOBJ_EX)
    def _newobj_ex(self, position: int) -> int:
        kwargs, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if type(kwargs) is not dict:
            raise DecodeError("the pickle passes keywords that are no dict")
        self.call(cls, getattr(cls, "new", None), args, kwargs)
        return position

    @_opcode(pickle.BUILD)
    def _build(self, position: int) -> int:
        state = self.stack.pop()
        target = self.stack[-1]
        fresh = self.fresh.pop(id(target), None)
        if fresh is not None:
            fresh.build(target, state)
            self.charge(getattr(target, "nbytes", 0))
        else:
            self.owned(target)
            _set_state(target, state)
        return position

    @_opcode(pickle.BINPERSID)
    def _binpersid(self, position: int) -> int:
        if self.persistent is None:
            raise _refused_opcode(pickle.BINPERSID[0], position - 1)
        self.stack.append(self.persistent(self.stack.pop()))
        return position


def _text(view: memoryview) -> str:
    return str(view, "utf-8", "surrogatepass")  # as the stock machine: lone surrogates are text to Python


def _paired(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(items) % 2:
        raise DecodeError("the pickle sets a key without a value")
    check_keys(items[::2])
    return zip(items[::2], items[1::2], strict=True)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(_paired(items))


def _hashed(items: list[Any]) -> frozenset[Any]:
    check_keys(items)
    return frozenset(items)


def _set_state(target: Any, state: Any) -> None:
    """Give an object of a class that the user allowed its state, as :mod:`pickle` does."""
    set_state = getattr(target, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    if state:
        target.__dict__.update(state)
    if slots:
        for name, value in slots.items():
            setattr(target, name, value)


def _refused_opcode(code: int, position: int) -> DecodeError:
    known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    if code not in known:
        return DecodeError(f"no pickle: byte {code:#04x} at {position} is no opcode")
    return RefusedPickleError(
        f"the pickle uses {known[code]} at {position}, which the safe codec does not follow; "
        'if you trust where the data come from, read them with pickles="trusted"'
    )
