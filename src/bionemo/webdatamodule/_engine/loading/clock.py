"""What a loader asks of the running ``Trainer``: its epoch, and how many steps ran."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """Tells where a training run is."""

    def epoch(self) -> int | None:
        """Return the epoch that runs now, or ``None`` outside a training run."""
        ...

    def steps(self) -> int | None:
        """Return how many batches of the current epoch had their step run, or ``None`` if nobody counts."""
        ...


class EvaluationClock:
    """The clock of validation, test and prediction: every pass is the same epoch."""

    def epoch(self) -> int:
        """Return 0."""
        return 0

    def steps(self) -> None:
        """Return ``None``: nobody counts the steps."""


def _nobody() -> None:
    """Stand for a data module that is elsewhere."""


class TrainerClock:
    """The clock of a data module's ``Trainer``.

    Args:
        data_module: Holds the trainer, which is attached later, stays attached when it has finished,
            and may be another one next time.
    """

    def __init__(self, data_module: Any) -> None:
        self._data_module: Callable[[], Any] = weakref.ref(data_module)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy belongs to nobody

    def __setstate__(self, state: dict[str, Any]) -> None:
        del state
        self._data_module = _nobody

    def epoch(self) -> int | None:
        """Return the trainer's epoch while it fits; 0 while it overfits on a few batches."""
        from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

        trainer = self._trainer()
        if trainer is None or trainer.state.fn is not TrainerFn.FITTING:
            return None
        if trainer.state.status is not TrainerStatus.RUNNING:
            return None
        return 0 if trainer.overfit_batches > 0 else int(trainer.current_epoch)

    def steps(self) -> int:
        """Return the batches of this epoch that were processed, before a resume too."""
        trainer = self._trainer()
        return 0 if trainer is None else int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)

    def _trainer(self) -> Any:
        data_module = self._data_module()
        return None if data_module is None else data_module.trainer
