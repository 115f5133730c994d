"""A trial: one worker process starts and sends a batch, as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from bionemo.webdatamodule.components import Item

_BYTES = 1 << 20
_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How it went.

    Attributes:
        seconds: From the start of the worker to the end of the last batch.
        problem: What failed, or ``None``.
    """

    seconds: float
    problem: str | None


class _Batches:
    """Two batches of a megabyte."""

    where: ClassVar[Mapping[str, object]] = {}

    def __iter__(self) -> Iterator[Item]:
        import torch

        for number in range(2):
            batch = torch.full((_BYTES,), number + 1, dtype=torch.uint8)
            yield Item(epoch=0, start=0, worker=0, number=number, values=[batch])


def try_worker() -> Trial:
    """Start a worker of the default loader and compare what it sends."""
    from bionemo.webdatamodule.builtins.webloader.plugin import WebLoader

    began = time.monotonic()
    try:
        items = WebLoader(num_workers=1, timeout=_TIMEOUT)(_Batches())
        batches = [batch for item in items for batch in item.values]
        right = [int(batch.min()) for batch in batches] == [int(batch.max()) for batch in batches] == [1, 2]
        problem = None if right else "what arrived is not what was sent"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what would happen in a run
        problem = f"{type(error).__name__}: {error}"
    return Trial(seconds=time.monotonic() - began, problem=problem)
