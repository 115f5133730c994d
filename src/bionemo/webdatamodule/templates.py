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

import struct
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.pickles import Policy, dumps, loads
from bionemo.webdatamodule.pickling.builders import DiffersError, Into
from bionemo.webdatamodule.pickling.holes import compile_template, memories
from bionemo.webdatamodule.pickling.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from bionemo.webdatamodule.pickling.builders import Match
    from bionemo.webdatamodule.pickling.holes import Template

_TRIES: Final = 32
"""Pickles that one decoder may trace; data of no kind should not pay for it for ever."""

_LARGEST: Final = 1 << 28
"""Bytes of a pickle that may be traced: larger ones gain little, and tracing holds a few copies."""

_MISSES: Final = (DiffersError, struct.error, ValueError, KeyError, OverflowError)
"""What a template raises over a stream that only began like its own, or over lengths that make no sense."""


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
        self._of_size: dict[int, list[Template]] = {}
        self._open: list[Template] = []
        self._tries = _TRIES

    def __reduce__(self) -> tuple[type[Decoder], tuple[Policy]]:
        return Decoder, (self.policy,)

    def __call__(self, data: memoryview) -> Any:
        """Decode one pickle.

        Returns:
            What :func:`~bionemo.webdatamodule.pickles.loads` returns; arrays and tensors own their memory.

        Raises:
            RefusedPickleError, DecodeError: As ``loads``.
        """
        data = _as_bytes(data)
        try:
            match = self._match(data)
            if match is not None:
                template, fields, bases = match
                return template.build(data, fields, bases)
        except _MISSES:
            pass
        value = loads(data, policy=self.policy)
        if self._tries and len(data) <= _LARGEST:
            self._tries -= 1
            self._learn(bytes(data), value)
        return value

    def batch(
        self,
        views: Sequence[memoryview],
        *,
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None = None,
        pad: bool = False,
    ) -> Any:
        """Decode pickles into one batch, without a tensor for each of them where they are of one kind.

        Args:
            views: The pickles, at least one.
            empty: Makes the contiguous memory of a batched tensor from its shape and dtype; torch's own by default.
            pad: Fill tensors up with zeros to the longest of the batch.

        Returns:
            What ``default_collate`` of :mod:`torch.utils.data` makes of the decoded values, or with ``pad`` what
            :func:`~bionemo.webdatamodule.padding.fill` makes of them.

        Raises:
            RefusedPickleError, DecodeError: As ``loads``.
            Exception: What ``default_collate`` or ``fill`` raises where the values do not fit together.
        """
        from bionemo.webdatamodule.padding import joined

        views = [_as_bytes(view) for view in views]
        try:
            matches = [match for match in map(self._match, views) if match is not None]
            if matches and len(matches) == len(views):
                template = matches[0][0]
                if all(match[0] is template or match[0].kind == template.kind for match in matches):
                    return template.column(views, matches, Into(empty or _empty, pad), list)
        except (*_MISSES, TypeError, RuntimeError):  # who joins values says better what is wrong
            pass
        return joined([self(view) for view in views], pad=pad)

    def _match(self, data: Any) -> Match | None:
        """Return the template of a stream with its fields and chunks."""
        for template in self._of_size.get(len(data), ()):
            match = template.match(data)
            if match is not None:
                return match
        for place, template in enumerate(self._open):
            try:
                match = template.match(data)
            except _MISSES:
                continue
            if match is not None:
                if place:  # neighbours tend to be of one kind: the latest goes first
                    self._open = [template, *(other for other in self._open if other is not template)]
                return match
        return None

    def _learn(self, data: bytes, value: Any) -> None:
        """Make a template of a pickle that was accepted, or open the lengths in which it differs from another."""
        program = trace(data, refused=frozenset(self.policy.allow))
        if program is None:
            return
        sizes = [leaf.stop - leaf.start for leaf in memories(program)]
        try:
            signature = compile_template(data, program, frozenset(range(len(sizes)))).program
            known, opened = self._lengths.get(signature, (sizes, frozenset()))
            opened |= {number for number, size in enumerate(sizes) if size != known[number]}
            template = compile_template(data, program, opened)
            match = template.match(data)
            if match is None or dumps(template.build(data, *match[1:])) != dumps(value):
                return
        except _MISSES:
            return
        self._lengths[signature] = sizes, opened
        self._templates[signature] = template
        made = list(self._templates.values())
        self._open = [template for template in made if template.size is None]
        self._of_size = {}
        for template in made:
            if template.size is not None:
                self._of_size.setdefault(template.size, []).append(template)


def _as_bytes(data: Any) -> Any:
    """Return the same memory with bytes as its items, so that positions are those of the stream."""
    return (
        data if type(data) is bytes or (type(data) is memoryview and data.format == "B") else memoryview(data).cast("B")
    )


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.empty(shape, dtype=dtype)
