"""The records that plugins register, and the protocols of the objects that their factories return.

A plugin yields a record such as :class:`Stage`. Its factory takes the user's options as keywords and returns the
working object, which follows the protocol that the record names. Members that a protocol calls optional may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from bionemo.webdatamodule.columns import Column, Fields

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray

    from bionemo.webdatamodule.planning import EpochPlan, PlanRequest


@dataclass(frozen=True, kw_only=True)
class Component:
    """A named factory that a plugin registers.

    Attributes:
        name: The name that users write: lower-case letters, digits, dashes and underscores.
        summary: One line of help, for listings.
        factory: Takes the user's options as keywords and returns the working object.
        override: Replace the default component of this kind and name.
    """

    name: str
    summary: str
    factory: Callable[..., Any]
    override: bool = False


# Writers: from a source to the bytes of samples.


class Sample(NamedTuple):
    """One sample as a writer reads it from its source.

    Attributes:
        name: The sample's name in the source. The key encoder derives the ``__key__`` from it.
        files: The bytes of each field, by suffix, such as ``{"tensor.pyd": b"..."}``.
    """

    name: str
    files: Mapping[str, bytes]


@runtime_checkable
class SampleReader(Protocol):
    """The object of a :class:`Writer`, which reads samples from a source.

    It must pickle, because each shard is a task of an executor. Optional:

    * ``names() -> Sequence[str]``: the names of all samples, if the source can list them;
    * ``fingerprints(names: Sequence[str]) -> Sequence[str]``: a short string for each sample that changes when the
      sample changes, found without reading it (for files: size and modification time); ``""`` for a missing sample;
    * ``codecs: Mapping[str, str]``: the codec of each suffix whose extension does not name it. It is recorded in the
      manifest.
    """

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names, in this order, one at a time.

        Raises:
            Exception: A sample is missing or cannot be read. The message names the sample.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Writer(Component):
    """A source format: ``factory(**options)`` returns a :class:`SampleReader`. The core writes the tars."""

    factory: Callable[..., SampleReader]


KeyFunction: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class KeyEncoder(Component):
    """A naming scheme: ``factory(**options)`` returns a function from a sample's name to its ``__key__``."""

    factory: Callable[..., KeyFunction]


# Codecs: from the bytes of a field to its value and back.


@runtime_checkable
class FieldCodec(Protocol):
    """The object of a :class:`Codec`, which decodes the fields of a suffix.

    It must pickle, because it is sent to worker processes. Optional:

    * ``column(views: Sequence[memoryview]) -> Column``: see :class:`ColumnCodec`;
    * ``encode(value: Any) -> bytes``: see :class:`EncodingCodec`;
    * ``recode(data: bytes) -> bytes``: see :class:`RecodingCodec`;
    * ``sizes(lengths: NDArray[np.int64]) -> NDArray[np.int64]``: see :class:`SizingCodec`.
    """

    def decode(self, view: memoryview) -> Any:
        """Return the value of one field, which owns its memory: the view is invalid after the call."""
        ...


@runtime_checkable
class ColumnCodec(FieldCodec, Protocol):
    """A codec that decodes the fields of many samples together."""

    def column(self, views: Sequence[memoryview]) -> Column:
        """Return a column of these fields. The views stay valid for as long as the column exists."""
        ...


@runtime_checkable
class EncodingCodec(FieldCodec, Protocol):
    """A codec that also encodes."""

    def encode(self, value: Any) -> bytes:
        """Return bytes that ``decode`` turns into an equal value."""
        ...


@runtime_checkable
class RecodingCodec(FieldCodec, Protocol):
    """A codec that rewrites the fields of a source in canonical form at conversion."""

    def recode(self, data: bytes) -> bytes | Sequence[bytes | memoryview]:
        """Return other bytes of the same value; the same bytes for every equal input.

        A sequence is written part by part, so that large fields need no copy of their own.

        Raises:
            DecodeError: If ``data`` cannot be decoded. The conversion lists it and writes nothing.
        """
        ...


@runtime_checkable
class SizingCodec(FieldCodec, Protocol):
    """A codec of fields whose length in bytes determines the size of the value.

    For planners such as ``pack`` the sizes are then taken from the indexes of shards, and no field is read.
    """

    def sizes(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each field what :func:`bionemo.webdatamodule.planning.size_of` makes of its value.

        Args:
            lengths: Bytes of each field, int64 of shape ``(n,)``.

        Raises:
            Exception: If no field has one of these lengths. All are decoded then, so that the error names a sample.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Codec(Component):
    """A field format: ``factory(**options)`` returns a :class:`FieldCodec`.

    A factory that takes ``policy`` gets the data module's :class:`~bionemo.webdatamodule.pickles.Policy`,
    which a codec that could run code has to follow.

    Attributes:
        suffixes: The extensions that it decodes, such as ``"npy"``, or whole suffixes such as ``"image.npy"``, which
            take precedence. Letter case is ignored.
        wraps: Whether it wraps another codec, as gzip does. The factory then takes ``inner``, the codec of the suffix
            without its last extension.
    """

    factory: Callable[..., FieldCodec]
    suffixes: tuple[str, ...] = ()
    wraps: bool = False


# Stages: from samples to samples or batches.


@runtime_checkable
class StageFunction(Protocol):
    """The object of a :class:`Stage`: a function from an iterator of samples to an iterator of samples or batches.

    Random numbers come from :mod:`bionemo.webdatamodule.context`, so that a run is reproducible and resumes. Optional:

    * ``anywhere: bool``: true for a pure function of the share, a rank's part of a global batch. A worker process may
      then run the stage, even in ``pipeline_prebatch_wld``;
    * ``makes_batches: bool``: true if it joins samples into batches, false if it splits batches. Batches made in
      ``pipeline_wds`` are passed on, unless ``pipeline_prebatch_wld`` is given;
    * ``columns(fields: Fields) -> Fields | Any``: see :class:`ColumnStage`;
    * ``size`` and ``plan(sizes, request)``: see :class:`Planner`.
    """

    def __call__(self, samples: Iterator[Any], /) -> Iterable[Any]:
        """Return the samples or batches for an iterator of samples."""
        ...


@runtime_checkable
class ColumnStage(StageFunction, Protocol):
    """A stage with a columnar form, whose result must equal that of the call on samples."""

    def columns(self, fields: Fields) -> Any:
        """Return the columns for the next stage, or the batch of the share, or ``NotImplemented``.

        Args:
            fields: The columns of one share, see :mod:`bionemo.webdatamodule.columns`.
        """
        ...


@runtime_checkable
class Planner(StageFunction, Protocol):
    """A stage that decides which samples make up a batch, from their sizes.

    It must be the first stage of ``pipeline_prebatch_wld``, in global order. Called as a stage, it gets the samples
    of one planned share and makes one batch of them; in shards order it gets the stream.

    Optional: ``measure(value: Any) -> int``, which returns a whole number of 0 or more for the field's value or the
    function's result; by default :func:`bionemo.webdatamodule.planning.size_of`.
    """

    @property
    def size(self) -> str | Callable[[Any], int]:
        """A suffix, or a function of the stored sample: its value for one suffix, a tuple for several.

        The size of a sample is the length of the field, or its value if it is a number, or the function's result.
        """
        ...

    def plan(self, sizes: NDArray[np.int64], request: PlanRequest) -> EpochPlan:
        """Return the plan of all epochs.

        Args:
            sizes: The size of each sample, int64 of shape ``(n,)``.
            request: The user's seed, shuffling and batch size.

        Raises:
            PlanError: If no plan is possible.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Stage(Component):
    """A pipeline step: ``factory(**options)`` returns a :class:`StageFunction`."""

    factory: Callable[..., StageFunction]


# Loaders: from a dataset to its items in the main process.


@dataclass(frozen=True, kw_only=True)
class Item:
    """The unit that a loader moves from a worker to the main process: batches of consecutive steps, or samples.

    A loader passes items on unchanged, in the order of :attr:`number`. It may pin their memory with
    :meth:`pin_memory`, which torch's loaders call.

    Attributes:
        epoch: Number of the epoch, from 0.
        start: Samples of the epoch that were consumed before this iteration began; in shards order the passes.
        worker: Number of its worker, from 0.
        number: In global order the number of its first batch in this iteration; in shards order the number of its
            first sample among the worker's.
        values: In global order one value for each batch; without workers it may be an iterator that makes batches
            lazily, once. In shards order samples; a worker's last item is empty.
        delivered: The samples of each value, for the receipt of the epoch. In global order it grows as values are
            made.
        spent: Seconds of work on the values by part, for those items where it is measured.
    """

    epoch: int
    start: int
    worker: int
    number: int = 0
    values: Iterable[Any]
    delivered: Sequence[Any] = ()
    spent: Mapping[str, Any] | None = None

    def pin_memory(self) -> Item:
        """Return a copy whose tensors are in page-locked memory; lazily if ``values`` is an iterator."""
        from torch.utils.data._utils.pin_memory import pin_memory

        pinned = map(pin_memory, self.values)
        return replace(self, values=pinned if isinstance(self.values, Iterator) else list(pinned))


@runtime_checkable
class ItemDataset(Protocol):
    """The argument of a loader: an iterable of this worker's items.

    In the main process, it yields all items. In worker ``number`` of ``count``, it yields that worker's part. A loader
    declares the worker with :func:`bionemo.webdatamodule.context.working`; for torch's ``DataLoader``, this is
    automatic. Taking an item from each worker in turn gives them in order.
    It pickles if the user's stages do, and every worker needs its own copy.
    """

    @property
    def where(self) -> Mapping[str, object]:
        """Split and rank, for messages: ``{"split": "train", "rank": 0}``."""
        ...

    def __iter__(self) -> Iterator[Item]:
        """Yield the items of an epoch, from the position that the data module sets."""
        ...


@runtime_checkable
class ItemLoader(Protocol):
    """The object of a :class:`Loader`: a function from a dataset to an iterable of all its items, in order.

    A plain function without these attributes is a loader without workers.
    If an iterator of the result has ``close()``, as generators do, it is called when an iteration ends early, and
    stops its workers unless the loader keeps them. ``close()`` of the result stops those.
    ``kwargs_wld`` are the options of the factory. If it takes ``batch_size``, ``collate_fn`` or ``drop_last``, they are
    passed to it; otherwise they define how the worker makes batches. The data module's constructor calls the factory,
    so that is where wrong values are refused, with a ``ConfigError``.
    Optional, for ``webdatamodule bench``: ``transported(value: Any) -> Any`` returns a value after what it passes
    through on its way from a worker to the main process.
    """

    @property
    def num_workers(self) -> int:
        """The number of workers; 0 reads in the main process."""
        ...

    @property
    def keeps_workers(self) -> bool:
        """Whether workers continue with the next iteration."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether items come in order. The data module refuses ``False`` in global order."""
        ...

    def __call__(self, dataset: ItemDataset, /) -> Iterable[Item]:
        """Return an iterable of the dataset's items; every ``iter`` begins an epoch."""
        ...


@runtime_checkable
class Closable(Protocol):
    """The result of a loader, or its iterator, if it has workers or files to close."""

    def close(self) -> object:
        """Stop the workers; may be called twice."""
        ...


LoaderFunction: TypeAlias = "ItemLoader | Callable[[ItemDataset], Iterable[Item]]"


@dataclass(frozen=True, kw_only=True)
class Loader(Component):
    """A loader: ``factory(**options)`` returns an :class:`ItemLoader`, or a function from a dataset to its items."""

    factory: Callable[..., LoaderFunction]


# Executors and stores: where conversions run, and where shards are.


@dataclass(frozen=True, kw_only=True)
class Executor(Component):
    """An engine that runs the tasks of conversions: to write a shard, or to look at the state of many samples.

    ``factory(**options)`` returns a context manager whose value is a standard
    :class:`concurrent.futures.Executor`. It is entered once for each conversion, and it pickles while it is not
    entered. Optional: ``for_tasks(n_tasks: int)`` returns the context manager for as many tasks as it is worth running
    at a time, at most: one where there is little to do. To find that out, a few samples of a small conversion are read
    in the process that calls.
    """

    factory: Callable[..., AbstractContextManager[futures.Executor]]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file in a store.

    Attributes:
        name: Its name in the directory.
        size: Its size in bytes.
        version: A text that changes when the file is replaced, such as an ETag; empty if the store has none.
            ``stat`` gives the same one until then.
    """

    name: str
    size: int
    version: str = ""


class ObjectStore(Protocol):
    """The object of a :class:`Store`: access to files by URL.

    Each method makes one attempt and does not retry: the core retries, within one budget of time.
    A store is created in the process that uses it, and used by several threads.
    All methods raise ``FileNotFoundError`` for a missing file, ``PermissionError`` for a forbidden operation,
    ``RemoteError`` for a missing bucket and ``NotImplementedError`` for what the server cannot do, which are not
    retried. Other exceptions are; an attribute ``retry_after`` is the number of seconds to wait.
    """

    def list(self, url: str) -> Sequence[StoredFile]:
        """Return the files directly in a directory; none, or ``FileNotFoundError``, where there is no such directory.

        Raises:
            NotImplementedError: If the server cannot list.
        """
        ...

    def stat(self, url: str) -> StoredFile:
        """Return name, size and version of a file."""
        ...

    def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory.

        Args:
            url: The file.
            ranges: Begin and end of each, in bytes.
            into: Writable memory for each, as long as the range.

        Raises:
            EOFError: If the file is shorter, or the answer is. The core asks for the size to know which.
            NotImplementedError: If the server sends the whole file where a part is asked for.
        """
        ...

    def get(self, url: str) -> bytes:
        """Return the content of a small file."""
        ...

    def put(self, data: bytes | str | os.PathLike[str], url: str) -> None:
        """Write a complete file: bytes, or a local file by its path."""
        ...

    def delete(self, url: str) -> None:
        """Delete a file."""
        ...


@dataclass(frozen=True, kw_only=True)
class Store(Component):
    """A client for remote files: ``factory(**options)`` returns an :class:`ObjectStore`.

    Attributes:
        schemes: The URL schemes that it serves, such as ``("s3", "gs")``; ``"*"`` serves every scheme that no other
            store names.
    """

    factory: Callable[..., ObjectStore]
    schemes: tuple[str, ...] = ()


# Choosing a component.


@dataclass(frozen=True, init=False, eq=True)
class Use:
    """A component by name, with options: ``Use("shuffle", size=1000)``.

    Accepted wherever a stage, loader, key encoder, writer, codec or executor goes.
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
"""A component as users choose it: its name, a :class:`Use`, the same as a mapping, or the working object."""
