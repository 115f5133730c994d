"""Mixtures that change, through a real Trainer."""

import pytest
from lightning.pytorch import Callback

from bionemo.webdatamodule import WebDataModule

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
