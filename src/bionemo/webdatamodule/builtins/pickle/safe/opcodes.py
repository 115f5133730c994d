"""The opcodes that :class:`~bionemo.webdatamodule.builtins.pickle.safe.unpickler.Machine` follows, as one table.

A handler gets the machine and the position behind its opcode, and returns the position of the next opcode.
:mod:`pickletools` describes every opcode; the names are those of :mod:`pickle`.
"""

from __future__ import annotations

import pickle
import re
import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from bionemo.webdatamodule.builtins.pickle.safe.limits import check_keys
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bionemo.webdatamodule.builtins.pickle.safe.unpickler import Machine

Handler: TypeAlias = "Callable[[Machine, int], int]"

STOPPED: Final = -1
_NEWLINE: Final = re.compile(rb"\n")

# A run of numbers and constants, as in a pickled list of token ids. The regular expression proves that nothing
# else is in it, so the stock machine, which is ten times faster, may turn it into a list.
_PLAIN: Final = re.compile(rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89]){4,1000}", re.DOTALL)


# -- handlers by the kind of operand


def _constant(value: Any) -> Handler:
    def handler(machine: Machine, position: int) -> int:
        machine.stack.append(value)
        return position

    return handler


def _empty(make: Callable[[], Any]) -> Handler:
    def handler(machine: Machine, position: int) -> int:
        machine.made += 1
        machine.stack.append(make())
        return position

    return handler


def _fixed(width: int, use: Callable[[Machine, memoryview], None]) -> Handler:
    """The operand has a fixed width."""

    def handler(machine: Machine, position: int) -> int:
        use(machine, machine.take(position, width))
        return position + width

    return handler


def _number(width: int, read: Callable[[memoryview], Any]) -> Handler:
    return _fixed(width, lambda machine, operand: machine.stack.append(read(operand)))


def _counted(width: int, read: Callable[[memoryview], Any]) -> Handler:
    """The operand begins with its length, ``width`` bytes of it, which has to lie inside the data."""

    def handler(machine: Machine, position: int) -> int:
        size = int.from_bytes(machine.take(position, width), "little")
        position += width
        machine.stack.append(read(machine.take(position, size)))
        return position + size

    return handler


def _line(use: Callable[[Machine, memoryview], None]) -> Handler:
    """The operand ends with a newline."""

    def handler(machine: Machine, position: int) -> int:
        operand, position = _read_line(machine, position)
        use(machine, operand)
        return position

    return handler


def _read_line(machine: Machine, position: int) -> tuple[memoryview, int]:
    newline = _NEWLINE.search(machine.data, position)
    if newline is None:
        raise DecodeError(f"the pickle ends in the middle of a line at {position}")
    return machine.data[position : newline.start()], newline.end()


def _plain(use: Callable[[Machine], None]) -> Handler:
    """There is no operand."""

    def handler(machine: Machine, position: int) -> int:
        use(machine)
        return position

    return handler


# -- what single opcodes do


def _unsigned(operand: memoryview) -> int:
    return int.from_bytes(operand, "little")


def _signed(operand: memoryview) -> int:
    return int.from_bytes(operand, "little", signed=True)


def _double(operand: memoryview) -> float:
    return struct.unpack(">d", operand)[0]  # type: ignore[no-any-return]


def _text(operand: memoryview) -> str:
    return str(operand, "utf-8", "surrogatepass")  # as the stock machine: lone surrogates are text to Python


def _ascii(operand: memoryview) -> str:
    return str(operand, "ascii")


def _int(machine: Machine, operand: memoryview) -> None:
    text = _ascii(operand)
    machine.stack.append(text == "01" if text in ("00", "01") else int(text))


def _proto(machine: Machine, position: int) -> int:
    protocol = machine.data[position]
    if protocol > pickle.HIGHEST_PROTOCOL:
        raise DecodeError(f"pickle protocol {protocol} is unknown to this Python")
    return position + 1


def _frame(machine: Machine, position: int) -> int:
    machine.take(position + 8, _unsigned(machine.take(position, 8)))
    return position + 8


def _stop(machine: Machine, position: int) -> int:
    machine.end = position
    return STOPPED


def _mark(machine: Machine, position: int) -> int:
    machine.marked.append(machine.stack)
    run = _PLAIN.match(machine.data, position)
    if run is None:
        machine.stack = []
        return position
    machine.stack = pickle.loads(b"(%bl." % run[0])
    return run.end()


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(machine: Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _tuple_of(size: int) -> Handler:
    def use(machine: Machine) -> None:
        if len(machine.stack) < size:
            raise DecodeError("the pickle makes a tuple of more than it has")
        machine.made += 1
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return _plain(use)


def _tuple(machine: Machine) -> None:
    machine.made += 1
    items = machine.pop_mark()
    machine.stack.append(tuple(items))


def _list(machine: Machine) -> None:
    machine.made += 1
    items = machine.pop_mark()
    machine.stack.append(items)


def _dict(machine: Machine) -> None:
    machine.made += 1
    items = machine.pop_mark()
    machine.stack.append({})
    machine.update(items)


def _frozenset(machine: Machine) -> None:
    machine.made += 1
    items = machine.pop_mark()
    check_keys(items)
    machine.stack.append(frozenset(items))


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    machine.extend([item])


def _setitem(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _global(machine: Machine, position: int) -> int:
    module, position = _read_line(machine, position)
    name, position = _read_line(machine, position)
    machine.push(machine.find(str(module, "utf-8"), str(name, "utf-8")))
    return position


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise DecodeError("the pickle names a class by something that is no text")
    machine.push(machine.find(module, name))


def _reduce(machine: Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, getattr(function, "call", None), args)


def _newobj(machine: Machine) -> None:
    args, cls = machine.stack.pop(), machine.stack.pop()
    machine.call(cls, getattr(cls, "new", None), args)


def _newobj_ex(machine: Machine) -> None:
    kwargs, args, cls = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    if type(kwargs) is not dict:
        raise DecodeError("the pickle passes keywords that are no dict")
    machine.call(cls, getattr(cls, "new", None), args, kwargs)


def _build(machine: Machine) -> None:
    state = machine.stack.pop()
    machine.build(machine.stack[-1], state)


def _binpersid(machine: Machine) -> None:
    if machine.persistent is None:
        raise RefusedPickleError("the pickle uses BINPERSID, which the safe codec does not follow")
    machine.stack.append(machine.persistent(machine.stack.pop()))


_TABLE: Final[dict[bytes, Handler]] = {
    # the stream
    pickle.PROTO: _proto,
    pickle.FRAME: _frame,
    pickle.STOP: _stop,
    # the stack
    pickle.MARK: _mark,
    pickle.POP: _plain(_pop),
    pickle.POP_MARK: _plain(_pop_mark),
    # the memo
    pickle.MEMOIZE: _plain(_memoize),
    pickle.BINPUT: _fixed(1, lambda machine, operand: _put(machine, operand[0])),
    pickle.LONG_BINPUT: _fixed(4, lambda machine, operand: _put(machine, _unsigned(operand))),
    pickle.PUT: _line(lambda machine, operand: _put(machine, int(_ascii(operand)))),
    pickle.BINGET: _fixed(1, lambda machine, operand: machine.recall(operand[0])),
    pickle.LONG_BINGET: _fixed(4, lambda machine, operand: machine.recall(_unsigned(operand))),
    pickle.GET: _line(lambda machine, operand: machine.recall(int(_ascii(operand)))),
    # constants and numbers
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.BININT1: _number(1, _unsigned),
    pickle.BININT2: _number(2, _unsigned),
    pickle.BININT: _number(4, _signed),
    pickle.LONG1: _counted(1, _signed),
    pickle.LONG4: _counted(4, _signed),
    pickle.BINFLOAT: _number(8, _double),
    pickle.INT: _line(_int),
    pickle.LONG: _line(lambda machine, operand: machine.stack.append(int(_ascii(operand).removesuffix("L")))),
    pickle.FLOAT: _line(lambda machine, operand: machine.stack.append(float(_ascii(operand)))),
    # bytes and text
    pickle.SHORT_BINBYTES: _counted(1, bytes),
    pickle.BINBYTES: _counted(4, bytes),
    pickle.BINBYTES8: _counted(8, bytes),
    pickle.BYTEARRAY8: _counted(8, bytearray),
    pickle.SHORT_BINUNICODE: _counted(1, _text),
    pickle.BINUNICODE: _counted(4, _text),
    pickle.BINUNICODE8: _counted(8, _text),
    pickle.UNICODE: _line(lambda machine, operand: machine.stack.append(str(operand, "raw-unicode-escape"))),
    # containers
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.EMPTY_LIST: _empty(list),
    pickle.EMPTY_DICT: _empty(dict),
    pickle.EMPTY_SET: _empty(set),
    pickle.TUPLE1: _tuple_of(1),
    pickle.TUPLE2: _tuple_of(2),
    pickle.TUPLE3: _tuple_of(3),
    pickle.TUPLE: _plain(_tuple),
    pickle.LIST: _plain(_list),
    pickle.DICT: _plain(_dict),
    pickle.FROZENSET: _plain(_frozenset),
    pickle.APPEND: _plain(_append),
    pickle.APPENDS: _plain(lambda machine: machine.extend(machine.pop_mark())),
    pickle.ADDITEMS: _plain(lambda machine: machine.add(machine.pop_mark())),
    pickle.SETITEM: _plain(_setitem),
    pickle.SETITEMS: _plain(lambda machine: machine.update(machine.pop_mark())),
    # names and objects
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _plain(_stack_global),
    pickle.REDUCE: _plain(_reduce),
    pickle.NEWOBJ: _plain(_newobj),
    pickle.NEWOBJ_EX: _plain(_newobj_ex),
    pickle.BUILD: _plain(_build),
    pickle.BINPERSID: _plain(_binpersid),
}

HANDLERS: Final[dict[int, Handler]] = {code[0]: handler for code, handler in _TABLE.items()}
"""The handler of each opcode, by its byte; an opcode that is not here is refused."""
