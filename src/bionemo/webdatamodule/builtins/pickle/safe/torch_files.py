"""Files of ``torch.save``, read by the unpickler of this package.

``torch.load(weights_only=True)`` keeps a list of permitted names and believes what they are called with, so that
``bytearray(10**12)`` allocates, and a tensor of one number may show it without end.
Here the names are those of every other pickle, with the storages beside them: as members of a zip archive, or in the
older form behind the pickle.
Storages take no more memory in all than the file has bytes, whatever it says of them, and lie on the CPU, wherever
they came from.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from bionemo.webdatamodule.builtins.pickle.safe.budget import Budget
from bionemo.webdatamodule.builtins.pickle.safe.names import finder
from bionemo.webdatamodule.builtins.pickle.safe.opcodes import run
from bionemo.webdatamodule.builtins.pickle.safe.tokens import expect, is_size
from bionemo.webdatamodule.builtins.pickle.safe.torch_types import MAGIC, VERSION, StorageType, find_storage
from bionemo.webdatamodule.builtins.pickle.safe.unpickler import Unpickler
from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable

_ZIP: Final = b"PK\x03\x04"
_HEADER: Final = 30  # bytes before the name of a member: the lengths of name and extra field end it


def load(data: memoryview, *, allow: tuple[str, ...] = ()) -> Any:
    """Return what ``torch.save`` was given.

    Args:
        data: The file.
        allow: Further classes and functions as ``"pkg.mod.Class"``.

    Raises:
        RefusedPickleError: It names something else than containers, numbers, arrays and dense tensors.
        DecodeError: It is damaged, claims more than it holds, or was not written by ``torch.save``.
    """
    known = finder(allow)

    def find(module: str, name: str) -> Any:
        of_torch = module in ("torch", "torch.storage") and name.endswith("Storage")
        return find_storage(module, name) if of_torch else known(module, name)

    return _load_zip(data, find) if bytes(data[:4]) == _ZIP else _load_old(data, find)


class _Storages:
    """The memory of a file's tensors; what persistent ids stand for.

    Args:
        most: Bytes that all of it may have.
        read: Returns the bytes of a storage by its key; without it the memory is filled later.
    """

    def __init__(self, most: int, read: Callable[[str], memoryview] | None = None) -> None:
        self.memory: dict[str, torch.Tensor] = {}  # of bytes, by key
        self.counts: dict[str, int] = {}  # of elements, as the first id says
        self._left = most
        self._read = read

    def __call__(self, saved: Any) -> Any:
        """Return the storage of a persistent id: its class, key, device and number of elements."""
        expect(type(saved) is tuple and len(saved) in (5, 6) and type(saved[0]) is str, "an unknown persistent id")
        word, kind, key, _, count, *view = saved
        expect(word == "storage" and type(kind) is StorageType and type(key) is str, "a storage of an unknown form")
        expect(all(part is None for part in view), "a storage of an unknown form")
        expect(is_size(count), "a storage without a size")
        size = count * kind.itemsize
        if key not in self.memory:
            data = None if self._read is None else self._read(key)
            self.memory[key] = self._take(size if data is None else len(data))
            self.counts[key] = count
            if data is not None:
                self.fill(key, data)
        expect(size <= self.memory[key].nbytes, "a storage that claims more than it holds")
        return kind.show(self.memory[key].untyped_storage())

    def _take(self, size: int) -> torch.Tensor:
        expect(size <= self._left, "storages that claim more than the file holds")
        self._left -= size
        return torch.empty(size, dtype=torch.uint8)

    def fill(self, key: str, data: memoryview) -> None:
        """Copy the bytes of a storage into its memory, which is as large."""
        self.memory[key].numpy()[:] = np.frombuffer(data, np.uint8)


def _load_zip(data: memoryview, find: Callable[[str, str], Any]) -> Any:
    members = _members(data)

    def read(name: str) -> memoryview:
        if name not in members:
            raise DecodeError(f"no whole file of torch.save: the archive has no {name}")
        return _stored(data, members[name])

    if "byteorder" in members and bytes(read("byteorder")[:9]) != b"little":
        raise DecodeError("the file was written by torch.save in another byte order")
    pickled = read("data.pkl")
    storages = _Storages(len(data), lambda key: read(f"data/{key}"))
    value, end = run(Unpickler(pickled, find, persistent=storages, budget=Budget(len(data))))
    expect(end == len(pickled), "bytes behind its value")
    return value


def _members(data: memoryview) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by their names, without the folder that torch puts them all in."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except Exception as error:
        raise DecodeError(f"no whole file of torch.save: {type(error).__name__}: {error}") from error
    return {member.filename.partition("/")[2]: member for member in members}


def _stored(data: memoryview, member: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a member, of which torch compresses none and does not always write the checksum."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise DecodeError(f"{member.filename} is compressed and claims {member.file_size} bytes; torch.save stores it")
    header = data[max(member.header_offset, 0) :][:_HEADER]
    if len(header) < _HEADER or bytes(header[:4]) != _ZIP:
        raise DecodeError(f"no whole file of torch.save: {member.filename} is not where the archive says")
    start = member.header_offset + _HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    found = data[start : start + member.file_size]
    if len(found) != member.file_size:
        raise DecodeError(f"{member.filename} claims {member.file_size} bytes, and {len(found)} are there")
    return found


def _load_old(data: memoryview, find: Callable[[str, str], Any]) -> Any:
    """Read five pickles (magic number, version, system, value, keys of storages), and the storages one by one."""
    storages = _Storages(len(data))
    unpickler = Unpickler(data, find)
    magic, position = run(unpickler)
    if type(magic) is not int or magic != MAGIC:
        raise DecodeError("not written by torch.save; plain pickles are read under the suffixes pkl, pyd and pt")
    version, position = run(unpickler, position)
    system, position = run(unpickler, position)
    expect(type(version) is int and version == VERSION, "a version that is unknown")
    expect(type(system) is dict and system.get("little_endian") is True, "storages of another byte order")
    unpickler.persistent = storages
    value, position = run(unpickler, position)
    unpickler.persistent = None
    keys, position = run(unpickler, position)
    expect(type(keys) is list and all(type(key) is str for key in keys), "storages without keys")
    expect(sorted(keys) == sorted(storages.memory), "other storages than it uses")
    for key in keys:
        start, stop = position + 8, position + 8 + storages.memory[key].nbytes
        expect(stop <= len(data), "storages that are cut short")
        expect(int.from_bytes(data[position:start], "little") == storages.counts[key], "a storage of two sizes")
        storages.fill(key, data[start:stop])
        position = stop
    expect(position == len(data), "bytes behind its storages")
    return value
