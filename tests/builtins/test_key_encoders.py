"""Key encoders: what they make of names, and that readers give every key back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from bionemo.webdatamodule import KeyEncoder, Use
from bionemo.webdatamodule.builtins.key_encoders import decode_escaped, encode_escaped
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.names import key_problem
from bionemo.webdatamodule.plugins import resolve

names = st.text(st.characters(), max_size=40)  # surrogates and control characters, too

STRANGE = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/absolute",
    "./here",
    "a.b",
    "a-b",
    ".hidden",
    "trailing.",
    "v1.0/a",
    "v1.0/",
    "a/",
    "a//b",
    "__meta__/a",
    "__key__",
    "__x__",
    "_",
    "%",
    "%2e",
    "%-",
    "%u0041",
    "C:\\data\\a",
    "100%d",
    "{000..003}",
    "a;b",
    "a::b",
    "a[1]",
    "a?b#c",
    "~",
    "new\nline",
    "car\rriage",
    "nul\x00",
    "\x85",
    "\u2028",
    "é",
    "e\u0301",
    "Ä",
    "日本語",
    "\U0001f9ec",
    "\udcc3\udca9",
    "\ud800",
    "A",
    "a",
    "x" * 99,
    "x" * 300,
    "d/" * 80 + "x",
    "ß" * 200,
]


def test_dashes_is_the_documented_replacement():
    """Every dot becomes a dash, also in directories."""
    assert "v1-0/a-b" == resolve(KeyEncoder, Use("dashes"))("v1.0/a.b")


def test_escaped_keeps_what_may_stand_in_a_key():
    """Ordinary names, paths and text of any language stay readable."""
    assert ["a-b_c d", "dir/ünï", "%25", "v1%2e0/a", "%5f_meta__/a", "%-"] == [
        encode_escaped(name) for name in ("a-b_c d", "dir/ünï", "%", "v1.0/a", "__meta__/a", "")
    ]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_survive_escaped(name):
    """Every name of the table gets a good key and comes back from it."""
    key = encode_escaped(name)
    assert (key, "x") == base_plus_ext(f"{key}.x")
    assert key_problem(key) is None
    assert name == decode_escaped(key)


def test_strange_names_get_keys_of_their_own():
    """No two names of the table share a key."""
    assert len(STRANGE) == len({encode_escaped(name) for name in STRANGE})


@given(names)
@example("\n")
@example("__\n/")
@example("https://host/a/")
@example("//")
def test_escaped_survives_what_webdataset_does_to_names(name):
    """Any string gets a key that webdataset splits off its suffix again, and that decodes to the string."""
    key = encode_escaped(name)
    assert (key, "x") == base_plus_ext(f"{key}.x")
    assert key_problem(key) is None
    assert name == decode_escaped(key)


@given(names, names)
def test_escaped_is_injective(one, other):
    """Two keys are equal only if the names are."""
    assert (one == other) == (encode_escaped(one) == encode_escaped(other))


@given(names)
def test_a_string_that_is_no_key_is_not_decoded(key):
    """Decoding either refuses or is undone by encoding."""
    try:
        name = decode_escaped(key)
    except DecodeError:
        return
    assert key == encode_escaped(name)


def test_decoding_says_what_is_no_key():
    """The error shows the string."""
    with pytest.raises(DecodeError, match=r"'a\.b' is not a key of the encoder 'escaped'"):
        decode_escaped("a.b")
