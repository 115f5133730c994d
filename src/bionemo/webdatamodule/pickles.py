"""The pickle codec: read pickles without running them, and write pickles that any Python reads fast.

:mod:`bionemo.webdatamodule.builtins.pickle` has the parts, and says in which order to review them.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bionemo.webdatamodule.builtins.pickle.safe.formats import other_format
from bionemo.webdatamodule.builtins.pickle.safe.names import finder, ghost
from bionemo.webdatamodule.builtins.pickle.safe.opcodes import run
from bionemo.webdatamodule.builtins.pickle.safe.unpickler import LARGE, Unpickler
from bionemo.webdatamodule.builtins.pickle.write.canonical import dumps
from bionemo.webdatamodule.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Policy", "dumps", "loads", "recode"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What pickles may do; one object for conversion, reading and the command line.

    Attributes:
        pickles: ``"safe"`` builds known types only: Python's containers and scalars, times with zones, Decimal,
            Fraction, UUID, pure paths, numpy arrays, masked arrays and scalars, and dense tensors, on the CPU.
            ``"trusted"`` runs the pickle with Python's unpickler.
        allow: Further classes and functions (``allow_pickle`` of the data modules): the class, its name such as
            ``"pkg.mod.Class"``, or ``"pkg.*"`` for everything below a package or module. Stored as names.
            They are imported and used as by :mod:`pickle`, so allow only those that are safe with any arguments.

    Raises:
        ConfigError: An unknown mode, or an invalid entry.
    """

    pickles: Literal["safe", "trusted"] = "safe"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pickles not in ("safe", "trusted"):
            raise ConfigError(f'pickles is "safe" or "trusted", not {self.pickles!r}')
        if isinstance(self.allow, str):
            raise ConfigError(f"allow_pickle takes a list of names: [{self.allow!r}], not {self.allow!r}")
        object.__setattr__(self, "allow", tuple(map(_allowed_name, _listed(self.allow))))


def _listed(allow: Any) -> Iterable[Any]:
    try:
        return list(allow)
    except TypeError:
        raise ConfigError(f"allow_pickle takes a list of names or classes, not {allow!r}") from None


def _allowed_name(entry: Any) -> str:
    """Return the name of what a user allows.

    Raises:
        ConfigError: If it is not a name, and nothing that a pickle could name.
    """
    name = entry
    if not isinstance(entry, str) and callable(entry):
        name = f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', '')}"
    parts = name.removesuffix(".*").split(".") if isinstance(name, str) else []
    package = isinstance(name, str) and name.endswith(".*")
    if len(parts) < 2 - package or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f'allow_pickle takes names such as "pkg.mod.Class" or "pkg.*", and classes of a module, not {entry!r}'
        )
    return str(name)


_SAFE: Final = Policy()


def loads(data: bytes | bytearray | memoryview, *, policy: Policy = _SAFE) -> Any:
    """Decode exactly one pickled object.

    Args:
        data: The pickle, of any protocol from 0 to 5.
        policy: The policy.

    Returns:
        The result of :func:`pickle.loads`, with the same types. Numpy arrays are always writable, tensors are on the
        CPU, and strings of Python 2 are text (``encoding="latin1"``).

    Raises:
        RefusedPickleError: The pickle names something that the policy does not allow, or a class that cannot be
            imported. The message names it and the argument to add.
        DecodeError: The data are no well-formed pickle, or something follows it, or ``torch.save`` wrote them.
        MemoryError, ImportError: What a class of the user's raises of these passes unchanged.
    """
    view = memoryview(data).cast("B")
    other = other_format(view)
    if other is not None:
        raise DecodeError(other)
    if policy.pickles == "trusted":
        value, end = _load_trusted(view)
    else:
        value, end = _load_safely(view, policy)
    if end != len(view):
        raise DecodeError(
            f"{len(view) - end} bytes follow the pickled object; "
            "a file with several objects has to become a list of them, or several files"
        )
    return value


def _load_safely(view: memoryview, policy: Policy) -> tuple[Any, int]:
    if len(view) > LARGE and not policy.allow:  # a user's class may keep what it gets
        with contextlib.suppress(Exception):  # what is wrong is said below
            unpickler = Unpickler(view, finder(policy.allow), lends=True)
            found = run(unpickler)
            if not unpickler.lost():
                return found
    return run(Unpickler(view, finder(policy.allow)))


def recode(data: bytes, *, policy: Policy) -> bytes:
    """Decode a pickle and write it in the canonical form; what conversion applies to pickle fields.

    Raises:
        RefusedPickleError, DecodeError: As :func:`loads`.
    """
    return dumps(loads(data, policy=policy))


class _TrustingUnpickler(pickle.Unpickler):
    """Python's own, with tensors on the CPU, and the name in the error for a class that is not there."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_on_cpu
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise ghost(module, name, error) from error


def _load_on_cpu(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


def _load_trusted(view: memoryview) -> tuple[Any, int]:
    stream = io.BytesIO(view)
    try:
        return _TrustingUnpickler(stream, encoding="latin1").load(), stream.tell()
    except (DecodeError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise DecodeError(f"the pickle cannot be decoded: {type(error).__name__}: {error}") from error
