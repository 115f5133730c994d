"""Several batches at once: what their samples have in common is done for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bionemo.webdatamodule._engine.format.fields import Place


@dataclass(frozen=True, kw_only=True)
class Together:
    """Makes batches of samples that were found, checked and compared with what is known together.

    Their shards stay mapped for as long as it lives.

    Attributes:
        places: Where the samples are.
        makes: For each suffix what makes a batch of some of them.
    """

    places: Sequence[Place]
    makes: Sequence[Callable[[slice], Any]]

    @property
    def n_shards(self) -> int:
        """Number of shards that the samples are in."""
        return len({shard for shard, _ in self.places})

    def __call__(self, here: slice) -> tuple[Any, ...]:
        """Return the batch of the samples at some places."""
        return tuple(make(here) for make in self.makes)

    def look_again(self, here: slice) -> None:
        """Check that the shards of the samples at some places still have all their bytes."""
        for shard in {shard for shard, _ in self.places[here]}:
            shard.check()


def in_a_row(shares: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], slice]]:
    """Yield each share with its place among all their samples."""
    stop = 0
    for share in shares:
        yield share, slice(stop, stop := stop + len(share))
