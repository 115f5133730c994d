"""The checksum of a member: CRC-32, by the fastest installed implementation."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32  # type: ignore[import-not-found, unused-ignore]  # extra "fast": a fraction of the time

    LIBRARY = "zlib-ng"
except ImportError:
    from zlib import crc32

    LIBRARY = "zlib"

__all__ = ["LIBRARY", "crc32"]
