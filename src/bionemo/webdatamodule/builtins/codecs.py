"""Default codecs: arrays, text, numbers, JSON, torch's files, and gzip around any of them."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bionemo.webdatamodule.builtins.npy import NpyCodec, npy_bytes
from bionemo.webdatamodule.builtins.pickle.safe.formats import from_torch
from bionemo.webdatamodule.columns import Column, ValueColumn
from bionemo.webdatamodule.components import Codec, FieldCodec
from bionemo.webdatamodule.errors import DecodeError, PluginError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.pickles import Policy, dumps, loads

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLACK = 64 << 20
"""Bytes that a compressed field may unpack to however small it is; larger ones may grow a hundredfold."""


@dataclass(frozen=True, kw_only=True)
class BytesCodec:
    """Fields as they are."""

    def decode(self, view: memoryview) -> bytes:
        """Return a copy of the bytes."""
        return bytes(view)

    def encode(self, value: bytes) -> bytes:
        """Return the value."""
        return bytes(value)

    def sizes(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lengths."""
        return lengths


@dataclass(frozen=True, kw_only=True)
class TextCodec:
    """Text in UTF-8."""

    def decode(self, view: memoryview) -> str:
        """Return the text."""
        return str(view, "utf-8")

    def encode(self, value: str) -> bytes:
        """Return the text in UTF-8."""
        return value.encode()


@dataclass(frozen=True, kw_only=True)
class IntegerCodec:
    """Whole numbers in decimal digits."""

    def decode(self, view: memoryview) -> int:
        """Return the number."""
        return int(bytes(view))

    def encode(self, value: int) -> bytes:
        """Return the digits."""
        return b"%d" % value


@dataclass(frozen=True, kw_only=True)
class JsonCodec:
    """JSON in UTF-8."""

    def decode(self, view: memoryview) -> Any:
        """Return the value."""
        return json.loads(bytes(view))

    def encode(self, value: Any) -> bytes:
        """Return the value as JSON."""
        return json.dumps(value, ensure_ascii=False).encode()


@dataclass(frozen=True, kw_only=True)
class NpzCodec:
    """Archives of arrays."""

    def decode(self, view: memoryview) -> dict[str, NDArray[Any]]:
        """Return the arrays by name.

        Raises:
            DecodeError: If an array holds objects, is damaged, or the file unpacks to absurdly much.
        """
        decode = NpyCodec().decode
        with zipfile.ZipFile(io.BytesIO(view)) as archive:
            _check_unpacked(sum(entry.file_size for entry in archive.infolist()), len(view))
            names = archive.namelist()
            return {name.removesuffix(".npy"): decode(memoryview(archive.read(name))) for name in names}

    def encode(self, value: Mapping[str, NDArray[Any]]) -> bytes:
        """Return an archive whose bytes depend on the arrays alone."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, array in value.items():
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(array))
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class TorchCodec:
    """What ``torch.save`` wrote, on the CPU.

    Args:
        policy: What it may build.
    """

    policy: Policy

    def decode(self, view: memoryview) -> Any:
        """Return the value.

        Raises:
            RefusedPickleError: If it asks for something that the policy does not allow.
            DecodeError: If it is no such file.
        """
        if self.policy.pickles == "trusted":
            import torch

            return torch.load(io.BytesIO(view), map_location="cpu", weights_only=False)
        from bionemo.webdatamodule.builtins.pickle.safe import torch_files  # here, because it imports torch

        return torch_files.load(view, allow=self.policy.allow)

    def encode(self, value: Any) -> bytes:
        """Return what ``torch.save`` writes."""
        import torch

        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class TorchOrPickleCodec:
    """Fields that some write with ``pickle`` and some with ``torch.save``.

    Args:
        policy: What they may build.
    """

    policy: Policy

    def decode(self, view: memoryview) -> Any:
        """Return the value.

        Raises:
            RefusedPickleError: If it asks for something that the policy does not allow.
            DecodeError: If it is neither.
        """
        return TorchCodec(policy=self.policy).decode(view) if from_torch(view) else loads(view, policy=self.policy)

    def encode(self, value: Any) -> bytes:
        """Return a pickle."""
        return dumps(value)


@dataclass(frozen=True, kw_only=True)
class TenCodec:
    """webdataset's ``.ten`` files: lists of arrays."""

    def decode(self, view: memoryview) -> list[NDArray[Any]]:
        """Return the arrays.

        Raises:
            DecodeError: If lengths make no sense.
        """
        from webdataset import tenbin

        return [np.array(array) for array in tenbin.decode_list(_chunks(bytes(view)))]

    def encode(self, value: Sequence[NDArray[Any]]) -> bytes:
        """Return webdataset's encoding."""
        from webdataset import tenbin

        return bytes(tenbin.encode_buffer(list(value)))


def _chunks(data: bytes) -> list[bytes]:
    """Return what webdataset's ``decode_chunks`` does, which takes any length and may never end."""
    found, start = [], 0
    while start < len(data):
        size = int.from_bytes(data[start + 8 : start + 16], "little", signed=True)
        start += 16
        if data[start - 16 : start - 8] != b"~TenBin~" or not 0 <= size <= len(data) - start:
            raise DecodeError(f"the chunk at byte {start - 16} is damaged")
        found.append(data[start : start + size])
        start += -(-size // 64) * 64
    return found


class MsgpackCodec:
    """MessagePack, read and written by the package ``msgpack``.

    Raises:
        PluginError: If it is not installed.
    """

    def __init__(self) -> None:
        try:
            import msgpack  # type: ignore[import-untyped, import-not-found, unused-ignore]  # optional
        except ImportError as error:
            raise PluginError("fields in MessagePack need the package msgpack: pip install msgpack") from error
        self._msgpack: Any = msgpack

    def __reduce__(self) -> tuple[type[MsgpackCodec], tuple[()]]:
        return MsgpackCodec, ()

    def decode(self, view: memoryview) -> Any:
        """Return the value."""
        return self._msgpack.unpackb(view)

    def encode(self, value: Any) -> bytes:
        """Return the value in MessagePack."""
        return self._msgpack.packb(value)  # type: ignore[no-any-return]  # untyped there


@dataclass(frozen=True, kw_only=True)
class GzipCodec:
    """gzip around another codec.

    Args:
        inner: The codec of what is inside.
    """

    inner: FieldCodec

    def decode(self, view: memoryview) -> Any:
        """Return the value of what is inside.

        Raises:
            DecodeError: If it is cut short, or unpacks to absurdly much.
        """
        return self.inner.decode(memoryview(_unpacked(view)))

    def column(self, views: Sequence[memoryview]) -> Column:
        """Return the inner codec's column of what is inside."""
        column = getattr(self.inner, "column", None)
        if column is None:
            return ValueColumn(views, self.decode)
        return column([memoryview(_unpacked(view)) for view in views])  # type: ignore[no-any-return]  # by protocol

    def encode(self, value: Any) -> bytes:
        """Return the inner codec's bytes, compressed."""
        return gzip.compress(self.inner.encode(value), mtime=0)  # type: ignore[attr-defined]  # if that encodes


def _unpacked(view: memoryview) -> bytes:
    most, parts, size, rest = SLACK + 100 * len(view), [], 0, bytes(view)
    while rest:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        parts.append(member.decompress(rest, most + 1 - size))
        size += len(parts[-1])
        _check_unpacked(size, len(view))
        if not member.eof:
            raise DecodeError("the gzip data end too early")
        rest = member.unused_data
    return b"".join(parts)


def _check_unpacked(unpacked: int, size: int) -> None:
    if unpacked > SLACK + 100 * size:
        raise DecodeError(f"{size} bytes of an archive claim to unpack to {unpacked}")


@hookimpl
def webdatamodule_codecs() -> Iterable[Codec]:
    """Register the default codecs, with the extensions of ``webdataset.autodecode``."""
    yield Codec(name="bytes", summary="bytes as they are", factory=BytesCodec)
    yield Codec(name="text", summary="text in UTF-8", suffixes=("txt", "text", "transcript"), factory=TextCodec)
    yield Codec(
        name="integer",
        summary="whole numbers in decimal digits",
        suffixes=("cls", "cls2", "index", "inx", "id"),
        factory=IntegerCodec,
    )
    yield Codec(name="json", summary="JSON", suffixes=("json", "jsn"), factory=JsonCodec)
    yield Codec(name="npy", summary="NumPy arrays", suffixes=("npy",), factory=NpyCodec)
    yield Codec(name="npz", summary="archives of NumPy arrays", suffixes=("npz",), factory=NpzCodec)
    yield Codec(name="pt", summary="files of torch.save, or pickles", suffixes=("pt",), factory=TorchOrPickleCodec)
    yield Codec(name="pth", summary="files of torch.save", suffixes=("pth",), factory=TorchCodec)
    yield Codec(name="ten", summary="webdataset's lists of arrays", suffixes=("ten", "tb"), factory=TenCodec)
    yield Codec(
        name="msgpack",
        summary="MessagePack, by the package msgpack",
        suffixes=("mp", "msg", "msgpack"),
        factory=MsgpackCodec,
    )
    yield Codec(name="gz", summary="gzip around another codec", suffixes=("gz",), factory=GzipCodec, wraps=True)
