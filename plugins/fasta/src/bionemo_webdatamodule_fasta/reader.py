"""What the writer ``fasta`` takes, and how a record becomes a sample; pysam is imported when files are read."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo_webdatamodule_fasta.headers import pair_name, repeated, utf8

if TYPE_CHECKING:
    from bionemo_webdatamodule_fasta.index import Index, Mode
    from bionemo_webdatamodule_fasta.text import Text

_WHITESPACE = b" \t\r\n\v\f"
_SEQUENCE = string.ascii_letters.encode() + b"*-.~?"  # besides letters: stops, gaps, and what is not known
_CHUNK = 4 << 20  # bytes
_QUALITY = bytes(range(33, 127))


@dataclass(frozen=True, kw_only=True)
class FastaReader:
    """Reads records of FASTA and FASTQ files, plain, gzipped or bgzipped, by their ids.

    A record's name is its id, the header up to the first white space.
    Line breaks of any kind (LF, CRLF, CR), blanks inside a sequence and lines that begin with ``;``, which are
    comments in FASTA, are left out; letters stay as they are. Other characters are errors.

    With ``mates`` or ``interleaved`` a sample is a pair of reads: its name is their id without ``/1`` or ``/2``,
    and its fields are those of both, with ``r1.`` and ``r2.`` in front of the suffix.

    Args:
        paths: A file, or a list of files. What they hold is seen from their first bytes, not from their names.
        sequence: Suffix of the sequence, as text; ``None`` leaves it out.
        description: Suffix of what the header says behind the id, as text; ``None`` leaves it out.
        quality: Suffix of a FASTQ record's quality line, as text with the file's own offset (33 today);
            ``None`` leaves it out. FASTA records have no such field.
        mates: The files with the second reads of pairs, one for each of ``paths``.
        interleaved: Whether each two records are the reads of a pair.
        index_dir: Where indexes, and the unpacked text of plainly gzipped files, are kept.
            By default in the user's cache directory, never beside the files.

    Raises:
        ConfigError: If no file or no field is asked for, two fields have one suffix, or ``mates`` does not fit.
    """

    paths: str | Sequence[str]
    sequence: str | None = "seq.txt"
    description: str | None = "desc.txt"
    quality: str | None = "qual.txt"
    mates: str | Sequence[str] | None = None
    interleaved: bool = False
    index_dir: str | None = None

    def __post_init__(self) -> None:
        paths, mates = _listed(self.paths), _listed(self.mates)
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ConfigError(f"paths is a path or a list of paths, not {self.paths!r}")
        if mates and (self.interleaved or len(mates) != len(paths)):
            raise ConfigError(
                f"mates needs one file for each of {count(len(paths), 'path')}, and no interleaved, not {mates}"
            )
        suffixes = [suffix for suffix in (self.sequence, self.description, self.quality) if suffix is not None]
        if not suffixes or "" in suffixes:
            raise ConfigError("at least one of sequence, description and quality must be a suffix, and none may be ''")
        if len(set(suffixes)) < len(suffixes):
            raise ConfigError(f"sequence, description and quality need suffixes of their own, not {suffixes}")

    def names(self) -> Sequence[str]:
        """Return the id of every record, file by file, in the order of the file.

        Raises:
            InputError: If an id occurs twice, a record has none, or a file is neither FASTA nor FASTQ.
        """
        indexes, mates = self._indexes()
        names = [name for index in indexes for name in index.names()]
        if len(indexes) > 1 and len(set(names)) < len(names):
            raise InputError(repeated(names))
        for index, mate in zip(indexes, mates, strict=False):
            if alone := set(index.names()) ^ set(mate.names()):
                raise InputError(
                    f"{len(alone)} reads have no mate in {index.path} or {mate.path}, such as {min(alone)!r}; "
                    "leave them out of both files"
                )
        return names

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return for each record the size and modification time of the file it is in, ``""`` for one in none."""
        stamps = [""] * len(names)
        indexes, mates = self._indexes()
        for number, index in enumerate(indexes):
            stamp = " ".join([index.stamp, *(mate.stamp for mate in mates[number : number + 1])])
            stamps = [stamp if row >= 0 else old for row, old in zip(index.find(names), stamps, strict=True)]
        return stamps

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the records of these names, in this order; the order of the file is the fastest.

        Raises:
            InputError: If there is no such record, it holds characters that cannot be sequence, or a file changed
                since it was indexed.
        """
        indexes, mates = self._indexes()
        with ExitStack() as stack:
            texts = [stack.enter_context(index.open()) for index in indexes]
            mate_texts = [stack.enter_context(index.open()) for index in mates]
            for name, (number, row) in zip(names, _locate(indexes, names), strict=True):
                reads = list(self._reads(indexes[number], texts[number], row))
                if mates:
                    [other] = mates[number].find([name]).tolist()
                    if other < 0:
                        raise InputError(f"the read {name!r} has no mate", file=mates[number].path, key=name)
                    reads += self._reads(mates[number], mate_texts[number], other)
                prefixes = ("",) if len(reads) == 1 else ("r1.", "r2.")
                yield Sample(
                    name,
                    {
                        prefix + suffix: data
                        for prefix, read in zip(prefixes, reads, strict=True)
                        for suffix, data in read.fields(self, name).items()
                    },
                )

    def _reads(self, index: Index, text: Text, row: int) -> Iterator[_Record]:
        """Yield the record of a row, or both where they are interleaved."""
        start, stop = index.span(row)
        data = text.read(start, stop)
        if b"\n" not in data:
            data = data.replace(b"\r", b"\n")
        if not self.interleaved:
            yield _Record(data, start, index, text)
        elif data.startswith(b"@"):
            lines = data.split(b"\n")
            first = b"\n".join(lines[:4]) + b"\n"
            yield _Record(first, start, index, text)
            yield _Record(data[len(first) :], start + len(first), index, text)
        else:
            first, _, second = data.replace(b"\r", b"\n").partition(b"\n>")
            yield _Record(first, start, index, text)
            yield _Record(b">" + second, start + len(first) + 1, index, text)

    def _indexes(self) -> tuple[list[Index], list[Index]]:
        """Return the index of each file, and of each file of mates."""
        from bionemo_webdatamodule_fasta.index import open_index

        mode: Mode = "interleaved" if self.interleaved else "mates" if self.mates else "records"
        paths, mates = _listed(self.paths), _listed(self.mates)
        return (
            [open_index(path, self.index_dir, mode) for path in paths],
            [open_index(path, self.index_dir, mode) for path in mates],
        )


def _listed(paths: str | Sequence[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or ())


@dataclass(frozen=True)
class _Record:
    """All lines of a record, where they begin in the text, and what the text is of."""

    data: bytes
    start: int
    index: Index
    text: Text

    def fields(self, reader: FastaReader, name: str) -> dict[str, bytes]:
        """Return the fields of the record.

        Raises:
            InputError: If it is not the one of this name, or holds characters that cannot be in it.
        """
        quality = None
        if self.data.startswith(b"@"):
            header, body, _, quality, *_ = [*self.data.split(b"\n"), b"", b""]
            quality = quality.rstrip(b"\r")
        else:
            header, _, body = self.data.replace(b"\r", b"\n").partition(b"\n")
            if b"\n;" in b"\n" + body:
                body = b"\n".join(line for line in body.split(b"\n") if not line.startswith(b";"))
        letters = body.translate(None, _WHITESPACE)
        if wrong := letters.translate(None, _SEQUENCE):
            raise self._wrong(wrong, body, "a sequence", name)
        if quality is not None and (wrong := quality.translate(None, _QUALITY)):
            raise self._wrong(wrong, quality, "a quality", name)
        identity, *description = header[1:].split(None, 1)
        if name not in (found := utf8(identity), pair_name(found)):
            raise InputError("the file changed while it was read; convert again", file=self.index.path, key=name)
        files = {}
        if reader.sequence is not None:
            files[reader.sequence] = letters
        if reader.description is not None:
            files[reader.description] = utf8(b"".join(description).strip()).encode()
        if reader.quality is not None and quality is not None:
            files[reader.quality] = quality
        return files

    def _wrong(self, wrong: bytes, within: bytes, what: str, name: str) -> InputError:
        """Return the error for a character, with its line."""
        lines = self.data.replace(b"\r", b"\n")
        line = next(line for line in within.replace(b"\r", b"\n").split(b"\n") if wrong[:1] in line)
        before = self.data[: lines.index(b"\n" + line, lines.index(b"\n")) + 1]
        starts = range(0, self.start, _CHUNK)
        earlier = (self.text.read(start, min(start + _CHUNK, self.start)) for start in starts)
        number = sum(map(_line_ends, [*earlier, before])) + 1
        return InputError(
            f"line {number} holds {wrong[:1]!r}, which cannot be in {what}: {line[:40]!r}",
            file=self.index.path,
            key=name,
        )


def _line_ends(text: bytes) -> int:
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


def _locate(indexes: Sequence[Index], names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the number of the file, and in it that of the record, for each name."""
    table = [index.find(names).tolist() for index in indexes]
    for name, *rows in zip(names, *table, strict=True):
        found = [(number, row) for number, row in enumerate(rows) if row >= 0]
        if not found:
            raise InputError(f"no record of {', '.join(index.path for index in indexes)} has the id {name!r}")
        if len(found) > 1:
            twice = " and ".join(indexes[number].path for number, _ in found)
            raise InputError(f"the id {name!r} is in {twice}; give each record an id of its own")
        yield found[0]
