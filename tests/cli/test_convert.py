"""The commands convert, verify and info."""

import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Literal

import fsspec
import pytest

from bionemo.webdatamodule._cli.convert import parse_splits
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.options import parse_options
from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.testing.stores import serving


@pytest.fixture
def source(tmp_path):
    """Ten pickles."""
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(10):
        (directory / f"s{number}.pyd").write_bytes(pickle.dumps(number))
    return directory


@pytest.fixture
def converted(source, tmp_path, capsys):
    """The same as shards; returns the beginning of the directories."""
    assert 0 == convert(source, tmp_path, "--split", "train=0.8", "--split", "val=0.2", "--shards", "2")
    capsys.readouterr()
    return tmp_path


def convert(source, out, *more):
    """Run the command with the serial executor and return its exit code."""
    options = [f"--option=directory={source}", "--option=suffixes=pyd", "--executor=serial", *more]
    return main(["convert", *options, f"{out}/set-"])


def test_convert_writes_each_split(source, tmp_path, capsys):
    """Splits are given by their parts; the summary names samples, shards and place."""
    assert 0 == convert(source, tmp_path, "--split", "train=0.8", "--split", "val=0.2", "--shards", "2")
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / f"set-{split}").glob("*.tar")) for split in ("train", "val")
    ]
    assert [
        f"train: 8 samples in 2 shards, {sizes[0] / 1e6:.4g} MB, {tmp_path}/set-train",
        f"val: 2 samples in 2 shards, {sizes[1] / 1e6:.4g} MB, {tmp_path}/set-val",
    ] == capsys.readouterr().out.splitlines()


def test_convert_takes_names_and_files_of_names(source, tmp_path, capsys):
    """Names after commas, or one a line in a file."""
    (tmp_path / "names.txt").write_text("s3\ns1\n")
    assert 0 == convert(source, tmp_path, "--split", "train=s5,s0", "--split", f"val=@{tmp_path}/names.txt", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [("train", 2, 1), ("val", 2, 1)] == [(row["split"], row["samples"], row["shards"]) for row in rows]
    assert ["bytes", "digest", "directory", "samples", "shards", "split"] == sorted(rows[0])


def test_convert_puts_all_into_train_by_default(source, tmp_path, capsys):
    """Without --split there is one split."""
    assert 0 == convert(source, tmp_path)
    assert capsys.readouterr().out.startswith("train: 10 samples in 1 shard")


def test_convert_reports_bad_input_and_ends_with_2(source, tmp_path, capsys):
    """Problems go to standard error, nothing is printed."""
    (source / "s4.pyd").write_bytes(b"junk")
    assert 2 == convert(source, tmp_path)
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "webdatamodule convert: 1 problem in the input" in captured.err
    assert "s4: " in captured.err


def test_convert_allows_classes_that_are_named(source, tmp_path, capsys):
    """As the data modules do with allow_pickle and pickles."""
    import argparse

    (source / "s4.pyd").write_bytes(pickle.dumps(argparse.Namespace(a=1)))
    assert 2 == convert(source, tmp_path)
    assert 0 == convert(source, tmp_path, "--allow-pickle", "argparse.Namespace")
    capsys.readouterr()


def test_options_of_which_nothing_is_known_are_json_or_text():
    """Numbers, lists and booleans are taken as such."""
    words = ["a=1", "b=[1, 2]", "c=text", "d=x=y", "e=true", 'f="1"', "g="]
    assert {"a": 1, "b": [1, 2], "c": "text", "d": "x=y", "e": True, "f": "1", "g": ""} == parse_options(words)
    with pytest.raises(ConfigError, match="--option takes K=V"):
        parse_options(["novalue"])


def factory(
    *,
    text: str = "",
    perhaps: str | None = None,
    number: int = 0,
    part: "float | None" = None,
    names: Sequence[str] = (),
    either: str | Sequence[str] = "",
    columns: Sequence[str] | Mapping[str, str] | None = None,
    kind: Literal["1", "2"] = "1",
    default="1",
    numbers=(1, 2),
    anything=None,
    **more: int,
):
    """Take options of many types."""


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("text=2024", "2024"),
        ("text=true", "true"),
        ('text="2024"', "2024"),
        ("text=[1", "[1"),
        ("perhaps=null", None),
        ("perhaps=1", "1"),
        ("number=12", 12),
        ("number=x", "x"),
        ("part=1", 1),
        ("part=null", None),
        ("names=2024", ["2024"]),
        ("names=a", ["a"]),
        ('names=["a", "b"]', ["a", "b"]),
        ("either=1", "1"),
        ('either=["a"]', ["a"]),
        ('columns={"a": "b"}', {"a": "b"}),
        ("columns=a", ["a"]),
        ("kind=2", "2"),
        ("default=2", "2"),
        ("numbers=3", [3]),
        ("anything=3", 3),
        ("anything=x", "x"),
        ("more=4", 4),
    ],
)
def test_options_become_what_the_writer_takes(word, expected):
    """Annotations decide, and defaults where there are none: a directory named by a year stays text."""
    name = word.partition("=")[0]
    found = parse_options([word], factory)[name]
    assert (expected, type(expected)) == (found, type(found))


def test_an_option_that_takes_a_list_may_be_repeated():
    """The values come in the order in which they were given, each as the list takes it."""
    words = ["suffixes=a", "directory=1", "suffixes=2"]
    assert {"directory": "1", "suffixes": ["a", "2"]} == parse_options(words, PickleReader)


@pytest.mark.parametrize("factory", [PickleReader, None])
def test_an_option_that_takes_no_list_comes_once(factory):
    """The second of two values never wins silently."""
    with pytest.raises(ConfigError, match="--option gives directory 2 times"):
        parse_options(["directory=a", "directory=b"], factory)


def test_directories_and_samples_may_have_numbers_as_names(tmp_path, capsys):
    """Text stays text; where a number may be a part or a sample, it is an error with both ways out."""
    source = tmp_path / "2024"
    source.mkdir()
    for name in ("0.5", "1", "7", "x"):
        (source / f"{name}.pyd").write_bytes(pickle.dumps(name))
    (tmp_path / "names").write_text("7\n")
    assert 0 == convert(source, tmp_path)
    assert capsys.readouterr().out.startswith("train: 4 samples")
    for number, other in (("1", "1.0"), ("7", "7.0"), ("0.5", "0.50")):
        assert 2 == convert(source, tmp_path, "--split", f"train={number}")
        error = capsys.readouterr().err
        assert f"--split train={number} may mean a part" in error
        assert f"write train={other} for the part, or put the names into a file and write train=@FILE" in error
    assert 0 == convert(source, tmp_path, "--split", "train=0.50", "--split", "val=0.5000")
    assert 0 == convert(source, tmp_path, "--split", "train=1,x", "--split", f"val=@{tmp_path}/names")


def test_a_number_that_is_no_name_is_a_part(source, tmp_path, capsys):
    """As documented; words that Python takes for numbers are names."""
    assert 2 == convert(source, tmp_path, "--split", "train=7")
    assert "add up to 1" in capsys.readouterr().err
    assert {"train": ["nan"], "val": ["inf"], "test": ["1_0"]} == parse_splits(["train=nan", "val=inf", "test=1_0"])


def test_lists_of_names_are_lines_of_utf_8(tmp_path):
    """Only line feeds end a name, since other breaks may be in it; marks of other systems are left out."""
    path = tmp_path / "names"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\x0cb\nc\xe2\x80\xa8\rc\n d \n")
    assert {"val": ["a", "b\x0cb", "c\u2028\rc", " d "]} == parse_splits([f"val=@{path}"])
    path.write_bytes(b"a\n\nb")
    assert {"val": ["a", "", "b"]} == parse_splits([f"val=@{path}"])
    path.write_bytes(b"")
    assert {"val": []} == parse_splits([f"val=@{path}"])


def test_lists_of_names_that_cannot_be_read_are_named(tmp_path):
    """Whether they are not there, no files, or no text."""
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name in ("nowhere", "latin", ""):
        with pytest.raises(ConfigError, match=f"the list of names {tmp_path / name}"):
            parse_splits([f"train=@{tmp_path / name}"])


def test_a_source_without_samples_is_named(source, tmp_path, capsys):
    """A wrong suffix or directory is told as such, with the options that were given."""
    assert 2 == main(
        ["convert", f"--option=directory={source}", "--option=suffixes=pyc", "--executor=serial", f"{tmp_path}/"]
    )
    error = capsys.readouterr().err
    assert f"the source has no samples: nothing in it matches directory='{source}', suffixes='pyc'" in error


@pytest.mark.parametrize(
    "words", [["other=1"], ["train"], ["train=0.5", "train=0.2"], ["train=@nowhere"], ["train=0.5", "train=a"]]
)
def test_splits_that_make_no_sense_are_refused(words):
    """Unknown splits, no value, the same split twice, a list that is not there."""
    with pytest.raises(ConfigError):
        parse_splits(words)


def test_verify_says_that_all_is_well(converted, capsys):
    """Exit code 0, one line a directory."""
    assert 0 == main(["verify", "--deep", f"{converted}/set-train", f"{converted}/set-val"])
    lines = capsys.readouterr().out.splitlines()
    assert [f"{converted}/set-train wdshards: 8 samples", f"{converted}/set-val wdshards: 2 samples"] == [
        line.partition(" in ")[0] for line in lines
    ]
    assert all(line.endswith("all as it was written") for line in lines)


def test_verify_lists_damage_and_ends_with_1(converted, capsys):
    """For people and for programs."""
    path = converted / "set-train" / "wdshards-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    assert 1 == main(["verify", f"{converted}/set-train"])
    assert "  wdshards-000001.tar: it has " in capsys.readouterr().out
    assert 1 == main(["verify", "--json", f"{converted}/set-train"])
    (report,) = json.loads(capsys.readouterr().out)
    assert (1, 8, 2) == (len(report["problems"]), report["samples"], report["shards"])


def test_verify_without_shards_ends_with_2(tmp_path, capsys):
    """A directory without a manifest cannot be verified."""
    assert 2 == main(["verify", str(tmp_path)])
    assert "holds no manifest" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "info", "index"])
def test_a_directory_that_is_bad_hides_nothing_of_the_others(converted, tmp_path, capsys, command):
    """Every directory is reported in its order, and the worst decides the exit code; index adopts what it can."""
    train, val, empty = f"{converted}/set-train", f"{converted}/set-val", f"{tmp_path}/empty"
    (tmp_path / "empty").mkdir()
    more = ["--again"] if command == "index" else []
    assert 2 == main([command, *more, train, empty, val])
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if not line.startswith(" ")]
    assert [f"{train} wdshards", f"{val} wdshards"] == [line.partition(":")[0] for line in lines]
    assert captured.err.startswith(f"webdatamodule {command}: {empty} ")
    assert 1 == len(captured.err.splitlines())
    assert 2 == main([command, *more, "--json", train, empty, val])
    first, second, third = json.loads(capsys.readouterr().out)
    assert [(train, 8), (val, 2)] == [(row["directory"], row["samples"]) for row in (first, third)]
    assert (empty, "no-shards") == (second["directory"], second["error"]["code"])


def test_info_counts_in_the_singular(converted, capsys):
    """Each shard of the second split has one sample."""
    assert 0 == main(["info", f"{converted}/set-val"])
    assert "  shards       2 of 1 sample\n" in capsys.readouterr().out


def test_a_prefix_that_is_bad_hides_nothing_of_the_others(converted, capsys):
    """A manifest that cannot be read is one error of its directory."""
    (converted / "set-train" / "other.manifest.json").write_text("{")
    assert 2 == main(["verify", f"{converted}/set-train"])
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{converted}/set-train wdshards: 8 samples")
    assert "other.manifest.json is cut short" in captured.err


def test_urls_are_verified_and_described(converted, capsys):
    """Shards behind a URL are compared byte for byte, and its manifest is shown."""
    memory = fsspec.filesystem("memory")
    for path in (converted / "set-train").iterdir():
        memory.pipe_file(f"/verified/{path.name}", path.read_bytes())
    try:
        assert 0 == main(["verify", "memory://verified"])
        assert capsys.readouterr().out.startswith("memory://verified wdshards: 8 samples")
        assert 0 == main(["info", "memory://verified"])
        assert "samples      8" in capsys.readouterr().out
        data = memory.cat_file("/verified/wdshards-000001.tar")
        memory.pipe_file("/verified/wdshards-000001.tar", data[:600] + b"?" + data[601:])
        assert 1 == main(["verify", "memory://verified"])
        assert "wdshards-000001.tar: it has other bytes than were written" in capsys.readouterr().out
        assert 2 == main(["verify", "--deep", "memory://verified"])
        assert "verify a local copy, or leave --deep out" in capsys.readouterr().err
    finally:
        memory.rm("/verified", recursive=True)


def test_the_usual_prefix_is_described_where_a_web_server_lists_nothing(converted, capsys):
    """Its manifest is there, and where it is not, that is the error."""
    with serving(converted) as url:
        assert 0 == main(["info", f"{url}/set-train"])
        assert "samples      8" in capsys.readouterr().out
        assert 2 == main(["info", f"{url}/nowhere"])
        assert f"{url}/nowhere holds no manifest of the prefix 'wdshards'" in capsys.readouterr().err


def test_verify_says_how_to_mend_damage(converted, capsys):
    """Restore the shard, or make it anew."""
    path = converted / "set-train" / "wdshards-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    assert 1 == main(["verify", f"{converted}/set-train", f"{converted}/set-val"])
    assert 1 == capsys.readouterr().out.count("restore what is damaged, or run the conversion again with --check")


def test_convert_mends_damage_when_it_is_to_check(source, tmp_path, capsys):
    """Without --check a shard of the right size counts as sound; with it, it is made anew with the same bytes."""
    assert 0 == convert(source, tmp_path, "--shards", "2")
    path = tmp_path / "set-train" / "wdshards-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    assert 0 == convert(source, tmp_path, "--shards", "2")
    assert 1 == main(["verify", f"{tmp_path}/set-train"])
    assert 0 == convert(source, tmp_path, "--shards", "2", "--check")
    assert 0 == main(["verify", f"{tmp_path}/set-train"])
    assert data == path.read_bytes()
    capsys.readouterr()


def test_info_tells_what_is_there(converted, source, capsys):
    """Samples, shards, suffixes, writer and versions."""
    assert 0 == main(["info", f"{converted}/set-train"])
    lines = capsys.readouterr().out.splitlines()
    assert f"{converted}/set-train wdshards" == lines[0]
    assert ["samples", "shards", "size", "suffixes", "writer", "key", "versions", "digest"] == [
        line.split()[0] for line in lines[1:]
    ]
    assert f"pickles(directory='{source}', suffixes='pyd') of bionemo-webdatamodule" in lines[5]


def test_info_as_json(converted, capsys):
    """Everything the manifest knows, as numbers."""
    assert 0 == main(["info", "--json", f"{converted}/set-train", f"{converted}/set-val"])
    train, val = json.loads(capsys.readouterr().out)
    assert (8, 2, [4, 4], {"pyd": "pickle"}) == (
        train["samples"],
        train["shards"],
        train["samples_per_shard"],
        train["codecs"],
    )
    assert "dashes" == val["key_encoder"]["name"]


def test_info_of_a_prefix_that_is_not_there_ends_with_2(converted, capsys):
    """The error names the prefix."""
    assert 2 == main(["info", "--prefix", "other", f"{converted}/set-train"])
    assert "no manifest of the prefix 'other'" in capsys.readouterr().err
