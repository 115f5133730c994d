"""Shards behind a URL: what is there, and where its pieces are kept."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bionemo.webdatamodule._engine.format.index import ShardIndex, index_name
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, is_within
from bionemo.webdatamodule._engine.storage.remote.cached_files import fetched, is_index, read_index
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.pieces import PIECE_BYTES, Cut, Piece, cut, file_name
from bionemo.webdatamodule._engine.storage.remote.range_walk import walked_index
from bionemo.webdatamodule._engine.storage.shard_cache import Cache, remove
from bionemo.webdatamodule._engine.storage.sidecars import listed_index
from bionemo.webdatamodule.errors import CorruptShardError, RemoteError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.format.manifest import Manifest, ShardEntry

_BLOCK = 1 << 23  # bytes of one request


class _NoIndexError(Exception):
    """There is no sound index beside a shard."""


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """A shard behind a URL.

    Attributes:
        name: Its file name.
        bytes: Size of the tar.
        samples: Number of samples in it.
        listed: What the manifest says of it; ``None`` without a manifest.
        version: The version that its bytes must be of, without a manifest; empty if the store has none.
    """

    name: str
    bytes: int
    samples: int
    listed: ShardEntry | None = None
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The shards behind a URL; it pickles.

    Attributes:
        directory: Where they are.
        shards: What is there, in order.
        cache: Where indexes and pieces are kept.
        manifest: The manifest, or ``None`` where another tool wrote the shards.
    """

    directory: RemoteDirectory
    shards: tuple[RemoteShard, ...]
    cache: Cache
    manifest: Manifest | None = None

    def path(self, number: int) -> str:
        """Return the name of a shard for messages."""
        return f"{self.directory}/{self.shards[number].name}"

    def cut(self, number: int, piece_bytes: int = PIECE_BYTES) -> Cut:
        """Return how a shard is cut into pieces of about so many bytes."""
        shard = self.shards[number]
        return Cut.of(shard.samples, shard.bytes, piece_bytes)

    def index(self, number: int) -> ShardIndex:
        """Return the index of a shard, which is fetched where it is not in the cache.

        Raises:
            RemoteError: If it cannot be fetched.
            CorruptShardError: If it does not fit the shard.
            ChangedDataError: If it must be made and the shard was replaced.
        """
        shard = self.shards[number]
        if shard.listed is None:
            index = walked_index(self.directory, self.cache, shard.name, shard.bytes, shard.version)
        else:
            index = self._listed(number, shard.listed)
        if index.n_samples != shard.samples or not is_within(index, shard.bytes):
            raise CorruptShardError(
                f"{self.path(number)} has an index of {count(index.n_samples, 'sample')} in {index.tar_bytes} bytes, "
                f"expected are {shard.samples} in {shard.bytes}; restore the shard",
                shard=self.path(number),
            )
        return index

    def piece(self, number: int, first: int, stop: int, index: ShardIndex, columns: Sequence[int]) -> Piece:
        """Return a piece of a shard.

        Args:
            number: The shard.
            first: First sample of the piece.
            stop: The sample behind its last.
            index: The shard's index.
            columns: Numbers of the suffixes that it is to keep.
        """
        shard = self.shards[number]
        begin, part = cut(index, first, stop)
        fields = ""
        if len(columns) < len(index.suffixes):
            fields = f"-{zlib.crc32(','.join(index.suffixes[column] for column in columns).encode()):08x}"
        path = self.cache.path(file_name(shard.name, first, part.n_samples, fields))
        return Piece(
            shard=number, name=shard.name, first=first, begin=begin, path=path, columns=tuple(columns), index=part
        )

    def whole(self, number: int) -> str:
        """Return the path of a whole shard in the cache, which is fetched where it is not there."""
        shard = self.shards[number]
        return self.cache.fetch(shard.name, shard.bytes, lambda path: self._download(shard, path))

    def _listed(self, number: int, entry: ShardEntry) -> ShardIndex:
        name = index_name(entry.name)
        made = read_index(self.cache.path(f"{name}.made"))
        if made is not None:
            return made

        def is_sound(data: bytes | memoryview) -> bool:
            return hashlib.sha256(data).hexdigest() == entry.index_sha256

        def get() -> bytes:
            for _ in range(2):
                data = self.directory.get_if_permitted(name)
                if isinstance(data, bytes) and is_sound(data):
                    return data
            raise _NoIndexError

        try:
            return ShardIndex.from_buffer(fetched(self.cache, name, get, is_sound))
        except (_NoIndexError, CorruptShardError):
            return self._made(number, entry)

    def _made(self, number: int, entry: ShardEntry) -> ShardIndex:
        """Make an index of the whole shard, after comparing its hash with the manifest's."""
        decided("%s/%s has no sound index, so the whole shard is fetched", self.directory, entry.name)

        def make() -> bytes:
            path = self.whole(number)
            try:
                return listed_index(path, entry, Stamp.of(path)).to_bytes()
            finally:
                remove(path)

        return ShardIndex.from_buffer(fetched(self.cache, f"{index_name(entry.name)}.made", make, is_index))

    def _download(self, shard: RemoteShard, path: str) -> None:
        for attempt in range(2):
            digest = hashlib.sha256()
            with open(path, "wb") as file, self.directory.unchanged(shard.name, shard.version):
                for begin in range(0, shard.bytes, _BLOCK):
                    block = bytearray(min(_BLOCK, shard.bytes - begin))
                    self.directory.read(shard.name, [(begin, begin + len(block))], [memoryview(block)])
                    digest.update(block)
                    file.write(block)
            if shard.listed is None or digest.hexdigest() == shard.listed.sha256:
                return
            if attempt:
                raise RemoteError(
                    f"{self.directory}/{shard.name} is another file than the manifest lists: its hash differs; "
                    "restore it, or run `webdatamodule convert` with --check"
                )
