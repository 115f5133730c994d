"""Arguments of the data modules, checked and normalised."""

from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from bionemo.webdatamodule._engine.config import (
    ErrorPolicy,
    Source,
    calls,
    error_policy,
    order_of,
    sources,
    suffix_tuple,
    wds_options,
)
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.options import one_of, whole_number


def test_suffixes_are_one_or_several():
    """A suffix, a list of them or a one-shot iterator of them."""
    assert [("a",), ("a", "b"), ("a", "b")] == [
        suffix_tuple("s", "a"),
        suffix_tuple("s", ["a", "b"]),
        suffix_tuple("s", iter("ab")),
    ]


@pytest.mark.parametrize("given", ["", [], [""], [3], 3, None, ["a", "a"]])
def test_wrong_suffixes_are_refused(given):
    """No suffix, an empty one, one twice, or one that is not text."""
    with pytest.raises(ConfigError, match=r"^s "):
        suffix_tuple("s", given)


@pytest.mark.parametrize("given", [0, -1, 1.0, "3", True, None, int, [1, 2]])
def test_wrong_numbers_are_refused(given):
    """Counts are whole numbers of at least 1."""
    with pytest.raises(ConfigError, match=r"^n is "):
        whole_number("n", given, least=1)


def test_numpy_numbers_are_numbers():
    """What has an index is a whole number."""
    assert 3 == whole_number("n", np.int64(3), least=1)


def test_a_split_has_one_directory_or_a_mixture():
    """A path, a path object, a URL, a list of directories, or pairs with weights."""
    assert (Source("d", None),) == sources("dirs", Path("d"))
    assert (Source("s3://b/d", None),) == sources("dirs", "s3://b/d")
    assert (Source("a", 0.7), Source("b", 0.3)) == sources("dirs", [("a", 0.7), ["b", 0.3]])
    assert (Source("a", None), Source("b", None)) == sources("dirs", ["a", Path("b")])
    assert (Source(str(Path("~/x").expanduser()), None),) == sources("dirs", "~/x")


@pytest.mark.parametrize(
    "given",
    [
        3,
        {},
        [],
        [3],
        [("a", 0)],
        [("a", -1)],
        [("a", "x")],
        [("a", 1, 2)],
        [("a", 1), "b"],
        "",
        None,
        [("a", float("nan"))],
    ],
)
def test_wrong_directories_are_refused(given):
    """What is not a directory and no mixture is named."""
    with pytest.raises(ConfigError, match=r"^dirs "):
        sources("dirs", given)


@pytest.mark.parametrize("name", ["shardshuffle", "nodesplitter", "resampled", "seed", "detshuffle"])
def test_naming_a_shard_argument_means_shards_order(name):
    """Webdataset's own arguments choose webdataset's own order, and the reason says so."""
    assert ("shards", f"kwargs_wds names {name}") == order_of(None, {name: None})


def test_global_order_is_the_default_and_both_can_be_forced():
    """Without shard arguments the order is global; the user may choose."""
    assert "global" == order_of(None, {"verbose": True})[0]
    assert "shards" == order_of("shards", {})[0]
    with pytest.raises(ConfigError, match="order='global' deals samples by its own plan"):
        order_of("global", {"shardshuffle": 10})
    with pytest.raises(ConfigError, match="kwargs_wds names 'shardshufle'"):
        order_of(None, {"shardshufle": 10})


def test_webdatasets_handlers_are_understood():
    """Its four handlers map to raising and skipping; others are refused with the remedy."""
    policy = ErrorPolicy(max_skipped=5)

    assert ErrorPolicy(on_error="skip", max_skipped=5) == error_policy({"handler": wds.warn_and_continue}, policy)
    assert ErrorPolicy(on_error="raise") == error_policy({"handler": wds.reraise_exception}, policy)
    assert policy == error_policy({}, policy)
    with pytest.raises(ConfigError, match="give on_error='raise' or 'skip'"):
        error_policy({"handler": wds.warn_and_stop}, policy)


def test_choices_are_listed():
    """A wrong choice is answered with the right ones."""
    assert "a" == one_of("x", "a", ("a", "b"))
    with pytest.raises(ConfigError, match="x is one of 'a', 'b', not 'c'"):
        one_of("x", "c", ("a", "b"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("shardshuffle", True, True),
        ("shardshuffle", np.int64(3), 3),
        ("seed", None, None),
        ("nodesplitter", "webdataset.split_by_node", wds.split_by_node),
        ("cache_size", -1, None),
        ("cache_size", 1e9, 10**9),
        ("cache_size", float("inf"), None),
        ("cache_dir", Path("~/x"), str(Path("~/x").expanduser())),
    ],
)
def test_values_for_webdataset_are_taken_as_what_they_mean(name, value, expected):
    """An import path is the function, and -1 is no limit."""
    assert {name: expected} == wds_options("w", {name: value})


def test_calls_may_come_from_an_iterator():
    """Pairs may be lists, as those of a file of configuration."""
    assert (("a", {}), ("b", {"c": 1})) == calls("c", iter([("a", {}), ["b", {"c": 1}]]))
