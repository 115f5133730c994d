"""Where a loader is in its run, and where its next iteration begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bionemo.webdatamodule._engine.loading.clock import Clock
from bionemo.webdatamodule._engine.sampling.cursor import Cursor


class Progress:
    """The epoch of a loader and the batches of it that were handed out.

    Every iteration is an epoch of its own; under a ``Trainer`` that fits, it is the trainer's current one.

    Args:
        cursor: A cursor at the start of the data, with the identity of data and plan.
        clock: Tells the trainer's epoch and how many steps ran.
    """

    def __init__(self, cursor: Cursor, clock: Clock) -> None:
        self.cursor = cursor  # where the current iteration began, or the next one begins
        self.delivered = 0  # batches handed out since
        self._clock = clock
        self.resumed = False  # whether the next iteration begins where a state says
        self._begun = False
        self._steps_before: int | None = None

    def seek(self, cursor: Cursor) -> None:
        """Begin the next iteration at a cursor."""
        self.cursor = cursor
        self.delivered = 0
        self.resumed = True
        self._begun = False
        self._steps_before = None

    def begin(self, finished: Callable[[Cursor], bool]) -> Cursor | None:
        """Begin an iteration.

        Args:
            finished: Tells whether nothing is left of the epoch at a cursor.

        Returns:
            Where it begins, or ``None`` if nothing is left of the trainer's epoch.
        """
        cursor = self.cursor
        epoch = self._clock.epoch()
        if epoch is None:
            if self._begun or finished(cursor):
                cursor = replace(cursor, epoch=cursor.epoch + 1, samples=0)
        elif self._begun or cursor.epoch != epoch:
            cursor = replace(cursor, epoch=epoch, samples=0)
        elif finished(cursor):
            return None  # with max_steps Lightning asks an epoch that it resumed at its end for one more batch
        self.seek(cursor)
        self.resumed = False
        self._begun = True
        self._steps_before = None if epoch is None else self._clock.steps()
        return cursor

    @property
    def stepped(self) -> int:
        """Batches of this iteration whose step ran.

        A checkpoint may be written while the step of the last batch handed out runs or fails;
        Lightning then begins again at that batch.
        """
        steps = self._clock.steps()
        if self._steps_before is None or steps is None:
            return self.delivered
        ran = steps - self._steps_before
        return self.delivered if ran < 0 else min(self.delivered, ran)  # below 0: the next epoch was announced
