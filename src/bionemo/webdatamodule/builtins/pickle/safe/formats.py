"""Recognise data that are not plain pickle by their first bytes, and name what to do about them."""

from __future__ import annotations

import re
from typing import Final

# A zip archive, or the older form: a pickle of a magic number, and more behind it.
_OF_TORCH: Final = re.compile(rb"PK\x03\x04|\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\..", re.DOTALL)
_NPZ: Final = re.compile(rb"PK\x03\x04.{26}[^/]{1,200}\.npy", re.DOTALL)

_COMPRESSED: Final = {
    b"\x1f\x8b": ("gzip", "gzip.open"),
    b"BZh": ("bzip2", "bz2.open"),
    b"\xfd7zXZ\x00": ("xz", "lzma.open"),
}


def from_torch(data: memoryview) -> bool:
    """Return whether data begin as ``torch.save`` writes them, which no plain pickle of a value does."""
    return _OF_TORCH.match(data) is not None and _NPZ.match(data) is None


def other_format(data: memoryview) -> str | None:
    """Return what data are that are not plain pickle, and a remedy; ``None`` if they may be one."""
    if not data:
        return (
            "this is empty, so whatever wrote it did not finish; write it again, or leave the sample out of the names"
        )
    for magic, (name, function) in _COMPRESSED.items():
        if bytes(data[: len(magic)]) == magic:
            return f"this is compressed with {name} and is not a plain pickle; unpack it: {function}(path).read()"
    if bytes(data[:6]) == b"\x93NUMPY":
        return (
            "this is a file of numpy.save and no plain pickle; write it again with "
            "pickle.dump(numpy.load(path), file), or store it as it is, under a suffix that ends in .npy"
        )
    if _NPZ.match(data):
        return (
            "this is a file of numpy.savez and no plain pickle; write it again with "
            "pickle.dump(dict(numpy.load(path)), file), or store it as it is, under a suffix that ends in .npz"
        )
    if from_torch(data):
        return (
            "this was written by torch.save, or is another zip archive, and is not a plain pickle; write it again with "
            "pickle.dump(torch.load(path), file), or store it as it is with a writer of your own, "
            "under a suffix that ends in .pth"
        )
    return None
