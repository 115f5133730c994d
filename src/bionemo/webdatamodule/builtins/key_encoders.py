"""The default key encoders: from a sample's name to its ``__key__`` in the shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from bionemo.webdatamodule.components import KeyEncoder
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.hookspecs import hookimpl

# What cannot stand in a key: the escape sign itself, dots (webdataset finds the suffix by them), control
# characters, surrogates (no UTF-8), two underscores or a slash at the
# beginning (metadata, absolute paths), and a slash at the end (no file name).
_UNSAFE = re.compile(r"[%.\x00-\x1f\x7f\ud800-\udfff]|\A/|/\Z|\A_(?=_)")
_ESCAPED = re.compile(r"%([0-9a-f]{2}|u[0-9a-f]{4}|-)")
_EMPTY = "%-"


def dashes() -> Callable[[str], str]:
    """Return the documented encoder, which replaces dots by dashes.

    If two names get the same key, the conversion raises an error that names both.
    """
    return encode_dashes


def escaped() -> Callable[[str], str]:
    """Return a reversible encoder with a unique key for every name, see :func:`decode_escaped`."""
    return encode_escaped


def encode_dashes(name: str) -> str:
    """Return the name with a dash for every dot."""
    return name.replace(".", "-")


def encode_escaped(name: str) -> str:
    """Return the name with ``%2e`` for a dot, ``%25`` for a percent sign and so on.

    Letters of any language, digits, spaces and slashes are unchanged.
    """
    return _UNSAFE.sub(_escape, name) or _EMPTY


def decode_escaped(key: str) -> str:
    """Return the name of a key of :func:`encode_escaped`.

    Raises:
        DecodeError: If no name has that key.
    """
    name = _ESCAPED.sub(_unescape, key)
    if encode_escaped(name) != key:
        raise DecodeError(f"{key!r} is not a key of the encoder 'escaped'", key=key)
    return name


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"%{code:02x}" if code < 0x100 else f"%u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    digits = match.group(1)
    return "" if digits == "-" else chr(int(digits.removeprefix("u"), 16))


@hookimpl
def webdatamodule_key_encoders() -> Iterable[KeyEncoder]:
    """Register the key encoders ``dashes`` and ``escaped``."""
    yield KeyEncoder(name="dashes", summary="replace dots by dashes", factory=dashes)
    yield KeyEncoder(name="escaped", summary="reversible, with a unique key for every name", factory=escaped)
