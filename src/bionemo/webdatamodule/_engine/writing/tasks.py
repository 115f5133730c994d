"""One shard as one task: read its samples, write its tar into the staging directory, say what was wrong."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bionemo.webdatamodule._engine.codecs import lacking
from bionemo.webdatamodule._engine.format.tar_write import ShardWriter
from bionemo.webdatamodule._engine.storage import filesystem
from bionemo.webdatamodule._engine.writing.checks import LISTED
from bionemo.webdatamodule._engine.writing.recipe import Recipe
from bionemo.webdatamodule._engine.writing.staging import Progress, Staged, find_staged, keep, progress_path, tar_path
from bionemo.webdatamodule.errors import (
    ConversionError,
    DecodeError,
    InputError,
    PluginError,
    WebDataModuleError,
)
from bionemo.webdatamodule.files import near
from bionemo.webdatamodule.names import suffix_problem

Stored: TypeAlias = "bytes | Sequence[bytes | memoryview]"
Recode: TypeAlias = "Callable[[bytes], Stored]"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a task came to: a finished shard, or problems of its samples.

    Attributes:
        staged: The shard; ``None`` where there were problems.
        problems: The first problems, a line each.
        n_problems: How many there were.
    """

    staged: Staged | None = None
    problems: tuple[str, ...] = ()
    n_problems: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Makes one shard. It pickles, and it can run on any machine that sees the staging directory.

    Attributes:
        recipe: How samples become bytes.
        names: The shard's samples, in order.
        split: Name of the split, for messages.
        staging: The staging directory.
        inputs: The hash of the samples' state when the conversion was planned, see :meth:`Recipe.inputs`.
    """

    recipe: Recipe
    names: Sequence[str]
    split: str
    staging: str
    inputs: str

    def __call__(self) -> Result:
        """Make the shard, unless an earlier run has finished it.

        Raises:
            ConversionError: If it cannot be written, or the source changed meanwhile.
            PluginError: If the reader breaks its contract.
        """
        staged = find_staged(self.staging, self.inputs)
        if staged is not None:
            return Result(staged=staged)
        part = f"{tar_path(self.staging, self.inputs)}.{uuid.uuid4().hex}.part"
        try:
            return self._make(part)
        except ConversionError as error:
            raise error.located(split=self.split) from error.__cause__
        except OSError as error:
            raise ConversionError(
                f"a shard cannot be written: {error.strerror or error}; correct this and run it again",
                file=part,
                split=self.split,
            ) from error
        finally:
            for path in (part, progress_path(self.staging, self.inputs)):
                with contextlib.suppress(OSError):
                    filesystem.remove(path)

    def _make(self, part: str) -> Result:
        descriptor = filesystem.create(part)
        try:
            writer = ShardWriter(descriptor, path=part, write=filesystem.write)
            problems = self._copy(writer)
            if problems.count:
                return Result(problems=tuple(problems.first), n_problems=problems.count)
            written = writer.finish()
            filesystem.sync(descriptor)
        finally:
            filesystem.close(descriptor)
        now, _ = self.recipe.inputs(self.names)
        if now != self.inputs:
            raise ConversionError(
                "the source changed while it was read; run the conversion again. If it did not change, "
                f"the fingerprints of the writer {self.recipe.writer} or the keys of the key encoder do not repeat",
                split=self.split,
            )
        return Result(staged=keep(self.staging, self.inputs, part, written))

    def _copy(self, writer: ShardWriter) -> _Problems:
        """Copy the samples into the tar; after the first problem, only look for others."""
        problems = _Problems()
        progress = Progress(progress_path(self.staging, self.inputs))
        layouts: dict[tuple[str, ...], list[tuple[str, Recode | None]]] = {}
        names, encode = self.names, self.recipe.encode
        position = 0
        while position < len(names):
            try:
                for name, found in self._samples(position):
                    suffixes = tuple(found)
                    layout = layouts.get(suffixes) or layouts.setdefault(suffixes, self._layout(name, found))
                    fields: list[tuple[str, Stored]] = []
                    for suffix, recode in layout:
                        data = found[suffix]
                        if not isinstance(data, bytes):
                            raise self._breach(f"gives {type(data).__name__} instead of bytes", name, suffix)
                        try:
                            fields.append((suffix, data if recode is None else recode(data)))
                        except (MemoryError, OSError):
                            raise
                        except ImportError as error:  # not the sample's fault
                            origin = self.recipe.codecs.of(suffix, self.recipe.codec(suffix)).origin
                            raise lacking(error, **origin, sample=name, suffix=suffix, split=self.split) from error
                        except Exception as error:  # noqa: BLE001 - codecs raise what they like
                            raise _undecodable(error).located(suffix=suffix) from error.__cause__
                    if not problems.count:
                        writer.add(encode(name), fields)
                    position += 1
                    progress.note(position)
                    del found, data, fields  # a large sample is gone before the next is read
            except (InputError, DecodeError, OSError) as error:  # noqa: PERF203 - the loop continues after a bad sample
                problems.add(names[position], error)
                position += 1
        return problems

    def _samples(self, start: int) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """Yield what the reader reads, after checking that it is the right samples."""
        expected = iter(self.names[start:])
        for sample in self._read(self.names[start:]):
            name = next(expected, None)
            if name is None:
                raise self._breach("gives more samples than it was asked for", repr(sample)[:80])
            try:
                given, found = sample
            except (TypeError, ValueError):
                raise self._breach(f"yields {type(sample).__name__} instead of Sample(name, files)", name) from None
            if given != name:
                raise self._breach(f"gives sample {given!r} where {name!r} is due", name)
            if not isinstance(found, Mapping):
                raise self._breach(f"gives {type(found).__name__} instead of a mapping from suffix to bytes", name)
            yield name, found
            del sample, found
        missing = next(expected, None)
        if missing is not None:
            raise self._breach("ends before this sample", missing)

    def _read(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield what the reader yields; errors that are not a fault of a sample are the reader's own."""
        done = 0
        try:
            for sample in self.recipe.reader(names):
                done += 1
                yield sample
                del sample
        except (OSError, WebDataModuleError):
            raise
        except (Exception, SystemExit) as error:
            name = names[min(done, len(names) - 1)]
            raise self._breach(f"fails with {type(error).__name__}: {error}", name) from error

    def _layout(self, name: str, found: Mapping[str, Any]) -> list[tuple[str, Recode | None]]:
        """Return the suffixes of a sample in their order in the tar, each with what recodes it."""
        if not found:
            raise self._breach("gives no field", name)
        for suffix in found:
            problem = suffix_problem(suffix)
            if problem:
                raise self._breach(f"gives the suffix {suffix!r}, which {problem}", name)
        if len({suffix.lower() for suffix in found}) < len(found):
            raise self._breach("gives suffixes that differ only in case", name, ", ".join(found))
        return [(suffix, self.recipe.recode(suffix)) for suffix in sorted(found)]

    def _breach(self, what: str, sample: str | None, suffix: str | None = None) -> PluginError:
        return PluginError(
            f"the writer {self.recipe.writer} {what}",
            writer=self.recipe.writer,
            **self.recipe.where,
            sample=sample,
            suffix=suffix,
            split=self.split,
        )


@dataclass(kw_only=True)
class _Problems:
    """The first problems of a shard's samples, and the count of all."""

    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, sample: str, error: Exception) -> None:
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(f"{sample}: {describe(error)}")


def _undecodable(error: Exception) -> WebDataModuleError:
    """Return the error of a field that a codec cannot recode."""
    if isinstance(error, WebDataModuleError):
        return error
    named = DecodeError(f"the field cannot be decoded: {type(error).__name__}: {error}")
    named.__cause__ = error
    return named


def describe(error: Exception) -> str:
    """Return one line on what is wrong with a sample."""
    if isinstance(error, OSError) and error.filename is not None:
        hint = near(str(error.filename)) if isinstance(error, FileNotFoundError) else ""
        return f"{error.strerror}: {error.filename}{f' ({hint})' if hint else ''}"
    if isinstance(error, WebDataModuleError):
        place = ", ".join(f"{name}={value}" for name, value in error.where.items())
        return f"{error.message}{f' ({place})' if place else ''}"
    return str(error)
