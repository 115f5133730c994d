"""From a field's bytes to its value: one codec for each suffix, chosen by the manifest or by the last extension."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.padding import joined
from bionemo.webdatamodule.builtins.pickle.safe.formats import from_torch
from bionemo.webdatamodule.errors import DecodeError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bionemo.webdatamodule.builtins.pickle.decoder import Decoder
    from bionemo.webdatamodule.pickles import Policy

KEY = "__key__"
"""Stands for the sample's key among the suffixes."""

SLACK = 64 << 20
"""Bytes that an ``npz`` may unpack to however small it is; larger ones may grow a hundredfold."""


class Codec(Protocol):
    """Decodes the fields of one suffix."""

    def values(self, views: Sequence[memoryview]) -> list[Any]:
        """Return the value of each field. They own their memory."""
        ...

    def batcher(self, views: Sequence[memoryview], *, pad: bool = False) -> Callable[[slice], Any]:
        """Look at the fields of several batches, and return what makes a batch of those at some places.

        It makes what ``default_collate``, or with ``pad`` ``padding.fill``, makes of their values.

        Args:
            views: The fields.
            pad: Fill tensors up with zeros to the longest of their batch.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """A codec without a faster way to a batch than joining the values.

    Attributes:
        decode: Returns the value of one field.
    """

    decode: Callable[[memoryview], Any]

    def values(self, views: Sequence[memoryview]) -> list[Any]:
        """Return the value of each field."""
        return list(map(self.decode, views))

    def batcher(self, views: Sequence[memoryview], *, pad: bool = False) -> Callable[[slice], Any]:
        """Return what decodes and joins the fields at some places."""
        return lambda here: joined(list(map(self.decode, views[here])), pad=pad)


def codec_name(suffix: str, recorded: str | None = None) -> str:
    """Return the name of a suffix's codec.

    Args:
        suffix: For example ``tensor.pyd``.
        recorded: What the manifest says of it: ``"pickle"``, or ``"bytes"`` and ``None`` for fields
            stored as they came, which the last extension describes.

    Raises:
        ManifestError: If the manifest names a codec that this version does not have.
    """
    if recorded == "pickle":
        return "pickle"
    if recorded not in {None, "bytes"}:
        raise ManifestError(
            f"the manifest says that the fields are {recorded!r}, which this version cannot decode; "
            "update bionemo-webdatamodule",
            suffix=suffix,
        )
    return _EXTENSIONS.get(suffix.rpartition(".")[2].lower(), "bytes")


def make_codec(name: str, policy: Policy) -> Codec:
    """Return a codec by the name that :func:`codec_name` gave.

    Args:
        name: The codec's name.
        policy: What pickles may do, also those within files of ``torch.save``.
    """
    if name == "pickle":
        from bionemo.webdatamodule.builtins.pickle.decoder import Decoder

        return _Pickles(Decoder(policy))
    if name == KEY:
        return Plain(_same)
    if name == "pt":
        return Plain(_TorchOrPickle(policy))
    if name == "pth":
        return Plain(_Torch(policy))
    return Plain(_DECODERS[name])


def npy(data: memoryview) -> NDArray[Any]:
    """Return the array in a ``npy`` file, after checking that its header claims no more than there is.

    Raises:
        DecodeError: If it holds objects, is cut short, or is no ``npy`` file.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise DecodeError(f"npy version {version} is not known")
    shape, fortran, dtype = _NPY_HEADERS[version](stream)
    if dtype.hasobject:
        raise DecodeError("the array holds Python objects, which are pickles in disguise; store plain numbers")
    count, start = math.prod(shape), stream.tell()
    if count and not dtype.itemsize:  # numpy gives text of no width a width
        raise DecodeError(f"an array of shape {shape} has elements of no size")
    if count * dtype.itemsize != len(data) - start:
        raise DecodeError(
            f"an array of shape {shape} and type {dtype} has {count * dtype.itemsize} bytes, not {len(data) - start}"
        )
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    if array.nbytes:
        flat = array.reshape(-1, order="F" if fortran else "C")  # a view of the array
        flat.view(np.uint8)[:] = np.frombuffer(data, np.uint8, offset=start)
    return array


def npz(data: memoryview) -> dict[str, NDArray[Any]]:
    """Return the arrays in a ``npz`` file by name.

    Raises:
        DecodeError: If an array holds objects, is damaged, or the file unpacks to absurdly much.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_unpacked(archive, len(data), most=SLACK + 100 * len(data))
        names = archive.namelist()
        return {name.removesuffix(".npy"): npy(memoryview(archive.read(name))) for name in names}


@dataclass(frozen=True)
class _Torch:
    """Reads what ``torch.save`` wrote, on the CPU."""

    policy: Policy

    def __call__(self, data: memoryview) -> Any:
        if self.policy.pickles == "trusted":
            import torch

            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
        from bionemo.webdatamodule.builtins.pickle.safe import torch_files  # here, because it imports torch

        return torch_files.load(data, allow=self.policy.allow)


@dataclass(frozen=True)
class _TorchOrPickle:
    """Reads ``pt`` fields, which some write with ``pickle`` and some with ``torch.save``."""

    policy: Policy

    def __call__(self, data: memoryview) -> Any:
        from bionemo.webdatamodule.pickles import loads

        return _Torch(self.policy)(data) if from_torch(data) else loads(data, policy=self.policy)


def _check_unpacked(archive: zipfile.ZipFile, size: int, *, most: int) -> None:
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > most:
        raise DecodeError(f"{size} bytes of an archive claim to unpack to {unpacked}")


@dataclass(frozen=True)
class _Pickles:
    """Decodes pickles, and batches of them straight into the memory that a worker sends them in."""

    decode: Decoder

    def values(self, views: Sequence[memoryview]) -> list[Any]:
        return self.decode.values(views)

    def batcher(self, views: Sequence[memoryview], *, pad: bool = False) -> Callable[[slice], Any]:
        return self.decode.batcher(views, empty=context.worker().empty, pad=pad)


def _same(key: Any) -> Any:
    return key


def _text(data: memoryview) -> str:
    return str(data, "utf-8")


def _integer(data: memoryview) -> int:
    return int(bytes(data))


def _json(data: memoryview) -> Any:
    return json.loads(bytes(data))


_DECODERS: dict[str, Callable[[memoryview], Any]] = {
    "bytes": bytes,
    "integer": _integer,
    "json": _json,
    "npy": npy,
    "npz": npz,
    "text": _text,
}
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_EXTENSIONS = {  # those of webdataset.autodecode, as far as torch and numpy alone can read them
    **dict.fromkeys(("pickle", "pkl", "pyd"), "pickle"),
    **dict.fromkeys(("txt", "text", "transcript"), "text"),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), "integer"),
    **dict.fromkeys(("json", "jsn"), "json"),
    **{name: name for name in ("npy", "npz", "pt", "pth")},
}
