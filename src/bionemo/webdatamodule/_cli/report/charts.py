"""Charts as inline SVG.

The drawing stretches with the page and its numbers are text beside it, so they stay readable on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bionemo.webdatamodule._cli.report.markup import Markup, element

_WIDTH, _HEIGHT, _GAP = 1000, 100, 0.14  # of the drawing's own units; the gap is a part of a column
_LEAST = 1.5  # height of a column that is not empty, so that it is seen


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a chart.

    Attributes:
        value: Its height, from 0 on.
        tip: What it is, shown where the pointer rests on it.
    """

    value: float
    tip: str


def columns(given: Sequence[Column], *, title: str, summary: str, top: str, axis: Sequence[str], unit: str) -> Markup:
    """Return a figure of columns next to each other.

    Args:
        given: The columns.
        title: Caption of the figure.
        summary: What it shows in a sentence, for screen readers.
        top: The highest value as text.
        axis: What stands under the columns, from the first to the last.
        unit: What the height means.
    """
    highest = max((column.value for column in given), default=0) or 1
    step = _WIDTH / max(1, len(given))
    gap = step * _GAP if len(given) <= _WIDTH / 8 else 0
    bars = []
    for number, column in enumerate(given):
        height = max(_LEAST, column.value / highest * _HEIGHT) if column.value else 0
        bars.append(
            element(
                "g",
                element("title", column.tip),
                element("rect", class_="hover", x=_n(number * step), y=0, width=_n(step), height=_HEIGHT),
                element(
                    "rect",
                    class_="bar",
                    x=_n(number * step + gap / 2),
                    y=_n(_HEIGHT - height),
                    width=_n(step - gap),
                    height=_n(height),
                ),
            )
        )
    drawing = element(
        "svg",
        bars,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=summary,
    )
    return element(
        "figure",
        element("figcaption", element("b", title), " ", element("span", unit, class_="quiet")),
        element(
            "div",
            element("div", element("span", top), element("span", "0"), class_="scale", aria_hidden="true"),
            element("div", drawing, class_="drawing"),
            element("div", (element("span", end) for end in axis), class_="axis", aria_hidden="true"),
            class_="chart",
        ),
    )


def bar(part: float) -> Markup:
    """Return a bar that fills a part of its place, from 0 to 1. It repeats a number that stands beside it."""
    drawn = element("rect", class_="bar", x=0, y=0, width=_n(max(part * 100, 0.6)), height=10)
    return element("svg", drawn, class_="share", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


def _n(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
