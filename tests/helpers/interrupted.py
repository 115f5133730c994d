"""Runs that are interrupted and resumed, drawn at random, and what the undisturbed run would have done."""

import random
from dataclasses import dataclass, field

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader

from bionemo.webdatamodule import WebDataModule

HOOKS = (
    "training_step",
    "batch_end",
    "batch_end",
    "batch_end",
    "validation",
    "validation_end",
    "epoch_end",
    "max_steps",
)
"""Where a run is interrupted: most checkpoints are written at the end of a step."""

SOURCES = ("datamodule", "datamodule", "datamodule", "loaders", "min_size", "max_size", "max_size_cycle", "wrapped")
"""How the trainer gets its data; the modes of a CombinedLoader are of two data modules."""


class Interrupted(Exception):  # noqa: N818 - what a scheduler does
    """The end of a leg."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run: what the trainer gets, and where it is interrupted.

    Attributes:
        trainer: Options of the trainer.
        source: How it gets its data.
        taken: Batches that a step takes from a ``dataloader_iter``; 0 for a step on a batch.
        data: Options of the data modules.
        legs: For each interruption the hook, and how many steps ran before.
    """

    trainer: dict
    source: str
    taken: int
    data: dict
    legs: tuple


def draw(seed):
    """Return a case."""
    rng = random.Random(seed)
    pick = rng.choice
    size, n = pick([(4, 22), (5, 22), (3, 13), (6, 37)])
    batches = -(-n // size)
    source, taken = pick(SOURCES), pick([0, 0, 0, 0, 1, 2])
    trainer = {"max_epochs": pick([2, 3])}
    if rng.random() < 0.3:
        trainer["accumulate_grad_batches"] = pick([2, 3])
    if rng.random() < 0.3:
        trainer["limit_train_batches"] = pick([2, 3, 0.5, 0.75])
    if rng.random() < 0.3:
        trainer["limit_val_batches"] = pick([0, 1, 2])
    if rng.random() < 0.3:
        trainer["reload_dataloaders_every_n_epochs"] = pick([1, 2])
    if rng.random() < 0.1:
        trainer["num_sanity_val_steps"] = 1
    if rng.random() < 0.05:
        trainer["overfit_batches"] = 3
        trainer.pop("limit_train_batches", None)
    if taken == 0:
        if rng.random() < 0.5:
            trainer["val_check_interval"] = pick([1, 2, 0.5, 0.34])
        if rng.random() < 0.3:
            trainer["check_val_every_n_epoch"] = 2
        elif rng.random() < 0.2:
            trainer.update(check_val_every_n_epoch=None, val_check_interval=pick([2, 4, batches + 3]))
    if rng.random() < 0.2:
        trainer["max_steps"] = pick([batches, batches + 2, 2 * batches])
    data = {
        "size": size,
        "n": n,
        "workers": 0 if rng.random() < 0.97 else 2,
        "order": pick(["global"] * 4 + ["shards"]),
    }
    steps = sorted(rng.sample(range(1, 2 * batches + 1), rng.choice([1, 2, 2])))
    legs = tuple((pick(HOOKS), step) for step in steps)
    return Case(trainer=_allowed(trainer, source), source=source, taken=taken, data=data, legs=legs)


def _allowed(trainer, source):
    """Return options without an interval of validation that is longer than an epoch, which Lightning refuses."""
    half_of_two = source == "min_size" and trainer.get("limit_train_batches") == 0.5
    return {**trainer, "val_check_interval": 1} if half_of_two and trainer.get("val_check_interval") == 2 else trainer


class Model(L.LightningModule):
    """Learns one number, from one batch a step or from one of each of several loaders."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys = []
        self.seen = []
        self.fail_at = None

    def take(self, batch):
        """Remember the keys of a batch, or of those of several loaders, and return a loss."""
        parts = batch if isinstance(batch, dict) else {"": batch}
        keys = {name: None if part is None else list(part[0]) for name, part in parts.items()}
        self.keys.append(keys)
        values = [part[1].float().mean() for part in parts.values() if part is not None]
        return (self.weight - torch.stack(values).mean()) ** 2

    def count(self):
        """Fail where the leg ends in the middle of a step."""
        if self.fail_at == self.trainer.fit_loop.epoch_loop.batch_progress.total.processed:
            raise Interrupted

    def training_step(self, batch, batch_idx):
        """Take a step."""
        self.count()
        self.keys, self.batch_idx = [], batch_idx
        return self.take(batch)

    def validation_step(self, batch, batch_idx):
        """Remember the keys."""
        del batch_idx
        self.seen.append(list(batch[0]))

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TakingModel(Model):
    """Takes its batches itself."""

    taken = 1

    def training_step(self, dataloader_iter):
        """Take a step on as many batches as there are, up to a number."""
        self.count()
        self.keys, losses = [], []
        for _ in range(self.taken):
            if dataloader_iter.done:
                break
            batch, self.batch_idx, _ = next(dataloader_iter)
            losses.append(self.take(batch))
        return torch.stack(losses).mean()


@dataclass
class Notes(L.Callback):
    """Writes down what happens, and interrupts the run."""

    path: str
    hook: str = ""
    step: int = 0
    events: list = field(default_factory=list)

    def steps(self, trainer):
        """Return the steps that ran in all legs."""
        return trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def stop(self, trainer, hook):
        """Write the checkpoint and end the leg, at the hook and after the step."""
        if hook == self.hook and self.steps(trainer) >= self.step:
            trainer.save_checkpoint(self.path)
            raise Interrupted

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Note a step."""
        self.events.append(("step", trainer.current_epoch, pl_module.batch_idx, trainer.global_step, pl_module.keys))
        self.stop(trainer, "batch_end")

    def on_validation_start(self, trainer, pl_module):
        """Begin to note a validation."""
        pl_module.seen = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        """Interrupt a validation."""
        if not trainer.sanity_checking:
            self.stop(trainer, "validation")

    def on_validation_end(self, trainer, pl_module):
        """Note a validation."""
        if not trainer.sanity_checking:
            self.events.append(("validation", trainer.current_epoch, trainer.global_step, pl_module.seen))
            self.stop(trainer, "validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        """Interrupt at the end of an epoch."""
        self.stop(trainer, "epoch_end")

    def on_exception(self, trainer, pl_module, exception):
        """Write the checkpoint of a step that failed, as ModelCheckpoint does."""
        if self.hook == "training_step":
            trainer.save_checkpoint(self.path)


class Wrapping(L.LightningDataModule):
    """A user's data module around two of ours."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def setup(self, stage):
        """Set them up."""
        for part in self.parts.values():
            part.trainer = self.trainer
            part.setup(stage)

    def train_dataloader(self):
        """Return both train loaders."""
        loaders = {name: part.train_dataloader() for name, part in self.parts.items()}
        return CombinedLoader(loaders, "max_size_cycle")

    def val_dataloader(self):
        """Return the validation loader of one."""
        return self.parts["a"].val_dataloader()


def make_data(shards, case, *, split="train", seed=0):
    """Return a data module."""
    data = case.data
    return WebDataModule(
        {"train": f"{shards}{split}", "val": f"{shards}val"},
        {"train": min(data["n"], {"train": 37, "test": 13}[split])},
        ["__key__", "x.pyd"],
        data["size"],
        kwargs_wld={"train": {"num_workers": data["workers"]}},
        order=data["order"],
        seed=seed,
    )


def run(shards, case, notes, *, ckpt_path=None, **trainer_options):
    """Run a leg; return whether it ended by itself."""
    taking = type("Taking", (TakingModel,), {"taken": case.taken}) if case.taken else Model
    model = taking()
    if notes.hook == "training_step":
        model.fail_at = notes.step
    options = {**case.trainer, **trainer_options}
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[notes],
        **{"num_sanity_val_steps": 0, **options},
    )
    given = {}
    if case.source == "datamodule":
        given["datamodule"] = make_data(shards, case)
    else:
        parts = {"a": make_data(shards, case), "b": make_data(shards, case, split="test", seed=1)}
        if case.source == "wrapped":
            given["datamodule"] = Wrapping(parts)
        else:
            for part in parts.values():
                part.setup("fit")
            loaders = {name: part.train_dataloader() for name, part in parts.items()}
            given["train_dataloaders"] = (
                loaders["a"] if case.source == "loaders" else CombinedLoader(loaders, case.source)
            )
            given["val_dataloaders"] = parts["a"].val_dataloader()
    try:
        trainer.fit(model, ckpt_path=ckpt_path, **given)
    except Interrupted:
        return False
    if notes.hook == "max_steps":
        trainer.save_checkpoint(notes.path)
    return True


def compare(shards, case, folder):
    """Return the events of the undisturbed run, and of the run with its interruptions."""
    whole = Notes(path="")
    run(shards, case, whole)
    events, path = [], None
    for number, (hook, step) in enumerate(case.legs):
        notes = Notes(path=str(folder / f"{number}.ckpt"), hook=hook, step=step)
        options = {}
        if hook == "max_steps":
            accumulated = case.trainer.get("accumulate_grad_batches", 1)
            options["max_steps"] = min(max(1, step // accumulated), case.trainer.get("max_steps", 10**9))
        ended = run(shards, case, notes, ckpt_path=path, **options)
        events += notes.events
        if ended and hook != "max_steps":
            return without_missing_validation(whole.events, events, notes.events, case), events
        path = notes.path
    rest = Notes(path="")
    run(shards, case, rest, ckpt_path=path)
    events += rest.events
    return without_missing_validation(whole.events, events, rest.events, case), events


def without_missing_validation(whole, events, last, case):
    """Return the events of the undisturbed run without the validation that Lightning leaves out after its last step.

    A run that begins with max_steps reached ends at once, and the log says that validation is missing.
    """
    if last or len(whole) != len(events) + 1:
        return whole
    assert ("validation", case.trainer["max_steps"]) == (whole[-1][0], whole[-1][2])
    return whole[:-1]
