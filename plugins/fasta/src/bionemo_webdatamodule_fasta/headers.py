"""Ids in header lines: how they are decoded, which reads are mates, and which ids occur more than once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def utf8(text: bytes) -> str:
    """Return header text as a string: UTF-8, or else Latin-1, which old databases use."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def pair_name(identity: str) -> str:
    """Return the name of the pair that a read belongs to: its id without ``/1`` or ``/2``."""
    return identity[:-2] if identity.endswith(("/1", "/2")) else identity


def repeated(names: Sequence[str]) -> str:
    """Return a message that lists the ids that occur more than once."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    more = f" and {len(twice) - 20} more" if len(twice) > 20 else ""
    return f"ids occur more than once: {', '.join(twice[:20])}{more}; give each record an id of its own"
