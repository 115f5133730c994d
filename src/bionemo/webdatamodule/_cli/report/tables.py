"""The parts that sections are made of: tables, and lists of findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bionemo.webdatamodule._cli.report.markup import Content, Markup, element


def findings(found: Sequence[tuple[str, str]]) -> Markup:
    """Return a list of sentences, each with its class: ``bad`` or ``note``; nothing where there are none."""
    if not found:
        return Markup()
    return element("ul", (element("li", line, class_=colour) for line, colour in found), class_="findings")


def table(
    caption: str,
    titles: Sequence[str] | None,
    rows: Sequence[Sequence[Content]],
    *,
    numbers: Iterable[int] = (),
    fill: int | None = None,
    class_: str | None = None,
) -> Markup:
    """Return a table that scrolls by itself where it is wider than the page; the first cell of a row is its header."""
    classes = {**dict.fromkeys(numbers, "number"), **({} if fill is None else {fill: "fill"})}

    def cell(place: int, content: Content) -> Markup:
        shown = f"{content:,}" if isinstance(content, int) else content
        if place == 0:
            return element("th", shown, scope="row", class_=classes.get(place))
        return element("td", shown, class_=classes.get(place))

    head = ""
    if titles is not None:
        cells = (
            element("th", title, scope="col", class_=classes.get(place)) if title else element("td")
            for place, title in enumerate(titles)
        )
        head = element("thead", element("tr", cells))
    body = element("tbody", (element("tr", (cell(*numbered) for numbered in enumerate(row))) for row in rows))
    table = element("table", element("caption", caption), head, body, class_=class_)
    return element("div", table, class_="scroll", role="region", tabindex=0, aria_label=caption)
