"""``webdatamodule preview``: the first samples of a directory, with what kind of value each field is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bionemo.webdatamodule._cli.arguments import add_policy, open_set, policy_of, positive
from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule.errors import CorruptShardError, DecodeError, MissingFieldError, count
from bionemo.webdatamodule.pickles import Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LONGEST = 60  # characters of a text that are shown
_MOST = 20  # items of a container that are described


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="directory of a split, or a URL")
    parser.add_argument("--prefix", help="prefix of the shards' names; by default the only one with a manifest")
    parser.add_argument("-n", type=positive, default=3, metavar="N", help="samples to show (default: %(default)s)")
    add_policy(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if something of a sample could not be read."""
    policy = policy_of(args)
    found = open_set(args.directory, args.prefix)
    samples = preview(found, args.n, policy)
    if args.json:
        about = {"samples": found.n_samples, "shards": len(found.paths), "suffixes": list(found.suffixes)}
        print_json({**about, "preview": samples})
    else:
        print(f"{count(found.n_samples, 'sample')} in {count(len(found.paths), 'shard')}")
        for sample in samples:
            print(f"\n{sample['key']}" if "error" not in sample else f"\ncannot be read: {sample['error']}")
            width = max(map(len, sample["fields"]), default=0)
            for suffix, field in sample["fields"].items():
                print(f"  {suffix.ljust(width)}  {in_words(field)}")
    return int(any("error" in part for sample in samples for part in (sample, *sample["fields"].values())))


def preview(found: ShardSet, n: int, policy: Policy) -> list[dict[str, Any]]:
    """Return the first samples of a set: their keys, and for each suffix what :func:`describe` says.

    Where a key or a field cannot be read, ``error`` says why, and the others are there all the same.

    Args:
        found: The set.
        n: How many samples, at most.
        policy: What pickles may do.
    """
    readers = {suffix: ShardReader([found], [suffix], codecs=Codecs(policy=policy)) for suffix in found.suffixes}
    keys = ShardReader([found], ["__key__"])
    return [_sample(keys, readers, np.array([number])) for number in range(min(n, found.n_samples))]


def describe(value: Any, depth: int = 3) -> dict[str, Any]:
    """Return what kind of value it is: type, and as far as it has them shape, dtype, length, items or the value.

    Args:
        value: A decoded field.
        depth: How deep to look into containers.
    """
    kind = {"type": type(value).__name__}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {**kind, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float)):
        return {**kind, "value": value if value is None or abs(value) < 1 << 53 else repr(value)}
    if isinstance(value, (str, bytes)):
        return {**kind, "length": len(value), "value": value[:_LONGEST] if isinstance(value, str) else None}
    if isinstance(value, Mapping):
        items = {str(name): describe(item, depth - 1) for name, item in list(value.items())[:_MOST]} if depth else {}
        return {**kind, "length": len(value), "items": items}
    if isinstance(value, (list, tuple)):
        first = {"first": describe(value[0], depth - 1)} if value and depth else {}
        return {**kind, "length": len(value), **first}
    return {**kind, "value": repr(value)[:_LONGEST]}


def in_words(field: Mapping[str, Any]) -> str:
    """Return a description as one line."""
    if "error" in field:
        return f"cannot be read: {field['error']}"
    if "shape" in field:
        return f"{field['type']} {field['dtype']}{field['shape']}"
    if "items" in field:
        items = ", ".join(f"{name}: {in_words(item)}" for name, item in field["items"].items())
        return f"{field['type']}[{field['length']}] {{{items}}}"
    if "first" in field:
        return f"{field['type']}[{field['length']}] of {in_words(field['first'])}"
    length = f"[{field['length']}]" if "length" in field else ""
    return f"{field['type']}{length}" + (f" {field['value']!r}" if field.get("value") is not None else "")


def _sample(keys: ShardReader, readers: Mapping[str, ShardReader], ids: NDArray[np.int64]) -> dict[str, Any]:
    try:
        key: dict[str, Any] = {"key": keys.keys(ids)[0]}
    except CorruptShardError as error:
        return {"key": None, "error": error.message, "fields": {}}
    fields = {suffix: field for suffix, reader in readers.items() if (field := _field(reader, ids)) is not None}
    return {**key, "fields": fields}


def _field(reader: ShardReader, ids: NDArray[np.int64]) -> dict[str, Any] | None:
    try:
        return describe(reader.read(ids)[0][0])
    except MissingFieldError:
        return None
    except (DecodeError, CorruptShardError) as error:
        return {"error": error.message}
