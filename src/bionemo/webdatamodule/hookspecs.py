"""The hooks a plugin may implement. Each registers components; none takes arguments, none runs per sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, cast

import pluggy

from bionemo.webdatamodule.components import Codec, Executor, KeyEncoder, Loader, Stage, Store, Writer

NAME = "bionemo.webdatamodule"
"""Both the pluggy project name and the entry-point group."""

_F = TypeVar("_F")


class _Marker(Protocol):
    """What a hook marker does to a function, typed (pluggy's own markers are not, for all our needs)."""

    def __call__(self, function: _F, /, *, optionalhook: bool = False) -> _F: ...


_hookspec = pluggy.HookspecMarker(NAME)
hookimpl = cast("_Marker", cast("Any", pluggy.HookimplMarker(NAME)))
"""Marks a function of a plugin as the implementation of the hook of the same name."""


@_hookspec
def webdatamodule_writers() -> Iterable[Writer]:
    """Register source formats that can be turned into shards.

    Called once, when a writer is first looked up by name.
    A complete plugin with one writer, whose samples are the lines of a text file::

        from collections.abc import Iterable, Iterator, Sequence
        from dataclasses import dataclass
        from pathlib import Path

        from bionemo.webdatamodule import Sample, Writer, hookimpl


        @dataclass(frozen=True, kw_only=True)
        class LineReader:
            path: str

            def names(self) -> Sequence[str]:
                return list(self._lines())

            def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
                lines = self._lines()
                for name in names:
                    if name not in lines:
                        raise FileNotFoundError(f"{self.path} has no {name}")
                    yield Sample(name, {"txt": lines[name].encode()})

            def _lines(self) -> dict[str, str]:
                return {f"line{i}": line for i, line in enumerate(Path(self.path).read_text().splitlines())}


        @hookimpl
        def webdatamodule_writers() -> Iterable[Writer]:
            yield Writer(name="lines", summary="lines of a text file", factory=LineReader)
    """
    return ()


@_hookspec
def webdatamodule_key_encoders() -> Iterable[KeyEncoder]:
    """Register ways to make a sample's ``__key__`` from its name.

    Called once, when a key encoder is first looked up by name.
    A key must hold no dot in its last path component; the core refuses two names that get one key::

        from collections.abc import Callable, Iterable

        from bionemo.webdatamodule import KeyEncoder, hookimpl


        def underscores() -> Callable[[str], str]:
            return encode


        def encode(name: str) -> str:
            return name.replace(".", "_")


        @hookimpl
        def webdatamodule_key_encoders() -> Iterable[KeyEncoder]:
            yield KeyEncoder(name="underscores", summary="dots become underscores", factory=underscores)
    """
    return ()


@_hookspec
def webdatamodule_codecs() -> Iterable[Codec]:
    """Register field formats: what the bytes of a suffix mean.

    Called once, when a codec is first looked up.
    The working object decodes one field; with ``column`` it also decodes many at once, straight into a batch::

        from collections.abc import Iterable

        from bionemo.webdatamodule import Codec, hookimpl


        class Hexadecimal:
            def decode(self, view: memoryview) -> int:
                return int(bytes(view), 16)

            def encode(self, value: int) -> bytes:
                return f"{value:x}".encode()


        @hookimpl
        def webdatamodule_codecs() -> Iterable[Codec]:
            yield Codec(name="hex", summary="hexadecimal integers", suffixes=("hex",), factory=Hexadecimal)
    """
    return ()


@_hookspec
def webdatamodule_stages() -> Iterable[Stage]:
    """Register pipeline steps for ``pipeline_wds`` and ``pipeline_prebatch_wld``.

    Called once, when a stage is first looked up by name.
    The working object is a function from an iterator to an iterator, and a worker process may need to pickle it::

        from collections.abc import Iterable, Iterator
        from dataclasses import dataclass
        from typing import Any

        from bionemo.webdatamodule import Stage, hookimpl


        @dataclass(frozen=True, kw_only=True)
        class Scale:
            factor: float

            def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
                return (self.factor * sample for sample in samples)


        @hookimpl
        def webdatamodule_stages() -> Iterable[Stage]:
            yield Stage(name="scale", summary="multiply every sample", factory=Scale)
    """
    return ()


@_hookspec
def webdatamodule_loaders() -> Iterable[Loader]:
    """Register loaders, which turn a dataset into the batches that the ``Trainer`` iterates.

    Called once, when a loader is first looked up by name.
    The working object is a function from a dataset, an iterable of items, to an iterable of the same items;
    the data module puts its own stages behind it::

        from collections.abc import Iterable
        from dataclasses import dataclass
        from typing import ClassVar

        from bionemo.webdatamodule import Loader, hookimpl
        from bionemo.webdatamodule.components import Item, ItemDataset


        @dataclass(frozen=True, kw_only=True)
        class PlainLoader:
            num_workers: int = 0
            keeps_workers: ClassVar[bool] = False
            in_order: ClassVar[bool] = True

            def __call__(self, dataset: ItemDataset) -> Iterable[Item]:
                from torch.utils.data import DataLoader  # not above, since listing plugins imports this module

                return DataLoader(dataset, batch_size=None, num_workers=self.num_workers)


        @hookimpl
        def webdatamodule_loaders() -> Iterable[Loader]:
            yield Loader(name="plain", summary="torch's own DataLoader", factory=PlainLoader)
    """
    return ()


@_hookspec
def webdatamodule_executors() -> Iterable[Executor]:
    """Register engines that run conversion tasks.

    Called once, when an executor is first looked up by name.
    The working object is a context manager that gives a standard ``concurrent.futures.Executor``.
    It is entered for each conversion, and it pickles while it is not entered, as the data module that holds it does::

        from collections.abc import Iterable
        from concurrent.futures import ThreadPoolExecutor

        from bionemo.webdatamodule import Executor, hookimpl


        class Threads:
            def __init__(self, *, workers: int = 4) -> None:
                self.workers = workers

            def __enter__(self) -> ThreadPoolExecutor:
                self.pool = ThreadPoolExecutor(self.workers)
                return self.pool

            def __exit__(self, *error: object) -> None:
                self.pool.shutdown()
                del self.pool


        @hookimpl
        def webdatamodule_executors() -> Iterable[Executor]:
            yield Executor(name="threads", summary="threads of this process", factory=Threads)
    """
    return ()


@_hookspec
def webdatamodule_stores() -> Iterable[Store]:
    """Register clients for remote files, by URL scheme.

    Called once, when a URL is first used.
    The working object lists, reads, writes and deletes files; the core retries and caches::

        from collections.abc import Iterable, Sequence
        from pathlib import Path

        from bionemo.webdatamodule import Store, hookimpl
        from bionemo.webdatamodule.components import StoredFile


        class Mounted:
            def __init__(self, *, root: str = "/mnt/tapes") -> None:
                self.root = root

            def path(self, url: str) -> Path:
                return Path(self.root, url.removeprefix("tape://"))

            def list(self, url: str) -> Sequence[StoredFile]:
                return [StoredFile(name=p.name, size=p.stat().st_size) for p in self.path(url).iterdir() if p.is_file()]

            def stat(self, url: str) -> StoredFile:
                return StoredFile(name=self.path(url).name, size=self.path(url).stat().st_size)

            def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
                with self.path(url).open("rb") as file:
                    for (start, _), memory in zip(ranges, into, strict=True):
                        file.seek(start)
                        if file.readinto(memory) != len(memory):
                            raise EOFError(url)

            def get(self, url: str) -> bytes:
                return self.path(url).read_bytes()

            def put(self, data: bytes | str, url: str) -> None:
                self.path(url).parent.mkdir(parents=True, exist_ok=True)
                self.path(url).write_bytes(data if isinstance(data, bytes) else Path(data).read_bytes())

            def delete(self, url: str) -> None:
                self.path(url).unlink()


        @hookimpl
        def webdatamodule_stores() -> Iterable[Store]:
            yield Store(name="tapes", summary="files on tapes", schemes=("tape",), factory=Mounted)
    """
    return ()
