"""What the writer ``fasta`` takes, and how a record becomes a sample; pysam is imported when files are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError

if TYPE_CHECKING:
    from bionemo_webdatamodule_fasta.index import Index

_WHITESPACE = b" \t\r\n\v\f"


@dataclass(frozen=True, kw_only=True)
class FastaReader:
    """Reads records of FASTA and FASTQ files, plain, gzipped or bgzipped, by their ids.

    A record's name is its id, the header up to the first white space.
    Line breaks of any kind and blanks inside a sequence are left out; letters stay as they are.

    Args:
        paths: A file, or a list of files. What they hold is seen from their first bytes, not from their names.
        sequence: Suffix of the sequence, as text; ``None`` leaves it out.
        description: Suffix of what the header says behind the id, as text; ``None`` leaves it out.
        quality: Suffix of a FASTQ record's quality line, as text with the file's own offset (33 today);
            ``None`` leaves it out. FASTA records have no such field.
        index_dir: Where indexes, and the unpacked text of plainly gzipped files, are kept.
            By default in the user's cache directory, never beside the files.

    Raises:
        ConfigError: If no file or no field is asked for, or two fields have one suffix.
    """

    paths: str | Sequence[str]
    sequence: str | None = "seq.txt"
    description: str | None = "desc.txt"
    quality: str | None = "qual.txt"
    index_dir: str | None = None

    def __post_init__(self) -> None:
        paths = self._paths()
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise ConfigError(f"paths is a path or a list of paths, not {self.paths!r}")
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
        names = [name for index in self._indexes() for name in index.names()]
        if len(self._paths()) > 1 and len(set(names)) < len(names):
            raise InputError(repeated(names))
        return names

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return for each record the size and modification time of the file it is in, ``""`` for one in none."""
        stamps = [""] * len(names)
        for index in self._indexes():
            stamps = [index.stamp if row >= 0 else stamp for row, stamp in zip(index.find(names), stamps, strict=True)]
        return stamps

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the records of these names, in this order; the order of the file is the fastest.

        Raises:
            InputError: If there is no such record, or a file changed since it was indexed.
        """
        indexes = self._indexes()
        with ExitStack() as stack:
            texts = [stack.enter_context(index.open()) for index in indexes]
            for name, (number, row) in zip(names, _locate(indexes, names), strict=True):
                start, stop = indexes[number].span(row)
                yield Sample(name, self._files(texts[number].read(start, stop), name, indexes[number].path))

    def _files(self, record: bytes, name: str, path: str) -> dict[str, bytes]:
        """Return the fields of a record, given all its lines."""
        header, _, body = record.partition(b"\n")
        quality = None
        if record.startswith(b"@"):
            body, _, quality, *_ = [*body.split(b"\n"), b""]
        letters = body.translate(None, _WHITESPACE)
        if not letters.isascii():
            raise InputError("the sequence holds bytes that are no ASCII letters", file=path, key=name)
        identity, *description = header[1:].split(None, 1)
        if utf8(identity) != name:
            raise InputError("the file changed while it was read; convert again", file=path, key=name)
        files = {}
        if self.sequence is not None:
            files[self.sequence] = letters
        if self.description is not None:
            files[self.description] = utf8(b"".join(description).strip()).encode()
        if self.quality is not None and quality is not None:
            files[self.quality] = quality.rstrip(b"\r\n")
        return files

    def _paths(self) -> list[str]:
        return [self.paths] if isinstance(self.paths, str) else list(self.paths)

    def _indexes(self) -> list[Index]:
        from bionemo_webdatamodule_fasta.index import open_index

        return [open_index(path, self.index_dir) for path in self._paths()]


def utf8(text: bytes) -> str:
    """Return header text as a string: UTF-8, or else Latin-1, which old databases use."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


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


def repeated(names: Sequence[str]) -> str:
    """Return a message that lists the ids that occur more than once."""
    from collections import Counter

    twice = [name for name, count in Counter(names).items() if count > 1]
    more = f" and {len(twice) - 20} more" if len(twice) > 20 else ""
    return f"ids occur more than once: {', '.join(twice[:20])}{more}; give each record an id of its own"
