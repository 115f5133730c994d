"""The state of an unpickler that builds known types only, and what opcodes may do to it.

Why not subclass :class:`pickle.Unpickler` and override ``find_class``?
Because the name of a class is only one of the ways in.
The stock unpickler also calls ``__setstate__`` and ``setattr`` on whatever lies on its stack, takes classes from
the process-wide extension registry, reserves memory for lengths and memo numbers that a pickle merely claims,
and hashes tuples that are nested deeply enough to overflow the C stack.
Here every opcode is a few lines of Python (:mod:`.opcodes`), and these rules hold:

1. An opcode that is not in the table is refused: INST, OBJ, EXT1/2/4, persistent ids, out-of-band buffers.
2. A name becomes a :class:`.Global`, an inert token, never the thing itself, unless the user allowed it.
   Only REDUCE and NEWOBJ use a token, and what they call is our own checking function.
3. BUILD works on objects that announced it (:class:`.Fresh`), once each.
   Otherwise a second state could pull the memory away below an array that is in use.
4. A length must lie inside the data before anything is made of it, and no number in the stream reserves memory.
   What a few bytes can multiply is charged to a :class:`.Budget` before it is done.
5. Containers nest at most ``MAX_DEPTH`` deep and do not contain themselves. Keys are measured before they are hashed.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.budget import MAPPINGS, Budget, is_container
from bionemo.webdatamodule.builtins.pickle.safe.tokens import TRUST, Fresh, Global, Owned, python3_name, real
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable


LARGE: Final = 1 << 20
"""Bytes from which on a copy costs more than looking whether it is needed."""


class Unpickler:
    """Reads pickles from a buffer, one after the other, with :func:`.opcodes.run`.

    Args:
        data: The buffer, of bytes.
        find: ``(module, name)`` to a ``Global`` or a harmless constant; raises for anything else.
        persistent: What to make of a persistent id; without it they are refused.
        budget: What the pickles may ask for; by default what their bytes allow.
        lends: Whether constructors may get views of large bytes, see :meth:`lost`.
    """

    def __init__(
        self,
        data: memoryview,
        find: Callable[[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
        budget: Budget | None = None,
        lends: bool = False,
    ) -> None:
        self._lends = lends
        self._lent: list[weakref.ref[memoryview]] = []
        self.data = data
        self.find = find
        self.persistent = persistent
        self.budget = budget or Budget(len(data))
        self.end = 0  # behind STOP
        self.clear()

    def clear(self) -> None:
        """Forget the last pickle."""
        self.protocol = 0  # until it says another
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below the MARKs
        self.memo: list[Any] = []
        self.memo_beyond: dict[int, Any] = {}  # where numbers are left out
        self.made = 0  # containers and objects: an upper bound of the depth
        self.shared = False  # a container came back from the memo
        self._unused: dict[Global, int] = {}  # how often each token was pushed and not used
        self._allowed: dict[int, Global] = {}  # tokens of what the user allowed, by the id of the real thing
        self._fresh: dict[int, Fresh] = {}  # by id; holds the object, so that the id stays its own
        self._own: dict[int, Any] = {}  # objects made by classes that the user allowed, by id

    def take(self, position: int, size: int) -> memoryview:
        """Return a number of bytes, all of which must exist."""
        if position + size > len(self.data):
            raise DecodeError(f"the pickle ends in the middle: {size} bytes wanted at {position}")
        return self.data[position : position + size]

    def data_of(self, view: memoryview) -> bytes | memoryview:
        """Return bytes of the pickle: a copy, or where they are many and may be lent the view."""
        if not self._lends or len(view) < LARGE:
            return bytes(view)
        self._lent.append(weakref.ref(view))
        return view

    def lost(self) -> bool:
        """Return whether a view that was lent has not come back: the value holds it instead of bytes."""
        self.clear()
        return any(view() is not None for view in self._lent)

    # -- the stack and the memo

    def push_global(self, module: str, name: str) -> None:
        """Push what a name stands for."""
        if self.protocol < 3:
            module, name = python3_name(module, name)
        found = self.find(module, name)
        if type(found) is not Global:
            self.stack.append(found)
        elif found.allowed:
            self._allowed[id(found.real)] = found
            self.stack.append(found.real)
        else:
            self._push_token(found)

    def _push_token(self, token: Global) -> None:
        self._unused[token] = self._unused.get(token, 0) + 1
        self.stack.append(token)

    def unused(self) -> list[str]:
        """Return the names of the tokens that a value still holds."""
        return sorted({token.name for token, count in self._unused.items() if count > 0})

    def pop_mark(self) -> list[Any]:
        """Return what was pushed since the last MARK."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def memoize(self, number: int) -> None:
        """Keep the top of the stack under a number."""
        if number == len(self.memo):
            self.memo.append(self.stack[-1])
        elif number < len(self.memo):
            self.memo[number] = self.stack[-1]
        else:
            self.memo_beyond[number] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Push what the memo holds under a number."""
        if number in self.memo_beyond:
            value = self.memo_beyond[number]
        elif number < len(self.memo):
            value = self.memo[number]
        else:
            raise DecodeError(f"the pickle recalls number {number}, which it never stored")
        if type(value) is Global:
            self._push_token(value)
        else:
            self.shared = self.shared or is_container(value) or type(value) is np.ndarray  # it may hold objects later
            self.stack.append(value)

    # -- objects

    def call(self, function: Any, args: Any, kwargs: dict[str, Any] | None = None, *, new: bool = False) -> None:
        """Call what a token stands for, or make an object of it if it is ``new``, and push what that gives."""
        token = function if type(function) is Global else self._allowed.get(id(function))
        maker = None if token is None else token.new if new else token.call
        if token is None or maker is None:
            name = f"an object of type {type(function).__name__}" if token is None else token.name
            raise RefusedPickleError(f"the pickle calls {name}, which the safe codec does not do; {TRUST}")
        if type(args) is not tuple:
            raise DecodeError("the pickle calls something with arguments that are not a tuple")
        for used in (function, *args):
            if type(used) is Global:
                self._unused[used] -= 1
        self.budget.charge_arguments(args)
        made: Any
        if token.allowed:
            made = Owned(maker(*map(real, args), **(kwargs or {})))
        elif kwargs:
            raise RefusedPickleError(f"the pickle calls {token.name} with keywords")
        elif token.charged:
            made = maker(self.budget, *args)
        else:
            made = maker(*args)
        self.made += 1
        if type(made) is Global:
            self._push_token(made)
            return
        if type(made) is Owned:
            made = made.value
            self._own[id(made)] = made
        else:
            if type(made) is Fresh:
                self._fresh[id(made.value)] = made
                made = made.value
            self.budget.charge_object(made)
        self.stack.append(made)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, if it waits for one."""
        fresh = self._fresh.pop(id(target), None)
        if fresh is not None:
            self.budget.spend(fresh.build(target, state) or 0)
            self.budget.charge_object(target)
        else:
            self._check_own(target)
            set_state(target, state)

    def _check_own(self, target: Any) -> None:
        """Refuse to change an object, unless a class that the user allowed made it."""
        if id(target) not in self._own:
            raise RefusedPickleError(f"the pickle changes an object of type {type(target).__name__} in place")

    # -- containers

    def empty(self, kind: Callable[[], Any]) -> None:
        """Push an empty container."""
        made = kind()
        self.made += 1
        self.budget.take_container(type(made))
        self.stack.append(made)

    def extend(self, items: list[Any]) -> None:
        """Append items to the list or deque on top of the stack."""
        target = self.stack[-1]
        if type(target) in (list, deque):
            target.extend(items)
            return
        self._check_own(target)
        for item in items:
            target.append(item)

    def add(self, items: list[Any]) -> None:
        """Add items to the set on top of the stack."""
        target = self.stack[-1]
        if type(target) is not set:
            self._check_own(target)
        self.budget.charge_keys(items, target)
        for item in items:
            target.add(item)

    def update(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) not in MAPPINGS:
            self._check_own(target)
        if len(items) % 2:
            raise DecodeError("the pickle sets a key without a value")
        self.budget.charge_keys(items[::2], target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value


def set_state(target: Any, state: Any) -> None:
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
