"""Users' pipelines: from names and callables to stages, and from stages to a running chain."""

from __future__ import annotations

import inspect
import logging
import operator
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import CodeType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, TypeAlias

from bionemo.webdatamodule.columns import is_fields, samples_of
from bionemo.webdatamodule.components import Stage, Use
from bionemo.webdatamodule.errors import ConfigError, WebDataModuleError
from bionemo.webdatamodule.plugins import Plugins, resolve

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.stopwatch import Stopwatch

Where: TypeAlias = Callable[[], Mapping[str, object]]

_ListIterator: type = type(iter([]))
_log = logging.getLogger("bionemo.webdatamodule")
_TUPLES = (
    "samples are tuples of decoded fields, in the order of suffix_keys_wds: 'untuple' unpacks those of one field, "
    "and Use('named', names=[...]) makes dicts of them"
)
_OF_ONE = "for a function of one sample give Use('map', function=...)"


def resolve_stages(argument: str, given: object, plugins: Plugins | None = None) -> tuple[Any, ...]:
    """Return the stages that a pipeline argument of one split means.

    Args:
        argument: Name of the argument and the split, for messages.
        given: One stage or an iterable of stages; each a name, a ``Use``, a mapping, a callable from an
            iterator to an iterator, or a webdataset ``PipelineStage``.
        plugins: Where to look names up; by default among the installed plugins.

    Raises:
        ConfigError: If something given is not a stage.
        UnknownNameError: If a name is not registered.
    """
    one = isinstance(given, str | Use | Mapping) or _runs(given)
    if not one and not isinstance(given, Iterable):
        raise ConfigError(f"{argument} is a stage or a list of stages, not {type(given).__name__}")
    stages = [given] if one else list(given)  # type: ignore[call-overload]  # an Iterable, as checked above
    resolved = []
    for stage in stages:
        if _runs(stage) and not isinstance(stage, Use | Mapping):
            resolved.append(stage)
        elif isinstance(stage, str | Use | Mapping):
            resolved.append(resolve(Stage, stage, plugins))
        else:
            raise ConfigError(
                f"{argument} holds {stage!r:.80}, which is not a stage; a stage is a name such as 'shuffle', "
                "a Use, or a callable from an iterator to an iterator"
            )
    return tuple(resolved)


def chain(
    stages: Sequence[Any], samples: Iterable[Any], where: Where = dict, watch: Stopwatch | None = None
) -> Iterator[Any]:
    """Run samples through stages, lazily.

    An exception of a stage gets a note that names the stage and where it was.

    Args:
        stages: The stages.
        samples: What the first of them gets.
        where: Returns split, shard and key at the time of an exception.
        watch: Measures each stage.

    Raises:
        ConfigError: If a stage gives no iterable.
        Exception: Whatever a stage raises, with its name and place.
    """
    codes: list[tuple[CodeType, object]] = []  # of the source, and of each stage that has an iterator of its own
    source = iter(samples)
    if not isinstance(source, _ListIterator):  # a list raises nothing
        source = made = _generator(source)
        codes.append((made.gi_code, None))
    for stage in stages:
        function, length = partial(_callable(stage), source), operator.length_hint(source)
        try:
            following = function() if watch is None else watch.call(describe(stage), function)
        except Exception as error:
            _blame(error, stage, codes, where)
            if isinstance(error, TypeError | AttributeError) and _is_untouched(source, length):
                add_note(error, f"a stage takes an iterator of samples; {_OF_ONE}")
            raise
        if not isinstance(following, Iterable):
            raise ConfigError(
                f"the stage {describe(stage)} gives {following!r:.40}, not an iterable of samples; {_OF_ONE}"
            )
        if following is not source:
            made = _generator(iter(following))
            codes.append((made.gi_code, stage))
            source = made if watch is None else _generator(watch.each(describe(stage), made))
    return _guarded(source, codes, where)


def _is_untouched(source: Iterator[Any], length: int) -> bool:
    """Return whether nothing was taken of a source that had so many samples left, as far as it says that."""
    if isinstance(source, GeneratorType):
        return inspect.getgeneratorstate(source) == inspect.GEN_CREATED
    return operator.length_hint(source) == length


def _generator(source: Iterator[Any]) -> GeneratorType[Any, None, None]:
    """Return an iterator as a generator, which is a line of its own in tracebacks."""
    made: GeneratorType[Any, None, None] = source if isinstance(source, GeneratorType) else _passed_on(source)
    return made


def _passed_on(source: Iterator[Any]) -> Any:
    yield from source


def _guarded(samples: Iterator[Any], codes: Sequence[tuple[CodeType, object]], where: Where) -> Iterator[Any]:
    """Pass on what a chain of generators yields."""
    try:
        yield from samples
    except Exception as error:
        _blame(error, None, codes, where)
        raise


def _blame(error: Exception, stage: object, codes: Sequence[tuple[CodeType, object]], where: Where) -> None:
    """Add the stage that raised an exception, and the place, unless the source raised it.

    It is that of the last generator of the chain in the traceback, since each of them calls the one before it; or the
    stage that was called with the chain, if there is none.
    """
    left = list(codes)
    for frame, _ in _frames(error):
        if left and frame.f_code is left[-1][0]:
            _, stage = left.pop()
    if stage is not None:
        locate(error, stage=describe(stage), **where())
        if _wants_other_samples(error, stage):
            add_note(error, _TUPLES)


def _wants_other_samples(error: Exception, stage: object) -> bool:
    """Return whether a stage seems to have expected dicts, as webdataset's have them, or single values."""
    if isinstance(error, AssertionError):
        return type(stage).__module__.startswith("webdataset")
    return isinstance(error, TypeError | AttributeError) and "tuple" in str(error)


def _frames(error: Exception) -> Iterator[tuple[FrameType, int]]:
    yield from traceback.walk_tb(error.__traceback__)
    if isinstance(error.__cause__, StopIteration):  # Python made another error of it, outside of the generator
        yield from traceback.walk_tb(error.__cause__.__traceback__)


def locate(error: Exception, **where: object) -> None:
    """Add the place to an exception of a stage: to ``where`` of errors of this package, as a note to others."""
    if isinstance(error, WebDataModuleError):
        error.located(**where)
        return
    place = ", ".join(f"{name}={value}" for name, value in where.items() if value is not None)
    last = "; shard and key are those of the sample that it took last" if "key" in where else ""
    add_note(error, f"raised by a stage ({place}){last}")


def add_note(error: Exception, note: str) -> None:
    """Add a line that is shown below an exception, and logged where tracebacks have no notes."""
    vars(error).setdefault("__notes__", []).append(note)
    if sys.version_info < (3, 11):  # where tracebacks do not show notes
        _log.error("%s: %s", note, error)


class StageFailedError(Exception):
    """The columnar form of a stage raised an exception: a bug, a field that cannot be decoded, or unlike samples.

    It does not leave the engine.
    """

    def __init__(self, stage: object, error: Exception) -> None:
        super().__init__(str(error))
        self.stage = describe(stage)
        self.error = error


def run_columns(stages: Sequence[Any], fields: Any, where: Where = dict) -> tuple[list[Any], Sequence[Any]]:
    """Run columns through the leading stages that have a columnar form.

    Args:
        stages: A pipeline.
        fields: The columns of one share.
        where: Returns split and rank at the time of an exception.

    Returns:
        What to call the other stages with: the share's samples, or its batch as the only item; and these stages.

    Raises:
        StageFailedError: If a stage raises something.
    """
    for number, stage in enumerate(stages):
        columns = getattr(stage, "columns", None)
        try:
            made = NotImplemented if columns is None else columns(fields)
        except (MemoryError, ImportError, OSError, WebDataModuleError) as error:
            locate(error, stage=describe(stage), **where())
            raise
        except Exception as error:
            raise StageFailedError(stage, error) from error
        if made is None:
            raise ConfigError(
                f"columns() of the stage {describe(stage)} gives None; it returns columns, a batch, or NotImplemented"
            )
        if made is NotImplemented:
            return samples_of(fields), stages[number:]
        if not is_fields(made):
            return [made], stages[number + 1 :]
        fields = made
    return samples_of(fields), ()


def names_of(stages: Iterable[Any]) -> str:
    """Return the names of stages, for messages."""
    return ", ".join(map(describe, stages))


def describe(stage: object) -> str:
    """Return the name of a stage for messages."""
    name = getattr(stage, "__qualname__", None)
    if name:
        return f"{getattr(stage, '__module__', '?')}.{name}"
    return f"{stage!r:.80}"


def _runs(stage: object) -> bool:
    """Return whether an object is a stage: a callable, or a webdataset stage with ``run``."""
    return callable(stage) or callable(getattr(stage, "run", None))


def _callable(stage: Any) -> Callable[[Iterator[Any]], Iterable[Any]]:
    # webdataset's PipelineStage classes, such as detshuffle, have run() in place of __call__
    return stage if callable(stage) else stage.run  # type: ignore[no-any-return]  # untyped there
