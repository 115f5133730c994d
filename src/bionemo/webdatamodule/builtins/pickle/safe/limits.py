"""Tokens that stand for what a pickle names, and the limits that every value keeps."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DEPTH: Final = 200
"""Nesting of containers in a value; deep enough for data, shallow enough for everybody's recursion."""

MAX_KEY: Final = 10_000
"""Parts of one tuple that serves as a key: hashing follows shared parts again and again."""

MAPPINGS: Final = frozenset((dict, OrderedDict, defaultdict, Counter))
SEQUENCES: Final = frozenset((list, tuple, set, frozenset, deque))

# A zip archive, or the older form: a pickle of a magic number, and more behind it.
_OF_TORCH: Final = re.compile(rb"PK\x03\x04|\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\..", re.DOTALL)


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


def expect(good: bool, what: str) -> None:
    """Raise :class:`DecodeError` unless an argument is as its constructor takes it."""
    if not good:
        raise DecodeError(f"the pickle has {what}")


def from_torch(data: memoryview) -> bool:
    """Say whether data begin as ``torch.save`` writes them, which no plain pickle of a value does."""
    return _OF_TORCH.match(data) is not None


def names(token: Any, name: str) -> bool:
    """Say whether an argument is the token of that name."""
    return type(token) is Global and token.name == name


def table(functions: Iterable[tuple[str, Callable[..., Any]]]) -> dict[tuple[str, str], Any]:
    """Return tokens for functions, by ``(module, name)`` as pickles spell it."""
    return {
        (name.rpartition(".")[0], name.rpartition(".")[2]): Global(name=name, call=call) for name, call in functions
    }


def weigh(value: Any, limit: int) -> int:
    """Count the parts of a value, shared parts as often as they appear.

    Raises:
        DecodeError: It is nested deeper than :data:`MAX_DEPTH`, contains itself, or has more than ``limit``.
    """
    known: dict[int, int] = {}  # 0 while a container is being counted

    def count(item: Any, depth: int) -> int:
        kind = type(item)
        if kind in SEQUENCES:
            parts = item
        elif kind in MAPPINGS:
            parts = item.values()
        elif kind is np.ndarray and item.dtype.hasobject:
            parts = item.flat
        else:
            return 1
        expect(depth < MAX_DEPTH, f"containers nested deeper than {MAX_DEPTH} levels")
        size = known.get(id(item))
        if size is None:
            known[id(item)] = 0
            size = 1 + sum(count(part, depth + 1) for part in parts)
            expect(size <= limit, f"shared containers that unfold to more than {limit} parts")
            known[id(item)] = size
        expect(size > 0, "a container that contains itself")
        return size

    return count(value, 0)


def check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys whose hashing would overflow the stack or never end; other keys hash in no time.

    CPython hashes a tuple by recursion in C, without a limit and without remembering shared parts.
    """
    for key in keys:
        if type(key) is tuple:
            weigh(key, MAX_KEY)
