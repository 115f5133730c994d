"""Wrong command lines: each is one line on standard error, with a remedy, and exit code 2."""

import pickle
import shutil
import warnings

import pytest

from bionemo.webdatamodule._cli.main import COMMANDS, main
from bionemo.webdatamodule.errors import DataWarning

SOURCE = "--option=directory=source --option=suffixes=pyd"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with pickles, the same as shards, manifests that cannot be read, and other files."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        for folder in ("source", "empty"):
            (top / folder).mkdir()
        for number in range(4):
            (top / "source" / f"s{number}.pyd").write_bytes(pickle.dumps(number))
        assert 0 == main(["convert", *SOURCE.split(), "--executor=serial", "set-"])
        for name, content in (("cut", b'{"x":'), ("binary", b"\xff\xfe\x00"), ("list", b"[]")):
            shutil.copytree("set-train", name)
            (top / name / "wdshards.manifest.json").write_bytes(content)
        shutil.copytree("set-train", "lost")
        (top / "lost" / "wdshards-000000.tar").unlink()
        shutil.copytree("set-train", "two")
        shutil.copy("two/wdshards.manifest.json", "two/other.manifest.json")
    (top / "file").write_bytes(b"\xff")
    (top / "r.jsonl").write_text('{"split": "train", "epoch": 0, "samples": 3}\n')
    (top / "text.jsonl").write_text('{"split": "train", "epoch": 0, "samples": "x"}\n')
    return top


def report(made, monkeypatch, capsys, line):
    """Run a command line that fails and return its one line, without the name of the program."""
    monkeypatch.chdir(made)
    assert 2 == main(line.split())
    captured = capsys.readouterr()
    assert "" == captured.out
    (message,) = captured.err.splitlines()
    assert message.startswith("webdatamodule")
    return message.removeprefix("webdatamodule ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "webdatamodule: the following arguments are required: COMMAND; see `webdatamodule --help` [config]"),
        ("infoo set-train", "infoo: there is no command 'infoo'; did you mean 'info'? [config]"),
        ("zzz", "zzz: there is no command 'zzz'; see `webdatamodule --help` [config]"),
        ("info set-train --prefx x", "info: there is no option '--prefx'; did you mean '--prefix'? [config]"),
        ("info set-train --zzz=1", "info: there is no option '--zzz'; see `webdatamodule info --help` [config]"),
        ("info set-train --pre x", "info: there is no option '--pre'; did you mean '--prefix'? [config]"),
        ("preview set-train x", "preview: 'x' is one argument too many; see `webdatamodule preview --help` [config]"),
    ],
)
def test_unknown_commands_options_and_arguments(made, monkeypatch, capsys, line, message):
    """A near miss is named; abbreviations of options are none."""
    assert message == report(made, monkeypatch, capsys, line)


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"demo", "doctor", "plugins"}))
def test_missing_arguments(made, monkeypatch, capsys, command):
    """Every command that needs an argument names it and its own help."""
    message = report(made, monkeypatch, capsys, command)
    assert message.startswith(f"{command}: the following arguments are required: ")
    assert message.endswith(f"; see `webdatamodule {command} --help` [config]")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("convert out --shards 0", "convert: argument --shards: 0 is less than 1"),
        ("convert out --workers x", "convert: argument --workers: 'x' is not a whole number"),
        ("preview set-train -n -1", "preview: argument -n: -1 is less than 1"),
        ("report set-train --sample 0", "report: argument --sample: 0 is less than 1"),
        ("plan set-train --global-batch 1.5", "plan: argument --global-batch: '1.5' is not a whole number"),
        ("plan set-train --global-batch 1 --seed x", "plan: argument --seed: 'x' is not a whole number"),
        ("plan set-train --global-batch 1 --weights nan", "plan: argument --weights: 'nan' is not a finite number"),
        ("plan set-train --global-batch 1 --weights 1 --weights-at 0.5 1", "plan: --weights-at begins with a step"),
        ("plan set-train --global-batch 1 --weights 1 --order shards", "plan: --weights needs --order global"),
        (
            "plan set-train --global-batch 1 --workers 9999999",
            "plan: 1 rank of 9,999,999 workers: more than 1,000,000 processes",
        ),
        ("bench set-train --seconds 0", "bench: argument --seconds: 0 is not above 0"),
        ("bench set-train --training inf", "bench: argument --training: 'inf' is not a finite number"),
        ("bench set-train --workers -1", "bench: argument --workers: -1 is less than 0"),
        ("bench set-train --stage os:name", "bench: --stage os:name is a str; name a function"),
        ("bench set-train --stage :x", "bench: --stage :x cannot be imported: Empty module name"),
        ("demo --epochs 0", "demo: argument --epochs: 0 is less than 1"),
        ("new-plugin a --kind b", "new-plugin: argument --kind: invalid choice: 'b'"),
    ],
)
def test_values_of_the_wrong_type(made, monkeypatch, capsys, line, message):
    """The message has the flag and what it got."""
    assert report(made, monkeypatch, capsys, line).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "",
            (
                "the writer 'pickles' needs --option directory=VALUE and --option suffixes=VALUE; "
                "`webdatamodule plugins pickles` describes its options [config]"
            ),
        ),
        ("--option directory=a --option sufixes=b", "the writer 'pickles' has no option 'sufixes'; did you mean"),
        ("--writer pickles:directory=a,b=1", "the writer 'pickles' has no option 'b'; its options are directory,"),
        ("--writer pickles:directory=a --option directory=b", "--writer pickles:directory=a gives the option"),
        ("--writer pickle", "no writer is named 'pickle'; did you mean 'pickles'?"),
        (f"{SOURCE} --executor serial --workers 2", "the executor 'serial' has no option 'workers'; it has no options"),
        (
            f"{SOURCE} --executor processes:workers=1 --workers 2",
            "--executor processes:workers=1 gives the option 'workers'",
        ),
        (f"{SOURCE} --key-encoder dashes:x=1", "the key encoder 'dashes' has no option 'x'; it has no options"),
        (f"{SOURCE} --split train", "--split takes SPLIT=WHAT, where SPLIT is one of train, val, test, not 'train'"),
        (
            f"{SOURCE} --split train=",
            "--split train= gives no samples; write a part such as train=0.8, names, or @FILE",
        ),
        (f"{SOURCE} --split train=@nowhere", "the list of names nowhere cannot be read"),
        (f"{SOURCE} --split train=@file", "the list of names file is not UTF-8"),
    ],
)
def test_convert_reports_options_as_they_are_typed(made, monkeypatch, capsys, words, message):
    """No message has a Python signature."""
    assert report(made, monkeypatch, capsys, f"convert out- {words}").startswith(f"convert: {message}")


@pytest.mark.parametrize("command", ["info", "preview", "verify", "index", "report", "plan --global-batch 1", "bench"])
@pytest.mark.parametrize("directory", ["nowhere", "file", "empty"])
def test_directories_without_shards(made, monkeypatch, capsys, command, directory):
    """No directory, a file, and a directory without shards are named with a remedy."""
    message = report(made, monkeypatch, capsys, f"{command} {directory}")
    assert directory in message
    assert any(remedy in message for remedy in ("correct the path", "convert the data first", "index` first"))
    assert message.endswith(" [no-shards]")


@pytest.mark.parametrize("command", ["info", "preview", "verify", "report", "plan --global-batch 1", "bench"])
@pytest.mark.parametrize("directory", ["cut", "binary", "list"])
def test_manifests_that_cannot_be_read(made, monkeypatch, capsys, command, directory):
    """The file is named with a remedy."""
    message = report(made, monkeypatch, capsys, f"{command} {directory}")
    assert "wdshards.manifest.json is cut short or no manifest; run the conversion again, or restore" in message
    assert message.endswith(" [manifest]")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("preview lost", "is listed in the manifest and cannot be opened (No such file or directory); restore it"),
        ("preview two", "two holds other, wdshards; choose one with --prefix"),
        ("preview set-train --prefix nope", "set-train has no shards of the prefix 'nope'; try --prefix wdshards"),
        ("index set-train", "set-train has a manifest of the prefix 'wdshards' already"),
        ("report set-train -o nowhere/x.html", "--output is a file in a directory that is there"),
        ("receipt nowhere r.jsonl", "receipt: nowhere: No such file or directory"),
        ("receipt empty r.jsonl", "receipt: empty: Is a directory"),
        ("receipt file r.jsonl", "receipt: file holds no receipt in line 1; give files that a run wrote"),
        ("receipt r.jsonl text.jsonl", "receipt: text.jsonl holds no receipt in line 1"),
        ("plugins pickl", "plugins: no component and no plugin is named 'pickl'; did you mean 'pickle'?"),
        ("new-plugin Foo --kind writer", "the name 'Foo' cannot be used; take lower-case letters"),
        ("new-plugin foo --kind writer --directory nowhere", "--directory is a directory that exists"),
        ("demo --directory file", "demo: file/pickles: Not a directory"),
    ],
)
def test_files_that_do_not_fit(made, monkeypatch, capsys, line, message):
    """Files that are absent, of another kind or there already."""
    assert message in report(made, monkeypatch, capsys, line)


def test_warnings_are_one_line(monkeypatch, capsys):
    """The line of code that a warning of this package comes from is left out; those of others are as usual."""

    def run(_):
        for category in (DataWarning, UserWarning):
            print(warnings.formatwarning("few", category, "module.py", 7, "f()"), end="")
        return 0

    monkeypatch.setattr("bionemo.webdatamodule._cli.plugins.command.run", run)
    assert 0 == main(["plugins"])
    assert "webdatamodule: warning: few\nmodule.py:7: UserWarning: few\n  f()\n" == capsys.readouterr().out
