"""A training script for tests that run it in processes of their own: two ranks, kills, resumes.

Each rank appends one JSON line a step to ``{out}.rank{rank}``: epoch, batch index and keys.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bionemo.webdatamodule import WebDataModule


class Model(L.LightningModule):
    """Learns one number, and writes down the keys of each step."""

    def __init__(self, out, kill_at, signal_at):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.out = out
        self.kill_at = kill_at
        self.signal_at = signal_at

    def training_step(self, batch, batch_idx):
        """Take a step and note it."""
        keys, values = batch
        self.note("train", self.current_epoch, batch_idx, keys)
        if self.kill_at == [self.current_epoch, batch_idx]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.signal_at == [self.current_epoch, batch_idx]:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.weight - values.float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        """Note the keys and log the mean value, as the documentation says."""
        keys, values = batch
        self.note("val", self.current_epoch, batch_idx, keys)
        self.log("mean", values.float().mean(), batch_size=float(len(keys)), sync_dist=True)

    def note(self, what, epoch, batch_idx, keys):
        """Append a line."""
        with Path(f"{self.out}.rank{self.global_rank}").open("a") as stream:
            stream.write(json.dumps([what, epoch, batch_idx, list(keys)]) + "\n")

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(config):
    """Train as the configuration says, and write the validation metric."""
    data = WebDataModule(
        {"train": f"{config['shards']}train", "val": f"{config['shards']}val"},
        None,
        ["__key__", "x.pyd"],
        config.get("size", 4),
        kwargs_wld={split: {"num_workers": config.get("workers", 0)} for split in ("train", "val")},
        kwargs_wds=config.get("kwargs_wds"),
    )
    checkpoint = ModelCheckpoint(
        config["checkpoints"],
        every_n_train_steps=3,
        save_last=True,
        enable_version_counter=False,
        save_on_exception=bool(config.get("signal_at")),
    )
    trainer = L.Trainer(
        max_epochs=config.get("epochs", 2),
        accelerator="cpu",
        devices=config.get("ranks", 1),
        strategy="ddp" if config.get("ranks", 1) > 1 else "auto",
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=config.get("limit_val_batches", 1.0),
    )
    model = Model(config["out"], config.get("kill_at"), config.get("signal_at"))
    if config.get("validate"):
        metric = trainer.validate(model, datamodule=data, verbose=False)[0]["mean"]
        if trainer.global_rank == 0:
            Path(f"{config['out']}.metric").write_text(str(metric))
    else:
        trainer.fit(model, datamodule=data, ckpt_path=config.get("ckpt_path"))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*LeafSpec.*")
    main(json.loads(sys.argv[1]))
