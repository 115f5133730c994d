"""The limits of a value: nesting, and the memory and work that a pickle may ask for.

Most opcodes take time and memory in proportion to their bytes, and need no account.
Charged is what a few bytes can multiply: containers and objects, arguments that come from the memo again and again,
and keys, because hashing a key takes as long as the key is large, and inserting it as long as there are keys of
equal hash.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.safe.tokens import MAX_INTEGER, expect
from bionemo.webdatamodule.errors import RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH: Final = 200
"""Nesting of containers in a value; deep enough for data, shallow enough for recursion in Python and C."""

MAX_KEY: Final = 10_000
"""Parts of one tuple or frozenset that serves as a key."""

EXPANSION: Final = 64
"""Bytes that a value may take for each byte of its pickle."""

HEADROOM: Final = 24 << 20
"""Bytes that the value of any pickle may take."""

WORK: Final = 32
"""Steps, of about 10 ns, for each byte of a pickle, beside those of its opcodes."""

WORK_HEADROOM: Final = 20_000_000
"""Steps for any pickle."""

MAX_SHARED: Final = 1 << 16
"""Parts that a value may have, shared parts as often as they appear; ``EXPANSION`` more for each byte."""

MAPPINGS: Final = frozenset((dict, OrderedDict, defaultdict, Counter))
SEQUENCES: Final = frozenset((list, tuple, set, frozenset, deque))

_CALL: Final = 320  # bytes of an object, with what is noted of it
_OBJECTS: Final[dict[Any, int]] = {dict: 64, list: 56, set: 216, frozenset: 216, deque: 640}
_ITEMS: Final[dict[Any, int]] = {  # bytes of an item
    bytes: 1,
    bytearray: 1,
    memoryview: 1,
    str: 4,
    list: 64,
    tuple: 64,
    dict: 128,
}
_BUFFERS: Final = frozenset((bytes, bytearray, memoryview))
_PRIME: Final = (1 << 61) - 1  # integers between it and its negative have hashes of their own
_RANDOM: Final = frozenset((str, bytes))  # types whose hash a file cannot predict
_CHEAP: Final = frozenset((float, bool, type(None)))
_COMPARED: Final = 500_000  # steps that comparing a Decimal with an integer may take
_NOTED: Final = 8  # parts of a key from which on its cost is kept


class Budget:
    """What a pickle may still ask for.

    Args:
        size: Bytes of the pickle, and of what belongs to it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = EXPANSION * size + HEADROOM
        self._work = WORK * size + WORK_HEADROOM
        self._costs: dict[int, tuple[Any, int]] = {}  # of large keys, which are held so that their ids stay theirs
        self._hashes: dict[int, dict[int, int]] = {}  # by the id of a container, what comparing equal hashes costs

    def take(self, nbytes: int) -> None:
        """Charge memory."""
        self._memory -= nbytes
        if self._memory < 0:
            raise RefusedPickleError(
                f"the pickle of {self.size} bytes asks for more than {EXPANSION} times its size; "
                'save expanded tensors as contiguous(), or read trusted data with pickles="trusted"'
            )

    def spend(self, steps: int) -> None:
        """Charge work."""
        self._work -= steps
        if self._work < 0:
            raise RefusedPickleError(
                f"the pickle of {self.size} bytes asks for more work than any data of its size; "
                'store large keys in lists of pairs, or read trusted data with pickles="trusted"'
            )

    def take_container(self, kind: type) -> None:
        """Charge an empty container."""
        self.take(_OBJECTS[kind])

    def charge_arguments(self, args: tuple[Any, ...]) -> None:
        """Charge what is called, before it is."""
        self.take(_CALL)
        steps = 20
        for arg in args:
            kind = type(arg)
            if kind is int:
                bits = arg.bit_length()
                expect(bits <= MAX_INTEGER, f"an integer of {bits} bits as an argument")
                steps += (bits >> 9) ** 2
            elif kind in _ITEMS:
                self.take(len(arg) * _ITEMS[kind])
                steps += len(arg) * 4 if kind is str else len(arg) >> 4 if kind in _BUFFERS else len(arg)
        self.spend(steps)

    def charge_object(self, made: Any) -> None:
        """Charge what was made."""
        nbytes = getattr(made, "nbytes", None)
        if type(nbytes) is int:
            self.take(nbytes)
        elif type(made) in _OBJECTS:
            self.take(_OBJECTS[type(made)])

    def charge_keys(self, keys: Iterable[Any], target: Any = None) -> None:
        """Charge hashing some keys and comparing them with those of equal hash, before either is done.

        Args:
            keys: The keys.
            target: The container that they are added to, if more follow later.
        """
        seen: dict[int, int] | None = None
        steps = 0
        for key in keys:
            kind = type(key)
            if kind in _RANDOM:
                steps += len(key) >> 6
            elif kind is not int or not -_PRIME < key < _PRIME:
                cost = self._key_cost(key)
                if seen is None:
                    seen = {} if target is None else self._hashes.setdefault(id(target), {})
                number = hash(key)
                equal = seen.get(number, 0)
                seen[number] = equal + (_COMPARED if kind is Decimal else 2 + cost)
                self.spend(cost + equal)
        self.spend(steps)

    def _key_cost(self, key: Any) -> int:
        """Return the steps that hashing a key takes, after charging those of finding that out."""
        if type(key) not in (tuple, frozenset):
            return _leaf_cost(key)
        known = self._costs.get(id(key))
        if known is not None:
            return known[1]
        parts = weigh(key, MAX_KEY)
        self.spend((20 if type(key) is tuple else 40) * parts)  # sets are sorted when they are written
        cost = parts + _nested_cost(key)
        if parts > _NOTED:
            self._costs[id(key)] = key, cost
        return cost


def _nested_cost(key: Any) -> int:
    return sum(_nested_cost(part) if type(part) in (tuple, frozenset) else _leaf_cost(part) for part in key)


def _leaf_cost(key: Any) -> int:
    kind = type(key)
    if kind in _CHEAP:
        return 1
    if kind is int:
        bits = key.bit_length()
        expect(bits <= MAX_INTEGER, f"an integer of {bits} bits as a key")
        return int(bits >> 6)
    if kind in _RANDOM:
        return len(key) >> 6
    if isinstance(key, PurePath):
        return len(str(key))
    if isinstance(key, np.generic):
        return 20 + key.nbytes
    return 100


def weigh(value: Any, limit: int, *, shared: bool = True) -> int:
    """Count the parts of a value, shared parts as often as they appear.

    Args:
        value: The value.
        limit: How many there may be.
        shared: Whether containers may appear more than once.

    Raises:
        DecodeError: It is nested deeper than :data:`MAX_DEPTH`, contains itself, or has more parts.
    """
    known: dict[int, int] = {}  # 0 while a container is being counted

    def count(item: Any, depth: int) -> int:
        kind = type(item)
        if kind in SEQUENCES:
            parts = item
        elif kind in MAPPINGS:
            parts = chain(item, item.values())
        else:
            parts = item.flat
        expect(depth < MAX_DEPTH, f"containers nested deeper than {MAX_DEPTH} levels")
        if shared:
            size = known.get(id(item))
            if size is not None:
                expect(size > 0, "a container that contains itself")
                return size
            known[id(item)] = 0
        size = 1
        for part in parts:
            size += count(part, depth + 1) if is_container(part) else 1
        expect(size <= limit, f"shared containers that unfold to more than {limit} parts")
        if shared:
            known[id(item)] = size
        return size

    return count(value, 0) if is_container(value) else 1


def is_container(value: Any) -> bool:
    """Return whether a value holds others."""
    kind = type(value)
    return kind in SEQUENCES or kind in MAPPINGS or (kind is np.ndarray and value.dtype.hasobject)
