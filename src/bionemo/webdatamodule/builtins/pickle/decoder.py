"""Decode samples of one kind by comparison: same program as before, other data.

Samples of one kind are the same pickle program around different data.
The first one goes through :func:`~bionemo.webdatamodule.pickles.loads`, is traced
(``pickling.tracing``) and becomes a template (``pickling.holes``): which bytes are the program, and where
numbers, text and memory lie between them.
A later pickle whose program bytes are equal does the same, because no opcode looks at the data, so its value is
put together straight from its bytes.

What keeps this sound:

* Where anything differs, also a length or a byte that nobody understands, ``loads`` decides, not the template.
* Data that the program uses twice (through the memo), as a key or as a name belong to the program.
* Lengths belong to the program too, until samples are seen that differ in nothing else. Then they are read from
  the stream, and everything that says the same thing has to agree with them: counts, FRAME, shape, strides,
  torch's numbers of elements.
* torch names a storage by its address: the digits may differ, and have to be equal in both places.
* A template is kept only if it gives back the very sample that it was made from.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.batches import DiffersError, Into
from bionemo.webdatamodule.builtins.pickle.fast.template import compile_template, memories, signature
from bionemo.webdatamodule.builtins.pickle.fast.trace import trace
from bionemo.webdatamodule.pickles import Policy, dumps, loads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.fast.batches import Batch
    from bionemo.webdatamodule.builtins.pickle.fast.match import Streams
    from bionemo.webdatamodule.builtins.pickle.fast.template import Template

_TRIES: Final = 32
"""Pickles that one decoder may trace; data of no kind should not pay for it for ever."""

_LARGEST: Final = 1 << 28
"""Bytes of a pickle that may be traced: larger ones gain little, and tracing holds a few copies."""

_MISSES: Final = (DiffersError, ValueError, KeyError, OverflowError)
"""What a template raises over a stream that only looks like its own, or over lengths that make no sense."""


class Decoder:
    """Decodes the pickles of one field, fast where they are of one kind.

    Args:
        policy: What a pickle may build.

    A decoder learns as it decodes, within its process: pickling it gives a fresh one of the same policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._templates: dict[Any, Template] = {}  # by program, all lengths open
        self._lengths: dict[Any, tuple[list[int], frozenset[int]]] = {}  # of one sample, and which vary
        self._latest: list[Template] = []  # all of them, the one that was met most often in a batch first
        self._tries = _TRIES

    def __reduce__(self) -> tuple[type[Decoder], tuple[Policy]]:
        return Decoder, (self.policy,)

    def __call__(self, data: memoryview) -> Any:
        """Decode one pickle; see :meth:`values`."""
        (value,) = self.values([_as_bytes(data)])
        return value

    def values(self, views: Sequence[memoryview]) -> list[Any]:
        """Decode pickles.

        Args:
            views: The pickles, as bytes.

        Returns:
            What :func:`~bionemo.webdatamodule.pickles.loads` returns; arrays and tensors own their memory.

        Raises:
            RefusedPickleError, DecodeError: As ``loads``.
        """
        values: list[Any] = [None] * len(views)
        places = np.arange(len(views))
        while places.size:
            found, places = self._fit(views, places)
            for streams in found:
                streams.put(self._made(streams), values)
            known, done = self._latest, 0
            while known is self._latest and done < len(places):  # until others may follow what was learnt
                values[places[done]] = self._loads(views[places[done]])
                done += 1
            places = places[done:]
        return values

    def batch(self, views: Sequence[memoryview], **options: Any) -> Any:
        """Decode pickles into one batch; for the options see :meth:`batcher`."""
        return self.batcher(views, **options)(slice(None))

    def batcher(
        self,
        views: Sequence[memoryview],
        *,
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None = None,
        pad: bool = False,
    ) -> Callable[[slice], Any]:
        """Look at the pickles of several batches, and return what decodes those at some places into a batch.

        There is no tensor for each of them where they are of one kind.

        Args:
            views: The pickles, as bytes.
            empty: Makes the contiguous memory of a batched tensor from its shape and dtype; torch's own by default.
            pad: Fill tensors up with zeros to the longest of the batch.

        Returns:
            A function that takes a slice of the views, not an empty one, and returns what ``default_collate`` of
            :mod:`torch.utils.data` makes of their values, or with ``pad`` what
            :func:`~bionemo.webdatamodule.builtins.padding.fill` makes of them. It raises ``RefusedPickleError`` and
            ``DecodeError`` as ``loads``, and where the values do not fit together what joining them raises.
        """
        from bionemo.webdatamodule.builtins.padding import joined

        direct, into = self._direct(views), Into(empty or _empty, pad)

        def batch(here: slice) -> Any:
            some = views[here]
            if direct is None and len(some) < len(views):
                return self.batch(some, empty=empty, pad=pad)
            with suppress(*_MISSES, TypeError, RuntimeError):  # who joins values says better what is wrong
                if direct is not None:
                    return direct(here, into, list)
            return joined(self.values(some), pad=pad)

        return batch

    def _direct(self, views: Sequence[memoryview]) -> Batch | None:
        """Return what makes batches without values, if all streams follow templates of one kind."""
        found, rest = self._fit(views, np.arange(len(views)))
        if not found or rest.size or any(streams.template.kind != found[0].template.kind for streams in found):
            return None
        with suppress(*_MISSES, TypeError, RuntimeError):
            return found[0].template.column(found, views)
        return None

    def _fit(self, views: Sequence[memoryview], places: NDArray[np.intp]) -> tuple[list[Streams], NDArray[np.intp]]:
        """Return the streams at some places by the template that they follow, and the places of all others."""
        left = np.zeros(len(views), np.bool_)
        left[places] = True
        found: list[Streams] = []
        for template in self._latest:
            some = views if len(places) == len(views) else [views[place] for place in places.tolist()]
            streams = template.fit(some, places)
            if streams is not None:
                found.append(streams)
                left[streams.places] = False
                places = np.flatnonzero(left)
                if not places.size:
                    break
        if len(found) > 1:
            most = max(found, key=lambda streams: len(streams.places)).template
            if most is not self._latest[0]:
                self._latest = [most, *(other for other in self._latest if other is not most)]
        return found, places

    def _made(self, streams: Streams) -> list[Any]:
        try:
            return streams.template.values(streams)
        except _MISSES:  # text that is none, of which loads says so
            return [loads(view, policy=self.policy) for view in streams.views]

    def _loads(self, data: memoryview) -> Any:
        """Decode one pickle as ``loads`` does, and learn from it."""
        value = loads(data, policy=self.policy)
        if self._tries and len(data) <= _LARGEST:
            self._tries -= 1
            self._learn(bytes(data), value)
        return value

    def _learn(self, data: bytes, value: Any) -> None:
        """Make a template of a pickle that was accepted, or open the lengths in which it differs from another."""
        program = trace(data, refused=frozenset(self.policy.allow))
        if program is None:
            return
        sizes = [leaf.stop - leaf.start for leaf in memories(program)]
        try:
            kind = signature(data, program)
            known, opened = self._lengths.get(kind, (sizes, frozenset()))
            opened |= {number for number, size in enumerate(sizes) if size != known[number]}
            template = compile_template(data, program, opened)
            streams = template.fit([memoryview(data)], np.arange(1))
            if streams is None or dumps(template.values(streams)[0]) != dumps(value):
                return
        except _MISSES:
            return
        self._lengths[kind] = sizes, opened
        self._templates[kind] = template
        self._latest = list(self._templates.values())[::-1]


def _as_bytes(data: Any) -> memoryview:
    """Return the same memory with bytes as its items, so that positions are those of the stream."""
    view = memoryview(data)
    return view if view.format == "B" else view.cast("B")


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.empty(shape, dtype=dtype)
