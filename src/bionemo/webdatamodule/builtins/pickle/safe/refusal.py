"""The error for a pickle that names what is neither known nor allowed: it lists all such names at once.

A name is offered for ``allow_pickle`` only if allowing it can help and does not hand the process to the pickle.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pickletools
import re
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.builtins.pickle.safe.numpy_types import STRINGS
from bionemo.webdatamodule.builtins.pickle.safe.tokens import TRUST, UnknownNameError, python3_name
from bionemo.webdatamodule.errors import RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_SCANNED: Final = 1_000_000  # opcodes of a refused pickle that are searched for further names
_TEXT: Final = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING")
)

_CODE: Final = re.compile(
    r"(cloudpickle|code|ctypes|dill|importlib|nt|operator|os|pdb|pickle|posix|pty|runpy|shutil|subprocess)\..*"
    r"|builtins\.(__import__|breakpoint|compile|delattr|eval|exec|getattr|input|open|setattr|type|vars)"
    r"|torch\.(hub\..*|(serialization\.)?load)|numpy\.load"
)
"""Names that run code or commands which a pickle brings, or read files and attributes for it."""

_USELESS: Final = {"numpy._core._internal._convert_to_stringdtype_kwargs": STRINGS}
"""Names that are of no use to the safe codec, and what to say of the pickle instead."""


def refusal(data: memoryview, find: Callable[[str, str], Any], first: str) -> RefusedPickleError:
    """Return the error for a pickle with unknown names, which lists all of them.

    Args:
        data: The pickle.
        find: What looks names up.
        first: The first unknown name.
    """
    names = list(dict.fromkeys([first, *filter(None, (_unknown(find, *named) for named in _named(data)))]))
    for useless in filter(_USELESS.get, names):
        return RefusedPickleError(_USELESS[useless])
    if unsafe := list(filter(_runs_code, names)):
        return RefusedPickleError(f"the pickle names {', '.join(unsafe)}, which can run any code; {TRUST}")
    quoted = ", ".join(f'"{name}"' for name in names)
    named = f"the pickle names {', '.join(names)}, which the safe codec does not build; if "
    if len(names) == 1:
        return RefusedPickleError(f"{named}that is a class you know and trust, pass allow_pickle=[{quoted}]")
    message = f"{named}you know and trust all {len(names)}, pass allow_pickle=[{quoted}]"
    packages = {name.partition(".")[0] for name in names}
    if len(packages) == 1:
        message += f', or allow_pickle=["{packages.pop()}.*"] for all of the package'
    return RefusedPickleError(message)


def held(names: list[str]) -> RefusedPickleError:
    """Return the error for a pickle whose value holds what it names, and not what that makes."""
    quoted = ", ".join(f'"{name}"' for name in names)
    remedy = TRUST if any(map(_runs_code, names)) else f"if you know and trust it, pass allow_pickle=[{quoted}]"
    return RefusedPickleError(f"the pickle holds {', '.join(names)} as a value and not what it makes; {remedy}")


def _runs_code(name: str) -> bool:
    return _CODE.fullmatch(name) is not None


def _unknown(find: Callable[[str, str], Any], module: str, name: str) -> str | None:
    """Return the full name if it is neither known nor allowed."""
    with contextlib.suppress(RefusedPickleError):  # an allowed class that is not there has a message of its own
        try:
            find(module, name)
        except UnknownNameError as error:
            return str(error)
    return None


def _named(data: memoryview) -> Iterator[tuple[str, str]]:
    """Yield all that a pickle names, as far as it is well-formed; nothing is built."""
    memo: dict[int, Any] = {}
    texts: list[str] = ["", ""]  # the last two that were pushed
    protocol = 0
    top: Any = None  # the text on top of the stack, if there is one
    try:
        arg: Any
        for opcode, arg, _ in itertools.islice(pickletools.genops(io.BytesIO(data)), _MOST_SCANNED):
            if opcode.name in _TEXT:
                top = arg
                texts = [texts[1], arg]
            elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if arg is None else arg] = top
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                top = memo.get(arg)
                texts = [texts[1], top] if top is not None else texts
            else:
                top = None
                if opcode.name == "PROTO":
                    protocol = arg
                elif opcode.name == "STACK_GLOBAL":
                    yield texts[0], texts[1]
                elif opcode.name in ("GLOBAL", "INST"):
                    module, _, name = arg.partition(" ")
                    yield python3_name(module, name) if protocol < 3 else (module, name)
    except ValueError:  # it is cut short, or damaged
        return
