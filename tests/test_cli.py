"""The command line as a whole: its list of commands, and how it ends."""

import importlib
import os
import subprocess
import sys

import pytest

from bionemo.webdatamodule import cli, commands

PROGRAM = [sys.executable, "-m", "bionemo.webdatamodule"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_every_command_is_listed_in_the_order_of_a_data_sets_life():
    """The help reads like a story: from trying out over converting and looking to training and extending."""
    story = ["demo", "convert", "index", "info", "preview", "verify", "report", "plan", "bench", "doctor"]
    story += ["plugins", "new-plugin"]
    assert [name for name in story if name in cli.COMMANDS] == list(cli.COMMANDS)


def test_every_command_has_a_module_that_configures_and_runs():
    """What the help lists can be run."""
    for name in cli.COMMANDS:
        module = importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")
        assert callable(module.configure)
        assert callable(module.run)


def test_summaries_are_alike():
    """Each is a short sentence in the imperative, without a full stop."""
    for summary in cli.COMMANDS.values():
        assert summary[0].islower()
        assert not summary.endswith(".")
        assert len(summary) <= 100


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["plugins"], ["plugins", "--json"]])
def test_a_reader_that_goes_away_is_no_error(words, more):
    """As in ``webdatamodule plugins | head -0``: the program ends quietly, as a shell's own tools do."""
    environment = {**BUFFERED, **more}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *words], env=environment, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert b"" == errors
    assert 141 == process.returncode


def test_a_reader_of_help_that_goes_away_is_no_error():
    """Help is printed by the parser, and what it leaves in the buffer is lost as quietly."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, "--help"], env=BUFFERED, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert b"" == errors
    assert 141 == process.returncode


def test_a_reader_of_errors_that_goes_away_is_no_error(tmp_path):
    """The same where errors go into the pipe, too."""
    with subprocess.Popen(
        [*PROGRAM, "info", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        process.stdout.close()
    assert 141 == process.returncode


def test_another_broken_pipe_is_still_an_error(monkeypatch):
    """Only our own output may end quietly: a broken pipe to a worker is a fault."""

    def run(_):
        raise BrokenPipeError

    monkeypatch.setattr("bionemo.webdatamodule.commands.plugins.run", run)
    with pytest.raises(BrokenPipeError):
        cli.main(["plugins"])
