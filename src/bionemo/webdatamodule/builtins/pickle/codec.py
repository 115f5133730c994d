"""The codec of pickles: safe, and fast where the pickles of a field are of one kind.

Pickles of one kind are the same program around different data.
The first one is decoded by :func:`~bionemo.webdatamodule.pickles.loads`, traced (:mod:`.fast.trace`) and compiled
into a template (:mod:`.fast.template`): which bytes are the program, and where numbers, text and memory lie between.
A later pickle with equal program bytes does the same, because no opcode looks at the data, so its value is made
directly from its bytes.

What keeps this sound:

* If anything differs, such as a length or a byte of unknown meaning, ``loads`` decodes, not the template.
* Data that the program uses twice (through the memo), as a key or as a name belong to the program.
* Lengths belong to the program too, until pickles are seen that differ in nothing else. Then they are read from
  the stream, and everything that says the same has to agree with them: counts, FRAME, shape, strides, torch's
  numbers of elements.
* torch names a storage by its address: the digits may differ, and have to be equal in both positions.
* Classes that the user allowed are called as ``loads`` calls them, in the same order, and nothing else of the
  user's runs. What is counted against a pickle's budget is bounded in a program that has a template.
* A template is kept only if it reproduces the value that it was made from.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.collate import DiffersError, Match, collate
from bionemo.webdatamodule.builtins.pickle.fast.template import compile_template, memories, signature
from bionemo.webdatamodule.builtins.pickle.fast.trace import trace
from bionemo.webdatamodule.builtins.pickle.write.canonical import pieces
from bionemo.webdatamodule.columns import collate_values, pad_values
from bionemo.webdatamodule.pickles import Policy, dumps, loads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.collate import Collate
    from bionemo.webdatamodule.builtins.pickle.fast.template import Template

_TRIES: Final = 32
"""Pickles that one codec may trace: data of no common kind should not pay for it forever."""

_LARGEST: Final = 1 << 26
"""Bytes of a pickle that may be traced: larger ones gain little, and tracing holds a few copies."""

_MISSES: Final = (DiffersError, ValueError, KeyError, OverflowError)
"""What a template raises for a stream that only looks like its own, or for lengths that make no sense."""

_NO_BATCH: Final = (*_MISSES, TypeError, RuntimeError)
"""What joining streams raises where their values make no batch, or another one."""


class PickleCodec:
    """Decodes and encodes the pickles of one field.

    Args:
        policy: What a pickle may build.

    A codec learns as it decodes, within its process: a copy by :mod:`pickle` has the policy alone.
    """

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 - frozen
        self.policy = policy
        self.templates: list[Template] = []  # the one that matched most often in the latest column first
        self._by_program: dict[Any, Template] = {}  # without the lengths of memories
        self._lengths: dict[Any, tuple[list[int], frozenset[int]]] = {}  # of one sample, and which of them vary
        self._tries = _TRIES

    def __reduce__(self) -> tuple[type[PickleCodec], tuple[Policy]]:
        return PickleCodec, (self.policy,)

    def decode(self, view: memoryview) -> Any:
        """Return the value of one pickle.

        Args:
            view: The pickle, of any protocol from 0 to 5.

        Raises:
            RefusedPickleError, DecodeError: As :func:`~bionemo.webdatamodule.pickles.loads`.
        """
        view = memoryview(view)
        (value,) = self.column([view if view.format == "B" else view.cast("B")]).values()
        return value

    def column(self, views: Sequence[memoryview]) -> PickleColumn:
        """Return the column of these pickles, each a view of bytes."""
        return PickleColumn(_Compared(self, views), 0, len(views))

    def encode(self, value: Any) -> bytes:
        """Return the canonical pickle of a value, see :func:`~bionemo.webdatamodule.pickles.dumps`."""
        return dumps(value)

    def recode(self, data: bytes) -> bytes | Sequence[bytes | memoryview]:
        """Return the canonical form of a pickle, without decoding it where others of its kind were recoded before.

        That of a large one is in parts, so that there is no copy of the data of its arrays.

        Raises:
            RefusedPickleError, DecodeError: As :func:`~bionemo.webdatamodule.pickles.loads`.
        """
        if len(data) > _LARGEST:
            return pieces(loads(data, policy=self.policy))
        return self._recode(data)

    @cached_property
    def _recode(self) -> Callable[[bytes], bytes]:
        from bionemo.webdatamodule.builtins.pickle.write.recode import recoder  # reading never needs it

        return recoder(self.policy)

    def compare(self, views: Sequence[memoryview], indices: NDArray[np.intp]) -> tuple[list[Match], NDArray[np.intp]]:
        """Return the streams at some indices by the template that they follow, and the indices of all others."""
        left = np.zeros(len(views), np.bool_)
        left[indices] = True
        matches: list[Match] = []
        for template in self.templates:
            here = views if len(indices) == len(views) else [views[index] for index in indices.tolist()]
            rows = template.layout.match(here, indices)
            if rows is not None:
                matches.append(Match(template, rows))
                left[rows.indices] = False
                indices = np.flatnonzero(left)
            if not indices.size:
                break
        if len(matches) > 1:
            most = max(matches, key=lambda match: len(match.rows)).template
            if most is not self.templates[0]:
                self.templates = [most, *(other for other in self.templates if other is not most)]
        return matches, indices

    def made(self, match: Match) -> list[Any]:
        """Return the values of streams that follow a template."""
        try:
            return match.template.values(match.rows)
        except Exception:  # noqa: BLE001 - text that is not UTF-8, or a user's class; loads raises the right error
            return [loads(view, policy=self.policy) for view in match.rows.views]

    def learn(self, view: memoryview) -> Any:
        """Return the value of a pickle that follows no template, after making one of it if it can be."""
        value = loads(view, policy=self.policy)
        if self._tries and len(view) <= _LARGEST:
            self._tries -= 1
            with suppress(Exception):  # a class that the user allowed may raise anything
                self._add_template(bytes(view), value)
        return value

    def _add_template(self, data: bytes, value: Any) -> None:
        """Add the template of a pickle, or open the lengths in which it differs from one of the same program."""
        program = trace(data, allowed=self.policy.allow)
        if program is None:
            return
        sizes = [leaf.stop - leaf.start for leaf in memories(program)]
        key = signature(data, program)
        known, opened = self._lengths.get(key, (sizes, frozenset()))
        opened |= {number for number, size in enumerate(sizes) if size != known[number]}
        template = compile_template(data, program, opened)
        rows = template.layout.match([memoryview(data)], np.arange(1))
        if rows is not None and dumps(template.values(rows)[0]) == dumps(value):
            self._lengths[key] = sizes, opened
            self._by_program[key] = template
            self.templates = list(self._by_program.values())[::-1]


@dataclass(frozen=True, eq=False)
class _Compared:
    """The pickles of several batches, which are compared with the templates together, when a batch is first made."""

    codec: PickleCodec
    views: Sequence[memoryview]

    @cached_property
    def matches(self) -> tuple[list[Match], NDArray[np.intp], list[Template]]:
        """The streams by template, the indices of those that follow none, and all templates that there were."""
        return *self.codec.compare(self.views, np.arange(len(self.views))), self.codec.templates

    @cached_property
    def collate(self) -> Collate | None:
        """Makes batches without values, if all streams follow templates of one kind."""
        matches, rest, _ = self.matches
        if not matches or rest.size or any(m.template.kind != matches[0].template.kind for m in matches):
            return None
        with suppress(*_NO_BATCH):
            return collate(matches, self.views)
        return None


@dataclass(eq=False, slots=True)  # one is made for every batch
class PickleColumn:
    """The pickles of consecutive samples; slices of a column share the comparison with the templates."""

    _compared: _Compared
    _start: int
    _stop: int

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, where: slice) -> PickleColumn:
        start, stop, _ = where.indices(len(self))
        return PickleColumn(self._compared, self._start + start, self._start + max(start, stop))

    def values(self) -> list[Any]:
        """Return what :func:`~bionemo.webdatamodule.pickles.loads` returns for each; arrays own their memory.

        Raises:
            RefusedPickleError, DecodeError: As ``loads``.
        """
        codec, views = self._compared.codec, self._compared.views[self._start : self._stop]
        values: list[Any] = [None] * len(views)
        matches, rest, known = self._compared.matches
        for match in matches:
            rows = match.rows.between(self._start, self._stop)
            if len(rows):
                rows.put(codec.made(Match(match.template, rows)), values)
        rest = rest[(rest >= self._start) & (rest < self._stop)] - self._start
        while rest.size:
            if known is not codec.templates:  # others may follow what was learnt
                known = codec.templates
                matches, rest = codec.compare(views, rest)
                for match in matches:
                    match.rows.put(codec.made(match), values)
            while known is codec.templates and rest.size:
                values[rest[0]] = codec.learn(views[rest[0]])
                rest = rest[1:]
        return values

    def stack(self) -> Any:
        """Return what :func:`torch.utils.data.default_collate` makes of the values, or raise what it raises."""
        return self._join(pad=False, join=collate_values)

    def pad(self) -> Any:
        """Return :func:`~bionemo.webdatamodule.columns.pad_values` of the values, or raise what it raises."""
        return self._join(pad=True, join=pad_values)

    def _join(self, *, pad: bool, join: Any) -> Any:
        compared, where = self._compared, slice(self._start, self._stop)
        if compared.collate is None and len(self) < len(compared.views):  # the codec may know more by now
            compared, where = _Compared(compared.codec, compared.views[where]), slice(0, len(self))
        if compared.collate is not None:
            try:  # suppress() would take longer than a small batch
                return compared.collate(where, pad)
            except _NO_BATCH:
                pass  # joining the values raises a better error
        return join(PickleColumn(compared, where.start, where.stop).values())
