"""Finds where each record of FASTA or FASTQ text begins, in one pass and little memory.

The indexes of samtools and pyfaidx are not used, since both lose records: ``samtools faidx`` leaves out those
without a sequence line and, with a warning on stderr only, those of an id seen before, and both refuse
sequences whose lines differ in length. This scan keeps all of them, and finds in the text only what it needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from bionemo.webdatamodule.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHERS = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"BZh": "compressed by bzip2; compress it with gzip or bgzip",
    b"\xfd7zXZ": "compressed by xz; compress it with gzip or bgzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; compress it with gzip or bgzip",
    b"PK": "a zip archive; unpack it",
}


def records(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the header line, without its mark, of every record.

    Args:
        chunks: The text in pieces, FASTA or FASTQ as its first character says, behind a byte-order mark,
            blank lines and lines of comment (``;``).

    Raises:
        InputError: If it is neither; the message says where.
    """
    head, skipped, pieces = b"", 0, iter(chunks)
    for chunk in pieces:
        text = head + chunk
        head = text.removeprefix(_BYTE_ORDER_MARK).lstrip() if not skipped else text.lstrip()
        while head.startswith(b";") and (end := _line_end(head)) >= 0:
            head = head[end:].lstrip()
        skipped += len(text) - len(head)
        if head and not head.startswith(b";"):
            break
    rest = itertools.chain([head], pieces)
    if head.startswith(b">"):
        return _fasta(rest, skipped)
    if head.startswith(b"@"):
        return _fastq(rest, skipped)
    if not head or head.startswith(b";"):
        return iter(())
    other = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "")
    raise InputError(
        f"neither FASTA nor FASTQ: it begins with {head[:20]!r}, not with '>' or '@'"
        + (f"; this is {other}" if other else "")
    )


def _line_end(text: bytes) -> int:
    """Return where the first line ends, -1 where it does not."""
    return min((end for end in (text.find(b"\n"), text.find(b"\r")) if end >= 0), default=-1)


def _fasta(chunks: Iterable[bytes], base: int) -> Iterator[tuple[int, bytes]]:
    carry = b"\n"
    base -= 1
    for chunk in itertools.chain(chunks, [b"\n"]):
        text = carry + chunk.replace(b"\r", b"\n")  # a line may end in either, or in both
        at = text.find(b"\n>")
        while at >= 0 and (end := text.find(b"\n", at + 1)) >= 0:
            yield base + at + 1, text[at + 2 : end]
            at = text.find(b"\n>", end)
        # Keep the header that is not complete yet, or the line break that one may follow.
        cut = at if at >= 0 else len(text) - text.endswith(b"\n")
        base += cut
        carry = text[cut:]


def _fastq(chunks: Iterable[bytes], base: int) -> Iterator[tuple[int, bytes]]:
    carry, number = b"", 0
    for chunk in itertools.chain(unified(chunks), [None]):
        text = carry + chunk if chunk is not None else _ended(carry)
        array = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(array == ord("\n"))
        ends = ends[: len(ends) // 4 * 4]
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        lengths = ends - starts
        lengths -= (lengths > 0) & (array[ends - 1] == ord("\r"))
        good = (array[starts[0::4]] == ord("@")) & (array[starts[2::4]] == ord("+"))
        good &= lengths[1::4] == lengths[3::4]
        bad = int(np.argmin(good)) if not good.all() else -1
        for row, (start, end) in enumerate(zip(starts[0::4].tolist(), ends[0::4].tolist(), strict=True)):
            if row == bad:
                _refuse(number + row, base + start, text[start:end])
            yield base + start, text[start + 1 : end]
        number += len(good)
        cut = int(ends[-1]) + 1 if len(ends) else 0
        base += cut
        carry = text[cut:]
    if carry:
        _refuse(number, base, carry)


def unified(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text with carriage returns as line breaks if no line of the first piece ends in anything else."""
    only_returns = None
    for chunk in chunks:
        if only_returns is None:
            only_returns = b"\r" in chunk and b"\n" not in chunk
        yield chunk.replace(b"\r", b"\n") if only_returns else chunk


def _ended(text: bytes) -> bytes:
    """Return the end of FASTQ text with the line breaks that it may lack, and without blank lines behind it."""
    if not text.strip():
        return b""
    text += b"" if text.endswith(b"\n") else b"\n"
    return text + b"\n" if text.count(b"\n") == 3 else text  # an empty quality line


def _refuse(number: int, offset: int, line: bytes) -> None:
    raise InputError(
        f"FASTQ record {number + 1}, at byte {offset}, does not have the four lines @id, sequence, + and a quality "
        f"as long as the sequence: {line[:40]!r}"
    )
