"""Shuffling a stream through a buffer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from bionemo.webdatamodule.epochs.context import Context


def shuffled(samples: Iterator[Any], size: int, initial: int | None, place: Context) -> Iterator[Any]:
    """Yield samples in another order, which depends on the place alone.

    Args:
        samples: The stream.
        size: Samples in the buffer.
        initial: Samples in the buffer before the first is passed on; ``None`` for a full buffer.
        place: Where the pipeline stands.
    """
    pick = place.rng(f"shuffle {size} {initial}").randrange
    initial = min(size, initial or size)
    buffer: list[Any] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) < size:  # grow by two for each one passed on, until the buffer is full
            buffer.extend(itertools.islice(samples, 1))
        if len(buffer) >= initial:
            chosen = pick(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
    while buffer:
        chosen = pick(len(buffer))
        buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
        yield buffer.pop()
