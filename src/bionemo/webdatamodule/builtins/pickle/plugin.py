"""The default writer and codec: one or several pickles per sample."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bionemo.webdatamodule.components import Codec, FieldCodec, Sample, Writer
from bionemo.webdatamodule.errors import InputError, count
from bionemo.webdatamodule.files import walk_files
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.names import check_suffixes
from bionemo.webdatamodule.options import function as imported
from bionemo.webdatamodule.options import local_path
from bionemo.webdatamodule.pickles import Policy, dumps

_log = logging.getLogger("bionemo.webdatamodule")
_MOST_READ = 1 << 30  # bytes; Linux reads 2 GiB at most in one call, so a short read says nothing beyond that
_SMALL = 1 << 16  # bytes of a first read; larger files are met only after one that was as large


@dataclass(frozen=True, kw_only=True)
class PickleReader:
    """Reads ``{directory}/{name}.{suffix}`` for each suffix.

    Attributes:
        directory: Where the pickle files lie. Names may lead into subdirectories, but not out of it.
        suffixes: One suffix or several; each file's suffix is also its field in the shards.

    Raises:
        ConfigError: If the directory is not on a disk, or a suffix cannot be stored.
    """

    directory: str
    suffixes: tuple[str, ...]

    def __init__(self, *, directory: str | os.PathLike[str], suffixes: str | Iterable[str]) -> None:
        object.__setattr__(self, "directory", local_path("directory", directory))
        object.__setattr__(self, "suffixes", check_suffixes(suffixes))

    @property
    def codecs(self) -> Mapping[str, str]:
        """All fields are pickles, whatever their suffixes look like."""
        return dict.fromkeys(self.suffixes, "pickle")

    def names(self) -> Sequence[str]:
        """Return the sorted names of all samples in the directory and below that have every suffix.

        Hidden files and folders are left out; links are followed (:func:`~bionemo.webdatamodule.files.walk_files`).

        Raises:
            InputError: If the directory cannot be listed.
        """
        first, *others = (f".{suffix}" for suffix in self.suffixes)
        endings = (first, *others)
        found = walk_files(self.directory, wanted=lambda name: name.endswith(endings))
        if not others:
            return sorted(path.removesuffix(first) for path in found)
        files = set(found)
        bases = {path.removesuffix(ending) for path in files for ending in endings if path.endswith(ending)}
        names = sorted(base for base in bases if all(base + ending in files for ending in endings))
        used = {base + ending for base in names for ending in endings}
        if rest := sorted(files - used):
            _log.warning(
                "%s: left out %s of samples that lack one of the suffixes %s, first %s",
                self.directory,
                count(len(rest), "file"),
                ", ".join(self.suffixes),
                rest[0],
            )
        return names

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return size and modification time of each sample's files; ``""`` where one cannot be a pickle file."""
        return [self._fingerprint(name) for name in names]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names.

        Raises:
            InputError: If a name leads out of the directory.
            OSError: If a file cannot be read.
        """
        guess = _SMALL
        for name in names:
            if not _stays_inside(name):
                raise InputError(f"the name {name!r} leads out of the directory {self.directory}")
            files = {suffix: _read(f"{self.directory}/{name}.{suffix}", guess) for suffix in self.suffixes}
            guess = max(_SMALL, 1 + max(map(len, files.values())))  # the next sample is often as large
            yield Sample(name, files)
            del files  # a large sample is gone before the next is read

    def _fingerprint(self, name: str) -> str:
        if not _stays_inside(name):
            return ""
        found = []
        for suffix in self.suffixes:
            try:
                status = os.stat(f"{self.directory}/{name}.{suffix}")  # noqa: PTH116 - a million of them
            except (OSError, ValueError):
                return ""
            if not stat.S_ISREG(status.st_mode):
                return ""
            found.append(f"{status.st_size}@{status.st_mtime_ns}")
        return found[0] if len(found) == 1 else " ".join(found)


@dataclass(frozen=True, kw_only=True)
class ConvertedPickles:
    """Reads pickles as :class:`PickleReader` does, and stores what a function makes of them.

    Attributes:
        source: Reads the files.
        function: Takes the name of a sample and the bytes of its files by suffix, and returns the fields to store by
            suffix. A field is bytes, or an object, which is pickled.
    """

    source: PickleReader
    function: Callable[[str, dict[str, bytes]], Mapping[str, Any]]

    @property
    def codecs(self) -> Mapping[str, str]:
        """The fields of the source's suffixes are pickles; others are what their suffixes say."""
        return self.source.codecs

    def names(self) -> Sequence[str]:
        """Return the names of all samples; see :meth:`PickleReader.names`."""
        return self.source.names()

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return the state of each sample's files; see :meth:`PickleReader.fingerprints`."""
        return self.source.fingerprints(names)

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names.

        Raises:
            InputError: If the function fails, or returns something else than fields.
        """
        for name, files in self.source(names):
            try:
                fields = dict(self.function(name, dict(files)))
                found = {suffix: data if isinstance(data, bytes) else dumps(data) for suffix, data in fields.items()}
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"the function fails with {type(error).__name__}: {error}", sample=name) from error
            yield Sample(name, found)


def pickles(
    *,
    directory: str | os.PathLike[str],
    suffixes: str | Iterable[str],
    function: Callable[[str, dict[str, bytes]], Mapping[str, Any]] | str | None = None,
) -> PickleReader | ConvertedPickles:
    """Return a reader of pickle files.

    Args:
        directory: Where the pickle files lie.
        suffixes: One suffix or several; each file's suffix is also its field in the shards.
        function: What makes the fields to store of a sample's name and the bytes of its files by suffix, or its import
            path. It is identified by its qualified name: to have shards rewritten after its body changed, give it
            another ``version``, an attribute.

    Raises:
        ConfigError: If a suffix cannot be stored, or the function cannot be imported.
    """
    source = PickleReader(directory=directory, suffixes=suffixes)
    return source if function is None else ConvertedPickles(source=source, function=imported("function", function))


def _stays_inside(name: str) -> bool:
    if "\x00" in name or name.startswith("/"):
        return False
    return ".." not in name or ".." not in name.split("/")


def _read(path: str, guess: int) -> bytes:
    """Return a file's bytes, with a single read call if there are fewer than guessed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hang it
    try:
        data = os.read(descriptor, guess)
        if len(data) < guess <= _MOST_READ:
            return data
        del data
        os.lseek(descriptor, 0, os.SEEK_SET)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()  # of the size that it has, without a copy
    finally:
        os.close(descriptor)


@hookimpl
def webdatamodule_writers() -> Iterable[Writer]:
    """Register the writer ``pickles``."""
    yield Writer(
        name="pickles",
        summary="pickle files in a directory, one or several per sample",
        factory=pickles,
    )


@hookimpl
def webdatamodule_codecs() -> Iterable[Codec]:
    """Register the codec ``pickle``."""
    yield Codec(
        name="pickle",
        summary="Python pickles, decoded without running code",
        suffixes=("pyd", "pickle", "pkl"),
        factory=_codec,
    )


def _codec(*, policy: Policy) -> FieldCodec:
    from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec

    return PickleCodec(policy)
