"""Recode pickles of one kind by copying: the first one shows where its data lie before and after.

Pickles that differ in nothing but their data, in equally many bytes, become canonical pickles that differ in nothing
but these data. So after the first of a kind the bytes go from their place in the one to their place in the other, and
nothing is built; :mod:`~bionemo.webdatamodule.pickling.tracing` says what counts as data, and why that is sound.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from bionemo.webdatamodule.pickles import Policy, recode
from bionemo.webdatamodule.pickling import tensors  # noqa: F401 - so that forked workers need not import it
from bionemo.webdatamodule.pickling.programs import Block, Leaf, Program, Scalar, parts
from bionemo.webdatamodule.pickling.tracing import trace

_MOST_KINDS: Final = 4096
"""Kinds that one recoder knows at most, a few kilobytes each."""

_PATIENCE: Final = 256
"""Kinds that may be learnt before one comes back: data of no kind should not pay for it for ever."""

_FAILURES: Final = 64
"""Pickles that may turn out not to be of any kind, for the same reason."""

_INTEGERS: Final = {ord("K"): range(1 << 8), ord("M"): range(1 << 8, 1 << 16), ord("J"): range(1 << 16, 1 << 32)}
"""For each opcode of an integer the operands, as unsigned numbers, for which the standard pickler chooses it."""

_BOOLEANS: Final = range(0x88, 0x8A)  # the opcodes themselves


@dataclass(frozen=True, eq=False)
class _Kind:
    """Pickles of one program and length, and how to recode them.

    Attributes:
        program: Parts of the stream, and the bytes that they have to be.
        twins: Parts that have to hold the same digits: torch names a storage by its address, in two places.
        ranges: Parts that are a little-endian number, and the values that they may have.
        texts: Parts that have to be UTF-8.
        result: The canonical pickle: bytes as they are, and parts of the stream.
    """

    program: Sequence[tuple[slice, bytes]]
    twins: Sequence[tuple[slice, slice]]
    ranges: Sequence[tuple[slice, range]]
    texts: Sequence[slice]
    result: Sequence[bytes | slice]

    def recode(self, data: bytes) -> bytes | None:
        """Return the canonical pickle of a stream of the same length, or None if it is of another kind."""
        for place, expected in self.program:
            if data[place] != expected:
                return None
        for one, other in self.twins:
            if data[one] != data[other] or not data[one].isdigit():
                return None
        for place, allowed in self.ranges:
            if int.from_bytes(data[place], "little") not in allowed:
                return None
        view = memoryview(data)
        for place in self.texts:
            if not _is_text(view[place]):
                return None
        return b"".join([view[part] if type(part) is slice else part for part in self.result])


def _is_text(view: memoryview) -> bool:
    try:
        str(view, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


class Recoder:
    """Recodes pickles as :func:`~bionemo.webdatamodule.pickles.recode` does, byte for byte, and faster.

    Args:
        policy: What pickles may build.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kinds: dict[int, list[_Kind]] = {}  # by length
        self._learnt = 0
        self._used = 0
        self._failed = 0

    def __call__(self, data: bytes) -> bytes:
        """Return the canonical form of a pickle.

        Raises:
            RefusedPickleError, DecodeError: As :func:`~bionemo.webdatamodule.pickles.loads`.
        """
        for kind in self._kinds.get(len(data), ()):
            result = kind.recode(data)
            if result is not None:
                self._used += 1
                return result
        result = recode(data, policy=self._policy)
        if self._failed < _FAILURES and self._learnt < min(_MOST_KINDS, _PATIENCE + 4 * self._used):
            found = _learn(data, result, self._policy)
            if found is None:
                self._failed += 1
            else:
                self._learnt += 1
                self._kinds.setdefault(len(data), []).append(found)
        return result


@functools.lru_cache(maxsize=4)
def recoder(policy: Policy) -> Recoder:
    """Return this process's recoder for a policy, so that a shard knows the kinds of the one before."""
    return Recoder(policy)


def _learn(data: bytes, result: bytes, policy: Policy) -> _Kind | None:
    """Return the kind of a stream that was recoded, if it can be recoded by copying."""
    refused = frozenset(policy.allow)
    before, after = trace(data, refused=refused), trace(result, refused=refused)
    if before is None or after is None:
        return None
    moves = sorted(_moves(data, before, result, after), key=lambda move: move[1].start)
    twins = [tuple(map(_span, part.keys)) for part in parts(before.root) if isinstance(part, Block) and part.keys]
    varying = [move[0] for move in moves] + [place for pair in twins for place in pair]
    kind = _Kind(
        program=[(place, data[place]) for place in _between(varying, len(data))],
        twins=[(one, other) for one, other in twins],
        ranges=[(place, allowed) for place, _, allowed in moves if isinstance(allowed, range)],
        texts=[place for place, _, allowed in moves if allowed is str],
        result=_result(result, moves),
    )
    return kind if kind.recode(data) == result else None


_Move: TypeAlias = "tuple[slice, slice, Any]"
"""A part of the stream, the same in the result, and what may be there: a range, ``str``, or None for anything."""


def _moves(data: bytes, before: Program, result: bytes, after: Program) -> Iterator[_Move]:
    """Yield the parts of both streams that are the same data."""
    for old, new in zip(parts(before.root), parts(after.root), strict=True):
        if isinstance(old, Block):
            yield _span(old.data), _span(new.data), None
        elif isinstance(old, Scalar):
            # Python has every bytes of length one only once, so whether two are one object depends on the data.
            if old.dtype.itemsize > 1:
                yield _span(old.data), _span(new.data), None
        elif isinstance(old, Leaf) and not old.shared and old.stop - old.start == new.stop - new.start:
            if old.kind == "bool":
                yield _span(old), _span(new), _BOOLEANS
            elif old.kind == "float":
                yield _span(old), _span(new), None
            elif old.kind in ("int", "unsigned"):
                opcode = data[old.start - 1]
                if opcode in _INTEGERS and result[new.start - 1] == opcode:
                    yield _span(old), _span(new), _INTEGERS[opcode]
            elif old.stop - old.start > 1:
                yield _span(old), _span(new), str if old.kind == "text" else None


def _span(leaf: Leaf) -> slice:
    return slice(leaf.start, leaf.stop)


def _between(places: Sequence[slice], end: int) -> Iterator[slice]:
    """Yield what lies before, between and behind some parts of a stream."""
    start = 0
    for place in sorted(places, key=lambda place: place.start):
        yield slice(start, place.start)
        start = place.stop
    yield slice(start, end)


def _result(result: bytes, moves: Sequence[_Move]) -> list[bytes | slice]:
    """Return the result in order: constant bytes, and where in the stream the others come from."""
    pieces: list[bytes | slice] = []
    position = 0
    for source, target, _ in moves:
        pieces += (result[position : target.start], source)
        position = target.stop
    return [*pieces, result[position:]]
