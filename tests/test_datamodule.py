"""The constructors of the data modules check every argument."""

import re

import numpy as np
import pytest

from bionemo.webdatamodule import PickledDataWDS, WebDataModule
from bionemo.webdatamodule._engine.config import sources
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule.errors import ConfigError, NoShardsError


def test_paths_of_a_numpy_array_are_paths(tmp_path):
    """Its elements are a kind of text of their own, which the system takes for bytes."""
    for directory in np.array([tmp_path]).astype(str):
        assert str is type(sources("dirs", directory)[0].directory)
        with pytest.raises(NoShardsError, match="has no manifest and no"):
            ShardSet.open(sources("dirs", directory)[0].directory, "t")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shardshuffle", "x", "is a whole number, not 'x'"),
        ("shardshuffle", -1, "is at least 0, not -1"),
        ("seed", "x", "is a whole number, not 'x'"),
        ("seed", True, "is a whole number, not True"),
        ("nodesplitter", 5, "is a function or its import path, not 5"),
        ("workersplitter", 5, "is a function or its import path, not 5"),
        ("cache_size", "x", "is a number, not 'x'"),
        ("cache_dir", 5, "holds 5, which is not a path"),
        ("cache_dir", "s3://bucket/c", "is a path on a disk, not the URL s3://bucket/c"),
        ("mode", "x", "is one of 'resampled', None, not 'x'"),
        ("resampled", "yes", "is one of True, False, not 'yes'"),
        ("repeat", "yes", "is one of True, False, not 'yes'"),
        ("detshuffle", "yes", "is one of True, False, not 'yes'"),
        ("empty_check", "yes", "is one of True, False, not 'yes'"),
        ("verbose", "yes", "is one of True, False, not 'yes'"),
    ],
)
def test_wrong_values_for_webdataset_are_refused(name, value, message):
    """The constructor of the data module names the option, the split and what is expected."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule({"val": "data"}, None, "cls", 4, kwargs_wds={"val": {name: value}})
    assert f"{name} in kwargs_wds[val] {message}" == caught.value.message


@pytest.mark.parametrize("argument", ["kwargs_wds", "kwargs_wld"])
@pytest.mark.parametrize("given", [5, "nope", [], [None], {5: 1}], ids=str)
def test_options_are_a_mapping(argument, given):
    """Anything else is refused by the constructor of the data module."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule({"val": "data"}, None, "cls", 4, **{argument: {"val": given}})
    expected = f"{argument}[val] maps names of options to values, such as {{'name': value}}, not {given!r}"
    assert expected == caught.value.message


@pytest.mark.parametrize("argument", ["invoke_wds", "invoke_wld"])
@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (5, ", not 5"),
        ("nope", ", not 'nope'"),
        ({"shuffle": {}}, ", not {'shuffle': {}}"),
        ([None], "; it holds None"),
        (["shuffle"], "; it holds 'shuffle'"),
        (("shuffle", {"size": 9}), "; it holds 'shuffle'"),
        ([("shuffle", 9)], "; it holds ('shuffle', 9)"),
        ([(len, {})], "; it holds (<built-in function len>, {})"),
    ],
    ids=str,
)
def test_calls_are_pairs(argument, given, wrong):
    """Anything else is refused by the constructor of the data module."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule({"val": "data"}, None, "cls", 4, **{argument: {"val": given}})
    expected = f"{argument}[val] is a list of pairs of a method and its arguments, such as [('shuffle', {{'size': 9}})]"
    assert expected + wrong == caught.value.message


def test_plugins_are_a_set_of_plugins():
    """Anything else is refused by the constructor of the data module."""
    with pytest.raises(ConfigError, match=r"^plugins is a Plugins, or None for the installed plugins, not 5 "):
        WebDataModule({"val": "data"}, None, "cls", 4, plugins=5)


@pytest.mark.parametrize(
    ("pickles", "prefix", "message"),
    [
        (None, "out-", "dir_pickles holds None, which is not a path"),
        (b"data", "out-", "dir_pickles holds b'data', which is not a path"),
        ("s3://bucket/p", "out-", "dir_pickles is a path on a disk, not the URL s3://bucket/p"),
        (
            "data",
            5,
            "prefix_dir_tars_wds is the beginning of a path or URL, or maps splits to them, not 5",
        ),
        (
            "data",
            b"out-",
            "prefix_dir_tars_wds is the beginning of a path or URL, or maps splits to them, not b'out-'",
        ),
        ("data", {"val": None}, "prefix_dir_tars_wds[val] holds None, which is not a path"),
    ],
)
def test_what_a_conversion_reads_and_writes_are_paths(pickles, prefix, message):
    """Anything else is refused by the constructor of the data module."""
    with pytest.raises(ConfigError) as caught:
        PickledDataWDS(pickles, "cls", {"val": ["a"]}, prefix, 4)
    assert message == caught.value.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 4}, "batch_size is given as global_batch_size, the number of samples of a batch, "),
        ({"shuffle": True}, "shuffle cannot be chosen: training data are shuffled, evaluation data are not"),
        (
            {"num_workers": 2},
            (
                "num_workers is an option of the loader, given for each split, as in "
                "kwargs_wld={'train': {'num_workers': 2}}"
            ),
        ),
    ],
    ids=["batch_size", "shuffle", "num_workers"],
)
def test_arguments_of_torchs_loader_are_answered_with_ours(given, message):
    """The remedy is a call that works."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        WebDataModule({"train": "data"}, None, "cls", 4, **given)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        PickledDataWDS("data", "cls", {"train": ["a"]}, "out-", **given)
    if "kwargs_wld" in message:
        WebDataModule({"train": "data"}, None, "cls", 4, kwargs_wld={"train": given})
