"""Running things in a fresh Python process, which shares nothing with this one but its import path."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PATH = "import sys; sys.path[:] = {path!r}\n"
"""The first line of a process: Python would look into the working directory before all others."""

_CALL = """
import os, pickle, sys
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what the called code prints is not an answer
function, args, kwargs = pickle.load(sys.stdin.buffer)
pickle.dump(function(*args, **kwargs), answer)
"""

_IMPORTS = """
import importlib, json, os, sys
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import bionemo.webdatamodule.hookspecs
before = set(sys.modules)
importlib.import_module(sys.argv[1])
json.dump(sorted({name.partition(".")[0] for name in set(sys.modules) - before}), answer)
"""


class ProcessError(RuntimeError):
    """The code that ran in a fresh process failed; the message is the end of what it wrote to stderr."""


def in_fresh_process(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in a new Python process, as a spawned worker would.

    Function, arguments and result travel as pickles, so each must be importable there by its module's name.
    The process has another hash seed than this one, so an order that hangs on ``hash`` shows.

    Raises:
        ProcessError: If the function, or bringing it there, raises.
    """
    try:
        given = pickle.dumps((function, args, kwargs))
    except Exception as error:
        raise ProcessError(f"it cannot be pickled: {error}") from error
    return pickle.loads(_python(_CALL, [], given))  # type: ignore[no-any-return]


def imported_with(module: str) -> list[str]:
    """Return the top-level packages outside the standard library that importing a module imports.

    This package and pluggy, which every plugin needs, are left out.

    Raises:
        ProcessError: If the import fails.
    """
    names = json.loads(_python(_IMPORTS, [module], b""))
    return [name for name in names if name not in sys.stdlib_module_names and name not in ("bionemo", "__mp_main__")]


def _python(code: str, arguments: Sequence[str], given: bytes) -> bytes:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    path = [entry or str(Path.cwd()) for entry in map(str, sys.path)]
    done = subprocess.run(  # noqa: S603 - our own code in this interpreter
        [sys.executable, "-c", _PATH.format(path=path) + code, *arguments],
        input=given,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ProcessError("\n".join(lines[-12:]) or f"exit code {done.returncode}")
    return done.stdout
