"""Where a loader is in its run: the epoch, the batches handed out, and those whose step ran."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.tally import Tally
from bionemo.webdatamodule.errors import ResumeError

_log = logging.getLogger("bionemo.webdatamodule")
_OPEN = 64  # batches that were handed out and are not in the tally yet, at most: asking the trainer takes a while


class Clock(Protocol):
    """Says where the run that takes the batches is."""

    def epoch(self) -> int | None:
        """Return the epoch that runs now, or ``None`` where iterations count themselves."""
        ...

    def steps(self) -> int | None:
        """Return how many steps ran in the whole run, or ``None`` if every batch handed out counts as used."""
        ...

    def takes_any_number(self) -> bool:
        """Return whether a step takes as many batches as it likes, rather than one."""
        ...


class OwnClock:
    """The clock of a loader that is iterated by hand: every iteration is the next epoch."""

    def epoch(self) -> int | None:
        """Return ``None``."""
        return None

    def steps(self) -> None:
        """Return ``None``."""

    def takes_any_number(self) -> bool:
        """Return false."""
        return False


class EvaluationClock(OwnClock):
    """The clock of validation, test and prediction: every pass is the same epoch."""

    def epoch(self) -> int:
        """Return 0."""
        return 0


class TrainerClock:
    """The clock of a ``Trainer``.

    Args:
        trainer: The trainer, which the clock does not keep alive.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer: Callable[[], Any] = weakref.ref(trainer)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy in another process has no trainer

    def __setstate__(self, state: dict[str, Any]) -> None:
        del state
        self._trainer = lambda: None

    def epoch(self) -> int | None:
        """Return the trainer's epoch while it fits; 0 while it overfits on a few batches."""
        from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

        trainer = self._trainer()
        if trainer is None or trainer.state.fn is not TrainerFn.FITTING:
            return None
        if trainer.state.status is not TrainerStatus.RUNNING:
            return None
        return 0 if trainer.overfit_batches > 0 else int(trainer.current_epoch)

    def steps(self) -> int | None:
        """Return the batches that were processed, before a resume too."""
        trainer = self._trainer()
        return None if trainer is None else int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def takes_any_number(self) -> bool:
        """Return whether ``training_step`` takes a ``dataloader_iter``."""
        trainer = self._trainer()
        return trainer is not None and takes_iterator(trainer)


def takes_iterator(trainer: Any) -> bool:
    """Return whether a trainer's ``training_step`` takes a ``dataloader_iter`` in the place of a batch."""
    from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher

    return isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher)  # noqa: SLF001 - nothing public


class Progress:
    """The epoch of a loader and the batches of it that were handed out.

    Args:
        cursor: A cursor at the start of the data, with the identity of data and plan.
        clock: Of the run that takes the batches.
        skips_changed: Whether a state of other data means the next epoch, rather than an error.
    """

    def __init__(self, cursor: Cursor, clock: Clock, *, skips_changed: bool = False) -> None:
        self.changed = False  # whether the state that was loaded is of other data
        self._skips_changed = skips_changed
        self.cursor = cursor  # where the current iteration began, or the next one begins
        self.clock = clock
        self._begun = False
        self._any_number = False  # whether a step takes as many batches as it likes
        self._delivered = 0  # batches handed out since
        self._steps = 0  # steps that had run when the iteration began, or when a batch was handed out
        self._used = 0  # batches handed out before those of the step that runs
        self._before: tuple[tuple[int, int], Tally] | None = None  # what came before an iteration that begins there
        self._cycles = False  # whether an iteration that begins is one more of the same epoch
        self._tally = Tally()  # of the batches whose step ran, but for the latest of them
        self._open: deque[Tally] = deque()  # of the batches handed out since

    def fits(self, saved: Cursor, now: Callable[[], Cursor], split: str) -> bool:
        """Return whether a run may resume at a cursor; if not, and that is no error, the next epoch begins.

        Args:
            saved: The cursor of a checkpoint.
            now: Returns a cursor of this run.
            split: The split, for messages.

        Raises:
            ResumeError: If it may not.
        """
        self.changed = False
        try:
            saved.check(now())
        except ResumeError as error:
            if not self._skips_changed:
                raise error.located(split=split) from None
            _log.warning("%s: continuing with the next epoch, since %s", split, error.message.partition(";")[0])
            self.changed = True
            self.seek(replace(self.cursor, epoch=saved.epoch + (saved.samples > 0), samples=0))
        return not self.changed

    def seek(self, cursor: Cursor) -> None:
        """Begin the next iteration at a cursor."""
        self.cursor = cursor
        self._begun = False
        self._delivered = self._used = 0
        self._open.clear()
        self._tally = Tally(since=cursor.samples)
        if self._before is not None and self._before[0] == (cursor.epoch, cursor.samples):
            self._tally = self._before[1]

    def came_before(self, tally: Tally) -> None:
        """Say what was delivered of the epoch before the place where the next iteration begins."""
        self._before = (self.cursor.epoch, self.cursor.samples), tally
        self._tally = tally

    @property
    def tally(self) -> Tally:
        """What was delivered in this epoch by the batches whose step ran."""
        self._close()
        return self._tally

    def restart(self) -> None:
        """Begin the next iteration at the start of the run's epoch."""
        self._begun = True
        self._cycles = False

    def begin(self, finished: Callable[[Cursor], bool]) -> Cursor | None:
        """Begin an iteration.

        Args:
            finished: Returns whether nothing is left of the epoch at a cursor.

        Returns:
            Where it begins, or ``None`` if nothing is left of the run's epoch.
        """
        cursor = self.cursor
        epoch = self.clock.epoch()
        if epoch is None:
            if self._begun or finished(cursor):
                cursor = replace(cursor, epoch=cursor.epoch + 1, samples=0)
        elif self._begun or cursor.epoch != epoch:
            cursor = replace(cursor, epoch=epoch, samples=0)
        elif finished(cursor):
            self._begun = True  # where a CombinedLoader cycles, the epoch begins again
            return None
        before = self.tally if self._cycles else None
        self.seek(cursor)
        self._tally = before or self._tally
        self._begun = True
        self._cycles = self.clock.steps() is not None
        self._any_number = self.clock.takes_any_number()
        self._steps = self.clock.steps() or 0
        return cursor

    def deliver(self, tally: Tally | None = None) -> None:
        """Count a batch, before it is handed out: Lightning may never ask again.

        Args:
            tally: Its samples, where they are known.
        """
        self._settle()
        self._delivered += 1
        if tally is not None:
            self._open.append(tally)
            if len(self._open) >= _OPEN:
                self._close()

    @property
    def stepped(self) -> int:
        """Batches of this iteration whose step ran.

        A checkpoint may be written while the step of the last batch handed out runs or fails;
        Lightning then begins again at that batch.
        """
        steps = self.clock.steps()
        if steps is None or not self._begun:
            return self._delivered
        if self._any_number:
            self._settle()
            return self._used
        return min(self._delivered, max(0, steps - self._steps))

    def _close(self) -> None:
        """Add the batches whose step ran to the tally of the epoch."""
        while len(self._open) > self._delivered - self.stepped:
            self._tally = self._tally.plus(self._open.popleft())

    def _settle(self) -> None:
        """Count the batches handed out as used if their step ran."""
        if not self._any_number:
            return
        steps = self.clock.steps() or 0
        if steps > self._steps:
            self._steps, self._used = steps, self._delivered
