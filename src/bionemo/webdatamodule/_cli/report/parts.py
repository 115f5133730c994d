"""What lies where in decoded values: kinds, shapes, lengths, ranges, and what may be labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bionemo.webdatamodule._cli.report.spread import Spread

_DEPTH = 4  # containers in containers
_ITEMS = 64  # of a mapping
_TUPLE = 8  # items of a tuple that are parts of their own; longer ones are taken as a whole
_DISTINCT = 1000  # values that are counted one by one
_TEXT = 64  # characters of a text that may be a label
_LABELS = frozenset(("category", "class", "cls", "label", "labels", "target", "y"))
_FEW = 64  # different values of what may be a label though its name does not say so


@dataclass(kw_only=True)
class Part:
    """One place in the values of a field, such as ``label`` in dictionaries; what lay there is counted.

    Attributes:
        name: The suffix and the way to it, such as ``cell.pyd['meta']['length']``.
        seen: Samples that have it.
        kinds: Types, with the dtypes of tensors and arrays.
        ranks: Numbers of dimensions of tensors and arrays.
        axes: For each number of dimensions their lengths.
        lengths: Lengths of texts, bytes and containers.
        values: Whole numbers and short texts, which may be labels; ``None`` once they are too many.
        low: Smallest finite number.
        high: Largest finite number.
        not_finite: Samples with a number that is not finite.
    """

    name: str
    seen: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ranks: Spread = field(default_factory=Spread)
    axes: dict[int, list[Spread]] = field(default_factory=dict)
    lengths: Spread = field(default_factory=Spread)
    values: Counter[int | str] | None = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    not_finite: int = 0

    def add(self, value: Any) -> None:
        """Count a value."""
        self.seen += 1
        self.kinds[kind(value)] += 1
        if isinstance(value, (torch.Tensor, np.ndarray)):
            shape = tuple(value.shape)
            self.ranks.add([len(shape)])
            for axis, length in zip(self.axes.setdefault(len(shape), [Spread() for _ in shape]), shape, strict=True):
                axis.add([length])
        elif isinstance(value, (str, bytes, bytearray, list, tuple, dict, set, frozenset)):
            self.lengths.add([len(value)])
        self._count(label_of(value))
        self._measure(value)

    @property
    def is_label(self) -> bool:
        """Whether its values look like labels: by their name, or because they are few and repeat."""
        if not self.values or sum(self.values.values()) < self.seen:
            return False
        named = re.split(r"[\[\]'\".]+", self.name.rstrip("]'\""))[-1].lower() in _LABELS
        return named or (1 < len(self.values) <= _FEW and 2 * len(self.values) <= self.seen)

    def _count(self, label: int | str | None) -> None:
        if label is None or self.values is None:
            return
        self.values[label] += 1
        if len(self.values) > _DISTINCT:
            self.values = None

    def _measure(self, value: Any) -> None:
        low, high, finite = extent(value)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.not_finite += not finite


def parts_of(value: Any, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with the way to it: items of mappings and short tuples, or the value itself."""
    if depth and isinstance(value, Mapping) and value:
        for key, item in list(value.items())[:_ITEMS]:
            yield from parts_of(item, f"{name}[{_short(repr(key))}]", depth - 1)
    elif depth and isinstance(value, tuple) and 0 < len(value) <= _TUPLE:
        for number, item in enumerate(value):
            yield from parts_of(item, f"{name}[{number}]", depth - 1)
    else:
        yield name, value


def kind(value: Any) -> str:
    """Return the type of a value in words, with the dtype if it has one."""
    if isinstance(value, torch.Tensor):
        return f"tensor of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}"
    if isinstance(value, np.generic):
        return f"numpy {value.dtype}"
    if isinstance(value, list) and value:
        return f"list of {type(value[0]).__name__}"
    return type(value).__name__


def label_of(value: Any) -> int | str | None:
    """Return a value that may be a label: a whole number, also as a tensor or array of one, or a short text."""
    if isinstance(value, torch.Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.is_quantized)
        return int(value) if whole and value.numel() == 1 else None
    if isinstance(value, (np.ndarray, np.generic)):
        return int(value.item()) if value.dtype.kind in "biu" and value.size == 1 else None
    if isinstance(value, int):
        return int(value)
    return value if isinstance(value, str) and len(value) <= _TEXT else None


def extent(value: Any) -> tuple[float, float, bool]:
    """Return the smallest and the largest finite number in a value, and whether all are finite.

    Where there is none they are infinite and minus infinite.
    """
    none = (math.inf, -math.inf, True)
    if isinstance(value, (int, float)):
        value = np.asarray(float(value) if abs(value) < 1 << 1023 else math.copysign(1e308, value))
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.is_quantized or not value.numel():
            return none
        value = value.detach().to(torch.float64).numpy()
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biuf" or not value.size:
        return none
    numbers = np.asarray(value)
    if numbers.dtype.kind == "f" and not (finite := np.isfinite(numbers)).all():
        some = numbers[finite]
        return (float(some.min()), float(some.max()), False) if some.size else (math.inf, -math.inf, False)
    return float(numbers.min()), float(numbers.max()), True


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
