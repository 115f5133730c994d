"""Numbers, sizes and shapes as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bionemo.webdatamodule.reports.spread import Spread

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def size(n: float) -> str:
    """Return a number of bytes in decimal units, with three digits."""
    if n < 1000:
        return f"{n:.3g} B"
    power = 0
    while n >= 999.5 and power < len(_UNITS):
        n, power = n / 1000, power + 1
    return f"{n:.3g} {_UNITS[power - 1]}"


def count(n: int, noun: str) -> str:
    """Return a number of things: ``1 shard``, ``2,000 shards``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def span(low: float, high: float) -> str:
    """Return ``low to high``, or the one number where they are equal; empty where there is none."""
    if math.isinf(low):
        return ""
    first, last = map(number, (low, high))
    return first if first == last else f"{first} to {last}"


def number(n: float) -> str:
    """Return a number: whole ones with all digits, others with four."""
    return f"{n:,.0f}" if float(n).is_integer() and abs(n) < 1e15 else f"{n:.4g}"


def sizes(spread: Spread) -> str:
    """Return the bytes of members: all alike, or from the smallest to the largest."""
    if spread.low == spread.high:
        return f"{spread.low:,} B each"
    return f"{size(spread.low)} to {size(spread.high)}"


def axes(given: Mapping[int, Sequence[Spread]]) -> str:
    """Return the lengths of dimensions, ``12 to 512 x 4``, or how many dimensions there are where that differs."""
    if len(given) > 1:
        return f"{span(min(given), max(given))} dimensions"
    lengths = next(iter(given.values()), ())
    return " \u00d7 ".join(span(axis.low, axis.high) for axis in lengths) or "scalar"
