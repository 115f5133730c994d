"""The commands convert, verify and info."""

import json
import pickle

import pytest

from bionemo.webdatamodule.cli import main
from bionemo.webdatamodule.commands.convert import parse_options, parse_splits
from bionemo.webdatamodule.errors import ConfigError


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
    assert capsys.readouterr().out.startswith("train: 10 samples in 1 shards")


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


def test_options_are_json_or_text():
    """Numbers, lists and booleans are taken as such."""
    words = ["a=1", "b=[1, 2]", "c=text", "d=x=y", "e=true", 'f="1"', "g="]
    assert {"a": 1, "b": [1, 2], "c": "text", "d": "x=y", "e": True, "f": "1", "g": ""} == parse_options(words)
    with pytest.raises(ConfigError, match="--option takes K=V"):
        parse_options(["novalue"])


@pytest.mark.parametrize("words", [["other=1"], ["train"], ["train=0.5", "train=0.2"], ["train=@nowhere"]])
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
