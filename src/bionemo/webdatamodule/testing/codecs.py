"""What every codec has to do."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import pad_values
from bionemo.webdatamodule.components import Codec, Component
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.planning import size_of
from bionemo.webdatamodule.testing.compare import same
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject
from bionemo.webdatamodule.testing.processes import ProcessError, in_fresh_process

_FILL = 0x5A  # what memory holds before a batch is decoded into it


class _Raw:
    """The codec inside one that wraps."""

    def decode(self, view: memoryview) -> bytes:
        return bytes(view)

    def encode(self, value: bytes) -> bytes:
        return value


class CodecConformance(ComponentConformance):
    """Checks of a codec.

    Override the fixture ``values``, or ``encoded`` for a codec that cannot encode.
    A codec that wraps another gets one that returns bytes.
    """

    kind: ClassVar[type[Codec]] = Codec

    @pytest.fixture
    def values(self) -> Sequence[Any]:
        """A few different values that the codec encodes; override it."""
        return ()

    @pytest.fixture
    def encoded(self, subject: Subject, values: Sequence[Any]) -> Sequence[bytes]:
        """At least two different fields; by default what the codec makes of ``values``."""
        if not values:
            raise NotImplementedError("override the fixture 'values' or 'encoded' of the test class")
        with subject.trying("encode(value)", "return the bytes of the value"):
            return [subject.make().encode(value) for value in values]

    @pytest.fixture
    def subject(self, options: Mapping[str, Any]) -> Subject:
        """The codec that is tested, with what the core passes to its factory."""
        subject = self.find(options)
        return replace(subject, options=with_core_options(subject.registered.component, options))

    def test_values_come_back(self, subject: Subject, values: Sequence[Any]) -> None:
        """What is encoded decodes to an equal value, and equal values have equal bytes."""
        codec = subject.make()
        for value in values:
            with subject.trying("encoding and decoding a value", "let decode read what encode writes"):
                data = codec.encode(value)
                found = codec.decode(memoryview(data))
            if type(data) is not bytes:
                subject.wrong(f"encode gives {type(data).__name__}", "return bytes")
            if not same(value, found):
                subject.wrong(f"{value!r:.80} comes back as {found!r:.80}", "let decode read what encode writes")
            if subject.make().encode(value) != data:
                subject.wrong("the same value has other bytes each time", "leave times and addresses out of them")

    def test_values_own_their_memory(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """A value stays what it is when the memory that it was decoded from is gone; also values of columns."""
        codec = subject.make()
        for decode in (codec.decode, lambda view: _column(codec, [view]).values()[0]):
            for data in encoded:
                memory = bytearray(data)
                value = decode(memoryview(memory))
                memory[:] = bytes(len(memory))
                if not same(codec.decode(memoryview(data)), value):
                    subject.wrong("a value shows the memory that it was decoded from", "copy it, the view ends")

    def test_a_column_is_its_values(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """The values of a column, and of its slices, are those that decode gives."""
        codec = subject.make()
        expected = [codec.decode(memoryview(data)) for data in encoded]
        self._compare(subject, codec, encoded, lambda column: (len(column), column.values()), lambda v: (len(v), v))
        if not same(expected, _column(codec, [memoryview(data) for data in encoded]).values()):
            subject.wrong("values of a column differ from decode", "decode each field alike")

    def test_a_batch_is_that_of_its_values(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """A column stacks and pads as its values do, or raises where they do, in whatever memory there is."""
        from torch.utils.data import default_collate

        codec = subject.make()
        for _ in range(2):  # a codec may have learned
            self._compare(subject, codec, encoded, lambda column: column.stack(), default_collate)
            self._compare(subject, codec, encoded, lambda column: column.pad(), pad_values)

    def test_batches_own_their_memory(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """A batch stays what it is when the fields are gone."""
        codec = subject.make()
        memories = [bytearray(encoded[0]) for _ in range(2)]
        batch = _outcome(lambda column: column.stack(), _column(codec, [memoryview(memory) for memory in memories]))
        for memory in memories:
            memory[:] = bytes(len(memory))
        again = _outcome(lambda column: column.stack(), _column(codec, [memoryview(encoded[0])] * 2))
        if not isinstance(again, _Raised) and not same(again, batch):
            subject.wrong("a batch shows the memory that it was decoded from", "copy it into the batch")

    def test_recoded_fields_have_the_same_value(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """The canonical form decodes to the same value, and is its own canonical form."""
        codec = subject.make()
        if not hasattr(codec, "recode"):
            return
        for data in encoded:
            with subject.trying("recode(data)", "return bytes of the same value, or a sequence of their parts"):
                canonical, again = recoded(codec, data), recoded(codec, recoded(codec, data))
            if not same(codec.decode(memoryview(data)), codec.decode(memoryview(canonical))):
                subject.wrong("recode changes a value", "return bytes of the same value")
            if again != canonical:
                subject.wrong("recode changes its own result", "return the same bytes for every equal input")

    def test_sizes_are_those_of_the_values(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """Where a codec says sizes by lengths alone, they are those of the decoded values."""
        codec = subject.make()
        if not hasattr(codec, "sizes"):
            return
        lengths = np.array([len(data) for data in encoded], np.int64)
        with subject.trying("sizes(lengths)", "return int64 of the same shape"):
            found = np.asarray(codec.sizes(lengths.copy())).tolist()
            expected = [size_of(codec.decode(memoryview(data))) for data in encoded]
        if found != expected:
            subject.wrong(
                f"fields of {lengths.tolist()} bytes have the sizes {expected}, and sizes(lengths) gives {found}",
                "leave sizes out where the length does not determine the size",
            )

    def test_a_damaged_field_is_an_error_in_a_column_too(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """A column raises where decode raises, so that no damaged field passes in a batch."""
        codec, sound = subject.make(), encoded[0]
        for damaged in (b"", sound[: len(sound) // 2], sound[:-1], b"\xff" * len(sound)):
            views = [memoryview(sound), memoryview(damaged), memoryview(sound)]
            alone = _outcome(codec.decode, memoryview(damaged))
            joined = _outcome(lambda column: column.values()[1], _column(codec, views))
            if isinstance(alone, _Raised) != isinstance(joined, _Raised):
                subject.wrong(
                    f"of {damaged!r:.40} decode makes {alone!r:.80} and a column {joined!r:.80}",
                    "check each field of a column as decode does",
                )

    def test_decodes_in_another_process(self, subject: Subject, encoded: Sequence[bytes]) -> None:
        """A codec that was pickled decodes the same, here and in a process that starts from nothing."""
        here = [subject.make().decode(memoryview(data)) for data in encoded]
        copied = self.pickled(subject)
        if not same(here, [copied.decode(memoryview(data)) for data in encoded]):
            subject.wrong("a pickled copy decodes something else", "pickle its options")
        try:
            there = in_fresh_process(_decoded, subject.make(), list(encoded))
        except ProcessError as error:
            subject.wrong(f"it fails in a spawned worker: {error}", "keep its classes importable by name", error)
        if not same(here, pickle.loads(there)):
            subject.wrong("a spawned worker decodes something else", "let nothing depend on this process")

    def _compare(
        self,
        subject: Subject,
        codec: Any,
        encoded: Sequence[bytes],
        of_column: Callable[[Any], Any],
        of_values: Callable[[list[Any]], Any],
    ) -> None:
        """Compare what comes of a column and of its slices with what comes of the values."""
        views = [memoryview(data) for data in encoded]
        column = _column(codec, views)
        parts = [slice(None), slice(1, None), slice(0, 1)]
        for where in parts if hasattr(column, "__getitem__") else parts[:1]:
            values = [codec.decode(view) for view in views[where]]
            expected = _outcome(of_values, values)
            with context.working(context.Worker(empty=_used_memory)):
                found = _outcome(of_column, column if where == slice(None) else column[where])
            if isinstance(expected, _Raised) and isinstance(found, _Raised):
                continue
            if not same(expected, found):
                subject.wrong(
                    f"fields {where.start or 0} to {where.stop or len(views)} become {found!r:.120} as a column, "
                    f"not {expected!r:.120}",
                    "let a column give what torch's default_collate, or pad_values, makes of the values",
                )


def with_core_options(component: Component, options: Mapping[str, Any], policy: Policy | None = None) -> dict[str, Any]:
    """Return options of a codec with those that the core passes to its factory; a codec inside it returns bytes."""
    given = dict(options)
    if "policy" in inspect.signature(component.factory).parameters:
        given.setdefault("policy", Policy() if policy is None else policy)
    if getattr(component, "wraps", False):
        given.setdefault("inner", _Raw())
    return given


def recoded(codec: Any, data: bytes) -> bytes:
    """Return what a conversion stores of a field that a codec recodes: its parts, one behind the other."""
    parts = codec.recode(data)
    return parts if isinstance(parts, bytes) else b"".join(parts)


class _Raised:
    """What was raised."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


def _outcome(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:  # noqa: BLE001 - compared, whatever it is
        return _Raised(error)


def _column(codec: Any, views: Sequence[memoryview]) -> Any:
    from bionemo.webdatamodule.columns import ValueColumn

    column = getattr(codec, "column", None)
    return ValueColumn(views, codec.decode) if column is None else column(views)


def _used_memory(shape: tuple[int, ...], dtype: Any) -> Any:
    import torch

    memory = torch.empty(shape, dtype=dtype)
    if memory.numel():
        memory.view(-1).view(torch.uint8).fill_(_FILL)
    return memory


def _decoded(codec: Any, encoded: Sequence[bytes]) -> bytes:
    return pickle.dumps([codec.decode(memoryview(data)) for data in encoded])
