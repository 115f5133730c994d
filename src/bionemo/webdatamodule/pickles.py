"""The pickle codec: read pickles without running them, and write pickles that any Python reads fast.

Reading is in four short files, each a rule book of its own: :mod:`~bionemo.webdatamodule.unpickler` (opcodes),
:mod:`~bionemo.webdatamodule.safe_types` and :mod:`~bionemo.webdatamodule.safe_tensors` (what may be named and
how it is checked) and this one (who decides).
Writing is in :mod:`~bionemo.webdatamodule.canonical`.
"""

from __future__ import annotations

import functools
import importlib
import io
import operator
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bionemo.webdatamodule.canonical import dumps
from bionemo.webdatamodule.errors import ConfigError, DecodeError, RefusedPickleError
from bionemo.webdatamodule.safe_types import TABLE, Global
from bionemo.webdatamodule.unpickler import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Policy", "dumps", "loads", "recode"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What pickles may do; one object for conversion, reading and the command line.

    Attributes:
        pickles: ``"safe"`` builds known types only: Python's containers and scalars, times, Decimal, Fraction,
            UUID, pure paths, numpy arrays and scalars, dense CPU tensors. ``"trusted"`` does whatever the pickle
            says, with Python's own unpickler.
        allow: Further classes and functions as ``"pkg.mod.Class"`` (``allow_pickle`` of the data modules).
            They are imported and used as :mod:`pickle` would, so allow only what may be called with any arguments.

    Raises:
        ConfigError: An unknown mode, or an entry that is no dotted name.
    """

    pickles: Literal["safe", "trusted"] = "safe"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pickles not in ("safe", "trusted"):
            raise ConfigError(f'pickles is "safe" or "trusted", not {self.pickles!r}')
        if isinstance(self.allow, str):
            raise ConfigError(f"allow_pickle takes a list of names: [{self.allow!r}], not {self.allow!r}")
        object.__setattr__(self, "allow", tuple(self.allow))
        for name in self.allow:
            if not isinstance(name, str) or not all(part.isidentifier() for part in ("." + name).split(".")[1:]):
                raise ConfigError(f'allow_pickle takes names such as "pkg.mod.Class", not {name!r}')
            if "." not in name:
                raise ConfigError(f'allow_pickle needs the module too, as in "pkg.mod.Class", not {name!r}')


_SAFE: Final = Policy()

# Protocols 0 to 2 spell a few names as Python 2 did.
_MODULES: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_NAMES: Final = {("builtins", "xrange"): "range"}


def loads(data: bytes | bytearray | memoryview, *, policy: Policy = _SAFE) -> Any:
    """Decode exactly one pickled object.

    Args:
        data: The pickle, of any protocol from 0 to 5.
        policy: What it may build.

    Returns:
        What :func:`pickle.loads` returns, with the same types. Numpy arrays are always writable.

    Raises:
        RefusedPickleError: The pickle asks for something that the policy does not allow, or for a class that
            cannot be imported. The message names it and the argument to add.
        DecodeError: The data are no well-formed pickle, or something follows it.
    """
    view = memoryview(data).cast("B")
    if policy.pickles == "trusted":
        value, end = _load_trusted(view)
    else:
        value, end = Machine(view, _finder(policy)).run()
    if end != len(view):
        raise DecodeError(
            f"{len(view) - end} bytes follow the pickled object; "
            "a file with several objects has to become a list of them, or several files"
        )
    return value


def recode(data: bytes, *, policy: Policy) -> bytes:
    """Decode a pickle and write it in the canonical form; what conversion applies to pickle fields.

    Raises:
        RefusedPickleError, DecodeError: As :func:`loads`.
    """
    return dumps(loads(data, policy=policy))


@functools.lru_cache(maxsize=8)
def _finder(policy: Policy) -> Callable[[str, str], Any]:
    allowed = frozenset(policy.allow)

    @functools.lru_cache(maxsize=256)  # a stream asks for the same few names
    def find(module: str, name: str) -> Any:
        module = _MODULES.get(module, module)
        name = _NAMES.get((module, name), name)
        if f"{module}.{name}" in allowed:
            return _allowed(module, name)
        table = TABLE
        if module == "torch" or module.startswith("torch."):
            from bionemo.webdatamodule.safe_tensors import TABLE as table  # so that torch is imported for torch
        try:
            return table[module, name]
        except KeyError:
            raise RefusedPickleError(
                f"the pickle names {module}.{name}, which the safe codec does not build; "
                f'if you trust where the data come from, pass allow_pickle=["{module}.{name}"]'
            ) from None

    return find


def _allowed(module: str, name: str) -> Global:
    try:
        real = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise _ghost(module, name, error) from error
    new = functools.partial(real.__new__, real) if isinstance(real, type) else None
    return Global(name=f"{module}.{name}", call=real, new=new, real=real, allowed=True)


def _ghost(module: str, name: str, error: Exception) -> RefusedPickleError:
    return RefusedPickleError(
        f"the pickle needs {module}.{name}, which cannot be imported here ({error}); "
        "install the package that it was written with"
    )


class _TrustingUnpickler(pickle.Unpickler):
    """Python's own, with the name in the error for a class that is not there."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise _ghost(module, name, error) from error


def _load_trusted(view: memoryview) -> tuple[Any, int]:
    stream = io.BytesIO(view)
    try:
        return _TrustingUnpickler(stream).load(), stream.tell()
    except (DecodeError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise DecodeError(f"the pickle cannot be decoded: {type(error).__name__}: {error}") from error
