"""``webdatamodule demo``: real cells from pickle files to shards to a trained classifier, in under a minute."""

from __future__ import annotations

import argparse
import logging
import pickle
import sys
import time
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

from bionemo.webdatamodule._cli.arguments import natural, positive
from bionemo.webdatamodule.errors import count


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--directory", default="webdatamodule-demo", help="output directory (%(default)s)")
    parser.add_argument("--epochs", type=positive, default=20, help="epochs to train (%(default)s)")
    parser.add_argument("--workers", type=natural, default=0, help="worker processes of each loader (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from lightning.pytorch import Trainer
    from tqdm import tqdm

    from bionemo.webdatamodule import PickledDataWDS, Split

    directory = Path(args.directory).expanduser()
    pickles = directory / "pickles"
    pickles.mkdir(parents=True, exist_ok=True)
    cells, classes = _cells()
    terminal = sys.stderr.isatty()
    for name, cell in tqdm(cells.items(), desc="pickle files", unit="file", file=sys.stderr, disable=not terminal):
        path = pickles / f"{name}.cell.pyd"
        data = pickle.dumps(cell)
        if not path.exists() or path.read_bytes() != data:  # a second run finds its sources unchanged
            path.write_bytes(data)

    names = list(cells)
    module = PickledDataWDS(
        str(pickles),
        "cell.pyd",
        {Split.train: names[:500], Split.val: names[500:600], Split.test: names[600:]},
        f"{directory}/shards-",
        50,
        n_tars_wds=4,
        kwargs_wld={split: {"num_workers": args.workers} for split in Split},
    )
    started = time.perf_counter()
    module.prepare_data()
    converted = time.perf_counter() - started

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*")
        trainer = Trainer(
            max_epochs=args.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=terminal,
            default_root_dir=directory,
        )
        model = _classifier(n_components=50, n_classes=len(classes))
        trainer.fit(model, datamodule=module)
        accuracy = trainer.test(model, datamodule=module, verbose=False)[0]["accuracy"]

    started = time.perf_counter()
    module.setup("fit")
    seen = sum(len(batch["label"]) for _ in range(20) for batch in module.train_dataloader())
    rate = seen / (time.perf_counter() - started)
    print(f"shards      {', '.join(f'{directory}/shards-{split.name}' for split in Split)}, 4 each")
    print(f"converted   {count(len(names), 'cell')} in {converted:.2f} s")
    print(f"read        {rate:,.0f} samples a second in shuffled batches of 50")
    print(f"trained     {count(args.epochs, 'epoch')} on 500 cells, {count(len(classes), 'cell type')}")
    print(f"accuracy    {accuracy:.1%} on the {len(names) - 600} held-out cells")
    return 0


def _cells() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the cells by barcode, and the names of their types."""
    import numpy as np
    import torch

    source = resources.files("bionemo.webdatamodule").joinpath("data/pbmc68k_reduced.npz")
    with source.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        components = torch.from_numpy(data["components"])
        cells = {
            str(barcode): {"components": components[row].clone(), "label": int(data["labels"][row])}
            for row, barcode in enumerate(data["barcodes"])
        }
        return cells, [str(name) for name in data["classes"]]


def _classifier(*, n_components: int, n_classes: int) -> Any:
    """Return a small Lightning model that classifies cell types by principal components."""
    import torch
    from lightning.pytorch import LightningModule, seed_everything

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(n_components, 64), torch.nn.ReLU(), torch.nn.Linear(64, n_classes)
            )

        def training_step(self, batch: Any) -> Any:
            loss = torch.nn.functional.cross_entropy(self.layers(batch["components"]), batch["label"])
            self.log("loss", loss, prog_bar=True)
            return loss

        def validation_step(self, batch: Any) -> None:
            self._log_accuracy(batch)

        def test_step(self, batch: Any) -> None:
            self._log_accuracy(batch)

        def _log_accuracy(self, batch: Any) -> None:
            right = self.layers(batch["components"]).argmax(dim=1) == batch["label"]
            self.log("accuracy", right.float().mean(), prog_bar=True, batch_size=float(len(right)))  # type: ignore[arg-type]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    seed_everything(0, verbose=False)
    return Classifier()
