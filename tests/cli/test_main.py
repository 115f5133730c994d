"""The command line as a whole: its list of commands, and how it ends."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bionemo.webdatamodule._cli import main
from bionemo.webdatamodule.errors import CorruptShardError

PROGRAM = [sys.executable, "-m", "bionemo.webdatamodule"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_every_command_is_listed_in_the_order_of_a_data_sets_life():
    """The help reads like a story: from trying out over converting and looking to training and extending."""
    story = ["demo", "convert", "index", "info", "preview", "verify", "report", "plan", "bench", "doctor"]
    story += ["receipt", "plugins", "new-plugin"]
    assert [name for name in story if name in main.COMMANDS] == list(main.COMMANDS)


def test_every_command_has_a_module_that_configures_and_runs():
    """What the help lists can be run."""
    for name in main.COMMANDS:
        module = main.command_module(name)
        assert callable(module.configure)
        assert callable(module.run)


def test_summaries_are_alike():
    """Each is a short sentence in the imperative, without a full stop."""
    for summary in main.COMMANDS.values():
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


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "words",
    [["plugins"], ["plugins", "--json"], ["--version"], ["--help"], ["plugins", "--help"]],
    ids=" ".join,
)
def test_an_output_that_takes_nothing_is_an_error(words, more):
    """A write that fails is reported in one line, whichever part of the command made it."""
    with pathlib.Path("/dev/full").open("wb") as full:
        found = subprocess.run(
            [*PROGRAM, *words], env={**BUFFERED, **more}, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    name = "" if words[0].startswith("-") else " plugins"
    assert f"webdatamodule{name}: [Errno 28] No space left on device\n" == found.stderr
    assert 2 == found.returncode


def test_what_could_not_be_done_is_said_alone_where_the_output_takes_nothing(tmp_path):
    """There is no second line, and no traceback."""
    with pathlib.Path("/dev/full").open("wb") as full:
        found = subprocess.run(
            [*PROGRAM, "info", "--json", str(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    (line,) = found.stderr.splitlines()
    assert "holds no manifest" in line
    assert 2 == found.returncode


@pytest.fixture
def fails(monkeypatch):
    """Return a function that makes a command do something else, and runs it."""

    def run(function, *words):
        monkeypatch.setattr("bionemo.webdatamodule._cli.plugins.command.run", function)
        return main.main(["plugins", *words])

    return run


def throwing(error):
    """Return a command that raises an error."""

    def run(_):
        raise error

    return run


def test_another_broken_pipe_is_still_an_error(fails, capsys):
    """Only our own output may end quietly: a broken pipe to a worker is a fault."""
    assert 70 == fails(throwing(BrokenPipeError(32, "Broken pipe")))
    assert "internal error BrokenPipeError: [Errno 32] Broken pipe" in capsys.readouterr().err


def test_what_should_not_happen_is_one_line_and_a_code_of_its_own(fails, capsys, monkeypatch):
    """A bug of this package is not mistaken for a finding of a check; the traceback is there for who asks."""
    monkeypatch.delenv(main.TRACEBACK, raising=False)
    assert 70 == fails(throwing(KeyError("nothing")))
    said = "webdatamodule plugins: internal error KeyError: 'nothing'"
    assert ("", f"{said}; {main.TRACEBACK}=1 shows where, which a bug report needs\n") == capsys.readouterr()
    monkeypatch.setenv(main.TRACEBACK, "1")
    assert 70 == fails(throwing(KeyError("nothing")))
    lines = capsys.readouterr().err.splitlines()
    assert ["Traceback (most recent call last):", "KeyError: 'nothing'", said] == [lines[0], lines[-2], lines[-1]]


def test_what_the_system_refuses_is_no_fault_of_the_program(fails, capsys):
    """A file that is not there or may not be written ends like all that cannot be done."""
    assert 2 == fails(throwing(PermissionError(13, "Permission denied", "/there")))
    assert "webdatamodule plugins: /there: Permission denied\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            CorruptShardError("it is bad", shard=pathlib.Path("a.tar"), worker=1),
            2,
            {"code": "corrupt-shard", "message": "it is bad", "where": {"shard": "a.tar", "worker": 1}},
        ),
        (OSError("no space"), 2, {"code": "system", "message": "no space", "where": {}}),
        (KeyError("x"), 70, {"code": "internal", "message": "KeyError: 'x'", "where": {}}),
        (KeyboardInterrupt(), 130, {"code": "interrupted", "message": "interrupted", "where": {}}),
    ],
    ids=["ours", "system", "internal", "interrupt"],
)
def test_json_says_why_a_command_failed(fails, capsys, error, code, expected):
    """With --json standard output holds JSON also then, and standard error the line for people."""
    assert code == fails(throwing(error), "--json")
    captured = capsys.readouterr()
    assert {"error": expected} == json.loads(captured.out)
    assert 1 == len(captured.err.splitlines())


def test_json_has_the_message_about_wrong_arguments(capsys):
    """What the parser refuses is reported as every error is."""
    assert 2 == main.main(["info", "--json"])
    captured = capsys.readouterr()
    message = "the following arguments are required: DIR; see `webdatamodule info --help`"
    assert {"error": {"code": "config", "message": message, "where": {}}} == json.loads(captured.out)
    assert f"webdatamodule info: {message} [config]\n" == captured.err


def test_sigterm_ends_a_command_as_ctrl_c_does(fails, capsys):
    """One line, the shell's exit code, and the signal's handler as it was."""

    def run(_):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert 143 == fails(run)
    assert "webdatamodule plugins: terminated\n" == capsys.readouterr().err
    assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)


def test_sigterm_ends_a_forked_process_without_a_word():
    """Only the command itself has something to say and to tidy up."""
    script = """
import os, signal, sys
from bionemo.webdatamodule._cli import main
from bionemo.webdatamodule._cli.plugins import command as plugins

def run(args):
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    return os.WTERMSIG(os.waitpid(child, 0)[1])

plugins.run = run
sys.exit(main.main(["plugins"]))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (signal.SIGTERM, b"", b"") == (found.returncode, found.stdout, found.stderr)


def test_keys_that_are_no_text_can_be_printed(fails, monkeypatch):
    """Also where standard output takes nothing but valid UTF-8, or nothing but ASCII."""
    for encoding, expected in (("utf-8", "key \\udcff of µs\n"), ("ascii", "key \\udcff of \\xb5s\n")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, "strict"))
        assert 0 == fails(lambda _: print("key \udcff of µs") or 0)
        assert expected == written.getvalue().decode()


def test_code_that_ends_the_program_is_an_error(fails, capsys):
    """A plugin's `sys.exit()` is not a success: nothing was done."""
    assert 2 == fails(throwing(SystemExit(0)))
    assert "code of a plugin, or of another package, ended the program: SystemExit(0)" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed):
    """Daemons and cron may start a command without them."""
    command = f'"{sys.executable}" -m bionemo.webdatamodule plugins --json {closed}'
    assert 0 == subprocess.run(["/bin/sh", "-c", command], check=False).returncode
