"""Keys, suffixes and prefixes: one module decides what they may be."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from bionemo.webdatamodule._engine.format.tar_headers import member_name
from bionemo.webdatamodule._engine.format.tar_scan import walk
from bionemo.webdatamodule._engine.format.tar_write import header
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.names import (
    LONGEST_KEY,
    check_prefix,
    check_suffixes,
    decode_key,
    encode_key,
    key_problem,
    split_member,
)

texts = st.text(st.sampled_from("a_/.\n\0\x7fä日 -%\udce4\ud800")) | st.text()


@given(texts)
@example("https://host/a/")
@example("dir/")
@example("__\n/")
def test_a_key_that_can_be_written_is_read_back_by_everybody(key):
    """What the check passes is what a header, webdataset and the index give back."""
    if key_problem(key) is None:
        stored = encode_key(key)
        assert (key, "x") == base_plus_ext(f"{key}.x")
        assert (stored, b"x") == split_member(stored + b".x")
        assert key == decode_key(stored)
        if len(stored) <= 90 or key.isascii():
            member = header(stored + b".x", 0)
            assert stored + b".x" == member_name(member, 0)
            assert [stored + b".x"] == walk(member + b"\0" * 1024).names


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "is empty"),
        ("a.b", "dot in its last part"),
        ("dir/.b", "dot in its last part"),
        ("https://host/a/", "ends in a slash"),
        ("a/", "ends in a slash"),
        ("/a", "outside of a directory"),
        ("../a", "outside of a directory"),
        ("a/../b", "outside of a directory"),
        ("a/.", "outside of a directory"),
        ("a\nb", "tar readers cannot handle"),
        ("a\0b", "tar readers cannot handle"),
        ("__meta__/a", "webdataset skips"),
        ("\ud800", "not text"),
        ("a" * (LONGEST_KEY + 1), "the longest key has 65536"),
        ("日" * LONGEST_KEY, "has 196608 bytes"),
        (7, "not a string but int"),
        (b"a", "not a string but bytes"),
    ],
)
def test_bad_keys_are_named(key, reason):
    """Each kind of bad key is refused with its own reason."""
    assert reason in key_problem(key)


@pytest.mark.parametrize("path", [b"a", b".a", b"dir/.a", b"dir/", b"dir.x/a", b"a/b/.c.d", b""])
def test_members_that_belong_to_no_sample(path):
    """Without a name and a suffix in the last part of its path a member has no key."""
    assert split_member(path) is None


@pytest.mark.parametrize("suffixes", [(), ("",), (".a",), ("a/b",), ("a__",), ("a", "A"), ("a", "a"), "a\n", 7])
def test_bad_suffixes_are_refused(suffixes):
    """A suffix that would not come back as it is raises an error that shows it."""
    with pytest.raises(ConfigError, match="suffixes"):
        check_suffixes(suffixes)


@pytest.mark.parametrize("prefix", ["", ".a", "a/b", "a\n", None, "\ud800"])
def test_bad_prefixes_are_refused(prefix):
    """A prefix begins a file name that is not hidden."""
    with pytest.raises(ConfigError, match="beginning of a file name"):
        check_prefix(prefix)
