"""What a key, a suffix and a prefix may be, for writing, adopting, reading and verifying shards alike.

A shard is a tar whose members are named ``{key}.{suffix}``. The suffix begins at the first dot of the last part of
the path, as in webdataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bionemo.webdatamodule.errors import ConfigError

LONGEST_KEY = 1 << 16
"""Bytes of a key at most."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]{0,99}")
_META_DIRECTORY = re.compile(r"__[^/]*__/")


def split_member(path: bytes) -> tuple[bytes, bytes] | None:
    """Split the path of a tar member into key and suffix.

    Returns:
        Key and suffix, or ``None`` where the last part of the path has no dot or begins with one. Such a member
        belongs to no sample.
    """
    base = path.rfind(b"/") + 1
    dot = path.find(b".", base)
    return (path[:dot], path[dot + 1 :]) if dot > base else None


def encode_key(key: str) -> bytes:
    """Return the bytes of a key in a tar.

    Raises:
        UnicodeEncodeError: If it has none.
    """
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """Return the key of its bytes in a tar; those that are not UTF-8 become surrogates, as in file names."""
    return key.decode("utf-8", "surrogateescape")


def check_suffixes(suffixes: str | Iterable[str], *, argument: str = "suffixes") -> tuple[str, ...]:
    """Return suffixes as a tuple, after checking that each can be stored and read back as it is.

    Upper case, leading underscores, brackets and other punctuation are fine and match exactly.
    Refused are empty suffixes, those with ``/`` or control characters, those that begin with a dot,
    those that end in ``__`` (webdataset keeps ``__key__``, ``__bad__`` and their like for itself),
    and two that differ in nothing but case (webdataset reads suffixes in lower case).

    Args:
        suffixes: One suffix or several; a one-shot iterator is used up once, here.
        argument: What the user calls it, for messages.

    Raises:
        ConfigError: If one cannot be used.
    """
    if isinstance(suffixes, str):
        suffixes = (suffixes,)
    if isinstance(suffixes, (bytes, Mapping)) or not isinstance(suffixes, Iterable):
        raise ConfigError(f"{argument} must be a suffix or several, not {type(suffixes).__name__}")
    found = tuple(suffixes)
    if not found:
        raise ConfigError(f"{argument} is empty; give at least one suffix, such as 'tensor.pyd'")
    lower: dict[str, str] = {}
    for suffix in found:
        problem = suffix_problem(suffix)
        if problem:
            raise ConfigError(f"{argument} has {suffix!r}, which {problem}")
        if suffix.lower() in lower:
            twin = lower[suffix.lower()]
            raise ConfigError(
                f"{argument} has {suffix!r} twice"
                if twin == suffix
                else f"{argument} has {twin!r} and {suffix!r}, which webdataset reads as one"
            )
        lower[suffix.lower()] = suffix
    return found


def suffix_problem(suffix: Any) -> str | None:
    """Return what is wrong with a suffix, as the rest of a sentence, or ``None``."""
    if not isinstance(suffix, str):
        return f"is not a string but {type(suffix).__name__}"
    if not suffix:
        return "is empty"
    if "/" in suffix:
        return "has a slash, so it would be a directory"
    if suffix.startswith("."):
        return f"begins with a dot; write {suffix.lstrip('.')!r}"
    if suffix.endswith("__"):
        return "ends in two underscores, which webdataset keeps for itself"
    if _CONTROL.search(suffix):
        return "has a control character"
    return None if _is_text(suffix) else "is not valid text"


def key_problem(key: Any) -> str | None:
    """Return why a key cannot be written, as the rest of a sentence, or ``None``.

    A key can be written where :func:`split_member` and ``webdataset.tariterators.base_plus_ext`` give it back,
    webdataset does not take it for metadata, and an archive with it can be unpacked by any program.
    """
    if not isinstance(key, str):
        return f"is not a string but {type(key).__name__}"
    if not key:
        return "is empty"
    if _PLAIN_KEY.fullmatch(key):
        return None
    if key.startswith("/") or not {".", ".."}.isdisjoint(key.split("/")):
        return "points outside of a directory"
    if key.endswith("/"):
        return "ends in a slash, so it has no name behind its directory"
    if "\x00" in key or "\n" in key:
        return "has a character that tar readers cannot handle"
    try:
        stored = encode_key(key)
    except UnicodeEncodeError:
        return "is not text that a tar can hold"
    if len(stored) > LONGEST_KEY:
        return f"has {len(stored)} bytes; the longest key has {LONGEST_KEY}"
    if split_member(stored + b".x") != (stored, b"x"):
        return "has a dot in its last part, where the suffix begins"
    return "begins with a __directory__/, which webdataset skips" if _META_DIRECTORY.match(key) else None


def check_prefix(prefix: str) -> str:
    """Return a prefix of shard names.

    Raises:
        ConfigError: If it cannot begin a file name.
    """
    if (
        not isinstance(prefix, str)
        or not prefix
        or prefix.startswith(".")
        or "/" in prefix
        or _CONTROL.search(prefix)
        or not _is_text(prefix)
    ):
        raise ConfigError(f"the prefix of the shards must be the beginning of a file name, not {prefix!r}")
    return prefix


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
