"""Recognise data that are not plain pickle by their first bytes, and name what to do about them."""

from __future__ import annotations

import re
from typing import Final

# A zip archive, or the older form: a pickle of a magic number, and more behind it.
_OF_TORCH: Final = re.compile(rb"PK\x03\x04|\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\..", re.DOTALL)
_NPZ: Final = re.compile(rb"PK\x03\x04.{26}[^/]{1,200}\.npy", re.DOTALL)

_PROTO: Final = 0x80  # what pickles of protocol 2 and later begin with
_COMPRESSED: Final = "this is compressed with {} and is not a plain pickle; unpack it: {}(path).read()"
_OTHER: Final = "this looks like {} and is no pickle; {}"
_IMAGE: Final = (
    'convert it with SourceDataWDS and the writer "images" of the package bionemo-webdatamodule-images, '
    'and decode it with its stage "decode_image"'
)
_AS_IT_IS: Final = "store it as it is, with SourceDataWDS and a writer of your own, under a suffix that ends in {}"

_TEXT: Final = rb"(?:[\t\n\r -~\x80-\xff]{40}|[\t\n\r -~\x80-\xff]*\Z)"  # 40 bytes of it, or nothing else

# No pickle begins so. Text counts only if its first letter is not that of an opcode that pushes something, since
# pickles of protocol 0 are text.
_FORMATS: Final = {
    rb"\x1f\x8b": _COMPRESSED.format("gzip", "gzip.open"),
    rb"BZh": _COMPRESSED.format("bzip2", "bz2.open"),
    rb"\xfd7zXZ\x00": _COMPRESSED.format("xz", "lzma.open"),
    rb"\x28\xb5\x2f\xfd": _COMPRESSED.format("zstd", "zstandard.open"),
    rb"\x89PNG": _OTHER.format("a PNG image", _IMAGE),
    rb"\xff\xd8\xff": _OTHER.format("a JPEG image", _IMAGE),
    rb"GIF8[79]a": _OTHER.format("a GIF image", _IMAGE),
    rb"II\*\x00|MM\x00\*": _OTHER.format("a TIFF image", _IMAGE),
    rb"RIFF.{4}WEBP": _OTHER.format("a WebP image", _IMAGE),
    rb"RIFF.{4}WAVE": _OTHER.format("a WAV file", _AS_IT_IS.format(".wav")),
    rb"\x89HDF\r\n": _OTHER.format(
        "an HDF5 file",
        'convert an h5ad file with SourceDataWDS and the writer "h5ad" of the package bionemo-webdatamodule-h5ad, '
        "or pickle the arrays that you read from it",
    ),
    rb"PAR1": _OTHER.format(
        "a Parquet file",
        'convert it with SourceDataWDS and the writer "parquet" of the package bionemo-webdatamodule-parquet',
    ),
    rb"%PDF": _OTHER.format("a PDF file", _AS_IT_IS.format(".pdf")),
    rb"\x93NUMPY": "this is a file of numpy.save and no plain pickle; write it again with "
    "pickle.dump(numpy.load(path), file), or store it as it is, under a suffix that ends in .npy",
    _NPZ.pattern: "this is a file of numpy.savez and no plain pickle; write it again with "
    "pickle.dump(dict(numpy.load(path)), file), or store it as it is, under a suffix that ends in .npz",
    rb"\s*[\[{\"]" + _TEXT: _OTHER.format("JSON", _AS_IT_IS.format(".json")),
    rb"[\s!-'*-\-/-ADEHORWYZ^-bd-z~]" + _TEXT: _OTHER.format("text", _AS_IT_IS.format(".txt")),
}
"""What data begin with, as a regular expression, and what is said of them."""

_MAGIC: Final = re.compile(b"|".join(b"(%b)" % pattern for pattern in _FORMATS), re.DOTALL)
_SAID: Final = tuple(_FORMATS.values())


def from_torch(data: memoryview) -> bool:
    """Return whether data begin as ``torch.save`` writes them, which no plain pickle of a value does."""
    return _OF_TORCH.match(data) is not None and _NPZ.match(data) is None


def other_format(data: memoryview) -> str | None:
    """Return what data are that are not plain pickle, and a remedy; ``None`` if they may be one."""
    if not data:
        return (
            "this is empty, so whatever wrote it did not finish; write it again, or leave the sample out of the names"
        )
    if found := None if data[0] == _PROTO else _MAGIC.match(data):
        return _SAID[(found.lastindex or 1) - 1]
    if from_torch(data):
        return (
            "this was written by torch.save, or is another zip archive, and is not a plain pickle; write it again with "
            "pickle.dump(torch.load(path), file), or store it as it is with a writer of your own, "
            "under a suffix that ends in .pth"
        )
    return None
