"""The default loader: webdataset's ``WebLoader`` over torch's worker processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bionemo.webdatamodule.components import Loader
from bionemo.webdatamodule.hookspecs import hookimpl


@dataclass(frozen=True, kw_only=True)
class _Pending:
    options: dict[str, Any] = field(default_factory=dict)


@hookimpl
def webdatamodule_loaders() -> Iterable[Loader]:
    """Register the default loader."""
    yield Loader(name="webloader", summary="webdataset's WebLoader", factory=_Pending)
