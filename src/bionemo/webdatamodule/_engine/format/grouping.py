"""Grouping of members to samples by key, as in webdataset, with one column for each suffix."""

from __future__ import annotations

import logging
from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.tar_scan import Members
from bionemo.webdatamodule.errors import CorruptShardError, count
from bionemo.webdatamodule.names import split_member

_SPARSEST = 64  # cells for each member, at most
_SLASH = ord("/")
_log = logging.getLogger("bionemo.webdatamodule")


class Grouped(NamedTuple):
    """The samples of a tar; the fields are those of :class:`~bionemo.webdatamodule._engine.format.index.ShardIndex`."""

    suffixes: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    headers: NDArray[np.int64]


def group(members: Members) -> Grouped:
    """Group the members of a tar to samples.

    The members of one sample have one key and lie next to each other.
    Members that are no field, because their name has no dot or begins with one, are left out with a warning in the log.

    Args:
        members: The members, in the order of the tar.

    Raises:
        CorruptShardError: If a member is there twice, the members of a sample lie apart, a suffix is ``__key__``,
            or samples have hardly a suffix in common.
    """
    columns: dict[bytes, int] = {}  # suffix -> column, in the order of their first use
    rows, places, kept, firsts = array("q"), array("q"), array("q"), array("q")
    seen: set[bytes] = set()
    current = None
    for number, name in enumerate(members.names):
        dot = name.find(b".", name.rfind(b"/") + 1)  # as split_member, whose call would double the cost
        if dot <= 0 or name[dot - 1] == _SLASH:
            continue
        key, suffix = name[:dot], name[dot + 1 :]
        if key != current:
            if key in seen:
                raise CorruptShardError(
                    "the members of a sample lie apart in the tar, or two samples have one key; "
                    "write the tar again with the files of each sample next to each other",
                    key=_text(key),
                )
            seen.add(key)
            current = key
            firsts.append(number)
        column = columns.get(suffix)
        if column is None:
            column = columns[suffix] = len(columns)
        rows.append(len(firsts) - 1)
        places.append(column)
        kept.append(number)
    if not kept:
        raise CorruptShardError("the tar holds no member named like a field, such as 'key.tensor.pyd'")
    if len(kept) < len(members.names):
        _log.warning(
            "left out %s of a tar without key and suffix in the name; the first is %r",
            count(len(members.names) - len(kept), "member"),
            next(name for name in members.names if split_member(name) is None),
        )
    _check_suffixes(columns, n_samples=len(firsts), n_members=len(kept))
    order = sorted(columns, key=_text)
    sorted_place = np.empty(len(order), np.int64)
    sorted_place[[columns[suffix] for suffix in order]] = np.arange(len(order))
    cells = np.array(rows, np.int64) * len(order) + sorted_place[np.array(places, np.int64)]
    where = np.array(kept, np.int64)
    _check_duplicates(cells, members, where)
    shape = len(firsts), len(order)
    offsets, sizes = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    offsets.reshape(-1)[cells], sizes.reshape(-1)[cells] = members.offsets[where], members.sizes[where]
    return Grouped(
        suffixes=tuple(map(_text, order)),
        offsets=offsets,
        sizes=sizes,
        headers=members.headers[np.array(firsts, np.int64)],
    )


def _check_suffixes(columns: dict[bytes, int], *, n_samples: int, n_members: int) -> None:
    if b"__key__" in columns:
        raise CorruptShardError("a member has the suffix '__key__', which stands for the key itself")
    if n_samples * len(columns) > _SPARSEST * n_members:
        raise CorruptShardError(
            f"there are {count(len(columns), 'different suffix', 'different suffixes')} in "
            f"{count(n_samples, 'sample')}; "
            "a suffix begins at the first dot of a member's name, so keys must not have dots"
        )


def _check_duplicates(cells: NDArray[np.int64], members: Members, where: NDArray[np.int64]) -> None:
    order = np.argsort(cells, kind="stable")
    again = np.flatnonzero(cells[order[1:]] == cells[order[:-1]])
    if len(again):
        name = members.names[where[order[again[0] + 1]]]
        raise CorruptShardError(f"the tar holds the member {_text(name)!r} twice; write it again")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
