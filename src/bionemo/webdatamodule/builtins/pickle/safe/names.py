"""Look up what a pickle names."""

from __future__ import annotations

import functools
import importlib
import operator
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.builtins.pickle.safe import numpy_types, python_types
from bionemo.webdatamodule.builtins.pickle.safe.limits import Global
from bionemo.webdatamodule.errors import RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

# Protocols 0 to 2 spell a few names as Python 2 did.
_MODULES: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_NAMES: Final = {("builtins", "xrange"): "range"}

_TABLE: Final = {**python_types.TABLE, **numpy_types.TABLE}


def known(module: str, name: str) -> Any:
    """Return the token or constant for a name that the safe codec knows.

    The pair has to be in a table exactly: no prefix of a module, no attribute of an attribute.

    Raises:
        KeyError: It does not know the name.
    """
    if module == "torch" or module.startswith("torch."):
        from bionemo.webdatamodule.builtins.pickle.safe import (
            torch_types,  # here, so that only torch's pickles import torch
        )

        return torch_types.TABLE[module, name]
    return _TABLE[module, name]


@functools.lru_cache(maxsize=8)
def finder(allow: tuple[str, ...]) -> Callable[[str, str], Any]:
    """Return what looks names up: the user's first, then ours, and an error for all others."""
    allowed = frozenset(allow)

    @functools.lru_cache(maxsize=256)  # streams name the same few things
    def find(module: str, name: str) -> Any:
        module = _MODULES.get(module, module)
        name = _NAMES.get((module, name), name)
        if f"{module}.{name}" in allowed:
            return _allowed(module, name)
        try:
            return known(module, name)
        except KeyError:
            raise RefusedPickleError(
                f"the pickle names {module}.{name}, which the safe codec does not build; "
                f'if that is a class you know and trust, pass allow_pickle=["{module}.{name}"]'
            ) from None

    return find


def _allowed(module: str, name: str) -> Global:
    try:
        real = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ghost(module, name, error) from error
    new = functools.partial(real.__new__, real) if isinstance(real, type) else None
    return Global(name=f"{module}.{name}", call=real, new=new, real=real, allowed=True)


def ghost(module: str, name: str, error: Exception) -> RefusedPickleError:
    """Return the error for a class that is not there."""
    return RefusedPickleError(
        f"the pickle needs {module}.{name}, which cannot be imported here ({error}); "
        "install the package that it was written with"
    )
