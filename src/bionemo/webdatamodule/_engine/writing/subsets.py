"""Which samples go to which split: names as they are given, or rules on the names of a source that lists itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bionemo.webdatamodule.components import SampleReader
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError
from bionemo.webdatamodule.splits import Fraction, Split, is_number

_SLACK = 1e-6  # by which parts may add up to more than 1, since numbers such as numpy.float32(0.8) are not exact


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
        if is_number(value):
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
