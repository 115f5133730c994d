"""What samples become behind a loader, as torch's own loader would make them."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_convert

from bionemo.webdatamodule._engine.loading.placement import converted

Pair = namedtuple("Pair", ["first", "second"])  # noqa: PYI024 - as users have them


@pytest.mark.parametrize(
    "sample",
    [
        1,
        "text",
        None,
        np.arange(3),
        np.float32(2),
        {"a": torch.arange(2), "b": 1},
        {"a": {"b": np.arange(2), "c": (1, "x")}, "d": [1.5, b"y"]},
        (np.arange(2), [np.int8(1), (2, 3)]),
        [],
        (),
        {},
        Pair(np.arange(2), 1),
        OrderedDict(a=np.arange(2)),
    ],
)
def test_samples_are_converted_as_torch_converts_them(sample):
    """Types of containers and dtypes of tensors are the same."""
    assert repr(default_convert(sample)) == repr(converted(sample))


def test_arrays_that_have_no_tensor_are_kept_among_others():
    """Only they stay as they are."""
    times = np.array(["2020-01-01"], "datetime64[D]")
    found = converted({"times": times, "pair": (times, np.arange(2))})
    assert found["times"] is times
    assert found["pair"][0] is times
    assert torch.equal(torch.arange(2), found["pair"][1])
