"""The ``webdatamodule`` command: one module of ``commands`` for each subcommand, imported when it is chosen."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TextIO

from bionemo.webdatamodule.errors import WebDataModuleError

COMMANDS = {
    "demo": "convert real cells to shards, train a classifier on them, and say what it learnt",
    "convert": "write samples of any source format to tar shards",
    "index": "adopt shards that another tool wrote: check and index them, and list them in a manifest",
    "info": "say what a directory of shards holds",
    "preview": "show the first samples of a directory or URL, and what kind of value each field is",
    "verify": "compare shards with what their manifest says",
    "report": "write a page about a data set: shards, sizes, shapes, labels, plan, verification, provenance",
    "plan": "say which rank and worker reads what, before a run",
    "bench": "measure how fast this machine reads a data set, part by part and by number of workers",
    "doctor": "check this machine and its settings, and say what would go wrong and what to do",
    "plugins": "list installed plugins and what they offer",
    "new-plugin": "write the package of a new plugin, ready to install and to change",
}
"""Subcommands and their one-line help, in the order of a data set's life."""


_NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code that a shell gives to a program whose output nobody reads any more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; by default those of this process.

    Returns:
        The exit code: 0 if all is well, 1 if a check found something, 2 if the command could not be done,
        130 if it was interrupted, and 141 if whoever read its output went away, as ``head`` does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # what is still to be written may fail, and should do so here
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:
            raise  # it was another pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:  # what is left in buffers is written when Python ends
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return _NOBODY_READS


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="webdatamodule", description="WebDataset shards for Lightning: convert, inspect, plan, measure."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('bionemo-webdatamodule')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            module = importlib.import_module(f"bionemo.webdatamodule.commands.{name.replace('-', '_')}")
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    parsed = parser.parse_args(words)
    try:
        return int(parsed.run(parsed))
    except WebDataModuleError as error:
        print(f"webdatamodule {parsed.command}: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return 2
    except KeyboardInterrupt:
        print(f"webdatamodule {parsed.command}: interrupted", file=sys.stderr)  # noqa: T201 - this is a command
        return 130


def _is_closed(stream: TextIO) -> bool:
    """Tell whether a stream is a pipe that nobody reads any more."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))
