"""Exact resume under Lightning: brings loaders and loops to where the checkpoint was written.

Lightning restores its counts by rules that hold for the first resume after some of the hooks in which a checkpoint is
written. Here the place is worked out from the checkpoint alone, and loops and loaders are set to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationStage
from lightning.pytorch.loops.fit_loop import RestartStage as FitStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as BatchStage

from bionemo.webdatamodule._engine.loading.loader import PlannedLoader
from bionemo.webdatamodule._engine.loading.progress import TrainerClock, takes_iterator
from bionemo.webdatamodule._engine.loading.stream_loader import StreamLoader
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule.errors import ResumeError, count

_log = logging.getLogger("bionemo.webdatamodule")

OurLoader: TypeAlias = PlannedLoader | StreamLoader


@runtime_checkable
class Resuming(Protocol):
    """A data module that keeps the state that a checkpoint brought."""

    def take_resume(self) -> dict[str, Any] | None:
        """Return the state, once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where a checkpoint was written, as Lightning counts.

    Attributes:
        epoch: Number of the epoch, from 0.
        batches: Batches of the epoch whose step ran; with a ``dataloader_iter`` steps.
        total: The same over all epochs.
        over: Whether the epoch is over, so that the next one begins.
        last: Whether the last step that ran was the epoch's last one.
        validation: Whether validation is still to be run, if it is due after this step; or ran, and nothing
            after it; or all that follows the step did.
        states: The states of all loaders that have one, in order.
    """

    epoch: int
    batches: int
    total: int
    over: bool
    last: bool
    validation: Literal["open", "done", "behind"]
    states: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, loops: Mapping[str, Any]) -> Saved:
        """Return the place that the states of a checkpoint's loops name."""
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        now, total = batches["current"], batches["total"]["completed"]
        at_end = now["ready"] == now["started"] == now["processed"] == now["completed"] + 1  # on_train_batch_end
        began = not at_end and now["ready"] > now["completed"]  # the next step did, and did not end
        last = bool(batches["is_last_batch"]) and not began
        ended = epochs["processed"] > epochs["completed"] or epochs["ready"] == epochs["processed"]
        cut = ended and not last and now["completed"] > 0  # max_steps, or the run was stopped
        return cls(
            epoch=epochs["processed"] - cut,
            batches=now["completed"] + at_end,
            total=total + at_end,
            over=(ended and not cut) or epochs["started"] < epochs["ready"],
            last=last,
            validation="open" if at_end else "behind" if began or cut else _validation(loops),
            states=tuple(loops["state_dict"].get("combined_loader", ())),
        )


def _validation(loops: Mapping[str, Any]) -> Literal["open", "done"]:
    """Return whether a checkpoint that was written after a step, but not by its hook, was written in a validation."""
    progress = loops["epoch_loop.val_loop.batch_progress"]
    now = progress["current"]
    return "done" if progress["is_last_batch"] and now["ready"] == now["completed"] else "open"


class ResumeCallback(pl.Callback):
    """Connects the train loaders of this package with the trainer, and applies what a checkpoint says of them.

    Every ``Trainer`` gets one by the entry point ``lightning.pytorch.callbacks_factory``.
    """

    def __init__(self) -> None:
        self._saved: Saved | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Forget the checkpoint of an earlier run."""
        self._saved = None

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's
        checkpoint: dict[str, Any],
    ) -> None:
        """Remember where the checkpoint was written."""
        from lightning.pytorch.trainer.states import TrainerFn

        loops = checkpoint.get("loops", {}).get("fit_loop")
        if trainer.state.fn is not TrainerFn.FITTING or loops is None:
            return
        self._saved = saved = Saved.read(loops)
        if not saved.over:  # or Lightning may take a run that was cut in its last epoch for finished
            counts = loops["epoch_progress"]["current"]
            counts.update(ready=saved.epoch + 1, started=saved.epoch + 1, processed=saved.epoch, completed=saved.epoch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Seek the loaders, and set Lightning's loops to the same place."""
        module = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it in a connector
        state = module.take_resume() if isinstance(module, Resuming) else None
        loaders, saved = follow(trainer), self._saved
        self._saved = None
        if saved is None and state and not trainer.global_step:
            _warn_of_unused(state)
        if not loaders or saved is None:
            return
        batches = seek(trainer, loaders, saved, state)
        if saved.over or any(loader.progress.changed for loader in loaders):
            begin_epoch(trainer, saved.epoch + (not saved.over and saved.batches > 0), saved.total)
            for loader in loaders:
                loader.progress.restart()
        else:
            fetched = max(map(done, loaders)) if saved.batches else 0
            go_on(trainer, saved, batches, fetched=fetched)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's
        """Say what a run that had reached its last step does not do."""
        if self._saved is not None and self._saved.validation == "open" and not self._saved.over:
            _log.warning(
                "the checkpoint was written after the last step that the Trainer's limits allow, and before what "
                "follows it; the Trainer runs no validation then: call trainer.validate for it"
            )
        self._saved = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begin an epoch; some loaders may have been made for it."""
        for loader in follow(trainer):
            loader.progress.restart()


def _warn_of_unused(state: Mapping[str, Any]) -> None:
    """Say that a run begins at the beginning although the data module was given a place."""
    epoch, samples = state.get("epoch", 0), state.get("samples", 0)
    if epoch or samples:
        _log.warning(
            "the data module was given a state of epoch %d after %s, and fit() without ckpt_path begins at the first "
            "batch; to continue there, give fit() the checkpoint as ckpt_path",
            epoch,
            count(samples, "sample"),
        )


def follow(trainer: pl.Trainer) -> list[OurLoader]:
    """Return the train loaders of this package, which from now on follow the trainer's epochs and steps."""
    combined = trainer.fit_loop._combined_loader  # noqa: SLF001 - nothing public
    found = [] if combined is None else [loader for loader in combined.flattened if isinstance(loader, OurLoader)]
    for loader in found:
        loader.progress.clock = TrainerClock(trainer)
    return found


def done(loader: OurLoader) -> int:
    """Return how many batches of its epoch a loader has behind it, in this run's batches."""
    cursor = loader.cursor
    if isinstance(loader, StreamLoader):
        return int(cursor.samples // cursor.global_batch_size)
    if loader.finished(cursor):
        return len(loader)
    return len(loader) - int(loader.plan.n_batches(loader.world_size, start=cursor.samples, epoch=cursor.epoch))


def seek(trainer: pl.Trainer, loaders: Sequence[OurLoader], saved: Saved, state: dict[str, Any] | None) -> int:
    """Bring the loaders to where the checkpoint was written.

    Args:
        trainer: The trainer.
        loaders: The loaders.
        saved: The place.
        state: The state that the data module had stored, for a checkpoint without those of the loaders.

    Returns:
        How many batches of the epoch are done, as this run counts them.

    Raises:
        ResumeError: If a state does not fit the data, or Lightning's counts.
    """
    stateful = [dl for dl in trainer.fit_loop._combined_loader.flattened if hasattr(dl, "load_state_dict")]  # type: ignore[union-attr]  # noqa: SLF001
    if len(saved.states) == len(stateful):
        states = [saved.states[stateful.index(loader)] for loader in loaders]
    else:
        states = [state] if state and len(loaders) == 1 else []
    epoch = 0 if trainer.overfit_batches > 0 else saved.epoch  # type: ignore[attr-defined]
    for loader, found in zip(loaders, states, strict=False):
        loader.load_state_dict(found)
        if saved.over or not saved.batches:
            _check_epoch(loader, (epoch - 1, epoch))
            loader.progress.restart()
        else:
            _check_epoch(loader, (epoch,))
    if saved.over or not saved.batches or any(loader.progress.changed for loader in loaders):
        return 0
    if not states:
        return _seek_without_state(loaders, saved)
    if len(loaders) > 1 or len(stateful) > 1:
        for loader, found in zip(loaders, states, strict=True):
            if found["global_batch_size"] != loader.cursor.global_batch_size and not saved.last:
                raise ResumeError(
                    "where several loaders are combined, a run cannot resume within an epoch with another global batch "
                    f"size: the checkpoint was written with {found['global_batch_size']}, not "
                    f"{loader.cursor.global_batch_size}; take that one to the end of the epoch"
                )
        return saved.batches
    if takes_iterator(trainer):
        return saved.batches
    return _checked(trainer, loaders[0], states[0], saved)


def _check_epoch(loader: OurLoader, epochs: tuple[int, ...]) -> None:
    """Hold the epoch of a cursor against Lightning's."""
    cursor = loader.cursor
    if cursor.samples and cursor.epoch not in epochs:
        raise ResumeError(
            f"the checkpoint's loader state stands in epoch {cursor.epoch}, and its counts of the training loop in "
            f"epoch {epochs[-1]}: one of them was changed; take a checkpoint as the Trainer wrote it"
        )


def _checked(trainer: pl.Trainer, loader: OurLoader, state: Mapping[str, Any], saved: Saved) -> int:
    """Return how many batches are done, in this run's batches; say what another batch size changes."""
    cursor: Cursor = loader.cursor
    batches = done(loader)
    same = state["global_batch_size"] == cursor.global_batch_size
    if isinstance(loader, PlannedLoader) and loader.finished(cursor):
        lost = loader.plan.unserved(loader.world_size, start=cursor.samples, epoch=cursor.epoch)
        if lost > loader.plan.unserved(loader.world_size, epoch=cursor.epoch):
            _log.warning("epoch %d ends %s early, fewer than this run's ranks", cursor.epoch, count(lost, "sample"))
        return batches if not same or trainer.num_training_batches == len(loader) else saved.batches
    if same and batches != saved.batches:
        raise ResumeError(
            f"the checkpoint's loader state stands after {count(batches, 'batch', 'batches')} of epoch {cursor.epoch}, "
            f"and its counts of the training loop after {saved.batches}: one of them was changed; take a checkpoint as "
            "the Trainer wrote it"
        )
    if not same:
        decided("epoch %d continues after %d of %s", cursor.epoch, cursor.samples, count(cursor.n_samples, "sample"))
    return batches


def _seek_without_state(loaders: Sequence[OurLoader], saved: Saved) -> int:
    """Go to the batch that Lightning counts; the checkpoint was written with other loaders."""
    if saved.last:
        return saved.batches
    if len(loaders) > 1 or isinstance(loaders[0], StreamLoader):
        raise ResumeError(
            "the checkpoint holds no state of these loaders, so they cannot resume in the middle of an epoch; "
            "take a checkpoint from the end of an epoch"
        )
    loader = loaders[0]
    _log.warning(
        "the checkpoint holds no state of this data module; resuming at batch %d of epoch %d, "
        "which is right only if it was written with the same data, seed and global batch size",
        saved.batches,
        saved.epoch,
    )
    used = loader.plan.consumed(saved.batches, loader.world_size, start=0, epoch=saved.epoch)
    loader.seek(replace(loader.cursor, epoch=saved.epoch, samples=used))
    return saved.batches


def begin_epoch(trainer: pl.Trainer, epoch: int, total: int) -> None:
    """Let Lightning begin an epoch at its first batch, after so many batches in all."""
    fit = trainer.fit_loop
    for name in ("ready", "started", "processed", "completed"):
        setattr(fit.epoch_loop.batch_progress.total, name, total)
    _count_epochs(trainer, ended=epoch, begun=epoch)
    for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
        loop._restarting = False  # noqa: SLF001 - nothing public
        loop.reset_restart_stage()


def go_on(trainer: pl.Trainer, saved: Saved, batches: int, *, fetched: int) -> None:
    """Let Lightning resume in the middle of an epoch, or at its end, with what follows the last step.

    Args:
        trainer: The trainer.
        saved: Where the checkpoint was written.
        batches: Batches of the epoch that are done, as this run counts them.
        fetched: Batches that were taken from the loaders.
    """
    fit = trainer.fit_loop
    loop, validation, fetcher = fit.epoch_loop, fit.epoch_loop.val_loop, fit._data_fetcher  # noqa: SLF001
    assert fetcher is not None  # noqa: S101 - the loop has set it up
    progress = loop.batch_progress
    _count_epochs(trainer, ended=saved.epoch, begun=saved.epoch + 1)
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.current, name, batches)
        setattr(progress.total, name, saved.total)
    any_number = takes_iterator(trainer)
    ended = saved.last or (not any_number and batches >= trainer.num_training_batches)
    progress.is_last_batch = ended

    # The loop of epochs continues, without the hooks of an epoch's start; that of batches restarts, validation not.
    fit._restarting, loop._restarting, validation._restarting = False, True, False  # noqa: SLF001
    fit._restart_stage = FitStage.RESTARTED_MID_EPOCH  # noqa: SLF001
    stage, validation_stage = BatchStage.NONE, ValidationStage.NONE
    if batches and saved.validation != "behind" and loop._should_check_val_fx(fetcher):  # noqa: SLF001
        stage = BatchStage.RESTARTED_ON_LAST  # takes no batch before the end of this step, where validation runs
        if saved.validation == "open":
            validation_stage = ValidationStage.RESTARTED_MID_EVALUATION
    elif ended:
        fetcher.done = True  # asked for a batch, it has none, and the epoch ends
    if saved.validation == "behind" and not loop._should_accumulate():  # noqa: SLF001
        loop._batches_that_stepped -= 1  # noqa: SLF001 - which the loop adds, whether it was counted or not
    loop._restart_stage = stage  # noqa: SLF001
    validation._restart_stage = validation_stage  # noqa: SLF001

    if fetcher.length is None:
        iter(fetcher)  # it had taken a batch already
    elif any_number:
        fetcher.fetched = fetched - batches  # the loop adds its steps
        combined = fit._combined_loader  # noqa: SLF001
        if combined is not None and combined._iterator is not None:  # noqa: SLF001
            combined._iterator._idx = fetched  # noqa: SLF001
    if trainer.accumulate_grad_batches > 1 and not ended and batches % trainer.accumulate_grad_batches:
        _log.warning(
            "the checkpoint was written after %d of %d batches whose gradients are accumulated, and Lightning does not "
            "store them: this optimizer step lacks them; write checkpoints after a multiple of accumulate_grad_batches",
            batches % trainer.accumulate_grad_batches,
            trainer.accumulate_grad_batches,
        )


def _count_epochs(trainer: pl.Trainer, *, ended: int, begun: int) -> None:
    progress = trainer.fit_loop.epoch_progress
    for counts in (progress.current, progress.total):  # which are the same for epochs
        counts.load_state_dict({"ready": begun, "started": begun, "processed": ended, "completed": ended})
