"""Exact resume under Lightning: brings the loader to where the checkpoint was written.

Lightning keeps the state of rank 0's train loader alone, and hands it back only where it takes the run for
interrupted in mid-epoch; with ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` not even then.
So the data module keeps the state as well, and this callback applies it once the loops are restored.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

import lightning.pytorch as pl

from bionemo.webdatamodule._engine.loading.loader import PlannedLoader
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.sampling.cursor import Cursor

_log = logging.getLogger("bionemo.webdatamodule")


class Resuming(Protocol):
    """What keeps a train loader and the state that a checkpoint brought: a data module."""

    def take_resume(self) -> tuple[Any, dict[str, Any] | None]:
        """Return the train loader and the state, once."""
        ...


class ResumeCallback(pl.Callback):
    """Applies a checkpoint's cursor before the first batch is drawn.

    ``WebDataModule.setup("fit")`` adds it to the trainer.

    Args:
        data_module: Holds the train loader and the state that the checkpoint brought.
    """

    def __init__(self, data_module: Resuming) -> None:
        self.data_module = data_module

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seek the loader, and tell Lightning how many batches of the epoch are done."""
        del pl_module
        loader, state = self.data_module.take_resume()
        if loader is None:
            return
        if state is not None:
            loader.load_state_dict(state)
        if not isinstance(loader, PlannedLoader):
            return
        if not loader.resumed:
            batches = batches_to_skip(trainer)
            if not batches:
                return
            self._seek_without_state(loader, batches, trainer.current_epoch)
        shift_progress(trainer.fit_loop.epoch_loop.batch_progress, loader, trainer.current_epoch)

    def _seek_without_state(self, loader: PlannedLoader, batches: int, epoch: int) -> None:
        """Go to the batch that Lightning counts; the checkpoint was written with another data module."""
        _log.warning(
            "the checkpoint holds no state of this data module; going on at batch %d of epoch %d, "
            "which is right only if it was written with the same data, seed and global batch size",
            batches,
            epoch,
        )
        start = loader.cursor
        used = loader.plan.consumed(batches, loader.world_size, start=0, epoch=epoch)
        loader.seek(replace(start, epoch=epoch, samples=used))


def shift_progress(progress: Any, loader: PlannedLoader, epoch: int) -> None:
    """Make Lightning's count of this epoch's batches fit the plan of this run.

    Lightning ends an epoch when its count reaches ``len(loader)``.
    With another global batch size the samples used so far are another number of batches.
    """
    cursor: Cursor = loader.cursor
    if loader.finished(cursor):
        done = len(loader)
        lost = loader.plan.unserved(loader.world_size, start=cursor.samples, epoch=cursor.epoch)
        if lost > loader.plan.unserved(loader.world_size, epoch=cursor.epoch):
            _log.warning("epoch %d ends %d samples early: they are fewer than this run's ranks", cursor.epoch, lost)
    elif cursor.epoch == epoch and cursor.samples:
        done = len(loader) - loader.plan.n_batches(loader.world_size, start=cursor.samples, epoch=epoch)
    else:
        return
    current = progress.current
    if shift := done - batches_done(current):
        decided("epoch %d goes on after %d of %d samples", epoch, cursor.samples, cursor.n_samples)
        for count in ("ready", "started", "processed", "completed"):
            setattr(current, count, getattr(current, count) + shift)


def batches_to_skip(trainer: pl.Trainer) -> int:
    """Return how many batches of the epoch a checkpoint has behind it; 0 where Lightning begins an epoch.

    The count of an earlier fit of the same trainer, or of an epoch that is over, stands until the loop begins.
    """
    loop = trainer.fit_loop.epoch_loop
    done = batches_done(loop.batch_progress.current)
    return done if loop.restarting and done < trainer.num_training_batches else 0


def batches_done(current: Any) -> int:
    """Return how many batches of the epoch Lightning takes for done, from its progress as a checkpoint restored it.

    A checkpoint from ``on_train_batch_end`` was written before the batch counted as completed; Lightning adds it.
    """
    at_batch_end = current.ready == current.started == current.processed == current.completed + 1
    return int(current.completed + at_batch_end)
