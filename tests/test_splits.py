"""Splits and mappings keyed by them."""

import pytest

from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.splits import Split, by_split


def test_there_are_three_splits_in_the_documented_order():
    """The documented splits are there."""
    assert ["train", "val", "test"] == [split.name for split in Split]


def test_names_of_splits_are_taken_for_splits():
    """A mapping may be keyed by splits, by their names, or by both."""
    assert {Split.train: 1, Split.val: 2} == by_split("n", {"train": 1, Split.val: 2})
    assert {} == by_split("n", None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": 1}, r"n has the key 'training'; splits are train, val, test"),
        ({3: 1}, r"n has the key 3; splits are train, val, test"),
        ({"train": 1, Split.train: 2}, "n has the split train twice"),
        ("train", "n must map splits to values"),
        ([1], "n must map splits to values"),
    ],
)
def test_wrong_mappings_are_refused(given, message):
    """What is not a mapping from splits is named with its argument."""
    with pytest.raises(ConfigError, match=message):
        by_split("n", given)
