"""How much of a training run is spent waiting for data: a Lightning callback that measures and logs it."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from bionemo.webdatamodule._engine.log import decided

__all__ = ["DataWaitMonitor", "resume_callbacks"]

_FETCH = ".train_dataloader_next"  # how Lightning's profilers call the wait for the next batch
_MUCH = 0.1  # of the time; beyond it the run would gain by more workers


def resume_callbacks() -> list[L.Callback]:
    """Return the callback that makes resume exact; Lightning asks for it by an entry point, for every ``Trainer``.

    It does something only where a train loader of this package is used: passed to ``fit`` by a data module, by itself,
    or in a ``CombinedLoader``.
    """
    from bionemo.webdatamodule._engine.loading.resume import ResumeCallback

    return [ResumeCallback()]


class DataWaitMonitor(L.Callback):
    """Log which share of each training step, and of each epoch, was spent waiting for batches, from 0 to 1.

    Near 0 the model is the bottleneck and nothing is to be gained on the data's side.
    A share of one half says that the run would be twice as fast with data at hand: use more workers, fewer or
    cheaper stages, and see ``webdatamodule bench`` for which part takes the time.

    The share of a step is the time that the ``Trainer`` waited for the batch over the time from there to the
    end of the step; validation, checkpoints and other callbacks do not count.
    Workers hand over several batches at a time, so single steps wait long or not at all; the share of the epoch,
    logged at its end as the mean over ranks, is the reliable figure.
    It works with any loader, and changes neither results nor random numbers.

    Args:
        name: What the value of each step is logged as; that of the epoch has ``_epoch`` behind it.
        prog_bar: Whether the progress bar shows that of each step.

    Attributes:
        waited: Seconds spent waiting in the current epoch, or the last one.
        total: Seconds of its steps, waiting included.

    Example:
        ```python
        trainer = lightning.Trainer(callbacks=[DataWaitMonitor()])
        ```
    """

    def __init__(self, name: str = "data_wait", *, prog_bar: bool = False) -> None:
        super().__init__()
        self.name = name
        self.prog_bar = prog_bar
        self.waited = 0.0
        self.total = 0.0
        self._fetch_began = 0.0
        self._fetch_took = 0.0
        self._profiler: Any = None

    @property
    def share(self) -> float:
        """The share of the current epoch, or the last one, that was spent waiting."""
        return self.waited / self.total if self.total else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Listen to what the trainer reports to its profiler."""
        self._profiler = profiler = trainer.profiler  # type: ignore[attr-defined]  # Lightning sets it in a function
        start, stop = profiler.start, profiler.stop

        def listening_start(action_name: str) -> None:
            start(action_name)
            if action_name.endswith(_FETCH):
                self._fetch_began = time.perf_counter()

        def listening_stop(action_name: str) -> None:
            if action_name.endswith(_FETCH):
                self._fetch_took = time.perf_counter() - self._fetch_began
            stop(action_name)

        profiler.start, profiler.stop = listening_start, listening_stop

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Reset the counters."""
        self.waited = self.total = 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log the step's share."""
        took = time.perf_counter() - self._fetch_began
        waited, self._fetch_took = self._fetch_took, 0.0
        self.waited += waited
        self.total += took
        if not trainer.barebones:
            pl_module.log(self.name, waited / took if took else 0.0, prog_bar=self.prog_bar, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's share, and say so where it is much."""
        if not trainer.barebones:
            pl_module.log(f"{self.name}_epoch", self.share, sync_dist=True)
        if self.share > _MUCH:
            decided(
                "epoch %d waited for data %.0f %% of its time; more num_workers or fewer stages would make it faster",
                trainer.current_epoch,
                100 * self.share,
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the profiler as it was."""
        self._stop_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Leave the profiler as it was; Lightning calls no ``teardown`` then."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._profiler is not None:
            vars(self._profiler).pop("start", None)
            vars(self._profiler).pop("stop", None)
            self._profiler = None
