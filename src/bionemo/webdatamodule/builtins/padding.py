"""Batches of samples that differ in length: filled up with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate


def joined(samples: list[Any], *, pad: bool) -> Any:
    """Return the batch of some samples, by :func:`fill` or else by torch's ``default_collate``."""
    return fill(samples) if pad else default_collate(samples)


def fill(samples: list[Any]) -> Any:
    """Collate samples as torch does, after filling tensors and arrays of one or more dimensions up with zeros.

    Args:
        samples: Samples of one structure: tensors, arrays, numbers, strings, or tuples, lists and
            dictionaries of them. Tensors may differ in their first dimension.

    Returns:
        The batch; a tensor of shape ``(n, longest, ...)`` where lengths differ.
    """
    first = samples[0]
    if isinstance(first, np.ndarray):
        return fill([torch.as_tensor(sample) for sample in samples])
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    if isinstance(first, dict):
        return {name: fill([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple | list):
        return [fill(list(column)) for column in zip(*samples, strict=True)]
    return default_collate(samples)
