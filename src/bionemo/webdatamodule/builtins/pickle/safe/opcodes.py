"""The opcodes that the unpickler follows, as one table, and the loop that follows them.

A handler gets the unpickler and the position behind its opcode, and returns the position of the next opcode.
:mod:`pickletools` describes every opcode; the names are those of :mod:`pickle`.
"""

from __future__ import annotations

import codecs
import pickle
import pickletools
import re
import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from bionemo.webdatamodule.builtins.pickle.safe.budget import EXPANSION, MAX_DEPTH, MAX_SHARED, weigh
from bionemo.webdatamodule.builtins.pickle.safe.refusal import held, refusal
from bionemo.webdatamodule.builtins.pickle.safe.tokens import TRUST, UnknownNameError
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bionemo.webdatamodule.builtins.pickle.safe.unpickler import Unpickler

Handler: TypeAlias = "Callable[[Unpickler, int], int]"

STOPPED: Final = -1
_ELSEWHERE: Final = (
    "the pickle uses {}, which means an object that is not in it; if it is a pickle, write it again with pickle.dump"
)
_NEWLINE: Final = re.compile(rb"\n")

# A run of numbers and constants, as in a pickled list of token ids. The regular expression proves that nothing
# else is in it, so the stock unpickler, which is ten times faster, may turn it into a list.
_PLAIN: Final = re.compile(rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89]){4,1000}", re.DOTALL)


# -- handlers by the kind of operand


def _constant(value: Any) -> Handler:
    def handler(unpickler: Unpickler, position: int) -> int:
        unpickler.stack.append(value)
        return position

    return handler


def _empty(make: Callable[[], Any]) -> Handler:
    return _plain(lambda unpickler: unpickler.empty(make))


def _fixed(width: int, use: Callable[[Unpickler, memoryview], None]) -> Handler:
    """The operand has a fixed width."""

    def handler(unpickler: Unpickler, position: int) -> int:
        use(unpickler, unpickler.take(position, width))
        return position + width

    return handler


def _number(width: int, read: Callable[[memoryview], Any]) -> Handler:
    return _fixed(width, lambda unpickler, operand: unpickler.stack.append(read(operand)))


def _counted(width: int, read: Callable[[memoryview], Any]) -> Handler:
    """The operand begins with its length, ``width`` bytes of it, which has to lie inside the data."""

    def handler(unpickler: Unpickler, position: int) -> int:
        size = int.from_bytes(unpickler.take(position, width), "little")
        position += width
        unpickler.stack.append(read(unpickler.take(position, size)))
        return position + size

    return handler


def _lent(width: int) -> Handler:
    """The operand is bytes, of which a view is enough where a constructor copies them."""

    def handler(unpickler: Unpickler, position: int) -> int:
        size = int.from_bytes(unpickler.take(position, width), "little")
        position += width
        unpickler.stack.append(unpickler.data_of(unpickler.take(position, size)))
        return position + size

    return handler


def _line(use: Callable[[Unpickler, memoryview], None]) -> Handler:
    """The operand ends with a newline."""

    def handler(unpickler: Unpickler, position: int) -> int:
        operand, position = _read_line(unpickler, position)
        use(unpickler, operand)
        return position

    return handler


def _read_line(unpickler: Unpickler, position: int) -> tuple[memoryview, int]:
    newline = _NEWLINE.search(unpickler.data, position)
    if newline is None:
        raise DecodeError(f"the pickle ends in the middle of a line at {position}")
    return unpickler.data[position : newline.start()], newline.end()


def _plain(use: Callable[[Unpickler], None]) -> Handler:
    """There is no operand."""

    def handler(unpickler: Unpickler, position: int) -> int:
        use(unpickler)
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
    return str(operand, "utf-8", "surrogatepass")  # as the stock unpickler: lone surrogates are text to Python


def _old_text(operand: memoryview) -> str:
    # Python 2 had one type for bytes and text; read as Latin-1, every byte of it is there
    return str(operand, "latin-1")


def _old_literal(unpickler: Unpickler, operand: memoryview) -> None:
    quoted = bytes(operand)
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b"'", b'"'):
        raise DecodeError("the pickle has a string without quotes")
    data, _ = codecs.escape_decode(quoted[1:-1])  # as pickle itself does
    unpickler.stack.append(data.decode("latin-1"))


def _ascii(operand: memoryview) -> str:
    return str(operand, "ascii")


def _int(unpickler: Unpickler, operand: memoryview) -> None:
    text = _ascii(operand)
    unpickler.stack.append(text == "01" if text in ("00", "01") else int(text))


def _proto(unpickler: Unpickler, position: int) -> int:
    protocol = unpickler.data[position]
    if protocol > pickle.HIGHEST_PROTOCOL:
        raise DecodeError(f"pickle protocol {protocol} is unknown to this Python")
    unpickler.protocol = protocol
    return position + 1


def _frame(unpickler: Unpickler, position: int) -> int:
    unpickler.take(position + 8, _unsigned(unpickler.take(position, 8)))
    return position + 8


def _stop(unpickler: Unpickler, position: int) -> int:
    unpickler.end = position
    return STOPPED


def _mark(unpickler: Unpickler, position: int) -> int:
    unpickler.marked.append(unpickler.stack)
    run = _PLAIN.match(unpickler.data, position)
    if run is None:
        unpickler.stack = []
        return position
    unpickler.stack = pickle.loads(b"(%bl." % run[0])
    return run.end()


def _pop(unpickler: Unpickler) -> None:
    if unpickler.stack:
        unpickler.stack.pop()
    else:
        unpickler.pop_mark()


def _pop_mark(unpickler: Unpickler) -> None:
    unpickler.pop_mark()


def _memoize(unpickler: Unpickler) -> None:
    unpickler.memoize(len(unpickler.memo) + len(unpickler.memo_beyond))


def _tuple_of(size: int) -> Handler:
    def use(unpickler: Unpickler) -> None:
        if len(unpickler.stack) < size:
            raise DecodeError("the pickle makes a tuple of more than it has")
        unpickler.made += 1
        unpickler.stack[-size:] = [tuple(unpickler.stack[-size:])]

    return _plain(use)


def _tuple(unpickler: Unpickler) -> None:
    unpickler.made += 1
    items = unpickler.pop_mark()
    unpickler.stack.append(tuple(items))


def _list(unpickler: Unpickler) -> None:
    unpickler.made += 1
    items = unpickler.pop_mark()
    unpickler.stack.append(items)


def _dict(unpickler: Unpickler) -> None:
    items = unpickler.pop_mark()
    unpickler.empty(dict)
    unpickler.update(items)


def _frozenset(unpickler: Unpickler) -> None:
    items = unpickler.pop_mark()
    unpickler.made += 1
    unpickler.budget.take_container(frozenset)
    unpickler.budget.charge_keys(items)
    unpickler.stack.append(frozenset(items))


def _append(unpickler: Unpickler) -> None:
    item = unpickler.stack.pop()
    unpickler.extend([item])


def _setitem(unpickler: Unpickler) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    unpickler.update([key, value])


def _global(unpickler: Unpickler, position: int) -> int:
    module, position = _read_line(unpickler, position)
    name, position = _read_line(unpickler, position)
    unpickler.push_global(str(module, "utf-8"), str(name, "utf-8"))
    return position


def _stack_global(unpickler: Unpickler) -> None:
    name, module = unpickler.stack.pop(), unpickler.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise DecodeError("the pickle names a class by something that is not text")
    unpickler.push_global(module, name)


def _reduce(unpickler: Unpickler) -> None:
    args, function = unpickler.stack.pop(), unpickler.stack.pop()
    unpickler.call(function, args)


def _newobj(unpickler: Unpickler) -> None:
    args, cls = unpickler.stack.pop(), unpickler.stack.pop()
    unpickler.call(cls, args, new=True)


def _newobj_ex(unpickler: Unpickler) -> None:
    kwargs, args, cls = unpickler.stack.pop(), unpickler.stack.pop(), unpickler.stack.pop()
    if type(kwargs) is not dict:
        raise DecodeError("the pickle passes keywords that are not a dict")
    unpickler.call(cls, args, kwargs, new=True)


def _build(unpickler: Unpickler) -> None:
    state = unpickler.stack.pop()
    unpickler.build(unpickler.stack[-1], state)


def _binpersid(unpickler: Unpickler) -> None:
    if unpickler.persistent is None:
        raise RefusedPickleError(_ELSEWHERE.format("BINPERSID"))
    unpickler.stack.append(unpickler.persistent(unpickler.stack.pop()))


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
    pickle.BINPUT: _fixed(1, lambda unpickler, operand: unpickler.memoize(operand[0])),
    pickle.LONG_BINPUT: _fixed(4, lambda unpickler, operand: unpickler.memoize(_unsigned(operand))),
    pickle.PUT: _line(lambda unpickler, operand: unpickler.memoize(int(_ascii(operand)))),
    pickle.BINGET: _fixed(1, lambda unpickler, operand: unpickler.recall(operand[0])),
    pickle.LONG_BINGET: _fixed(4, lambda unpickler, operand: unpickler.recall(_unsigned(operand))),
    pickle.GET: _line(lambda unpickler, operand: unpickler.recall(int(_ascii(operand)))),
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
    pickle.LONG: _line(lambda unpickler, operand: unpickler.stack.append(int(_ascii(operand).removesuffix("L")))),
    pickle.FLOAT: _line(lambda unpickler, operand: unpickler.stack.append(float(_ascii(operand)))),
    # bytes and text
    pickle.STRING: _line(_old_literal),
    pickle.BINSTRING: _counted(4, _old_text),
    pickle.SHORT_BINSTRING: _counted(1, _old_text),
    pickle.SHORT_BINBYTES: _counted(1, bytes),
    pickle.BINBYTES: _lent(4),
    pickle.BINBYTES8: _lent(8),
    pickle.BYTEARRAY8: _counted(8, bytearray),
    pickle.SHORT_BINUNICODE: _counted(1, _text),
    pickle.BINUNICODE: _counted(4, _text),
    pickle.BINUNICODE8: _counted(8, _text),
    pickle.UNICODE: _line(lambda unpickler, operand: unpickler.stack.append(str(operand, "raw-unicode-escape"))),
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
    pickle.APPENDS: _plain(lambda unpickler: unpickler.extend(unpickler.pop_mark())),
    pickle.ADDITEMS: _plain(lambda unpickler: unpickler.add(unpickler.pop_mark())),
    pickle.SETITEM: _plain(_setitem),
    pickle.SETITEMS: _plain(lambda unpickler: unpickler.update(unpickler.pop_mark())),
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


def run(unpickler: Unpickler, start: int = 0) -> tuple[Any, int]:
    """Execute the pickle that begins at ``start``.

    Returns:
        The value and the position behind its STOP.

    Raises:
        RefusedPickleError: The pickle asks for something that is not allowed.
        DecodeError: It is no well-formed pickle.
    """
    try:
        return _run(unpickler, start)
    except UnknownNameError as error:
        raise refusal(unpickler.data[start:], unpickler.find, str(error)) from None
    except (DecodeError, MemoryError, ImportError):
        raise
    except (IndexError, struct.error) as error:
        raise DecodeError("the pickle ends in the middle or takes from an empty stack") from error
    except RecursionError as error:
        raise DecodeError(f"the pickle is nested deeper than {MAX_DEPTH} levels") from error
    except Exception as error:  # what a constructor, or a class of the user's, says about its arguments
        raise DecodeError(f"the pickle cannot be decoded: {type(error).__name__}: {error}") from error


def _run(unpickler: Unpickler, start: int) -> tuple[Any, int]:
    unpickler.clear()
    data, handlers, position = unpickler.data, HANDLERS, start
    while position >= 0:
        handler = handlers.get(data[position])
        if handler is None:
            raise _refused_opcode(data[position], position)
        position = handler(unpickler, position + 1)
    if len(unpickler.stack) != 1 or unpickler.marked:
        raise DecodeError("the pickle leaves more than its value behind")
    unused = unpickler.unused()
    if unused:
        raise held(unused)
    (value,) = unpickler.stack
    if unpickler.shared or unpickler.made > MAX_DEPTH:
        weigh(value, EXPANSION * len(data) + MAX_SHARED, shared=unpickler.shared)
    return value, unpickler.end


def _refused_opcode(code: int, position: int) -> DecodeError:
    """Return the error for a byte that is not an opcode, or none that is followed."""
    known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    if code not in known:
        return DecodeError(f"no pickle: byte {code:#04x} at {position} is not an opcode")
    if known[code] in ("PERSID", "NEXT_BUFFER", "READONLY_BUFFER"):
        return RefusedPickleError(_ELSEWHERE.format(known[code]))
    return RefusedPickleError(
        f"the pickle uses {known[code]} at {position}, which the safe codec does not follow; {TRUST}"
    )
