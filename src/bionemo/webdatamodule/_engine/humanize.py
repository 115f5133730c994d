"""Numbers and sizes as people read them."""

from __future__ import annotations

import math

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def size(n: float) -> str:
    """Return a number of bytes in decimal units, with three digits."""
    if n < 1000:
        return f"{n:.3g} B"
    power = 0
    while n >= 999.5 and power < len(_UNITS):
        n, power = n / 1000, power + 1
    return f"{n:.3g} {_UNITS[power - 1]}"


def span(low: float, high: float) -> str:
    """Return ``low to high``, or the one number where they are equal; empty where there is none."""
    if math.isinf(low):
        return ""
    first, last = map(number, (low, high))
    return first if first == last else f"{first} to {last}"


def counts(low: int, high: int, noun: str) -> str:
    """Return a range of numbers of things: ``3 to 5 samples``, or ``1 sample`` where it is always one."""
    return f"{span(low, high)} {noun}" + ("" if low == high == 1 else "s")


def number(n: float) -> str:
    """Return a number: whole ones with all digits, others with four."""
    return f"{n:,.0f}" if float(n).is_integer() and abs(n) < 1e15 else f"{n:.4g}"
