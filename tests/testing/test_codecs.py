"""The kit says of a codec what it does wrong."""

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
