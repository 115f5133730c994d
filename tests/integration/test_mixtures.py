"""Mixtures that change, through a real Trainer."""

import pytest
from lightning.pytorch import Callback

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule.errors import DataWarning, PlanError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:You passed in a `val_dataloader` but have no",
    "ignore:Total length of `list` across ranks is zero",
)


class SaveAt(Callback):
    """Saves a checkpoint after some step."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Save where asked."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_run_goes_on_while_its_mixture_changes(tmp_path, shards, make_trainer, recorder):
    """From one directory alone to the other alone within eight steps; resumed at the sixth, the rest is the same."""

    def data():
        moving = {
            0: [(f"{shards}train", 1), (f"{shards}test", 0)],
            8: [(f"{shards}train", 0), (f"{shards}test", 1)],
        }
        directories = {"train": moving, "val": f"{shards}val"}
        return WebDataModule(directories, {"train": 64}, ["__key__", "x.pyd"], 64)

    whole, again = recorder(), recorder()
    make_trainer(max_epochs=12, callbacks=[SaveAt(6, tmp_path / "six.ckpt")]).fit(whole, datamodule=data())
    make_trainer(max_epochs=12).fit(again, datamodule=data(), ckpt_path=tmp_path / "six.ckpt")
    parts = [sum(key.startswith("train") for key in keys) for _, _, keys in whole.trained]

    assert whole.trained[6:] == again.trained
    assert [192, 64, 0] == [sum(parts[first : first + 4]) for first in (0, 4, 8)]  # blocks of 256 places


def test_a_directory_of_which_where_takes_nothing_is_named(shards):
    """With a weight that is fixed or changes; setup says so, before anything is read."""
    for mixture in ([(0, 1), (1, 1)], {0: [(0, 1), (1, 0)], 4: [(0, 0), (1, 1)]}):
        named = [f"{shards}train", f"{shards}test"]
        given = (
            [(named[n], weight) for n, weight in mixture]
            if isinstance(mixture, list)
            else {step: [(named[n], weight) for n, weight in pairs] for step, pairs in mixture.items()}
        )
        where = {"train": lambda keys: [key for key in keys if key.startswith("train")]}
        data = WebDataModule({"train": given}, None, "x.pyd", 4, where=where)
        with pytest.raises(PlanError, match=r"test has a weight, and none of its samples are in where; leave it out"):
            data.setup("fit")


def test_steps_of_a_schedule_are_global_batches_of_any_size(shards):
    """Epochs of ten samples have three steps: at the end of the second the mixture has changed."""
    moving = {0: [(f"{shards}train", 1), (f"{shards}test", 0)], 6: [(f"{shards}train", 0), (f"{shards}test", 1)]}
    data = WebDataModule({"train": moving}, {"train": 10}, "__key__", 4)
    data.setup("fit")
    loader = data.train_dataloader()
    parts = [sum(key.startswith("train") for batch in loader for key in batch) for _ in range(3)]

    assert [0, 10] == [parts[2], round(parts[0] + parts[1])]
    assert parts[0] in (7, 8)


def test_a_change_that_lanes_cannot_follow_is_warned_of(shards):
    """Setup names the samples that it takes, and what follows it exactly."""
    moving = {0: [(f"{shards}train", 1), (f"{shards}test", 0)], 2: [(f"{shards}train", 0), (f"{shards}test", 1)]}
    data = WebDataModule({"train": moving}, None, "__key__", 4, shuffle_shards=3)
    with pytest.warns(
        DataWarning, match=r"within 8 samples, and .* read in lanes .* every 24 samples; .* shuffle_shards=0"
    ):
        data.setup("fit")
