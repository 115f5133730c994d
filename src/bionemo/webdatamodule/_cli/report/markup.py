"""HTML that is escaped by its type: text becomes markup in one place only."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

_EMPTY = frozenset(("rect",))  # elements without content that HTML wants to be closed, as far as reports have them


class Markup(str):
    """Text that is HTML already. Only :func:`element` and :func:`join` make it; any other text is escaped."""

    __slots__ = ()


Content: TypeAlias = "str | int | Iterable[str | int]"


def element(name: str, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Args:
        name: Its name.
        *content: Texts, numbers and markup, or iterables of them. What is not :class:`Markup` is escaped.
        **attributes: Values by name, where a trailing underscore is dropped and others become dashes: ``class_``,
            ``aria_label``. ``True`` stands for an attribute without value; ``None`` and ``False`` leave it out.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{given}/>" if name in _EMPTY else f"<{name}{given}>{join(*content)}</{name}>")


def join(*content: Content) -> Markup:
    """Return contents one after the other."""
    parts: list[str] = []
    for part in content:
        pieces = [part] if isinstance(part, (str, int)) else part
        parts += [piece if isinstance(piece, Markup) else escaped(str(piece)) for piece in pieces]
    return Markup("".join(parts))


def escaped(text: str) -> Markup:
    r"""Return text as HTML.

    Characters that cannot be seen are written as ``\u202e``: some turn the direction of what follows,
    and halves of surrogate pairs, as names of files may hold, fit into no file.
    """
    seen = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )
    return Markup(html.escape(seen))
