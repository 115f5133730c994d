"""The sections on the data: shards, fields, what is in them, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from bionemo.webdatamodule._cli.report.charts import Column, bar, columns
from bionemo.webdatamodule._cli.report.facts import Facts, Shard
from bionemo.webdatamodule._cli.report.markup import Content, Markup, element, join
from bionemo.webdatamodule._cli.report.parts import Part
from bionemo.webdatamodule._cli.report.spread import Spread
from bionemo.webdatamodule._cli.report.survey import Field
from bionemo.webdatamodule._cli.report.tables import findings, table
from bionemo.webdatamodule._engine import humanize
from bionemo.webdatamodule.errors import count

_COLUMNS = 96  # of a chart of shards
_ROWS = 500  # of the table of shards
_LABELS = 40  # values of one label
_CHARTS = 24  # of sizes, of shapes and of labels, each


def shards(facts: Facts) -> Markup:
    """Return how samples and bytes are spread over shards, and all shards."""
    shards = facts.shards
    samples, size = [shard.samples for shard in shards], [shard.bytes for shard in shards]
    many = len(shards) > _COLUMNS
    return join(
        element(
            "p",
            f"{count(len(shards), 'shard')} of {humanize.counts(min(samples), max(samples), 'sample')} and "
            f"{_between(humanize.size, size)}.",
        ),
        element(
            "div",
            _by_shard(shards, "Samples by shard", lambda shard: shard.samples, lambda n: f"{n:,.0f}", many=many),
            _by_shard(shards, "Bytes by shard", lambda shard: shard.bytes, humanize.size, many=many),
            class_="pair",
        ),
        element(
            "details",
            element("summary", "All shards" if len(shards) <= _ROWS else f"The first {_ROWS} shards"),
            table(
                f"Shards of the prefix {facts.prefix}, in the order in which their samples are numbered",
                ("shard", "samples", "bytes", "SHA-256"),
                [
                    (s.name, s.samples, s.bytes, element("code", s.sha256 or "not recorded", class_="hash"))
                    for s in shards[:_ROWS]
                ],
                numbers=(1, 2),
            ),
        ),
    )


def _by_shard(
    shards: Sequence[Shard], title: str, of: Callable[[Shard], int], show: Callable[[float], str], *, many: bool
) -> Markup:
    step = -(-len(shards) // _COLUMNS)
    groups = [shards[first : first + step] for first in range(0, len(shards), step)]
    drawn = []
    for group in groups:
        values = [of(shard) for shard in group]
        names = group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}"
        drawn.append(Column(value=sum(values) / len(values), tip=f"{names}: {_between(show, values)}"))
    every = [of(shard) for shard in shards]
    return columns(
        drawn,
        title=title,
        summary=f"{title}: {_between(show, every)}",
        top=show(max(column.value for column in drawn)),
        axis=(shards[0].name, shards[-1].name) if len(shards) > 1 else (shards[0].name,),
        unit=f"means of {step} shards each" if many else "",
    )


def fields(facts: Facts) -> Markup:
    """Return what is stored under each suffix, and how large it is."""
    if facts.survey is None:
        return element("p", f"The data were not read: {facts.unread}")
    fields, looked = facts.survey.fields, facts.survey.shards
    some = f"in {looked:,} of {count(len(facts.shards), 'shard')}" if looked < len(facts.shards) else "in all shards"
    rows = [
        (
            element("code", each.suffix),
            each.codec,
            each.sizes.n,
            humanize.size(each.sizes.total),
            humanize.size(each.sizes.mean),
            _sizes(each.sizes) if each.sizes.n else "none",
        )
        for each in fields
    ]
    varied = [each for each in fields if each.sizes.low < each.sizes.high]
    return join(
        element("p", f"What is stored under each suffix, measured {some}."),
        table(
            "Members by suffix", ("suffix", "decoded as", "members", "total", "mean", "size"), rows, numbers=(2, 3, 4)
        ),
        element(
            "div",
            (
                _distribution(f"Size of {each.suffix}", each.sizes, humanize.size, "members")
                for each in varied[:_CHARTS]
            ),
            class_="pair",
        ),
    )


def contents(facts: Facts) -> Markup:
    """Return kinds, shapes and values of what is in the fields; nothing where they could not be read."""
    if facts.survey is None:
        return Markup()
    rows = [_part_row(each, part) for each in facts.survey.fields for part in each.parts.values()]
    parts = [part for each in facts.survey.fields for part in each.parts.values()]
    cut = [each.suffix for each in facts.survey.fields if each.cut]
    charts = [chart for part in parts for chart in _part_charts(part)]
    return join(
        element("p", _looked_at(facts)),
        table("What is in the fields", ("part", "kind", "shape or length", "values", "samples"), rows, numbers=(4,)),
        findings(
            [
                *(
                    (f"{p.name} holds NaN or infinity in {count(p.not_finite, 'sample')}", "note")
                    for p in parts
                    if p.not_finite
                ),
                *((f"{suffix} has more parts than are listed", "note") for suffix in cut),
            ]
        ),
        element("div", charts[:_CHARTS], class_="pair"),
    )


def _looked_at(facts: Facts) -> str:
    assert facts.survey is not None  # noqa: S101 - its callers looked
    if facts.survey.samples == facts.n_samples:
        return f"All were decoded: {count(facts.n_samples, 'sample')}."
    return (
        f"{facts.survey.samples:,} of {count(facts.n_samples, 'sample')} were decoded, spread evenly; "
        "numbers here and below are of these."
    )


def _part_row(each: Field, part: Part) -> tuple[Content, ...]:
    form = _axes(part.axes) if part.axes else ""
    if part.lengths.n:
        form = f"{form}; length {humanize.span(part.lengths.low, part.lengths.high)}".removeprefix("; ")
    values = humanize.span(part.low, part.high)
    if not values and part.is_label and part.values:
        values = count(len(part.values), "different value")
    kinds = ", ".join(kind for kind, _ in part.kinds.most_common(4)) + (", …" if len(part.kinds) > 4 else "")
    seen = f"{part.seen:,}" if part.seen == each.decoded else f"{part.seen:,} of {each.decoded:,}"
    return element("code", part.name), kinds, form, values, seen


def _part_charts(part: Part) -> list[Markup]:
    """Return how shapes and lengths are spread, where they differ."""
    if len(part.axes) > 1:
        return [_distribution(f"Dimensions of {part.name}", part.ranks, humanize.number, "samples")]
    charts = [
        _distribution(
            f"Length of {part.name}" if len(axes) == 1 else f"Dimension {number} of {part.name}",
            axis,
            humanize.number,
            "samples",
        )
        for axes in part.axes.values()
        for number, axis in enumerate(axes)
        if axis.low < axis.high
    ]
    if part.lengths.low < part.lengths.high:
        charts.append(_distribution(f"Length of {part.name}", part.lengths, humanize.number, "samples"))
    return charts


def labels(facts: Facts) -> Markup:
    """Return how often each label comes; nothing where there is no label."""
    if facts.survey is None:
        return Markup()
    parts = [part for each in facts.survey.fields for part in each.parts.values() if part.is_label]
    if not parts:
        return Markup()
    return join(element("p", _looked_at(facts)), (_label(part) for part in parts[:_CHARTS]))


def _label(part: Part) -> Markup:
    counts = part.values or Counter()
    common = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    shown = common[:_LABELS]
    if all(isinstance(value, int) for value, _ in shown) and len(common) <= _LABELS:
        shown = sorted(shown)
    most, least, total = common[0][1], common[-1][1], sum(counts.values())
    rows: list[tuple[Content, ...]] = [
        (element("code", str(value)), f"{n:,}", f"{n / total:.1%}", bar(n / most)) for value, n in shown
    ]
    if len(common) > _LABELS:
        rest = sum(n for _, n in common[_LABELS:])
        rows.append((f"{len(common) - _LABELS:,} more", f"{rest:,}", f"{rest / total:.1%}", bar(min(1, rest / most))))
    values = count(len(common), "value")
    title = f"{values}; the most frequent is {most / least:.3g} times as frequent as the rarest"
    return join(
        element("h3", element("code", part.name)),
        table(title, ("value", "samples", "share", ""), rows, numbers=(1, 2), fill=3),
    )


def _distribution(title: str, spread: Spread, show: Callable[[float], str], unit: str) -> Markup:
    bins = spread.bins()
    logarithmic = any(low != high for low, high, _ in bins)
    middle = [show(bins[len(bins) // 2][0])] if len(bins) > 4 else []
    drawn = [
        Column(value=n, tip=f"{show(low)}{'' if low == high else f' to {show(high)}'}: {count(n, unit[:-1])}")
        for low, high, n in bins
    ]
    return columns(
        drawn,
        title=title,
        summary=f"{title}: {show(spread.low)} to {show(spread.high)}, {show(spread.mean)} on average",
        top=f"{max(n for _, _, n in bins):,}",
        axis=(show(spread.low), *middle, show(spread.high)),
        unit=f"{unit}; mean {show(round(spread.mean))}{', logarithmic scale' if logarithmic else ''}",
    )


def _sizes(spread: Spread) -> str:
    """Return the bytes of members: all alike, or from the smallest to the largest."""
    if spread.low == spread.high:
        return f"{spread.low:,} B each"
    return f"{humanize.size(spread.low)} to {humanize.size(spread.high)}"


def _axes(given: Mapping[int, Sequence[Spread]]) -> str:
    """Return the lengths of dimensions, ``12 to 512 x 4``, or how many dimensions there are where that differs."""
    if len(given) > 1:
        return humanize.counts(min(given), max(given), "dimension")
    lengths = next(iter(given.values()), ())
    return " \u00d7 ".join(humanize.span(axis.low, axis.high) for axis in lengths) or "scalar"


def _between(show: Callable[[float], str], values: Sequence[float]) -> str:
    first, last = show(min(values)), show(max(values))
    return first if first == last else f"{first} to {last}"
