"""How a command that failed tells programs why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bionemo.webdatamodule.errors import WebDataModuleError


def failure(code: str, message: str, where: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return what stands for a failure in JSON.

    Args:
        code: The error's code, or another word for what is no error of this package.
        message: What happened.
        where: Who and where, by name.
    """
    place = {name: value if isinstance(value, (int, str)) else str(value) for name, value in (where or {}).items()}
    return {"error": {"code": code, "message": message, "where": place}}


def error_as_json(error: WebDataModuleError) -> dict[str, Any]:
    """Return what stands for an error in JSON."""
    return failure(error.code, error.message, error.where)
