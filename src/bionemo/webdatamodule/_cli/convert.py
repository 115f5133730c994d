"""``webdatamodule convert``: the samples of any source into tar shards."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bionemo.webdatamodule._cli.arguments import USUAL_PREFIX, add_policy, policy_of, positive
from bionemo.webdatamodule._cli.options import parse_options, reference
from bionemo.webdatamodule._cli.output import print_json
from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.writing.conversion import Conversion, choose, list_names, resolve_subsets
from bionemo.webdatamodule._engine.writing.convert import convert
from bionemo.webdatamodule.components import Executor, KeyEncoder, Sample, SampleReader, Writer
from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo.webdatamodule.plugins import find
from bionemo.webdatamodule.splits import Split

_EPILOG = """\
--split takes a fraction of all samples, sample names, or a file with one name per line:

  webdatamodule convert --option directory=pickles --option suffixes=pyd --split train=0.8 --split val=0.2 out/
  webdatamodule convert --option directory=pickles --option suffixes=pyd --split train=a,b --split val=@val.txt out/

A number is a fraction; for sample names that are numbers, use a file.

The shards are written to OUT + split, such as out/train/wdshards-000000.tar.
"""


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "out", metavar="OUT", help="prefix of the output directories, to which the split's name is added"
    )
    parser.add_argument(
        "--writer",
        default="pickles",
        metavar="NAME[:K=V,K=V]",
        help="writer of the source format; `webdatamodule plugins` lists them (%(default)s)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="K=V",
        help="option of the writer, as text or JSON; repeatable",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="SPLIT=WHAT",
        help="samples of a split, see below; by default all samples are train",
    )
    parser.add_argument("--prefix", default=USUAL_PREFIX, help="prefix of the shards' names (%(default)s)")
    parser.add_argument(
        "--shards", type=positive, metavar="N", help="shards per split; by default a shard has about 256 MiB"
    )
    parser.add_argument(
        "--key-encoder",
        default="dashes",
        metavar="NAME[:K=V,K=V]",
        help="encoder from sample names to keys (%(default)s)",
    )
    parser.add_argument(
        "--executor", default="processes", metavar="NAME[:K=V,K=V]", help="executor of the conversion (%(default)s)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="number of workers of the executor")
    add_policy(parser, trusted="let pickles run code while they are checked")
    parser.add_argument(
        "--check", action="store_true", help="compare the hashes of existing shards, and rewrite damaged ones"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    subsets = parse_splits(args.split)
    workers = {} if args.workers is None else {"workers": args.workers}
    executor = choose(Executor, reference(Executor, args.executor, "--executor", workers))
    given = parse_options(args.option, find(Writer, args.writer.partition(":")[0]).factory)
    use = reference(Writer, args.writer, "--writer", given, "--option {}=VALUE")
    writer = choose(Writer, use)
    manifests = convert(
        Conversion(
            writer=writer,
            names=choose_names(subsets, writer.object, use.options, **writer.where),
            directories={split: f"{args.out}{split}" for split in subsets},
            prefix=args.prefix,
            n_shards=args.shards,
            key_encoder=choose(KeyEncoder, reference(KeyEncoder, args.key_encoder, "--key-encoder")),
            executor=executor,
            codecs=Codecs(policy=policy_of(args)),
        ),
        check=args.check,
    )
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "directory": f"{args.out}{split}",
            "samples": manifest.n_samples,
            "shards": len(manifest.shards),
            "bytes": manifest.n_bytes,
            "digest": manifest.digest,
        }
        for split, manifest in manifests.items()
    ]
    if args.json:
        print_json(rows)
    else:
        for row in rows:
            print(
                f"{row['split']}: {count(row['samples'], 'sample')} in {count(row['shards'], 'shard')}, "
                f"{row['bytes'] / 1e6:.4g} MB, {row['directory']}"
            )
    return 0


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a plain number says of a split: the part of all names that it gets.

    Attributes:
        share: The share, of 1.
        text: The number as it was written; empty for the default.
    """

    share: float
    text: str = ""


def parse_splits(words: Sequence[str]) -> Mapping[str, Share | list[str]]:
    """Return what goes into each split from ``SPLIT=WHAT`` words: a part, names, or a file of names after ``@``.

    Raises:
        ConfigError: If a word is none of these, or a split comes twice.
    """
    if not words:
        return {"train": Share(share=1.0)}
    splits: dict[str, Share | list[str]] = {}
    for word in words:
        split, equals, what = word.partition("=")
        if not equals or split not in Split.__members__:
            raise ConfigError(
                f"--split takes SPLIT=WHAT, where SPLIT is one of {', '.join(Split.__members__)}, not {word!r}"
            )
        if not what:
            raise ConfigError(f"--split {word} gives no samples; write a part such as {word}0.8, names, or @FILE")
        if split in splits:
            raise ConfigError(f"--split gives {split} twice")
        splits[split] = _names(what)
    return splits


def choose_names(
    subsets: Mapping[str, Share | list[str]], reader: SampleReader, options: Mapping[str, Any], **where: str
) -> Mapping[str, Any]:
    """Return the names of each split; the source lists itself once, and only where a split gets a part of it.

    Args:
        subsets: What :func:`parse_splits` gives.
        reader: The source.
        options: The writer's options, for messages.
        where: The writer's plugin, for messages.

    Raises:
        ConfigError: If the source cannot list itself, a part is also the name of a sample, or a part is out of range.
        InputError: If the source has no samples.
    """
    parts = {split: what for split, what in subsets.items() if isinstance(what, Share)}
    if not parts:
        return subsets
    names = list_names(reader, **where)
    if not names:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
        raise InputError(f"the source has no samples: nothing in it matches {given}; correct --option")
    texts = {part.text: split for split, part in parts.items() if part.text}
    for name in names:
        if not isinstance(name, str) or name not in texts:
            continue
        split, share = texts[name], float(name)
        number = f"{share}" if f"{share}" != name else f"{name}0"
        raise ConfigError(
            f"--split {split}={name} may mean a part of the samples, or the sample of that name; "
            f"write {split}={number} for the part, or put the names into a file and write {split}=@FILE"
        )
    return resolve_subsets(
        {split: what.share if isinstance(what, Share) else what for split, what in subsets.items()},
        _Listed(reader=reader, found=names),
    )


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A source that need not list itself again."""

    reader: SampleReader
    found: Sequence[str]

    def names(self) -> Sequence[str]:
        """Return all names."""
        return self.found

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples of these names."""
        return self.reader(names)


def _names(what: str) -> Share | list[str]:
    if what.startswith("@"):
        return _listed_names(what[1:])
    return Share(share=float(what), text=what) if _NUMBER.fullmatch(what) else what.split(",")


def _listed_names(path: str) -> list[str]:
    """Return the lines of a file, which end where their writer ended them: other breaks may be in a name."""
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the list of names {path} is not UTF-8: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"the list of names {path} cannot be read: {error}") from error
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
