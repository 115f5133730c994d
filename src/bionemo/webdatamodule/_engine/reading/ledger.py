"""The state of each sample (unread, good or bad), one byte each, shared with worker processes."""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SOUND, BAD = 1, 2
"""States of a sample; those from ``BAD`` on say why it is left out."""


class Ledger:
    """One byte for each sample, in memory that forked and spawned workers share.

    So a checksum is computed once and not in each worker and epoch, and samples that were left out are counted once.
    Workers write single bytes, so they need no lock.

    Args:
        n_samples: Number of samples.
    """

    def __init__(self, n_samples: int) -> None:
        self._tensor = torch.zeros(n_samples, dtype=torch.uint8).share_memory_()
        self.states: NDArray[np.uint8] = self._tensor.numpy()

    @property
    def n_bad(self) -> int:
        """Number of samples found bad, by this process and all that share the ledger."""
        return int(np.count_nonzero(self.states >= BAD))

    def __getstate__(self) -> Any:
        # A worker process gets the same memory; a pickle that goes elsewhere knows nothing of the data there.
        return self._tensor if get_spawning_popen() is not None else len(self._tensor)

    def __setstate__(self, state: Any) -> None:
        self._tensor = state if isinstance(state, torch.Tensor) else torch.zeros(state, dtype=torch.uint8)
        self.states = self._tensor.numpy()
