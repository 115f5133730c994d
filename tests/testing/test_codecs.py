"""The kit says of a codec what it does wrong."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bionemo.webdatamodule.components import Codec
from bionemo.webdatamodule.plugins import Registered
from bionemo.webdatamodule.testing import CodecConformance
from bionemo.webdatamodule.testing.component import NonconformingError, Subject


class Text:
    """Text, which takes its size from its bytes."""

    def __init__(self, sizes):
        self.sizes = sizes

    def decode(self, view):
        """Return the text."""
        return str(view, "utf-8")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            lambda lengths: lengths,
            r"fields of \[1, 2\] bytes have the sizes \[1, 1\], and sizes.lengths. gives \[1, 2\]",
        ),
        (lambda lengths: lengths[:1], r"have the sizes \[1, 1\], and sizes.lengths. gives \[1\]; leave sizes out"),
        (lambda lengths: lengths.no, r"sizes\(lengths\) raises AttributeError"),
    ],
    ids=["bytes", "too few", "raises"],
)
def test_sizes_that_are_not_those_of_the_values_are_found(sizes, message):
    """A codec of text must not take bytes for characters."""
    codec = Codec(name="mine", summary="text", factory=lambda: Text(sizes))
    subject = Subject(registered=Registered(component=codec, plugin="mine"), options={})
    with pytest.raises(NonconformingError, match=message):
        CodecConformance().test_sizes_are_those_of_the_values(subject, [b"a", "é".encode()])
    right = Codec(name="mine", summary="text", factory=lambda: Text(np.ones_like))
    subject = Subject(registered=Registered(component=right, plugin="mine"), options={})
    CodecConformance().test_sizes_are_those_of_the_values(subject, [b"a", "é".encode()])


@dataclass(frozen=True)
class Padded:
    """Text without the blanks at its end, which a function stores in canonical form."""

    recode: Any

    def decode(self, view):
        """Return the text."""
        return str(view, "utf-8").rstrip()


def recode_of(recode):
    """Return the subject of a codec with this function."""
    codec = Codec(name="mine", summary="text", factory=lambda: Padded(recode))
    return Subject(registered=Registered(component=codec, plugin="mine"), options={})


@pytest.mark.parametrize(
    "recode",
    [bytes.rstrip, lambda data: [data.rstrip()], lambda data: (data.rstrip()[:1], memoryview(data.rstrip()[1:]))],
    ids=["bytes", "list", "parts"],
)
def test_a_recoded_field_may_come_in_parts(recode):
    """Bytes and the sequences of their parts that a conversion writes one behind the other are alike."""
    CodecConformance().test_recoded_fields_have_the_same_value(recode_of(recode), [b"a  ", b"bc"])


@pytest.mark.parametrize(
    ("recode", "message"),
    [
        (lambda data: [b"x", data], "recode changes a value; return bytes of the same value"),
        (lambda data: [data, b" "], "recode changes its own result; return the same bytes for every equal input"),
        (
            lambda data: [str(data, "utf-8")],
            (
                "recode(data) raises TypeError: sequence item 0: expected a bytes-like object, str found; "
                "return bytes of the same value, or a sequence of their parts"
            ),
        ),
    ],
    ids=["value", "again", "text"],
)
def test_parts_of_another_value_are_found(recode, message):
    """What a conversion would store is compared as a whole."""
    with pytest.raises(NonconformingError) as caught:
        CodecConformance().test_recoded_fields_have_the_same_value(recode_of(recode), [b"a  ", b"bc"])

    assert str(caught.value) == f"plugin 'mine', codec 'mine': {message}"
