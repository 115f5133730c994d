"""The ``webdatamodule`` command: one module for each subcommand, imported when it is chosen."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import os
import re
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NoReturn, TextIO

from bionemo.webdatamodule._cli.output import error_as_json, escaped, failure, print_json, standard_output
from bionemo.webdatamodule.errors import ConfigError, PluginError, WebDataModuleError

COMMANDS = {
    "demo": "convert real cells to shards, train a classifier on them, and print a summary",
    "convert": "write samples of any source format to tar shards",
    "index": "adopt shards of another tool: check and index them, and write a manifest",
    "info": "print the contents of a directory of shards",
    "preview": "print the first samples of a directory or URL, with the type of each field",
    "verify": "compare shards with their manifest",
    "report": "write a report on a data set: shards, sizes, shapes, labels, plan, verification, provenance",
    "plan": "print what each rank and worker reads in a run",
    "bench": "measure how fast this machine reads a data set, by part and number of workers",
    "doctor": "check this machine and its settings, and list problems with remedies",
    "receipt": "compare the receipts of two runs, epoch by epoch",
    "plugins": "list installed plugins and their components",
    "new-plugin": "create the package of a new plugin",
}
"""Subcommands and their one-line help, in the order of a data set's life."""


_JSON = "--json"

_OUTPUT_CLOSED = 128 + signal.SIGPIPE
"""The exit code that a shell gives to a program whose output was closed."""


_INTERNAL = 70
"""The exit code of what should not happen; BSD's ``sysexits.h`` calls it ``EX_SOFTWARE``."""

TRACEBACK = "WEBDATAMODULE_TRACEBACK"
"""Environment variable: ``1`` prints the traceback of an error, too."""


class _Terminated(SystemExit):
    """SIGTERM came."""


_FOLDERS = ("bench", "doctor", "new-plugin", "plugins", "receipt", "report")
"""Commands that have a folder of their own."""


def command_module(name: str) -> Any:
    """Import the module of a subcommand, which has ``configure(parser)`` and ``run(args)``."""
    module = name.replace("-", "_")
    return importlib.import_module(f"{__package__}.{module}.command" if name in _FOLDERS else f"{__package__}.{module}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; by default those of this process.

    Returns:
        The exit code: 0 if all is well, 1 if a check found something, 2 if the command could not be done,
        70 if it failed in a way that it should not, 130 if it was interrupted, 143 if it was terminated,
        and 141 if the reader of its output closed it, as ``head`` does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a daemon may have closed them
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):  # keys may be no text that it can write
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    try:
        try:
            with standard_output(only_json=_JSON in words):
                code = _run(words)
        finally:
            sys.stdout.flush()  # what is still to be written may fail, and should do so here
    except BrokenPipeError as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:  # it was another pipe
            return _internal(words, error)
        for stream in closed:
            _discard(stream)
        return _OUTPUT_CLOSED
    except OSError as error:  # standard output did not take all, as on a full disk
        _discard(sys.stdout)
        return code if code > 1 else _failed(words, str(error), failure("system", str(error)), 2)
    return code


def _run(words: list[str]) -> int:
    """Run the command, and print one line if it failed."""
    try:
        with _terminable(), _short_warnings():
            parsed = _parse(words)
            return _exit_code(parsed)
    except WebDataModuleError as error:
        return _failed(words, str(error), error_as_json(error), 2)
    except BrokenPipeError:
        raise
    except OSError as error:  # of this machine: no such file, no right to write, no space
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return _failed(words, what, failure("system", what), 2)
    except Exception as error:  # noqa: BLE001 - reported as an internal error
        return _internal(words, error)
    except KeyboardInterrupt:
        return _failed(words, "interrupted", failure("interrupted", "interrupted"), 130)
    except _Terminated:
        return _failed(words, "terminated", failure("terminated", "terminated"), 128 + signal.SIGTERM)


def _exit_code(parsed: argparse.Namespace) -> int:
    try:
        return int(parsed.run(parsed))
    except _Terminated:
        raise
    except SystemExit as error:  # nothing was done, whatever it says
        raise PluginError(f"code of a plugin, or of another package, ended the program: {error!r}") from error


class _Parser(argparse.ArgumentParser):
    """A parser that raises what it finds wrong, and what keeps its help from being written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message if message.endswith("?") else f"{message}; see `{self.prog} --help`")


def _parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments, with the function to run; the command's module is imported here.

    Raises:
        ConfigError: If a command, an argument or an option is unknown, missing or of the wrong type.
    """
    parser = _Parser(
        prog="webdatamodule",
        description="WebDataset shards for Lightning: convert, inspect, plan, measure.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('bionemo-webdatamodule')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = _command(words)
    if chosen is not None and chosen not in COMMANDS:
        parser.error(f"there is no command {chosen!r}{_near(chosen, COMMANDS)}")
    usage = parser
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name == chosen:
            module = command_module(name)
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
            usage = subparser
    parsed, extra = parser.parse_known_args(words)
    for word in sorted(extra, key=lambda word: not word.startswith("-")):  # behind an unknown option follows its value
        option = word.partition("=")[0]
        if word.startswith("-"):
            usage.error(f"there is no option {option!r}{_near(option, re.findall('--[a-z-]+', usage.format_usage()))}")
        usage.error(f"{word!r} is one argument too many")
    return parsed


def _near(word: str, words: Iterable[str]) -> str:
    """Return a hint for a word that is nearly one of others; empty where there is none."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _command(words: Sequence[str]) -> str | None:
    """Return the first word that is not an option."""
    return next((word for word in words if not word.startswith("-")), None)


def _internal(words: Sequence[str], error: Exception) -> int:
    """Report an error that no command expects."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    hint = "" if _wants_traceback() else f"; {TRACEBACK}=1 shows where, which a bug report needs"
    return _failed(words, f"internal error {what}{hint}", failure("internal", what), _INTERNAL)


def _failed(words: Sequence[str], line: str, report: Mapping[str, Any], code: int) -> int:
    """Report how a command failed, and return its exit code; called where the exception is handled."""
    if _wants_traceback():
        traceback.print_exc()
    print(" ".join(filter(None, ("webdatamodule", _command(words)))) + f": {escaped(line)}", file=sys.stderr)
    if _JSON in words:
        print_json(report)
    return code


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings of this package as one line, without the line of code that they come from."""
    usual = warnings.formatwarning

    def brief(message: Warning | str, category: type[Warning], *place: Any) -> str:
        if category.__module__.startswith("bionemo.webdatamodule"):
            return f"webdatamodule: warning: {escaped(str(message))}\n"
        return usual(message, category, *place)

    warnings.formatwarning = brief  # type: ignore[assignment]  # the rest of its arguments is passed on
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _wants_traceback() -> bool:
    return os.environ.get(TRACEBACK, "0") not in {"", "0"}


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that workers are stopped and half-written files removed."""
    owner = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() == owner:
            raise _Terminated(128 + number)
        signal.signal(number, signal.SIG_DFL)  # a forked process, which has nothing to clean up
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _discard(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere; it is written when Python ends."""
    with contextlib.suppress(ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - not a path
        os.dup2(nowhere.fileno(), stream.fileno())


def _is_closed(stream: TextIO) -> bool:
    """Return whether a stream is a pipe whose reader closed it."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))
