"""The codec of pickles in the form that the engine asks for today."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.pickles import Policy


class Decoder:
    """Decodes the pickles of one field."""

    def __init__(self, policy: Policy) -> None:
        self.codec = PickleCodec(policy)

    def values(self, views: Sequence[memoryview]) -> list[Any]:
        """Return the values."""
        return self.codec.column(views).values()

    def batcher(
        self, views: Sequence[memoryview], *, empty: Callable[..., Any], pad: bool = False
    ) -> Callable[[slice], Any]:
        """Return what makes a batch of consecutive fields."""
        column = self.codec.column(views)

        def batch(where: slice) -> Any:
            with context.working(context.Worker(empty=empty)):
                return column[where].pad() if pad else column[where].stack()

        return batch
