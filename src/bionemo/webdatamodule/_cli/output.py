"""Standard output: text that is safe for terminals, or with ``--json`` one JSON value and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from bionemo.webdatamodule.errors import WebDataModuleError


def escaped(text: str) -> str:
    """Return text whose control characters, but for newlines and tabs, are written as escapes.

    Keys and messages of errors hold what is in the data, and a terminal obeys control characters.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """Print the JSON that a command was asked for; dataclasses and other objects become their attributes."""
    text = json.dumps(value, indent=2, default=vars) + "\n"
    stream = sys.stdout
    (stream.answer if isinstance(stream, _Aside) else stream).write(text)


def failure(code: str, message: str, where: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return what stands for a failure in JSON.

    Args:
        code: The error's code, or another word for what is not an error of this package.
        message: What happened.
        where: Who and where, by name.
    """
    place = {name: value if isinstance(value, (int, str)) else str(value) for name, value in (where or {}).items()}
    return {"error": {"code": code, "message": message, "where": place}}


def error_as_json(error: WebDataModuleError) -> dict[str, Any]:
    """Return what stands for an error in JSON."""
    return failure(error.code, error.message, error.where)


@contextlib.contextmanager
def standard_output(*, only_json: bool) -> Iterator[None]:
    """Be the standard output of a command.

    Args:
        only_json: Let :func:`print_json` alone write to it. All else goes to standard error, what plugins and
            child processes print as well.
    """
    stream = sys.stdout
    if not only_json:
        with contextlib.redirect_stdout(_Escaped(stream)):
            yield
        return
    with _kept(stream) as answer, contextlib.redirect_stdout(_Aside(answer)):
        yield


class _Escaped:
    """A stream whose text is escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Aside:
    """Standard error in place of standard output, and the stream for the answer."""

    def __init__(self, answer: TextIO) -> None:
        self.answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextlib.contextmanager
def _kept(stream: TextIO) -> Iterator[TextIO]:
    """Give what is written to a stream at the end, whose descriptor writes to standard error meanwhile."""
    try:
        descriptor, errors = stream.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # no files, as in a test or a notebook
        yield stream
        return
    stream.flush()
    kept = os.dup(descriptor)
    os.dup2(errors, descriptor)
    answer = io.StringIO()
    try:
        yield answer
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        stream.write(answer.getvalue())
