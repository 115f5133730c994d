"""The subset of a split's samples: a rule on keys, a list of keys, or a predicate on a small field."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bionemo.webdatamodule._engine.codecs import Codecs, NamedCodec
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.reading.joined import stored_keys
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.selection import KEY, select
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.derived import MOST_BYTES, derived
from bionemo.webdatamodule.errors import ConfigError, WebDataModuleError, count
from bionemo.webdatamodule.options import function

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOGETHER = 1024  # samples that are looked at together
_LISTED = 5  # keys in a message
_MOST = 16  # subsets that a process remembers


@dataclass(frozen=True, kw_only=True)
class Subset:
    """What a user gives as ``where`` for a split.

    Attributes:
        field: The suffix whose value a predicate gets; ``"__key__"`` for rules on keys and lists of keys.
        rule: For a field a predicate of its value; for keys a function from all keys to those that are used.
        text: What it is, for messages.
    """

    field: str
    rule: Callable[[Any], Any]
    text: str


@dataclass(frozen=True)
class _Listed:
    """The rule that a list of keys stands for."""

    keys: tuple[str, ...]

    def __call__(self, keys: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - it is a rule
        return self.keys


def subset(argument: str, given: Any) -> Subset | None:
    """Return what a user gives as ``where`` for a split.

    Args:
        argument: Name of the argument and the split, for messages.
        given: A function from all keys to some of them, such as :class:`~bionemo.webdatamodule.splits.Fold`; keys;
            or a pair of a suffix and a predicate of its value. Functions may be import paths.

    Raises:
        ConfigError: If it is something else.
    """
    if given is None:
        return None
    if isinstance(given, (list, tuple)) and len(given) == 2 and callable(given[1]):
        return Subset(field=str(given[0]), rule=given[1], text=f"the predicate on {given[0]}")
    if isinstance(given, Mapping) and set(given) == {"field", "function"}:
        rule = function(f"{argument} function", given["function"])
        return Subset(field=str(given["field"]), rule=rule, text=f"the predicate on {given['field']}")
    if callable(given) or isinstance(given, str):
        return Subset(field=KEY, rule=function(argument, given), text="the rule on keys")
    if isinstance(given, Iterable) and not isinstance(given, (bytes, Mapping)):
        keys = tuple(given)
        if all(isinstance(key, str) for key in keys):
            return Subset(field=KEY, rule=_Listed(tuple(map(str, keys))), text="the list of keys")
    raise ConfigError(
        f"{argument} is a rule on keys such as Hashed(stop=0.5), a list of keys, or a pair of a suffix and a "
        f"function of its value, not {given!r:.80}"
    )


def chosen(
    wanted: Subset, sets: Sequence[ShardSet], joined: Sequence[ShardSet], codecs: Codecs, *, split: str
) -> NDArray[np.int64]:
    """Return the numbers of the samples that a subset has, in order.

    A process works this out once for the same rule and data. What it reads for that, keys or the bytes of the field,
    is kept in the user's cache directory where a manifest says what the data are, so that another run reads none.

    Args:
        wanted: The subset.
        sets: The shards.
        joined: Sets whose fields are joined to them by key.
        codecs: What decodes the field.
        split: The split's name, for messages.

    Raises:
        ConfigError: If keys are not there, no sample is left, or the rule fails.
        WebDataModuleError: If samples cannot be read.
    """
    return _remembered(_Request(wanted, tuple(sets), tuple(joined), codecs, split))


class _Request:
    """A query; two are equal if rule and data are equal."""

    def __init__(
        self, wanted: Subset, sets: tuple[ShardSet, ...], joined: tuple[ShardSet, ...], codecs: Codecs, split: str
    ) -> None:
        self.wanted, self.sets, self.joined, self.codecs, self.split = wanted, sets, joined, codecs, split
        rule: Any = wanted.rule
        try:
            hash(rule)
        except TypeError:
            rule = id(rule)
        data = tuple(found.digest for found in (*sets, *joined)), len(sets)
        self._identity = (wanted.field, rule, *data, *(() if wanted.field == KEY else codecs.identity))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


@functools.lru_cache(maxsize=_MOST)
def _remembered(request: _Request) -> NDArray[np.int64]:
    wanted, split = request.wanted, request.split
    found = _by_keys(request) if wanted.field == KEY else _by_field(request)
    n_samples = sum(each.n_samples for each in request.sets)
    if not len(found):
        raise ConfigError(f"where leaves no sample: {wanted.text} takes none of {n_samples}", split=split)
    decided("%s: where takes %d of %s", split, len(found), count(n_samples, "sample"))
    found.setflags(write=False)
    return found


def _by_keys(request: _Request) -> NDArray[np.int64]:
    wanted, split = request.wanted, request.split
    keys = [key for found in request.sets for key in stored_keys(found, split)]
    given = _called(wanted, keys, split)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(
            f"{wanted.text} in where gets all keys and gives those that are used, not {given!r:.60}; "
            "write it as lambda keys: [key for key in keys if ...]",
            split=split,
        )
    taken = set(given)
    if missing := taken.difference(keys):
        listed = ", ".join(map(repr, sorted(map(str, missing))[:_LISTED]))
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise ConfigError(f"{wanted.text} in where has keys that no sample has: {listed}{more}", split=split)
    return np.flatnonzero(np.fromiter((key in taken for key in keys), bool, len(keys)))


def _by_field(request: _Request) -> NDArray[np.int64]:
    wanted, split = request.wanted, request.split
    with contextlib.suppress(_AnewError):
        return _by_stored_field(request)
    found: list[int] = []
    reader = ShardReader(request.sets, [KEY, wanted.field], joined=request.joined, codecs=request.codecs, split=split)
    for some in _runs(reader):
        samples = reader.read(some)
        found += [
            number
            for number, (key, value) in zip(some.tolist(), samples, strict=True)
            if _called(wanted, value, split, key=key)
        ]
    return np.array(found, np.int64)


class _AnewError(Exception):
    """The samples have to be read one by one."""


def _by_stored_field(request: _Request) -> NDArray[np.int64]:
    """Return what a predicate takes, from bytes of the field that may be in the cache."""
    taken, number = [], 0
    try:
        for number, value in enumerate(_stored_values(request)):
            if _called(request.wanted, value, request.split):
                taken.append(number)
    except ConfigError as error:
        keys = [key for each in request.sets for key in stored_keys(each, request.split)]
        raise error.located(key=keys[number]) from error.__cause__
    return np.array(taken, np.int64)


class _Plain:
    """The codec, and what finds it, of fields that are not decoded."""

    def of(self, suffix: str, recorded: str | None = None) -> NamedCodec:  # noqa: ARG002 - as of Codecs
        return NamedCodec("plain", self)

    def decode(self, view: memoryview) -> bytes:
        return bytes(view)


def _stored_values(request: _Request) -> Iterator[Any]:
    """Yield the field of every sample."""
    if request.joined:
        raise _AnewError
    for found in request.sets:
        suffixes = select(request.wanted.field, found.suffixes, split=request.split).suffixes
        if len(suffixes) != 1 or found.manifest is None or request.wanted.field.endswith("?"):
            raise _AnewError
        decode = request.codecs.of(suffixes[0], found.codecs.get(suffixes[0])).codec.decode
        try:
            read = functools.partial(_stored_field, found, suffixes[0], request.split)
            stored = derived("fields", (found.digest, suffixes[0]), found.n_samples, read)
        except WebDataModuleError as error:  # reading them one by one says which sample it is
            raise _AnewError from error
        for data in stored:
            try:
                value = decode(memoryview(data))
            except Exception as error:
                raise _AnewError from error
            yield value


def _stored_field(found: ShardSet, suffix: str, split: str) -> list[bytes]:
    """Return the bytes of a field of each sample of a set."""
    reader = ShardReader([found], [suffix], codecs=_Plain(), split=split)  # type: ignore[arg-type]
    values: list[bytes] = []
    left = MOST_BYTES
    for some in _runs(reader):
        values += [value for (value,) in reader.read(some)]
        left -= sum(map(len, values[-len(some) :]))
        if left < 0:
            raise _AnewError
    return values


def _runs(reader: ShardReader) -> Iterable[NDArray[np.int64]]:
    for start in range(0, reader.n_samples, _TOGETHER):
        yield np.arange(start, min(start + _TOGETHER, reader.n_samples))


def _called(wanted: Subset, value: Any, split: str, **where: object) -> Any:
    try:
        return wanted.rule(value)
    except WebDataModuleError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{wanted.text} in where fails with {type(error).__name__}: {error}", split=split, **where
        ) from error
