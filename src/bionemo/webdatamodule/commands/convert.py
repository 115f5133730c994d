"""``webdatamodule convert``: the samples of any source into tar shards."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bionemo.webdatamodule import conversion
from bionemo.webdatamodule.components import Executor, KeyEncoder, Use, Writer
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule.splits import Split

_EPILOG = """\
A split is given by its part of all samples, by its samples, or by a file that lists them, one a line:

  webdatamodule convert --option directory=pickles --option suffixes=pyd --split train=0.8 --split val=0.2 out/
  webdatamodule convert --option directory=pickles --option suffixes=pyd --split train=a,b --split val=@val.txt out/

Shards go to the directory OUT + split: out/train/wdshards-000000.tar and so on.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "out", metavar="OUT", help="beginning of the splits' directories; to it the split's name is added"
    )
    parser.add_argument("--writer", default="pickles", help="the source's format; `webdatamodule plugins` lists them")
    parser.add_argument(
        "--option", action="append", default=[], metavar="K=V", help="option of the writer; V may be JSON"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="SPLIT=WHAT",
        help="what goes into a split, see below; by default all into train",
    )
    parser.add_argument("--prefix", default="wdshards", help="beginning of the shards' names")
    parser.add_argument(
        "--shards", type=int, metavar="N", help="shards of each split; by default each becomes about 256 MiB"
    )
    parser.add_argument("--key-encoder", default="dashes", help="makes the keys in the shards of the samples' names")
    parser.add_argument("--executor", default="processes", help="what runs the work")
    parser.add_argument("--workers", type=int, metavar="N", help="how many workers the executor has")
    parser.add_argument("--trusted", action="store_true", help="let pickles run code while they are checked")
    parser.add_argument(
        "--allow-pickle", action="append", default=[], metavar="CLASS", help="class that pickles may hold"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # so that workers are stopped and half-written files removed
    names = parse_splits(args.split)
    workers = {} if args.workers is None else {"workers": args.workers}
    executor = conversion.choose(Executor, Use(args.executor, **workers))
    manifests = conversion.run(
        conversion.Conversion(
            writer=conversion.choose(Writer, Use(args.writer, **parse_options(args.option))),
            names=names,
            directories={split: f"{args.out}{split}" for split in names},
            prefix=args.prefix,
            n_shards=args.shards,
            key_encoder=conversion.choose(KeyEncoder, args.key_encoder),
            executor=executor.object,
            policy=Policy(pickles="trusted" if args.trusted else "safe", allow=tuple(args.allow_pickle)),
        )
    )
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "directory": f"{args.out}{split}",
            "samples": manifest.n_samples,
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "digest": manifest.digest,
        }
        for split, manifest in manifests.items()
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(
                f"{row['split']}: {row['samples']} samples in {row['shards']} shards, "
                f"{row['bytes'] / 1e6:.4g} MB, {row['directory']}"
            )
    return 0


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Return options from ``K=V`` words; a value that is JSON is taken as such, any other as text.

    Raises:
        ConfigError: If a word has no ``=``.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option takes K=V, not {word!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def parse_splits(words: Sequence[str]) -> Mapping[str, Any]:
    """Return what goes into each split from ``SPLIT=WHAT`` words: a part, names, or a file of names after ``@``.

    Raises:
        ConfigError: If a word is none of these, or a split comes twice.
    """
    splits: dict[str, Any] = {}
    for word in words or ["train=1"]:
        split, equals, what = word.partition("=")
        if not equals or split not in Split.__members__:
            raise ConfigError(
                f"--split takes one of {', '.join(Split.__members__)}, '=' and what goes into it, not {word!r}"
            )
        if split in splits:
            raise ConfigError(f"--split gives {split} twice")
        splits[split] = _names(what)
    return splits


def _names(what: str) -> float | list[str]:
    if what.startswith("@"):
        try:
            return Path(what[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the list of names {what[1:]} cannot be read: {error}") from error
    try:
        return float(what)
    except ValueError:
        return what.split(",")
