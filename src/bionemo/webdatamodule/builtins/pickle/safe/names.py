"""Look up what a pickle names."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from bionemo.webdatamodule.builtins.pickle.safe import numpy_types, python_types
from bionemo.webdatamodule.builtins.pickle.safe.tokens import Global, UnknownNameError, resolve
from bionemo.webdatamodule.errors import RefusedPickleError

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Return what looks names up: names that the user allowed, then ours, then packages that the user allowed.

    It raises :class:`UnknownNameError` for all others.
    """
    packages = tuple(name.removesuffix("*") for name in allow if name.endswith(".*"))
    allowed = frozenset(allow)

    def find(module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in allowed:
            return _allowed(module, name)
        try:
            return known(module, name)
        except KeyError:
            if full.startswith(packages):
                return _allowed(module, name)
            raise UnknownNameError(full) from None

    return find


def _allowed(module: str, name: str) -> Global:
    try:
        found = resolve(module, name)
    except (ImportError, AttributeError) as error:
        raise ghost(module, name, error) from error
    new = functools.partial(found.__new__, found) if isinstance(found, type) else None
    return Global(name=f"{module}.{name}", call=found, new=new, real=found, allowed=True)


def ghost(module: str, name: str, error: Exception) -> RefusedPickleError:
    """Return the error for a class that is not there."""
    return RefusedPickleError(
        f"the pickle needs {module}.{name}, which cannot be imported here ({error}); "
        "install the package that it was written with"
    )
