"""Users' pipelines: from names and callables to stages, and from stages to a running chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bionemo.webdatamodule.columns import is_fields, samples_of
from bionemo.webdatamodule.components import Stage, Use
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.plugins import Plugins, resolve


def resolve_stages(argument: str, given: object, plugins: Plugins | None = None) -> tuple[Any, ...]:
    """Return the stages that a pipeline argument of one split means.

    Args:
        argument: Name of the argument and the split, for messages.
        given: One stage or an iterable of stages; each a name, a ``Use``, a mapping, a callable from an
            iterator to an iterator, or a webdataset ``PipelineStage``.
        plugins: Where to look names up; by default among the installed plugins.

    Raises:
        ConfigError: If something given is no stage.
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
                f"{argument} holds {stage!r:.80}, which is no stage; a stage is a name such as 'shuffle', "
                "a Use, or a callable from an iterator to an iterator"
            )
    return tuple(resolved)


def chain(stages: Sequence[Any], samples: Iterable[Any]) -> Iterator[Any]:
    """Run samples through stages, lazily.

    Raises:
        ConfigError: If a stage gives no iterable.
    """
    source = iter(samples)
    for stage in stages:
        following = _callable(stage)(source)
        if not isinstance(following, Iterable):
            raise ConfigError(f"the stage {describe(stage)} gives {following!r:.40}, not an iterable of samples")
        source = iter(following)
    return source


def run_columns(stages: Sequence[Any], fields: Any) -> tuple[list[Any], Sequence[Any]]:
    """Run columns through the leading stages that have a columnar form.

    Args:
        stages: A pipeline.
        fields: The columns of one share.

    Returns:
        What to call the other stages with: the share's samples, or its batch as the only item; and these stages.
    """
    for number, stage in enumerate(stages):
        columns = getattr(stage, "columns", None)
        made = NotImplemented if columns is None else columns(fields)
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
    """Return a stage's name as a user would recognise it."""
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
