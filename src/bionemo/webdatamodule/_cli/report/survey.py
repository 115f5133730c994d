"""What a sample of the data looks like: the sizes of members, and what is in the fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from bionemo.webdatamodule._cli.report.parts import Part, parts_of
from bionemo.webdatamodule._cli.report.spread import Spread
from bionemo.webdatamodule._engine.codecs import Codecs, NamedCodec
from bionemo.webdatamodule._engine.reading.fields import check_fields, key_of
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, open_shard
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule.errors import WebDataModuleError
from bionemo.webdatamodule.pickles import Policy

_PARTS = 200  # of a field
_LISTED = 20  # reasons why fields could not be read


@dataclass(kw_only=True)
class Field:
    """What was found under one suffix.

    Attributes:
        suffix: The suffix.
        codec: How its bytes are decoded.
        sizes: Bytes of the members, of all shards that were looked at.
        decoded: Fields that were decoded.
        failures: How many could not be.
        reasons: Why, for the first of them.
        parts: What was in the values, by name.
        cut: Whether there were more parts than are counted.
    """

    suffix: str
    codec: str
    sizes: Spread = field(default_factory=Spread)
    decoded: int = 0
    failures: int = 0
    reasons: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    cut: bool = False

    def add(self, value: Any) -> None:
        """Count the value of one sample."""
        self.decoded += 1
        for name, part in parts_of(value):
            if name not in self.parts:
                if len(self.parts) >= _PARTS:
                    self.cut = True
                    continue
                self.parts[name] = Part(name=self.suffix + name)
            self.parts[name].add(part)

    def fail(self, reason: str) -> None:
        """Count a sample whose field cannot be read."""
        self.failures += 1
        if len(self.reasons) < _LISTED:
            self.reasons.append(reason)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What :func:`survey` found.

    Attributes:
        fields: One for each suffix, sorted.
        samples: Samples that were decoded.
        shards: Shards whose members were measured.
        problems: Shards that could not be read, a sentence each.
    """

    fields: tuple[Field, ...]
    samples: int
    shards: int
    problems: tuple[str, ...]


def survey(found: ShardSet, policy: Policy, *, shards: Sequence[int], samples: int, progress: bool = False) -> Survey:
    """Look at samples of a set, spread evenly over some of its shards.

    Args:
        found: The set.
        policy: What pickles may do.
        shards: Numbers of the shards to look at, sorted. The sizes of all their members are counted.
        samples: How many samples to decode, at most.
        progress: Whether to show a progress bar on standard error.
    """
    every = Codecs(policy=policy)
    codecs = {suffix: every.of(suffix, found.codecs.get(suffix)) for suffix in found.suffixes}
    fields = {suffix: Field(suffix=suffix, codec=codec.name) for suffix, codec in codecs.items()}
    total = sum(found.samples[number] for number in shards)
    problems: list[str] = []
    passed = decoded = 0
    bar = tqdm(total=len(shards), unit=" shards", desc="reading", disable=not progress, leave=False)
    with bar:
        for number in shards:
            rows = evenly(passed, passed + found.samples[number], total, samples)
            passed += found.samples[number]
            try:
                path, stamp = found.ready(number)
                shard = open_shard(path, stamp, found.index(number, stamp), found.suffixes)
            except (WebDataModuleError, OSError) as error:
                problems.append(error.message if isinstance(error, WebDataModuleError) else str(error))
            else:
                _measure(shard, fields)
                _decode(shard, rows, fields, codecs)
                decoded += len(rows)
            bar.update()
    read = len(shards) - len(problems)
    return Survey(fields=tuple(fields.values()), samples=decoded, shards=read, problems=tuple(problems))


def evenly(first: int, last: int, total: int, wanted: int) -> list[int]:
    """Return which numbers from ``first`` to before ``last`` are among ``wanted`` ones spread evenly below ``total``.

    They are counted from ``first``.
    """
    wanted = min(wanted, total)
    picks = range(-(-first * wanted // total), -(-last * wanted // total)) if total else range(0)
    return [pick * total // wanted - first for pick in picks]


def _measure(shard: OpenShard, fields: Mapping[str, Field]) -> None:
    for column, suffix in enumerate(shard.index.suffixes):
        there = shard.index.offsets[:, column] >= 0
        fields[suffix].sizes.add(shard.index.sizes[there, column])


def _decode(
    shard: OpenShard, rows: Iterable[int], fields: Mapping[str, Field], codecs: Mapping[str, NamedCodec]
) -> None:
    for row in rows:
        for number, (suffix, column) in enumerate(zip(fields, shard.columns, strict=True)):
            if column is None or (start := column[0][row]) < 0:
                continue
            try:
                check_fields((shard, row), [number])
                value = codecs[suffix].codec.decode(shard.data[start : start + column[1][row]])
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - decoders of many formats raise what they like
                message = error.message if isinstance(error, WebDataModuleError) else f"{type(error).__name__}: {error}"
                fields[suffix].fail(f"{_key(shard, row)}: {message}")
            else:
                fields[suffix].add(value)


def _key(shard: OpenShard, row: int) -> str:
    try:
        return key_of((shard, row))
    except WebDataModuleError:
        return f"sample {row} of {shard.path}"
