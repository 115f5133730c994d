"""Reading the data modules' arguments: pure functions that check and normalise them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bionemo.webdatamodule.errors import ConfigError, count
from bionemo.webdatamodule.options import (
    Check,
    checked,
    flag,
    function,
    local_path,
    number,
    one_of,
    optional,
    whole_number,
)
from bionemo.webdatamodule.plugins import Plugins

if TYPE_CHECKING:
    from bionemo.webdatamodule.plugins import Registered

SHARD_ARGUMENTS = (
    "detshuffle",
    "mode",
    "nodesplitter",
    "repeat",
    "resampled",
    "seed",
    "shardshuffle",
    "workersplitter",
)
"""Arguments of ``webdataset.WebDataset`` that assign or shuffle shards; any of them selects ``order="shards"``."""

CACHE_ARGUMENTS = ("cache_dir", "cache_size")
"""Arguments of ``webdataset.WebDataset`` that place the cache of remote shards."""

IGNORED_ARGUMENTS = ("empty_check", "handler", "verbose")
"""Arguments of ``webdataset.WebDataset`` that are accepted in both orders."""


_DIGEST = re.compile("(sha256:)?[0-9a-fA-F]{64}")


class Source(NamedTuple):
    """One directory of shards.

    Attributes:
        directory: The directory.
        weight: Its weight in a mixture; ``None`` where it is none.
        digest: The digest that its data must have, if any.
        schedule: Steps and the weights there, where the mixture changes; empty where it does not.
        store: The store that serves a URL; ``None`` for that of an installed plugin.
    """

    directory: str
    weight: float | None
    digest: str | None = None
    schedule: tuple[tuple[int, float], ...] = ()
    store: Registered | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorPolicy:
    """What happens to a sample that cannot be read.

    Attributes:
        on_error: ``"raise"``, or ``"skip"`` for leaving it out, counted and logged.
        max_skipped: Samples that may be skipped in a process before it is an error after all.
    """

    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: int = 100


def mapping(argument: str, given: object) -> dict[str, Any]:
    """Return the options of a split, which a user may leave out.

    Args:
        argument: Name of the argument and the split, for messages.
        given: A mapping from names to values, or ``None``.

    Raises:
        ConfigError: If it is something else.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{argument} maps names of options to values, such as {{'name': value}}, not {given!r:.80}")
    return dict(given)


def wds_options(argument: str, given: object) -> dict[str, Any]:
    """Return a split's arguments for ``webdataset.WebDataset``, with values that can be used.

    Args:
        argument: Name of the argument and the split, for messages.
        given: A mapping from names to values, or ``None``.

    Raises:
        ConfigError: If it is something else, or a value is wrong.
    """
    return checked(mapping(argument, given), _WDS_CHECKS, f"{{}} in {argument}")


def calls(argument: str, given: object) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Return the calls of methods that a user wants after a pipeline.

    Args:
        argument: Name of the argument and the split, for messages.
        given: Pairs of a method's name and its arguments, or ``None``.

    Raises:
        ConfigError: If it is something else.
    """
    expected = f"{argument} is a list of pairs of a method and its arguments, such as [('shuffle', {{'size': 9}})]"
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ConfigError(f"{expected}, not {given!r:.80}")
    pairs = tuple(given)
    for pair in pairs:
        if not (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], Mapping)
        ):
            raise ConfigError(f"{expected}; it holds {pair!r:.80}")
    return tuple((name, kwargs) for name, kwargs in pairs)


def plugin_set(argument: str, given: object) -> Plugins | None:
    """Return the plugins in which names are looked up; ``None`` for the installed ones.

    Raises:
        ConfigError: If it is something else.
    """
    if given is not None and not isinstance(given, Plugins):
        raise ConfigError(f"{argument} is a Plugins, or None for the installed plugins, not {given!r:.80}")
    return given


def suffix_tuple(argument: str, given: object) -> tuple[str, ...]:
    """Return one suffix, or an iterable of them, as a tuple.

    Raises:
        ConfigError: If there is none, one twice, or one that is not text.
    """
    suffixes = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else None
    if not suffixes:
        raise ConfigError(f"{argument} is a suffix such as 'tensor.pyd' or several of them, not {given!r}")
    for suffix in suffixes:
        if not isinstance(suffix, str) or not suffix:
            raise ConfigError(f"{argument} holds {suffix!r}, which is not a suffix")
    if len(set(suffixes)) != len(suffixes):
        raise ConfigError(f"{argument} names a suffix twice: {', '.join(map(str, suffixes))}")
    return suffixes


def sources(argument: str, given: object) -> tuple[Source, ...]:
    """Return the directories of a split, with weights.

    Args:
        argument: Name of the argument and the split, for messages.
        given: A path or URL; or for a mixture a sequence of them, or of pairs of one and its weight; or for a mixture
            that changes a mapping from steps to such pairs.

    Raises:
        ConfigError: If it is none of these.
    """
    if isinstance(given, str | os.PathLike):
        return (Source(directory(argument, given), None),)
    if isinstance(given, Mapping):
        return _changing(argument, given)
    if not isinstance(given, Iterable):
        raise ConfigError(f"{argument} is a directory, or a list of (directory, weight), not {given!r:.80}")
    found = []
    for entry in given:
        if isinstance(entry, str | os.PathLike):
            found.append(Source(directory(argument, entry), None))
            continue
        try:
            path, weight = entry
            source = Source(directory(argument, path), float(weight))
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{argument} holds {entry!r:.80}, which is no (directory, weight)") from error
        if not 0 < float(weight) < float("inf"):
            raise ConfigError(f"{argument} gives {source.directory} the weight {weight!r}, which is not positive")
        found.append(source)
    if not found:
        raise ConfigError(f"{argument} names no directory")
    if len({source.weight is None for source in found}) > 1:
        raise ConfigError(f"{argument} gives some directories a weight and others none; give all of them one")
    return tuple(found)


def joined_sources(argument: str, given: object) -> tuple[Source, ...]:
    """Return the directories that are joined to those of a split.

    Raises:
        ConfigError: If they are not directories, or have weights.
    """
    found = () if given is None else sources(argument, given)
    if any(source.weight is not None for source in found):
        raise ConfigError(f"{argument} is a directory or a list of directories, which have no weights")
    return found


def _changing(argument: str, given: Mapping[Any, Any]) -> tuple[Source, ...]:
    """Return the directories of a mixture that changes from step to step."""
    try:
        points = sorted(
            (int(step), [(directory(argument, d), float(w)) for d, w in pairs]) for step, pairs in given.items()
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{argument} is a directory, a list of (directory, weight), or for a mixture that changes "
            f"{{step: [(directory, weight), …], …}}, not {given!r:.80}"
        ) from error
    if not points or not points[0][1]:
        raise ConfigError(f"{argument} names no directory")
    if points[0][0] != 0:
        raise ConfigError(f"{argument} has a mixture that changes, which begins at step 0, not {points[0][0]}")
    directories = [path for path, _ in points[0][1]]
    for step, pairs in points:
        if [path for path, _ in pairs] != directories:
            raise ConfigError(
                f"{argument} has other directories at step {step} than at step 0; name all of them at each, in one "
                "order, with weight 0 where one gives nothing"
            )
        if not all(0 <= weight < float("inf") for _, weight in pairs) or not any(weight for _, weight in pairs):
            raise ConfigError(f"{argument} has weights at step {step} that are not from 0 on, or all 0")
    return tuple(
        Source(path, points[0][1][n][1], schedule=tuple((step, pairs[n][1]) for step, pairs in points))
        for n, path in enumerate(directories)
    )


def pinned(argument: str, found: tuple[Source, ...], given: object) -> tuple[Source, ...]:
    """Return the directories of a split with the digests that their data must have.

    Args:
        argument: Name of the argument and the split, for messages.
        found: The directories.
        given: A digest, or one for each directory; ``None`` for whatever is there.

    Raises:
        ConfigError: If they are not digests, or not as many as there are directories.
    """
    if given is None:
        return found
    digests = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else []
    if len(digests) != len(found):
        raise ConfigError(
            f"{argument} holds {count(len(digests), 'digest')} for "
            f"{count(len(found), 'directory', 'directories')}; give one for each"
        )
    for digest in digests:
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ConfigError(f"{argument} holds {digest!r:.80}, which is not a digest; `webdatamodule info` prints it")
    return tuple(source._replace(digest=digest) for source, digest in zip(found, digests, strict=True))


def order_of(
    order: Literal["global", "shards"] | None, kwargs_wds: Mapping[str, Any]
) -> tuple[Literal["global", "shards"], str]:
    """Return the order of a split, and the reason.

    Args:
        order: The user's choice, or ``None``.
        kwargs_wds: The split's arguments for ``webdataset.WebDataset``.

    Raises:
        ConfigError: If the arguments contradict the choice, or one is not supported.
    """
    known = {*SHARD_ARGUMENTS, *CACHE_ARGUMENTS, *IGNORED_ARGUMENTS}
    for name in kwargs_wds:
        if name not in known:
            raise ConfigError(
                f"kwargs_wds names {name!r}, which this package does not take; it takes {', '.join(sorted(known))}"
            )
    named = [name for name in SHARD_ARGUMENTS if name in kwargs_wds]
    if order == "global" and named:
        raise ConfigError(
            f"order='global' deals samples by its own plan, so kwargs_wds cannot name {', '.join(named)}; "
            "leave them out, or take order='shards'"
        )
    if order is not None:
        return order, "order says so"
    if named:
        return "shards", f"kwargs_wds names {', '.join(named)}"
    return "global", "kwargs_wds names no shard argument"


def error_policy(kwargs_wds: Mapping[str, Any], policy: ErrorPolicy) -> ErrorPolicy:
    """Return the policy that webdataset's ``handler`` means, or the given one without a handler.

    Raises:
        ConfigError: If the handler is not one of webdataset's.
    """
    handler = kwargs_wds.get("handler")
    if handler is None:
        return policy
    name = getattr(handler, "__name__", "")
    if name == "reraise_exception":
        return ErrorPolicy(on_error="raise")
    if name in ("ignore_and_continue", "warn_and_continue"):
        return ErrorPolicy(on_error="skip", max_skipped=policy.max_skipped)
    raise ConfigError(
        f"kwargs_wds has the handler {name or handler!r}; give on_error='raise' or 'skip' in its place, "
        "which counts what it skips and names it"
    )


def directory(argument: str, given: object) -> str:
    """Return a directory, a path with its ``~`` replaced or a URL.

    Args:
        argument: Name of the argument and the split, for messages.
        given: What the user gave.

    Raises:
        ConfigError: If it is neither.
    """
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else given
    if isinstance(path, str) and "://" in path:
        return str(path)  # plain text, as local_path gives it
    return local_path(argument, path)


def _shards(argument: str, given: Any) -> bool | int:
    """Return how many shards are shuffled together, where ``True`` leaves the number to us."""
    return given if isinstance(given, bool) else whole_number(argument, given, least=0)


def _room(argument: str, given: Any) -> int | None:
    """Return how many bytes a cache may take; ``None`` for no limit, as -1 is in webdataset."""
    size = number(argument, given, least=float("-inf"))
    return int(size) if 0 <= size < float("inf") else None


_WDS_CHECKS: Mapping[str, Check] = {
    "cache_dir": optional(local_path),
    "cache_size": optional(_room),
    "detshuffle": optional(flag),
    "empty_check": optional(flag),
    "mode": partial(one_of, choices=("resampled", None)),
    "nodesplitter": optional(function),
    "repeat": optional(flag),
    "resampled": optional(flag),
    "seed": optional(partial(whole_number, least=0)),
    "shardshuffle": optional(_shards),
    "verbose": optional(flag),
    "workersplitter": optional(function),
}
