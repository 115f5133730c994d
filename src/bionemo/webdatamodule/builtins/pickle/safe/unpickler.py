"""A pickle machine that builds known types only and never runs what a pickle asks it to run.

Why not subclass :class:`pickle.Unpickler` and override ``find_class``?
Because the name of a class is only one of the ways in.
The stock machine also calls ``__setstate__`` and ``setattr`` on whatever lies on its stack, takes classes from
the process-wide extension registry, reserves memory for lengths and memo numbers that a pickle merely claims,
and hashes tuples that are nested deeply enough to overflow the C stack.
Here every opcode is a few lines of Python (:mod:`.opcodes`), and these rules hold:

1. An opcode that is not in the table is refused: INST, OBJ, EXT1/2/4, persistent ids, out-of-band buffers, the
   string opcodes of Python 2.
2. A name becomes a :class:`.Global`, an inert token, never the thing itself.
   Only REDUCE and NEWOBJ use a token, and what they call is our own checking function.
3. BUILD works on objects that announced it (:class:`.Fresh`), once each.
   Otherwise a second state could pull the memory away below an array that is in use.
4. A length must lie inside the data before anything is made of it, and the memo is a dict, so no number in the
   stream reserves memory. What constructors make is bounded by a multiple of the stream's length.
5. Containers nest at most ``MAX_DEPTH`` deep and do not contain themselves. Keys are measured before they are hashed.
"""

from __future__ import annotations

import pickletools
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.limits import (
    MAPPINGS,
    MAX_DEPTH,
    SEQUENCES,
    Fresh,
    Global,
    Owned,
    check_keys,
    weigh,
)
from bionemo.webdatamodule.builtins.pickle.safe.opcodes import HANDLERS
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

EXPANSION: Final = 64
"""What constructors may make in all, in bytes for each byte of the pickle."""

_HEADROOM: Final = 1 << 16  # so that a tiny pickle may hold a tensor expanded from one number
_COST: Final[dict[Any, int]] = {bytes: 1, bytearray: 1, str: 4, list: 64, tuple: 64, dict: 128}  # bytes an item


class Machine:
    """Reads pickles from a buffer, one after the other.

    Args:
        data: The buffer, of bytes.
        find: ``(module, name)`` to a ``Global`` or a harmless constant; raises for anything else.
        persistent: What to make of a persistent id; without it they are refused.
        beside: Bytes that belong to the pickle and lie elsewhere in its file; constructors may make more for them.
    """

    def __init__(
        self,
        data: memoryview,
        find: Callable[[str, str], Any],
        persistent: Callable[[Any], Any] | None = None,
        beside: int = 0,
    ) -> None:
        self.data = data
        self.find = find
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below the MARKs
        self.memo: dict[int, Any] = {}
        self.made = 0  # containers and objects: an upper bound of the depth
        self.end = 0  # behind STOP
        self._fresh: dict[int, Fresh] = {}  # by id; holds the object, so that the id stays its own
        self._own: dict[int, Any] = {}  # objects made by classes that the user allowed, by id
        self._size = len(data) + beside
        self._budget = EXPANSION * self._size + _HEADROOM
        self._loose = 0  # tokens that nothing has used
        self._shared = False  # a container came back from the memo

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
        except Exception as error:  # what a constructor, or a class of the user's, says about its arguments
            raise DecodeError(f"the pickle cannot be decoded: {type(error).__name__}: {error}") from error

    def _run(self, start: int) -> tuple[Any, int]:
        self.stack, self.marked, self.memo = [], [], {}
        data, handlers, position = self.data, HANDLERS, start
        while position >= 0:
            handler = handlers.get(data[position])
            if handler is None:
                raise refused_opcode(data[position], position)
            position = handler(self, position + 1)
        if len(self.stack) != 1 or self.marked:
            raise DecodeError("the pickle leaves more than its value behind")
        if self._loose:
            raise RefusedPickleError(
                "the pickle holds a class or a function as a value, which the safe codec does not build; "
                'store its name instead, or read trusted data with pickles="trusted"'
            )
        (value,) = self.stack
        if self._shared or self.made > MAX_DEPTH:
            weigh(value, EXPANSION * len(data) + _HEADROOM)
        return value, self.end

    # -- what opcodes are made of

    def take(self, position: int, size: int) -> memoryview:
        """Return so many bytes, all of which must be there."""
        if position + size > len(self.data):
            raise DecodeError(f"the pickle ends in the middle: {size} bytes wanted at {position}")
        return self.data[position : position + size]

    def push(self, value: Any) -> None:
        """Push a value that may be a token."""
        if type(value) is Global:
            self._loose += 1
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Return what was pushed since the last MARK."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def recall(self, number: int) -> None:
        """Push what the memo holds under a number."""
        if number not in self.memo:
            raise DecodeError(f"the pickle recalls number {number}, which it never stored")
        value = self.memo[number]
        kind = type(value)
        if kind in SEQUENCES or kind in MAPPINGS or kind is np.ndarray:
            self._shared = True
        self.push(value)

    def _charge(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise RefusedPickleError(
                f"the pickle of {self._size} bytes asks for more than {EXPANSION} times its size; "
                "an expanded tensor has to be saved as contiguous()"
            )

    # -- objects

    def call(
        self, function: Any, maker: Callable[..., Any] | None, args: Any, kwargs: dict[str, Any] | None = None
    ) -> None:
        """Call what a token stands for and push what it makes."""
        if type(function) is not Global or maker is None:
            name = function.name if type(function) is Global else f"an object of type {type(function).__name__}"
            raise RefusedPickleError(f"the pickle calls {name}, which cannot be called that way")
        if type(args) is not tuple:
            raise DecodeError("the pickle calls something with arguments that are no tuple")
        self._loose -= 1
        for arg in args:
            if type(arg) is Global:
                self._loose -= 1
            elif type(arg) in _COST:
                self._charge(len(arg) * _COST[type(arg)])
        made: Any
        if function.allowed:
            made = Owned(maker(*(arg.real if type(arg) is Global else arg for arg in args), **(kwargs or {})))
        elif kwargs:
            raise RefusedPickleError(f"the pickle calls {function.name} with keywords")
        else:
            made = maker(*args)
        self.made += 1
        if type(made) is Owned:
            made = made.value
            self._own[id(made)] = made
        else:
            if type(made) is Fresh:
                self._fresh[id(made.value)] = made
                made = made.value
            size = getattr(made, "nbytes", 0)
            if type(size) is int:
                self._charge(size)
        self.push(made)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, if it waits for one."""
        fresh = self._fresh.pop(id(target), None)
        if fresh is not None:
            fresh.build(target, state)
            self._charge(getattr(target, "nbytes", 0))
        else:
            self.check_own(target)
            _set_state(target, state)

    def check_own(self, target: Any) -> None:
        """Refuse to change an object, unless a class that the user allowed made it."""
        if id(target) not in self._own:
            raise RefusedPickleError(f"the pickle changes an object of type {type(target).__name__} in place")

    # -- containers

    def extend(self, items: list[Any]) -> None:
        """Append items to the list or deque on top of the stack."""
        target = self.stack[-1]
        if type(target) in (list, deque):
            target.extend(items)
            return
        self.check_own(target)
        for item in items:
            target.append(item)

    def add(self, items: list[Any]) -> None:
        """Add items to the set on top of the stack."""
        target = self.stack[-1]
        if type(target) is not set:
            self.check_own(target)
        check_keys(items)
        for item in items:
            target.add(item)

    def update(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) not in MAPPINGS:
            self.check_own(target)
        if len(items) % 2:
            raise DecodeError("the pickle sets a key without a value")
        check_keys(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value


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


def refused_opcode(code: int, position: int) -> DecodeError:
    """Return the error for a byte that is no opcode, or none that is followed."""
    known = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    if code not in known:
        return DecodeError(f"no pickle: byte {code:#04x} at {position} is no opcode")
    return RefusedPickleError(
        f"the pickle uses {known[code]} at {position}, which the safe codec does not follow; "
        'if you trust where the data come from, read them with pickles="trusted"'
    )
