"""What samples become behind a loader, as torch's own loader would make them."""

from collections import Counter, OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_convert

from bionemo.webdatamodule import Use, WebDataModule
from bionemo.webdatamodule._engine.loading.placement import converted
from bionemo.webdatamodule._engine.loading.records import resolve_loader
from bionemo.webdatamodule.errors import ConfigError

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


@pytest.mark.parametrize("array", [np.arange(3)[::-1], np.arange(3, dtype=">i2")], ids=["strides", "byte order"])
def test_arrays_that_torch_cannot_share_are_kept_for_the_users_stages(array):
    """They may copy them, or need no tensor."""
    assert converted(array) is array
    found = converted({"a": array, "b": np.arange(2)})
    assert (array is found["a"], [0, 1]) == (True, found["b"].tolist())


def test_counts_stay_as_they_are():
    """An update of a counter would add to its counts."""
    assert Counter(a=1, b=2) == converted(Counter(a=1, b=2))
    found = converted([Counter(a=np.int64(3))])
    assert (Counter, 3, torch.Tensor) == (type(found[0]), int(found[0]["a"]), type(found[0]["a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": True}, "batch_size in kwargs_wld is a whole number, not True"),
        ({"batch_size": 0}, "batch_size in kwargs_wld is at least 1, not 0"),
        ({"drop_last": "yes"}, "drop_last in kwargs_wld is one of True, False, not 'yes'"),
        ({"shuffle": 5}, "shuffle in kwargs_wld is one of True, False, not 5"),
        ({"collate_fn": 5}, "collate_fn in kwargs_wld is a function or its import path, not 5"),
        (
            {"collate_fn": "pad"},
            (
                "collate_fn='pad' in kwargs_wld makes batches, and where pipeline_prebatch_wld is given it gets single "
                "samples; leave it out, and give Use('batch', collate='pad') in pipeline_prebatch_wld"
            ),
        ),
    ],
)
def test_wrong_options_of_torchs_loader_are_refused(options, message):
    """The constructor of the data module names the option, the split and what is expected."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule(
            {"val": "data"},
            None,
            "cls",
            4,
            kwargs_wld={"val": options},
            pipeline_prebatch_wld={"val": Use("batch", collate="pad")},
        )
    assert (message, {"split": "val"}) == (caught.value.message, caught.value.where)


def test_a_collate_fn_may_be_an_import_path():
    """As everywhere where a function is taken, so that a file of configuration can name it."""
    assert len is resolve_loader("webloader", {"collate_fn": "builtins.len"}, None, split="val").collate
