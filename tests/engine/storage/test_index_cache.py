"""The user's cache directory."""

import os

import pytest

from bionemo.webdatamodule._engine.reading.locate import _EMPTY
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, cache_directory, store_index


@pytest.mark.parametrize(
    ("base", "home", "expected"),
    [
        ("/cache", "/home/me", "/cache/bionemo-webdatamodule"),
        ("", "/home/me", "/home/me/.cache/bionemo-webdatamodule"),
        ("cache", "/home/me", "/home/me/.cache/bionemo-webdatamodule"),
        ("", "~", f"{os.devnull}/.cache/bionemo-webdatamodule"),
    ],
    ids=["given", "home", "relative", "nobody"],
)
def test_the_cache_lies_in_the_users_home(monkeypatch, base, home, expected):
    """A relative directory counts for none, and who has no home has no cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", home))
    assert expected == cache_directory()


def test_what_cannot_be_kept_is_not_kept(monkeypatch, tmp_path):
    """Nothing is written to a place that cannot be made, and nothing beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert store_index(str(tmp_path / "t.tar"), Stamp(size=0, mtime_ns=0, ctime_ns=0), _EMPTY) is None
    assert [] == list(tmp_path.iterdir())
