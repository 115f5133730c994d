"""Command line options that both benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from _contenders import OWN
from _data import KINDS
from _peers import PEERS, default_cache

QUICK_SHARE = 20
QUICK_REPEAT = 2


def parser(description: str, *, datasets: list[str]) -> argparse.ArgumentParser:
    """The shared options."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--peers", nargs="+", choices=[*OWN, *PEERS], help="who takes part; default: everybody")
    result.add_argument("--datasets", nargs="+", choices=datasets, default=datasets)
    result.add_argument("--repeat", type=int, default=5, help="rounds in which everybody takes a turn (default 5)")
    result.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        help="directory for environments and data, a few GB (default %(default)s)",
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement")
    result.add_argument("--markdown", type=Path, metavar="FILE", help="renew the generated part of this page")
    result.add_argument(
        "--quick", action="store_true", help="a twentieth of the samples, two rounds: does everything run?"
    )
    return result


def n_samples(kind: str, options: argparse.Namespace) -> int:
    """Size of a data set."""
    return KINDS[kind].n_samples // (QUICK_SHARE if options.quick else 1)


def n_rounds(options: argparse.Namespace) -> int:
    """Number of rounds."""
    return QUICK_REPEAT if options.quick else int(options.repeat)
