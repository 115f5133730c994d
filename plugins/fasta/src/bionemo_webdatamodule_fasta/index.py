"""The index of a sequence file: where each record begins, and which one has an id, in memory maps.

It is kept in a cache directory, in a folder named by the file's path, size and modification time, and can be
deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule.errors import InputError, WebDataModuleError
from bionemo_webdatamodule_fasta import scan, text
from bionemo_webdatamodule_fasta.headers import pair_name, repeated, utf8

_LOGGER = logging.getLogger("bionemo.webdatamodule")
_FORMAT = 2

Mode = Literal["records", "mates", "interleaved"]
"""What a sample is: a record, a read named without ``/1`` or ``/2``, or two reads one behind the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The records of a file.

    Attributes:
        path: The file.
        stamp: Its size and modification time when it was indexed.
        folder: Where the index is kept.
        kind: How the file is compressed.
        salt: Number that goes into the hashes, such that no two ids have the same one.
        starts: ``(n + 1,)``, where each record begins in the uncompressed text, and where the last one ends.
        hashes: ``(n,)``, 64-bit hashes of the ids, sorted.
        rows: ``(n,)``, the record of each hash.
    """

    path: str
    stamp: str
    folder: Path
    kind: text.Kind
    salt: int
    starts: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]

    def names(self) -> list[str]:
        """Return the ids of all records, in the order of the file."""
        return (self.folder / "names").read_text("utf-8").split("\n")

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of the record of each id, -1 for one that is not in the file.

        An id that is not in the file may have the hash of one that is, so the reader looks at the record's own.
        """
        wanted = np.fromiter((_hash(name, self.salt) for name in names), np.uint64, len(names))
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[places] == wanted, self.rows[places], -1)

    def span(self, row: int) -> tuple[int, int]:
        """Return where a record begins in the text and where it ends."""
        return int(self.starts[row]), int(self.starts[row + 1])

    def open(self) -> AbstractContextManager[text.Text]:
        """Open the text.

        Raises:
            InputError: If the file changed since it was indexed.
        """
        if _stamp(self.path) != self.stamp:
            raise InputError("the file changed while it was read; convert again", file=self.path)
        if self.kind == "bgzip":
            return text.open_bgzip(Path(self.path), np.load(self.folder / "blocks.npy"))
        return text.open_plain(self.folder / "text" if self.kind == "gzip" else Path(self.path))


def open_index(path: str, index_dir: str | None, mode: Mode = "records") -> Index:
    """Return the index of a file, made now if there is none or the file changed.

    Args:
        path: The file.
        index_dir: Where indexes are kept; by default the user's cache directory.
        mode: What a sample is.

    Raises:
        InputError: If the file cannot be read, its records cannot be separated, or the index cannot be written.
    """
    stamp = _stamp(path)
    place = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    folder = (Path(index_dir) if index_dir else _cache()) / f"{place}-{stamp}-{_FORMAT}-{mode}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as working:
                _make(Path(path), Path(working) / "index", mode)
                try:
                    (Path(working) / "index").rename(folder)
                except OSError:
                    if not folder.exists():  # or else another process was as quick
                        raise
        except WebDataModuleError as error:
            error.located(file=path)
            raise
        except OSError as error:
            raise InputError(f"no index can be written to {folder.parent}: {error}; give index_dir") from error
    return _load(path, stamp, folder)


@functools.lru_cache(maxsize=64)
def _load(path: str, stamp: str, folder: Path) -> Index:
    starts, hashes, rows = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "hashes", "rows"))
    about = json.loads((folder / "about.json").read_text())
    return Index(path=path, stamp=stamp, folder=folder, starts=starts, hashes=hashes, rows=rows, **about)


def _make(path: Path, folder: Path, mode: Mode) -> None:
    """Index a file into a new folder."""
    folder.mkdir()
    source = path
    if (kind := text.kind(path)) == "bgzip":
        np.save(folder / "blocks.npy", text.blocks(path))
    elif kind == "gzip":
        _LOGGER.info("unpacking %s into %s: gzip has no way into the middle, bgzip has", path, folder.parent.parent)
        source = folder / "text"
        with source.open("wb") as unpacked:
            unpacked.writelines(text.chunks(path))
    names, starts = _scan(source)
    if mode == "mates":
        names = [pair_name(name) for name in names]
    elif mode == "interleaved":
        names, starts = _pairs(names), starts[::2]
    if len(set(names)) < len(names):
        raise InputError(repeated(names))
    for salt in itertools.count():
        hashes = np.fromiter((_hash(name, salt) for name in names), np.uint64, len(names))
        rows = np.argsort(hashes).astype(np.int64)
        hashes = hashes[rows]
        if (hashes[1:] != hashes[:-1]).all():
            break
    np.save(folder / "starts.npy", starts)
    np.save(folder / "hashes.npy", hashes)
    np.save(folder / "rows.npy", rows)
    (folder / "names").write_text("\n".join(names), "utf-8")
    (folder / "about.json").write_text(json.dumps({"kind": kind, "salt": salt}))


def _scan(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the id of each record, where each begins, and where the last ends."""
    size = 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        for chunk in text.chunks(path):
            size += len(chunk)
            yield chunk

    names: list[str] = []
    starts = array("q")
    for start, header in scan.records(pieces()):
        identity = header.split(None, 1)[:1]
        if not identity:
            raise InputError(f"record {len(names) + 1}, at byte {start}, has no id behind its '>' or '@'")
        names.append(utf8(identity[0]))
        starts.append(start)
    if not names:
        raise InputError("the file holds no record")
    starts.append(size)
    return names, np.array(starts, np.int64)


def _pairs(names: Sequence[str]) -> list[str]:
    """Return the name of each two reads, one behind the other."""
    if len(names) % 2:
        raise InputError(f"{len(names)} reads are not pairs; the last is {names[-1]!r}")
    pairs = [pair_name(name) for name in names]
    for number, (one, other) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        if one != other:
            raise InputError(
                f"records {2 * number + 1} and {2 * number + 2}, {names[2 * number]!r} and {names[2 * number + 1]!r}, "
                "are not the two reads of one pair"
            )
    return pairs[::2]


def _hash(name: str, salt: int) -> int:
    digest = hashlib.blake2b(
        name.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.to_bytes(8, "little")
    ).digest()
    return int.from_bytes(digest, "little")


def _stamp(path: str) -> str:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", file=path) from error
    return f"{status.st_size}-{status.st_mtime_ns}"


def _cache() -> Path:
    """Return the user's cache directory for this plugin (XDG base directory specification)."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path.home() / ".cache"  # the specification ignores relative ones
    return base / "bionemo-webdatamodule" / "fasta"
