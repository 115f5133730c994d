"""The stored fields for the suffixes that a user requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bionemo.webdatamodule._engine.codecs import names_in
from bionemo.webdatamodule.errors import ConfigError, MissingFieldError

KEY = "__key__"
"""Stands for the sample's key among the suffixes."""

_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Selected:
    """One field of each sample.

    Attributes:
        asked: What the user wrote.
        suffixes: Stored suffixes; of each sample the first that it has is taken.
        optional: Whether the field is ``None`` where a sample has none of them.
    """

    asked: str
    suffixes: tuple[str, ...]
    optional: bool


def select(asked: str, stored: Iterable[str], *, split: str | None = None) -> Selected:
    """Return what a suffix means among those that are stored.

    ``a;b`` takes the first that a sample has; ``a?`` is optional. Each name means the suffix of this name in any
    letter case, or else the only suffix that ends in a dot and it.

    Args:
        asked: What the user wrote.
        stored: All suffixes of the data.
        split: The split's name, for messages.

    Raises:
        MissingFieldError: If there is none.
        ConfigError: If a name could mean several suffixes.
    """
    if asked.removesuffix("?") == KEY:  # which every sample has
        return Selected(asked=asked, suffixes=(KEY,), optional=False)
    there = sorted(set(stored))
    if asked in there:  # whatever characters it has; other letter cases of it are for the samples without it
        return Selected(asked=asked, suffixes=_named(asked, there, split), optional=False)
    found = [suffix for name in names_in(asked) for suffix in _named(name, there, split)]
    optional = asked.endswith("?")
    if not found and not optional:
        raise MissingFieldError(
            f"no sample has the suffix {asked!r}; choose among {', '.join(there[:_LISTED])}", split=split
        )
    return Selected(asked=asked, suffixes=tuple(dict.fromkeys(found)), optional=optional)


def _named(name: str, there: Sequence[str], split: str | None) -> tuple[str, ...]:
    """Return the suffixes that a name means: they differ in letter case only."""
    lower = name.lower()
    exact = [suffix for suffix in there if suffix.lower() == lower]
    if exact:
        return tuple(sorted(exact, key=lambda suffix: suffix != name))
    endings = [suffix for suffix in there if suffix.lower().endswith(f".{lower}")]
    if len({suffix.lower() for suffix in endings}) > 1:
        raise ConfigError(
            f"the suffix {name!r} could mean {' or '.join(endings[:_LISTED])}; write it in full", split=split
        )
    return tuple(endings)
