"""Checks of options that factories of components share."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.options import checked, flag, local_path, number, one_of, optional, whole_number


@pytest.mark.parametrize("given", ["2", None, True, 1j, float("nan"), [1]])
def test_what_is_not_a_number_is_refused(given):
    """Text, booleans and NaN are none."""
    with pytest.raises(ConfigError) as caught:
        number("n", given, least=0)
    assert f"n is a number, not {given!r}" == caught.value.message


def test_numbers_have_a_least_one():
    """Numbers of NumPy and infinity are numbers too."""
    assert [0.0, 1.5, float("inf")] == [number("n", given, least=0) for given in (0, np.float32(1.5), float("inf"))]
    with pytest.raises(ConfigError, match=r"^n is at least 0, not -1 "):
        number("n", -1, least=0)


@pytest.mark.parametrize("given", ["yes", None, 2, np.ones(2), torch.ones(2)], ids=str)
def test_what_is_no_boolean_is_refused(given):
    """Arrays, whose comparison has no truth, as well."""
    with pytest.raises(ConfigError) as caught:
        flag("f", given)
    assert f"f is one of True, False, not {given!r}" == caught.value.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "d holds 5, which is not a path"),
        ("", "d holds '', which is not a path"),
        (b"data", "d holds b'data', which is not a path"),
        ("s3://bucket/data", "d is a path on a disk, not the URL s3://bucket/data"),
    ],
)
def test_what_is_not_a_path_on_a_disk_is_refused(given, message):
    """URLs as well, since ``Path`` would make the name of a folder of them."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)} "):
        local_path("d", given)


def test_paths_become_plain_text(monkeypatch):
    """Objects, texts of NumPy and the user's own folder are paths."""
    monkeypatch.setenv("HOME", "/home/me")
    found = [local_path("d", given) for given in (Path("a"), np.str_("b"), "~/c")]

    assert ["a", "b", "/home/me/c"] == found
    assert {str} == set(map(type, found))


def test_options_are_checked_by_name():
    """The result has what the checks return; options without a check stay."""
    checks = {"size": optional(partial(whole_number, least=1)), "kind": partial(one_of, choices=("a", "b"))}

    assert {"size": 3, "kind": "a", "more": "x"} == checked({"size": np.int64(3), "kind": "a", "more": "x"}, checks)
    assert {"size": None} == checked({"size": None}, checks)
    with pytest.raises(ConfigError, match=r"^size in kwargs is at least 1, not 0 "):
        checked({"size": 0}, checks, "{} in kwargs")
