# ruff: noqa: INP001 - scripts of the documentation are not a package
"""Diagrams of boxes in rows, as SVG made from text.

Each line is a row: a label, a colon, and boxes with ``>`` between them. The text can be read as it is, too::

    every epoch: index + plan > decode > stages > Trainer
"""

from __future__ import annotations

import re
from html import escape

_BLOCK = re.compile(r"^```diagram\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LETTER, _LINE, _PAD, _GAP, _ROW = 7.2, 18, 12, 34, 34
_LONGEST = 24  # letters of a line in a box
_STYLE = (
    "text{font:13px sans-serif;fill:currentColor}.label{font-weight:bold}"
    "rect{fill:none;stroke:currentColor;rx:5px}path{stroke:currentColor;fill:none}"
)


def expand(page: str) -> str:
    """Return a page with its diagrams as SVG."""
    return _BLOCK.sub(lambda match: svg(match["text"]), page)


def svg(text: str) -> str:
    """Return the diagram of some rows."""
    parts: list[str] = []
    top, width = 4.0, 0.0
    for row in filter(None, map(str.strip, text.splitlines())):
        label, _, boxes = row.partition(":")
        lines = [_wrapped(box.strip()) for box in boxes.split(">")]
        height = 2 * _PAD + _LINE * max(map(len, lines))
        parts.append(f'<text class="label" x="1" y="{top + 14:.0f}">{escape(label)}</text>')
        top += _LINE + 6
        left = 1.0
        for number, box in enumerate(lines):
            wide = 2 * _PAD + _LETTER * max(map(len, box))
            middle = top + height / 2
            if number:
                parts.append(f'<path d="M{left - _GAP + 4:.0f} {middle:.0f}h{_GAP - 8}m-6 -4l6 4l-6 4"/>')
            parts.append(f'<rect x="{left:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{height:.0f}"/>')
            center, first = left + wide / 2, middle - _LINE * (len(box) - 1) / 2 + 4.5
            parts += [
                f'<text x="{center:.0f}" y="{first + _LINE * at:.0f}" text-anchor="middle">{escape(line)}</text>'
                for at, line in enumerate(box)
            ]
            left += wide + _GAP
        width = max(width, left - _GAP + 1)
        top += height + _ROW
    height = top - _ROW + 4
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px;width:100%"'
    title = f"<title>{escape(' '.join(text.split()))}</title>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>'
    return f"{head}{title}<style>{_STYLE}</style>{''.join(parts)}</svg>"


def _wrapped(text: str) -> list[str]:
    """Return a box's text in lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= _LONGEST:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
