"""A Lightning callback that measures how long training waits for data."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lightning as L

from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.verdict import more_workers, slowest, usable_cpus, waits

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.loading.resume import OurLoader

__all__ = ["DataWaitMonitor", "resume_callbacks"]

_FETCH = ".train_dataloader_next"  # how Lightning's profilers call the wait for the next batch
_MUCH = 0.1  # of the time; above it, faster loading would speed up the run


_NAMES = {
    "store": "the store",
    "decoding": "decoding",
    "transport": "transport from the workers",
    "start": "workers to start",
}


def resume_callbacks() -> list[L.Callback]:
    """Return the callbacks for exact resume and receipts. Lightning calls this through an entry point.

    Every ``Trainer`` gets them. They act only on loaders of this package, which are passed to ``fit`` by a data module,
    directly, or in a ``CombinedLoader``.
    """
    from bionemo.webdatamodule._engine.loading.receipts import ReceiptCallback
    from bionemo.webdatamodule._engine.loading.resume import ResumeCallback

    return _Quiet([ResumeCallback(), ReceiptCallback()])


class _Quiet(list[L.Callback]):
    """A list that is false, so that Lightning does not log that it adds these callbacks."""

    def __bool__(self) -> bool:
        return False


class DataWaitMonitor(L.Callback):
    """Log the share of each training step, and of each epoch, that was spent waiting for batches, from 0 to 1.

    Near 0, the model is the bottleneck. At 0.5, the run would be twice as fast with instant data.
    At the end of each epoch, the log says what it waited for (the store, decoding, a stage, the transport from
    workers, or their start) and which setting to change. For this, workers of loaders in global order measure some
    of their batches.

    The share of a step is the time spent waiting for the batch, divided by the time until the end of the step;
    validation, checkpoints and other callbacks do not count.
    Workers send several batches at a time, so single steps wait long or not at all. The share of the epoch, logged as
    the mean over ranks, is the reliable figure.
    The callback works with any loader, and changes neither results nor random numbers.

    Args:
        name: Name of the logged value of each step; that of the epoch is ``f"{name}_epoch"``.
        prog_bar: Whether the progress bar shows the value of each step.

    Attributes:
        waited: Seconds spent waiting in the current epoch, or the last one.
        total: Seconds of its steps, waiting included.
        verdict: The logged verdict on the last epoch.

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
        self._started = 0.0
        self.verdict = ""
        self._profiler: Any = None

    @property
    def share(self) -> float:
        """The share of the current epoch, or the last one, that was spent waiting."""
        return self.waited / self.total if self.total else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Observe the calls of the trainer's profiler, and let workers measure their work."""
        for loader in _loaders(trainer):
            loader.measure()
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
        self.waited = self.total = self._started = 0.0
        for loader in _loaders(trainer):
            loader.measure()

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
        self._started = waited if not self.total else self._started
        self.waited += waited
        self.total += took
        if not trainer.barebones:
            pl_module.log(self.name, waited / took if took else 0.0, prog_bar=self.prog_bar, batch_size=1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's share, and what it waited for."""
        if not trainer.barebones:
            pl_module.log(f"{self.name}_epoch", self.share, sync_dist=True)
        self.verdict = self._judged(trainer)
        decided("epoch %d waited for data %.0f %% of its time%s", trainer.current_epoch, 100 * self.share, self.verdict)

    def _judged(self, trainer: L.Trainer) -> str:
        """Return what the epoch waited for, and the setting to change."""
        if self.share <= _MUCH:
            return "; faster loading would gain nothing"
        measured = [loader for loader in _loaders(trainer) if loader.work.measured]
        if not measured:
            return "; more num_workers or fewer stages would make it faster"
        loader = max(measured, key=lambda loader: sum(loader.work.seconds().values()))
        costs = waits(
            loader.work.seconds(),
            loader.own_work.seconds(),
            waited=self.waited,
            total=self.total,
            started=self._started,
            workers=loader.num_workers,
        )
        wall, cpu = loader.work.spent.get("store", (0.0, 0.0))
        cpus = usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        part, share, setting = slowest(
            costs, more=more_workers(loader.num_workers, cpus), checks=cpu > wall / 2 and not loader.reader.is_remote
        )
        name = _NAMES.get(part, f"the stage {part}")
        return f", {share:.0%} of that for {name}; change {setting}"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Restore the profiler."""
        self._stop_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Restore the profiler; Lightning does not call ``teardown`` then."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._profiler is not None:
            vars(self._profiler).pop("start", None)
            vars(self._profiler).pop("stop", None)
            self._profiler = None


def _loaders(trainer: L.Trainer) -> Iterator[OurLoader]:
    """Yield the train loaders whose work can be measured."""
    from bionemo.webdatamodule._engine.loading.receipts import our_loaders

    return (loader for _, loader in our_loaders(trainer.fit_loop))
