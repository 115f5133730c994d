"""Which samples of a source that lists itself go to which split: rules on names, the same on every machine."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, SupportsFloat, TypeGuard

from bionemo.webdatamodule.components import SampleReader
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError
from bionemo.webdatamodule.splits import Split

_HASHES = 1 << 64
_SLACK = 1e-6  # by which parts may add up to more than 1, since numbers such as numpy.float32(0.8) are not exact


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """An exact part of all names: ``Fraction(start=0.0, stop=0.8)`` is four fifths of them.

    Names are taken in the order of their hashes, so the parts are mixed whatever the order of the source,
    and given back in the order of the source. Parts that do not overlap share no name and leave none out.

    Attributes:
        start: Where the part begins, from 0 to 1.
        stop: Where it ends, from ``start`` to 1.
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
    """The names whose hash lies in an interval: about that part of them.

    Whether a name belongs depends on that name alone, so samples that are added or removed later
    never move others from one split to another.

    Attributes:
        start: Where the interval begins, from 0 to 1.
        stop: Where it ends, from ``start`` to 1.
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
    on every sample once. As with :class:`Hashed`, the fold of a name depends on that name alone.

    Attributes:
        number: Which fold, from 0.
        of: How many folds there are, at least two.
        rest: Take all names but those of the fold.
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


def resolve_subsets(subsets: Mapping[str, Any], reader: SampleReader) -> dict[str, Any]:
    """Return the names of each split, from what the user gave for it.

    Args:
        subsets: For each split one of: names; a number of any kind, the part of all names that it gets;
            a rule, which is any function from all names to some of them, such as :class:`Hashed`.
            Parts given as numbers follow each other in the order train, val, test and do not overlap.
        reader: The source, whose ``names()`` is called if a number or a rule asks for it.

    Raises:
        ConfigError: If the source cannot list itself, or the numbers add up to more than 1.
        PluginError: If ``names()`` gives something else than names.
    """
    rules: dict[str, Callable[[Sequence[str]], Any]] = {}
    start = 0.0
    for split in sorted(subsets, key=list(Split.__members__).index):
        value = subsets[split]
        if _is_number(value):
            stop = start + float(value)
            if not float(value) > 0 or stop > 1 + _SLACK:
                raise ConfigError(
                    f"the parts of the splits must be positive and add up to 1 at most; {split} has {value!r}",
                    split=split,
                )
            rules[split] = Fraction(start=start, stop=min(stop, 1.0))
            start = stop
        elif callable(value):
            rules[split] = value
    if not rules:
        return dict(subsets)
    names = list_names(reader)
    return {split: rules[split](names) if split in rules else value for split, value in subsets.items()}


def list_names(reader: SampleReader) -> Sequence[str]:
    """Return all names of a source that lists itself.

    Raises:
        ConfigError: If it cannot.
        PluginError: If it gives something else than names.
    """
    function = getattr(reader, "names", None)
    if not callable(function):
        raise ConfigError(f"{type(reader).__name__} cannot list its samples, so the names of each split must be given")
    try:
        names = function()
    except WebDataModuleError:
        raise
    except Exception as error:
        raise PluginError(
            f"names() of {type(reader).__name__} fails with {type(error).__name__}: {error}",
            plugin=type(reader).__module__,
        ) from error
    if isinstance(names, (str, bytes)) or not isinstance(names, Sequence):
        raise PluginError(f"names() of {type(reader).__name__} must give a list of names, not {names!r:.80}")
    return names


def name_hash(name: str, seed: int = 0) -> int:
    """Return a hash of a name from 0 to 2**64 - 1, the same in every process and version."""
    data = f"{seed} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _check_interval(rule: Fraction | Hashed) -> None:
    """Check a part's bounds and seed, and make plain numbers of the bounds."""
    for name in ("start", "stop"):
        bound = getattr(rule, name)
        if not _is_number(bound):
            raise ConfigError(f"{name} of a part of the names is a number between 0 and 1, not {bound!r}")
        object.__setattr__(rule, name, float(bound))
    if not 0 <= rule.start <= rule.stop <= 1:
        raise ConfigError(f"a part of the names lies between 0 and 1, not from {rule.start} to {rule.stop}")
    _check_seed(rule.seed)


def _check_seed(seed: object) -> None:
    if not _is_whole(seed):
        raise ConfigError(f"a seed is a whole number, not {seed!r}")


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    return isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
