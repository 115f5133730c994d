from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo_webdatamodule_fasta import FastaReader, index, text

FASTA = b""">sp|P62987|RL40_HUMAN Ubiquitin\tand more
MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLV
LRLRGG

>empty
>empty2 but described

>soft
acgtACGTnn
ACG
ACGTACGTACGT
>last no line break behind it
MKV"""


def fields(reader, names=None):
    """Return the fields of records, by name."""
    return {sample.name: sample.files for sample in reader(reader.names() if names is None else names)}


def test_records_become_sequence_and_description(write):
    """Lines are joined whatever their lengths, letters keep their case, and the header is split at the first blank."""
    reader = FastaReader(paths=write(FASTA))

    samples = list(reader(["soft", "sp|P62987|RL40_HUMAN", "last"]))

    assert [
        Sample("soft", {"seq.txt": b"acgtACGTnnACGACGTACGTACGT", "desc.txt": b""}),
        Sample(
            "sp|P62987|RL40_HUMAN",
            {
                "seq.txt": b"MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
                "desc.txt": b"Ubiquitin\tand more",
            },
        ),
        Sample("last", {"seq.txt": b"MKV", "desc.txt": b"no line break behind it"}),
    ] == samples


def test_names_are_the_ids_in_the_order_of_the_file(write):
    """Records without a sequence are records too."""
    reader = FastaReader(paths=write(FASTA))

    assert ["sp|P62987|RL40_HUMAN", "empty", "empty2", "soft", "last"] == reader.names()
    assert {"seq.txt": b"", "desc.txt": b""} == fields(reader)["empty"]
    assert {"seq.txt": b"", "desc.txt": b"but described"} == fields(reader)["empty2"]


def test_other_line_breaks_give_the_same_records(write):
    """CRLF leaves no carriage return behind, not even in an empty record."""
    unix = FastaReader(paths=write(FASTA, "unix"))
    windows = FastaReader(paths=write(FASTA.replace(b"\n", b"\r\n"), "windows"))

    assert fields(unix) == fields(windows)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    "content",
    [
        FASTA,
        b"\xef\xbb\xbf>a one\nMK\n; comment\nV\n;MKV\n>b\nMKV\n",
        b"\n; made by hand\n;\n> a one\nMKV\n>\tb\n; of nothing\n",
        b"@a 1\nAC\n+\n@I\n@b\n\n+b\n\n@c\nA\n+\n>",
        b"\xef\xbb\xbf\n@a\nAC\n+\nII\n",
    ],
)
def test_every_line_end_gives_the_same_records(write, content, end):
    """LF, CRLF and CR; with a byte-order mark, comments, and blanks behind the mark of a record."""
    unix = FastaReader(paths=write(content, "unix"))
    other = FastaReader(paths=write(content.replace(b"\n", end), "other"))

    assert fields(unix) == fields(other)


def test_comments_and_blanks_are_no_content(write):
    """Lines that begin with a semicolon are left out of FASTA, and an id may stand behind a blank."""
    reader = FastaReader(paths=write(b";\n> a one\nMK\n;MMM\nV*\n>b\n;\n"))

    assert {
        "a": {"seq.txt": b"MKV*", "desc.txt": b"one"},
        "b": {"seq.txt": b"", "desc.txt": b""},
    } == fields(reader)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"@x/1 one\nAC\n+\nII\n@y/1\nA\n+\nI\n", b"@x/2 two\nGT\n+\nJJ\n@y/2\n\n+\n\n"),
        (b"@x one\nAC\n+\nII\n@y\nA\n+\nI\n", b"@x two\r\nGT\r\n+\r\nJJ\r\n@y\r\n\r\n+\r\n\r\n"),
        (b"@y\rA\r+\rI\r@x one\rAC\r+\rII\r", b"@x two\nGT\n+\nJJ\n@y\n\n+\n\n"),
    ],
)
def test_two_files_of_mates_are_one_source(write, first, second):
    """A sample has both reads, found by their ids, whatever the order of each file."""
    reader = FastaReader(paths=write(first, "one"), mates=write(second, "two"))

    assert {"x", "y"} == set(reader.names())
    assert {
        "r1.seq.txt": b"AC",
        "r1.desc.txt": b"one",
        "r1.qual.txt": b"II",
        "r2.seq.txt": b"GT",
        "r2.desc.txt": b"two",
        "r2.qual.txt": b"JJ",
    } == fields(reader)["x"]
    assert (b"A", b"") == tuple(fields(reader)["y"][f"r{read}.seq.txt"] for read in (1, 2))
    assert 2 == len(reader.fingerprints(["x"])[0].split())


@pytest.mark.parametrize(
    "content",
    [
        b"@x/1\nAC\n+\nII\n@x/2\nGT\n+\nJJ\n@y/1\nA\n+\nI\n@y/2\n\n+\n\n",
        b"@x 1:N\r\nAC\r\n+\r\nII\r\n@x 2:N\r\nGT\r\n+\r\nJJ\r\n@y\r\nA\r\n+\r\nI\r\n@y\r\n\r\n+\r\n\r\n",
        b">x/1\nA\nC\n>x/2\nGT\n;\n>y/1\nA\n>y/2\n",
    ],
)
def test_interleaved_mates_are_one_sample(write, content):
    """Each two records are a pair, in FASTQ and FASTA."""
    reader = FastaReader(paths=write(content), interleaved=True, description=None, quality=None)

    assert [
        Sample("y", {"r1.seq.txt": b"A", "r2.seq.txt": b""}),
        Sample("x", {"r1.seq.txt": b"AC", "r2.seq.txt": b"GT"}),
    ] == list(reader(["y", "x"]))
    assert ["x", "y"] == reader.names()


def test_reads_without_a_mate_are_refused(write):
    """With their names, and before anything is read by name."""
    one, two = write(b"@a/1\nA\n+\nI\n@b/1\nA\n+\nI\n", "one"), write(b"@a/2\nA\n+\nI\n", "two")

    with pytest.raises(InputError, match=r"1 reads have no mate in .*, such as 'b'; leave them out"):
        FastaReader(paths=one, mates=two).names()
    with pytest.raises(InputError, match=r"the read 'b' has no mate"):
        list(FastaReader(paths=one, mates=two)(["a", "b"]))
    with pytest.raises(InputError, match=r"records 1 and 2, 'a/1' and 'b/1', are not the two reads of one pair"):
        FastaReader(paths=one, interleaved=True).names()
    with pytest.raises(InputError, match=r"1 reads are not pairs; the last is 'a/2'"):
        FastaReader(paths=two, interleaved=True).names()


def test_gzip_files_of_several_members_are_read_whole(tmp_path):
    """What ``cat a.gz b.gz`` writes is a gzip file, too."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(b">a\nAA\n") + gzip.compress(b">b\nBB\n"))

    assert ["a", "b"] == FastaReader(paths=str(tmp_path / "a.gz")).names()


def test_fastq_records_have_qualities(write):
    """Qualities may begin with the mark of a record, and reads may be empty."""
    reader = FastaReader(paths=write(b"@x 1:N:0\nACGT\n+\n@III\n@y\n\n+\n\n@z\r\nAC\r\n+z\r\n>@\r\n@end\n\n+\n"))

    assert {
        "x": {"seq.txt": b"ACGT", "desc.txt": b"1:N:0", "qual.txt": b"@III"},
        "y": {"seq.txt": b"", "desc.txt": b"", "qual.txt": b""},
        "z": {"seq.txt": b"AC", "desc.txt": b"", "qual.txt": b">@"},
        "end": {"seq.txt": b"", "desc.txt": b"", "qual.txt": b""},
    } == fields(reader)


def test_suffixes_and_fields_are_chosen(write):
    """A field whose suffix is None is left out."""
    reader = FastaReader(paths=write(FASTA), sequence="protein.txt", description=None)

    assert [Sample("last", {"protein.txt": b"MKV"})] == list(reader(["last"]))


def test_several_files_are_one_source(write):
    """Names come file by file, and records from any of them in any order."""
    reader = FastaReader(paths=[write(b">a\nAA\n", "one"), write(b">b\nBB\n", "two")], description=None)

    assert ["a", "b"] == reader.names()
    assert [Sample("b", {"seq.txt": b"BB"}), Sample("a", {"seq.txt": b"AA"})] == list(reader(["b", "a"]))


@pytest.mark.parametrize("paths", [["one"], ["one", "two"]])
def test_ids_that_occur_twice_are_refused_by_name(write, paths):
    """Also where the copies are in two files, and also when only one of them is asked for."""
    content = b">a\nAA\n>b\nBB\n" if len(paths) > 1 else b">a\nAA\n>b\nBB\n>a again\nCC\n>b\nDD\n"
    reader = FastaReader(paths=[write(content, name) for name in paths])

    with pytest.raises(InputError, match=r"ids occur more than once: a, b; give"):
        reader.names()
    with pytest.raises(InputError, match=r"the id 'a' is in|more than once: a, b;"):
        list(reader(["a"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ACGT\n", "neither FASTA nor FASTQ: it begins with b'ACGT"),
        (b"\n\n", "holds no record"),
        (b"", "holds no record"),
        (b">a\nA\n>  \nC\n", "record 2, at byte 5, has no id"),
        (b">a\rA\r>\rC\r", "record 2, at byte 5, has no id"),
        (b";old header\nMKV\n", "neither FASTA nor FASTQ: it begins with b'MKV"),
        (b"; only comments\n;\n", "holds no record"),
        (b"\xff\xfe>\0a\0\n\0", "neither .* UTF-16 text; save it as UTF-8"),
        (b"BZh91AY", "neither .* compressed by bzip2"),
        (b">a\nA\n>\nC\n", "record 2, at byte 5, has no id"),
        (b"@a\nAC\n+\nII\n@b\nAC\n+\nI\n", "FASTQ record 2, at byte 11, .* b'@b'"),
        (b"@a\nAC\nGT\n+\nIIII\n", "FASTQ record 1, at byte 0, .* b'@a'"),
        (b"@a\nAC\n+\nII\n@b\nAC\n", "FASTQ record 2, at byte 11, "),
        (b"@a\nAC\n+\nII\n@b\nAC\n+\n", "FASTQ record 2, at byte 11, "),
    ],
)
def test_files_that_are_no_sequence_files_are_refused(write, cache, content, message):
    """The message says where, the file is named, and nothing of the index stays."""
    path = write(content)

    with pytest.raises(InputError, match=message) as caught:
        FastaReader(paths=path).names()

    assert path == caught.value.where["file"]
    assert [] == list(cache.iterdir())


def test_names_that_are_not_there_are_refused(write):
    """Silence would make a data set short."""
    reader = FastaReader(paths=write(FASTA))

    with pytest.raises(InputError, match="has the id 'nobody'"):
        list(reader(["last", "nobody"]))
    assert "" == reader.fingerprints(["last", "nobody"])[1]


def test_missing_files_are_refused(tmp_path):
    """The message names the file."""
    with pytest.raises(InputError, match="cannot be read: No such file"):
        FastaReader(paths=str(tmp_path / "none.fa")).names()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b">a\nAC\n>b\nAC\nA\xff\n", r"line 5 holds b'\\xff', which cannot be in a sequence"),
        (b">a\r\nAC\r\n>b\r\nAC\r\n  61 ACGT\r\n", r"line 5 holds b'6', .*b'  61 ACGT'"),
        (b">a\rAC\r>b\rAC\rAC/GT\r", r"line 5 holds b'/'"),
        (b">a\nAC\n>b\nAC\nAC;comment\n", r"line 5 holds b';'"),
        (b">a\n>b\nAC\n\nAC > GT\n", r"line 5 holds b'>'"),
        (b"@a\nAC\n+\nII\n@b\nA=\n+\nII\n", r"line 6 holds b'='"),
        (b"@a\nAC\n+\nII\n@b\nAC\n+\nI\x01\n", r"line 8 holds b'\\x01', which cannot be in a quality"),
    ],
)
def test_characters_that_cannot_be_sequence_are_refused_with_their_line(write, content, message):
    """The message names the line, the file and the record; other records are read."""
    path = write(content)
    reader = FastaReader(paths=path)

    with pytest.raises(InputError, match=message) as caught:
        list(reader(["b"]))

    assert (path, "b") == (caught.value.where["file"], caught.value.where["key"])
    assert ["a"] == [sample.name for sample in reader(["a"])]


def test_old_headers_are_read_as_latin_1(write):
    """Fields of text are UTF-8, whatever the file was."""
    reader = FastaReader(paths=write(b">a M\xfcller\nA\n>\xe9\nC\n>\xc3\xa9\xc3\xa9 \xc3\xbc\nC\n"), sequence=None)

    assert ["a", "é", "éé"] == reader.names()
    assert "Müller".encode() == fields(reader)["a"]["desc.txt"]
    assert "ü".encode() == fields(reader)["éé"]["desc.txt"]


def test_nothing_is_written_beside_the_source(write, cache, tmp_path):
    """Sources are often read-only, so the index goes to the user's cache, and is made once."""
    path = write(FASTA)
    before = sorted((tmp_path / "source").iterdir())

    FastaReader(paths=path).names()
    folders = {entry: entry.stat().st_mtime_ns for entry in cache.iterdir()}
    list(FastaReader(paths=path)(["last"]))

    assert before == sorted((tmp_path / "source").iterdir())
    assert 1 == len(folders)
    assert folders == {entry: entry.stat().st_mtime_ns for entry in cache.iterdir()}


def test_the_index_goes_where_the_user_says(write, cache, tmp_path):
    """A directory that cannot be written is an error that names the option."""
    path = write(FASTA)

    FastaReader(paths=path, index_dir=str(tmp_path / "mine")).names()
    (tmp_path / "file").write_text("no directory")

    assert 1 == len(list((tmp_path / "mine").iterdir()))
    assert not cache.exists()
    with pytest.raises(InputError, match="give index_dir"):
        FastaReader(paths=path, index_dir=str(tmp_path / "file")).names()


def test_a_changed_file_is_indexed_anew(write):
    """The index is of a size and a modification time."""
    path = write(b">a\nAAAA\n")
    reader = FastaReader(paths=path)
    fingerprint = reader.fingerprints(["a"])
    write(b">b\nCC\n>a\nGG\n")

    assert {"b": b"CC", "a": b"GG"} == {name: files["seq.txt"] for name, files in fields(reader).items()}
    assert fingerprint != reader.fingerprints(["a"])


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    """Even where its size and time are what they were."""
    path = tmp_path / "a.fa"
    path.write_bytes(b">abc\nAAAA\n")
    reader = FastaReader(paths=str(path))
    reader.names()
    status = path.stat()
    path.write_bytes(b">abx\nAAAA\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(InputError, match="changed while it was read"):
        list(reader(["abc"]))


def test_fingerprints_are_one_for_each_name(write):
    """All records of a file share its size and time."""
    path = write(FASTA)
    status = Path(path).stat()

    assert [f"{status.st_size}-{status.st_mtime_ns}"] * 2 == FastaReader(paths=path).fingerprints(["last", "soft"])


def test_the_reader_pickles_and_is_small(write):
    """One shard is one task, whose reader opens the file where it runs."""
    reader = FastaReader(paths=write(FASTA))
    reader.names()

    assert reader == pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 1000


def _names(reader):
    return reader.names()


def test_processes_that_index_at_once_agree(write, cache):
    """The index appears whole under its name, whoever is first."""
    reader = FastaReader(paths=write(b"".join(b">r%d\nACGT\n" % number for number in range(20_000))))

    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.map(_names, [reader] * 4)

    assert [[f"r{number}" for number in range(20_000)]] * 4 == results
    assert 1 == len(list(cache.iterdir()))


def test_plain_gzip_is_unpacked_and_said(tmp_path, cache, caplog):
    """It has no way into the middle, so it costs disk, and the user hears of the remedy."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(FASTA))
    with caplog.at_level(logging.INFO, "bionemo.webdatamodule"):
        FastaReader(paths=str(tmp_path / "a.gz")).names()

    assert "gzip has no way into the middle, bgzip has" in caplog.text
    assert FASTA == next(cache.iterdir()).joinpath("text").read_bytes()


@pytest.mark.parametrize("cut", [40_000, 28, 27, 1])
def test_cut_bgzip_files_are_refused(tmp_path, cut):
    """Also where the cut falls between two blocks, where decompression alone would see nothing."""
    path = tmp_path / "a.gz"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(b"".join(b">r%d\n%s\n" % (number, os.urandom(60).hex().encode()) for number in range(3000)))
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(InputError, match=r"the bgzip file (is damaged|was cut off)"):
        FastaReader(paths=str(path)).names()


def test_cut_and_damaged_gzip_files_are_refused(tmp_path):
    """A short source must not become a short data set."""
    path = tmp_path / "a.gz"
    packed = gzip.compress(b"".join(b">r%d\n%s\n" % (number, os.urandom(60).hex().encode()) for number in range(3000)))
    path.write_bytes(packed[:-5000])

    with pytest.raises(InputError, match="damaged or ends too early"):
        FastaReader(paths=str(path)).names()


def test_records_are_found_across_blocks_and_chunks(write, monkeypatch):
    """Headers that cross the border of two pieces of text are whole."""
    monkeypatch.setattr(text, "_CHUNK", 1000)
    names = [f"r{number}" + "x" * (number % 97) for number in range(3000)]
    sequences = {name: "MKV" * (len(name) % 50) for name in names}
    lines = [f">{name} about {name}\n{sequence}\n" for name, sequence in sequences.items()]
    reader = FastaReader(paths=write("".join(lines).encode()))

    assert names == reader.names()
    assert sequences == {name: files["seq.txt"].decode() for name, files in fields(reader, names[::-1]).items()}


def test_ids_whose_hashes_clash_are_told_apart(write, monkeypatch):
    """Hashes are salted until no two are the same."""
    monkeypatch.setattr(index, "_hash", lambda name, salt: len(name) if salt < 3 else ord(name[0]))
    reader = FastaReader(paths=write(b">a\nAA\n>b\nCC\n"), description=None)

    assert [Sample("b", {"seq.txt": b"CC"}), Sample("a", {"seq.txt": b"AA"})] == list(reader(["b", "a"]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.tuples(
            st.text(st.sampled_from("abcXYZ|._:;>@+-"), min_size=1, max_size=12),
            st.text(st.sampled_from("ab >@|"), max_size=8),
            st.lists(st.text(st.sampled_from("ACGTacgtN*-"), min_size=1, max_size=30), max_size=4),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda record: record[0],
    ),
    chunk=st.integers(1, 40),
)
def test_any_records_are_read_as_htslib_streams_them(tmp_path, monkeypatch, records, chunk):
    """The streaming parser of htslib, which has no index to lose records from, is the reference."""
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / f"{abs(hash((str(records), chunk)))}.fa"
    path.write_text(
        "".join(f">{name} {about}\n" + "".join(f"{line}\n" for line in lines) for name, about, lines in records)
    )
    reader = FastaReader(paths=str(path))

    with pysam.FastxFile(str(path)) as reference:
        expected = [(record.name, record.sequence or "") for record in reference]
    actual = [(sample.name, sample.files["seq.txt"].decode()) for sample in reader(reader.names())]

    assert expected == actual


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reads=st.lists(st.text(st.sampled_from('@+I#"A'), min_size=1, max_size=20), min_size=1, max_size=9),
    chunk=st.integers(1, 40),
)
def test_any_reads_are_read_as_htslib_streams_them(tmp_path, monkeypatch, reads, chunk):
    """Qualities hold any printable character, also the marks of FASTQ itself."""
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / f"{abs(hash((str(reads), chunk)))}.fq"
    path.write_text("".join(f"@r{n}\n{'A' * len(read)}\n+\n{read}\n" for n, read in enumerate(reads)))
    reader = FastaReader(paths=str(path))

    with pysam.FastxFile(str(path)) as reference:
        expected = [(record.name, record.quality) for record in reference]

    assert expected == [(sample.name, sample.files["qual.txt"].decode()) for sample in reader(reader.names())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": []}, "paths is a path or a list"),
        ({"paths": "a", "sequence": None, "description": None, "quality": None}, "at least one"),
        ({"paths": "a", "mates": ["b", "c"]}, "mates needs one file for each of 1 path, and no interleaved"),
        ({"paths": "a", "mates": "b", "interleaved": True}, "mates needs one file"),
        ({"paths": "a", "sequence": "x.txt", "description": "x.txt"}, "suffixes of their own"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    """Before anything is read."""
    with pytest.raises(ConfigError, match=message):
        FastaReader(**options)


def test_importing_the_plugin_imports_nothing_heavy():
    """An installed plugin must not slow every program down."""
    code = (
        "import sys, bionemo_webdatamodule_fasta\n"
        "print(sorted({'pysam', 'numpy', 'torch', 'lightning', 'webdataset'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert "[]" == printed.strip()
