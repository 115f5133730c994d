"""The default stages for single samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import Fields
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.context import shuffled
from bionemo.webdatamodule.errors import ConfigError, count
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.options import function as as_function
from bionemo.webdatamodule.options import whole_number


@dataclass(frozen=True, kw_only=True)
class Untuple:
    """Unpack 1-tuples, the samples of one suffix.

    Raises:
        ConfigError: If a sample is not a 1-tuple.
    """

    anywhere = True

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the value of each sample."""
        for sample in samples:
            if not isinstance(sample, tuple) or len(sample) != 1:
                raise ConfigError(f"untuple takes samples of one suffix, got {type(sample).__name__} {sample!r:.80}")
            yield sample[0]

    def columns(self, fields: Fields) -> Any:
        """Return the only column."""
        return fields[0] if isinstance(fields, tuple) and len(fields) == 1 else NotImplemented


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """Shuffle a stream through a buffer, in a reproducible order that is new in each epoch.

    In global order, where the plan shuffles, this stage does nothing.
    In shards order, the order depends on the data module's seed, the epoch, the rank and the worker.

    Args:
        size: Samples in the buffer.
        initial: Samples in the buffer before the first is yielded; by default a full buffer.
    """

    size: int
    initial: int | None = None

    def __post_init__(self) -> None:
        whole_number("size", self.size, least=1)
        if self.initial is not None:
            whole_number("initial", self.initial, least=1)

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the samples in another order."""
        place = context.current()
        return samples if place.order == "global" else shuffled(samples, self.size, self.initial, place)


@dataclass(frozen=True, kw_only=True)
class Map:
    """Apply a function to each sample.

    Args:
        function: Takes a sample, gives a sample; or an import path, ``"package.module.function"``.
    """

    function: Callable[[Any], Any] | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_function("function", self.function))

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the result of the function for each sample."""
        function: Any = self.function
        return (function(sample) for sample in samples)  # map() would end where the function raises StopIteration


@dataclass(frozen=True, kw_only=True)
class MapTuple:
    """Apply one function to each value of a tuple.

    Args:
        functions: A function for each suffix, in their order; ``None`` keeps the value.
    """

    functions: Sequence[Callable[[Any], Any] | str | None]

    def __post_init__(self) -> None:
        functions = tuple(f if f is None else as_function("functions", f) for f in self.functions)
        object.__setattr__(self, "functions", functions)

    def __call__(self, samples: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the new tuples."""
        functions: Any = self.functions
        for sample in samples:
            if len(sample) != len(functions):
                raise ConfigError(
                    f"map_tuple has {count(len(functions), 'function')} for {count(len(sample), 'value')}"
                )
            yield tuple(value if f is None else f(value) for f, value in zip(functions, sample, strict=True))


@dataclass(frozen=True, kw_only=True)
class Select:
    """Keep the samples for which a function is true.

    In global order, batches get smaller, and a share without samples is an error, because ranks must take equal steps.
    For full batches of a subset, use ``where={"train": ("cls", function)}`` of the data module instead.

    Args:
        predicate: Takes a sample, gives true or false; or an import path.
    """

    predicate: Callable[[Any], Any] | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "predicate", as_function("predicate", self.predicate))

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yield the samples that are kept."""
        predicate: Any = self.predicate
        return (sample for sample in samples if predicate(sample))


@dataclass(frozen=True, kw_only=True)
class Named:
    """Turn tuples into dictionaries.

    Args:
        names: A name for each suffix, in their order.
    """

    names: Sequence[str]
    anywhere = True

    def __post_init__(self) -> None:
        names = () if isinstance(self.names, str) else tuple(self.names)
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"names is a list of different names, such as ['image', 'label'], not {self.names!r}")

    def __call__(self, samples: Iterator[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """Yield the dictionaries."""
        names = tuple(self.names)
        for sample in samples:
            if len(sample) != len(names):
                raise ConfigError(f"named has {count(len(names), 'name')} for {count(len(sample), 'value')}")
            yield dict(zip(names, sample, strict=True))

    def columns(self, fields: Fields) -> Any:
        """Return the columns by name."""
        if not isinstance(fields, tuple) or len(fields) != len(self.names):
            return NotImplemented
        return dict(zip(self.names, fields, strict=True))


@hookimpl
def webdatamodule_stages() -> Iterable[Stage]:
    """Register the default stages."""
    yield Stage(name="untuple", summary="unpack 1-tuples", factory=Untuple)
    yield Stage(name="shuffle", summary="shuffle a stream through a buffer (shards order)", factory=Shuffle)
    yield Stage(name="map", summary="apply a function to each sample", factory=Map)
    yield Stage(name="map_tuple", summary="apply a function to each value", factory=MapTuple)
    yield Stage(name="select", summary="keep the samples that a function likes", factory=Select)
    yield Stage(name="named", summary="tuples become dictionaries", factory=Named)
