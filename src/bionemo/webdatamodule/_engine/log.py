"""The logger of this package: decisions are logged once, warnings where they occur.

Warnings come from every process that has a reason. What was decided is the same on all ranks, so :func:`decided`
logs it at the level INFO in the main process of rank 0, and at DEBUG everywhere else.
"""

from __future__ import annotations

import logging
import os
import sys

from bionemo.webdatamodule import context

_log = logging.getLogger("bionemo.webdatamodule")
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in the order in which Lightning asks


def decided(message: str, *values: object) -> None:
    """Log a decision.

    Args:
        message: A sentence with placeholders such as ``%s``.
        *values: What to put there.
    """
    _log.log(logging.INFO if is_first() else logging.DEBUG, message, *values, stacklevel=2)


def is_first() -> bool:
    """Return whether this is the main process of rank 0, or the first of its workers.

    The rank is asked of ``torch.distributed``, else of the environment that launchers set.
    """
    if context.worker().number:
        return False
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return rank == "0"
