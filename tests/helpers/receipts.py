"""Runs on 1, 2 and 4 ranks for the test of receipts: one process imports all, and the ranks are forked from it."""

import json
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bionemo.webdatamodule import WebDataModule


class Model(L.LightningModule):
    """Learns one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        """Take a step."""
        return (self.weight - batch.float().mean()) ** 2

    def validation_step(self, batch):
        """Do nothing."""

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(shards, directory, name, ranks, *, workers=0, stop=-1, ckpt=None):
    """Train two epochs, or up to a step, which leaves a checkpoint."""
    data = WebDataModule(
        {split: f"{shards}{split}" for split in ("train", "val")},
        None,
        "x.pyd",
        8,
        kwargs_wld={"train": {"num_workers": workers}},
        on_error="skip",
        receipt=f"{directory}/{name}.jsonl",
    )
    trainer = L.Trainer(
        max_epochs=2,
        max_steps=stop,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork",
        callbacks=[
            ModelCheckpoint(directory, filename=f"{name}-{{step}}", every_n_train_steps=1, save_top_k=-1),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Model(), datamodule=data, ckpt_path=ckpt and f"{directory}/{name}-step={ckpt}.ckpt")


def main(shards, directory):
    """Leave receipts of whole runs, and of one that goes on twice with other ranks."""
    for ranks in (1, 2, 4):
        run(shards, directory, f"ranks{ranks}", ranks, workers=ranks // 2 % 2)
    run(shards, directory, "resumed", 4, stop=3)
    run(shards, directory, "resumed", 2, stop=7, ckpt=3, workers=1)
    run(shards, directory, "resumed", 1, ckpt=7)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*json.loads(sys.argv[1]))
