"""Splits, and rules that divide names among them with the same result on every machine."""

from __future__ import annotations

import enum
import hashlib
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import SupportsFloat, TypeGuard, TypeVar

from bionemo.webdatamodule.errors import ConfigError

_T = TypeVar("_T")
_HASHES = 1 << 64


class Split(enum.Enum):
    """A part of a data set: ``train``, ``val`` or ``test``."""

    train = enum.auto()
    val = enum.auto()
    test = enum.auto()


def by_split(argument: str, values: Mapping[Split, _T] | Mapping[str, _T] | None) -> dict[Split, _T]:
    """Return a mapping keyed by :class:`Split` from one keyed by splits or their names.

    Args:
        argument: Name of the argument, for messages.
        values: The user's mapping, or ``None`` for an empty one.

    Raises:
        ConfigError: If it is not a mapping, or a key is not a split.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{argument} must map splits to values, such as {{Split.train: ...}}, not {type(values).__name__}"
        )
    found: dict[Split, _T] = {}
    for key, value in values.items():
        name = key.name if isinstance(key, Split) else key
        if not isinstance(name, str) or name not in Split.__members__:
            raise ConfigError(f"{argument} has the key {key!r}; splits are {', '.join(Split.__members__)}")
        if Split[name] in found:
            raise ConfigError(f"{argument} has the split {name} twice")
        found[Split[name]] = value
    return found


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """An exact part of all names: ``Fraction(start=0.0, stop=0.8)`` is four fifths of them.

    Names are divided in the order of their hashes, so the parts are mixed whatever the order of the source. The result
    is in the order of the source. Adjacent parts share no name and omit none.

    Attributes:
        start: Start of the part, from 0 to 1.
        stop: End of the part, from ``start`` to 1.
        seed: Another seed gives another division.
    """

    start: float = 0.0
    stop: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_interval(self)

    def __call__(self, names: Sequence[str]) -> list[str]:
        """Return the names of this part."""
        order = sorted(range(len(names)), key=lambda place: (name_hash(names[place], self.seed), names[place]))
        part = order[round(self.start * len(names)) : round(self.stop * len(names))]
        return [names[place] for place in sorted(part)]


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """The names whose hash is in an interval: about that fraction of all names.

    The result for a name depends only on that name, so adding or removing samples never moves others between splits.

    Attributes:
        start: Start of the interval, from 0 to 1.
        stop: End of the interval, from ``start`` to 1.
        seed: Another seed gives another division.
    """

    start: float = 0.0
    stop: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_interval(self)

    def __call__(self, names: Sequence[str]) -> list[str]:
        """Return the names in the interval."""
        first, end = (round(bound * _HASHES) for bound in (self.start, self.stop))
        return [name for name in names if first <= name_hash(name, self.seed) < end]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One of several folds for cross-validation, or all but that one.

    ``{"train": Fold(number=i, of=5, rest=True), "val": Fold(number=i, of=5)}`` for ``i`` from 0 to 4 validates
    on every sample once. As with :class:`Hashed`, the fold of a name depends only on that name.

    Attributes:
        number: Number of the fold, from 0.
        of: Number of folds, at least two.
        rest: Return all names except those of the fold.
        seed: Another seed gives other folds.
    """

    number: int
    of: int
    rest: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("number", "of"):
            if not _is_whole(getattr(self, name)):
                raise ConfigError(f"{name} of a fold is a whole number, not {getattr(self, name)!r}")
        _check_seed(self.seed)
        if self.of < 2 or not 0 <= self.number < self.of:
            raise ConfigError(f"fold {self.number} of {self.of} does not exist; there are at least two, from 0")

    def __call__(self, names: Sequence[str]) -> list[str]:
        """Return the names of the fold, or of all others."""
        return [name for name in names if (name_hash(name, self.seed) % self.of == self.number) is not self.rest]


def name_hash(name: str, seed: int = 0) -> int:
    """Return a hash of a name from 0 to 2**64 - 1, the same in every process and version."""
    data = f"{seed} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _check_interval(rule: Fraction | Hashed) -> None:
    """Check a part's bounds and seed, and make plain numbers of the bounds."""
    for name in ("start", "stop"):
        bound = getattr(rule, name)
        if not is_number(bound):
            raise ConfigError(f"{name} of a part of the names is a number between 0 and 1, not {bound!r}")
        object.__setattr__(rule, name, float(bound))
    if not 0 <= rule.start <= rule.stop <= 1:
        raise ConfigError(f"a part of the names lies between 0 and 1, not from {rule.start} to {rule.stop}")
    _check_seed(rule.seed)


def _check_seed(seed: object) -> None:
    if not _is_whole(seed):
        raise ConfigError(f"a seed is a whole number, not {seed!r}")


def is_number(value: object) -> TypeGuard[SupportsFloat]:
    """Return whether a value is a real number of any kind, and no boolean."""
    return isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
