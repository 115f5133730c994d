"""What plugins register and what users name: components, samples, and the protocols they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable


class Sample(NamedTuple):
    """One sample as a writer plugin reads it from its source.

    Attributes:
        name: The sample's name in the source. The key encoder makes the ``__key__`` of it.
        files: The bytes of each field, by suffix, such as ``{"tensor.pyd": b"..."}``.
    """

    name: str
    files: Mapping[str, bytes]


@runtime_checkable
class SampleReader(Protocol):
    """What a :class:`Writer` component's factory gives: reads samples from a source.

    It must pickle, so that one shard is one task for any executor.
    A reader whose source can list itself also has ``names() -> Sequence[str]``.
    A reader that can tell whether a sample changed without reading it also has
    ``fingerprints(names: Sequence[str]) -> Sequence[str]``, one short string a sample
    (for files: size and modification time).
    """

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names, in this order, one at a time."""
        ...


KeyFunction: TypeAlias = Callable[[str], str]
StageFunction: TypeAlias = Callable[[Iterator[Any]], Iterator[Any]]
LoaderFunction: TypeAlias = Callable[[Any], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that a plugin offers under a name.

    Attributes:
        name: What users write: lower-case letters, digits, dashes and underscores.
        summary: One line of help, for listings.
        factory: Takes the user's options as keywords and returns the working object.
    """

    name: str
    summary: str
    factory: Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Writer(Component):
    """A source format: ``factory(**options)`` gives a :class:`SampleReader`.

    The plugin only reads its format; the core writes the tars.
    """

    factory: Callable[..., SampleReader]


@dataclass(frozen=True, kw_only=True)
class KeyEncoder(Component):
    """A naming scheme: ``factory(**options)`` gives a function from a sample's name to its ``__key__``."""

    factory: Callable[..., KeyFunction]


@dataclass(frozen=True, kw_only=True)
class Stage(Component):
    """A pipeline step: ``factory(**options)`` gives a function from an iterator to an iterator.

    Attributes:
        one_to_one: The step keeps the count and order of samples.
    """

    factory: Callable[..., StageFunction]
    one_to_one: bool = False


@dataclass(frozen=True, kw_only=True)
class Loader(Component):
    """A loader: ``factory(**options)`` gives a function from a dataset to an iterable of its items."""

    factory: Callable[..., LoaderFunction]


@dataclass(frozen=True, kw_only=True)
class Executor(Component):
    """An engine that runs conversion tasks.

    ``factory(**options)`` gives a context manager whose value is a standard
    :class:`concurrent.futures.Executor`.
    """

    factory: Callable[..., AbstractContextManager[futures.Executor]]


@dataclass(frozen=True, init=False, eq=True)
class Use:
    """A component by name, with options: ``Use("shuffle", size=1000)``.

    Accepted wherever a stage, loader, key encoder, writer or executor goes.
    In YAML it is written ``{name: shuffle, options: {size: 1000}}``.
    """

    name: str
    options: Mapping[str, Any]

    def __init__(self, name: str, /, **options: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        return f"Use({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.options.items())])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _use, (self.name, dict(self.options))


def _use(name: str, options: dict[str, Any]) -> Use:
    return Use(name, **options)


Ref: TypeAlias = "str | Use | Mapping[str, Any] | Callable[..., Any]"
"""How a component is chosen: its name, a :class:`Use`, the same as a mapping, or the working object itself."""
