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


def records(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the header line, without its mark, of every record.

    Args:
        chunks: The text in pieces, FASTA or FASTQ as its first character says.

    Raises:
        InputError: If it is neither; the message says where.
    """
    skipped, pieces = 0, iter(chunks)
    for chunk in pieces:
        text = chunk.lstrip()
        skipped += len(chunk) - len(text)
        if text:
            rest = itertools.chain([text], pieces)
            if text.startswith(b">"):
                return _fasta(rest, skipped)
            if text.startswith(b"@"):
                return _fastq(rest, skipped)
            raise InputError(f"neither FASTA nor FASTQ: it begins with {text[:20]!r}, not with '>' or '@'")
    return iter(())


def _fasta(chunks: Iterable[bytes], base: int) -> Iterator[tuple[int, bytes]]:
    carry = b"\n"
    base -= 1
    for chunk in itertools.chain(chunks, [b"\n"]):
        text = carry + chunk
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
    for chunk in itertools.chain(chunks, [None]):
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
