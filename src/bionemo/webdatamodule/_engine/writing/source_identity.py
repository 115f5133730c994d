"""What identifies a writer's reader: all of its options that change bytes, however the user spelled them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import pickle
import re
import types
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule.errors import DataWarning

_log = logging.getLogger("bionemo.webdatamodule")
_PATHS = re.compile(r"(?:.*_)?(?:dir|directory|directories|file|files|folder|folders|path|paths|root)(?:_.*)?")


def identity(reader: Any, options: Mapping[str, Any]) -> Any:
    """Return what distinguishes a reader from others of its writer, as JSON values.

    Of a dataclass these are its fields, save those with ``compare=False``; of a reader that was made from
    options these options; of any other object its attributes. Lists and tuples are one, paths are brought
    to one spelling. A function is its qualified name, its defaults, the values that it encloses, and its attribute
    ``version`` where it has one: a changed body alone does not count.

    Args:
        reader: The reader.
        options: What it was made from, where that is known.
    """
    if not _is_dataclass(reader):
        return {"options": _named(options), "state": {} if options else _state(reader, set())}
    return {"options": {}, "state": _state(reader, set())}


def _is_dataclass(value: Any) -> bool:
    """Return whether the fields identify an object: not if a plain class inherits from a dataclass."""
    return "__dataclass_fields__" in type(value).__dict__ and is_dataclass(value)


def _state(value: Any, inside: set[int]) -> Any:
    """Return the attributes of an object."""
    if _is_dataclass(value):
        return _named({field.name: getattr(value, field.name) for field in fields(value) if field.compare}, inside)
    given = getattr(type(value), "__getstate__", None)
    if given is not None and given is not getattr(object, "__getstate__", None):
        return _plain(value.__getstate__(), inside)
    if hasattr(value, "__dict__"):
        return _named(vars(value), inside)
    try:
        return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except Exception:  # noqa: BLE001 - pickling runs the object's own code
        warnings.warn(
            f"a {type(value).__qualname__} in the writer's options cannot be distinguished from others of its kind; "
            "if it changes, remove the shards before the next conversion",
            DataWarning,
            stacklevel=2,
        )
        return None


def _named(values: Mapping[str, Any], inside: set[int] | None = None) -> dict[str, Any]:
    """Return options or attributes; text is a path where the name says so."""
    return {
        str(name): _plain(values[name], inside or set(), is_path=_PATHS.fullmatch(str(name)) is not None)
        for name in sorted(values, key=str)
    }


def _plain(value: Any, inside: set[int], *, is_path: bool = False) -> Any:
    if isinstance(value, Enum):
        return [_name(type(value)), value.name]
    if value is None or isinstance(value, (bool, int, float)):
        return value if type(value) in {type(None), bool, int, float} else json.loads(json.dumps(value))
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, bytes):
            text = os.fsdecode(text)
        is_path = is_path or not isinstance(value, str)
        return _real(text) if is_path else str(text)
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item(), inside)  # a number of numpy's or torch's
    if id(value) in inside:
        return "itself"
    inside = inside | {id(value)}
    if isinstance(value, Mapping):
        named = {json.dumps(_plain(key, inside)): _plain(value[key], inside, is_path=is_path) for key in value}
        return {"mapping": sorted(named.items())}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(json.dumps(_plain(one, inside)) for one in value)}
    if isinstance(value, (list, tuple)):
        return [_plain(one, inside, is_path=is_path) for one in value]
    return _object(value, inside)


def _real(path: str) -> str:
    """Return the one spelling of a local path; whether it is there does not matter."""
    return str(path) if not path or "\0" in path or is_url(path) else os.path.realpath(path)


def _object(value: Any, inside: set[int]) -> Any:
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return ["partial", *(_plain(part, inside) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, types.MethodType):
        return [_plain(value.__func__, inside), _plain(value.__self__, inside)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        version = getattr(value, "version", None)
        if value.__name__ == "<lambda>" and version is None:
            _log.warning(
                "a lambda of %s in the writer's options has no name of its own; "
                "if it changes, remove the shards before the next conversion",
                value.__module__,
            )
        bound = (version, value.__defaults__, value.__kwdefaults__, cells)
        return [_name(value), *(_plain(part, inside) for part in bound)]
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    return [_name(type(value)), _state(value, inside)]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asks whether there is something in it
    except ValueError:
        return False
    return True


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
