"""Fixtures of the tests with real Trainers: a small data set in shards, and a model that writes down what it saw."""

import pickle
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bionemo.webdatamodule import PickledDataWDS, WebDataModule


class Recorder(L.LightningModule):
    """Learns one number, and remembers the keys of each batch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained = []
        self.validated = []
        self.tested = []

    def training_step(self, batch, batch_idx):
        """Take a step and note epoch, batch and keys."""
        keys, values = batch
        self.trained.append((self.current_epoch, batch_idx, list(keys)))
        return (self.weight - values.float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        """Note the keys and log the mean value."""
        keys, values = batch
        self.validated.append(list(keys))
        self.log("mean", values.float().mean(), batch_size=float(len(keys)), sync_dist=True)

    def test_step(self, batch, batch_idx):
        """Note the keys."""
        self.tested.append(list(batch[0]))

    def predict_step(self, batch, batch_idx):
        """Return keys and doubled values."""
        keys, values = batch
        return list(zip(keys, (2 * values).flatten().tolist(), strict=True))

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _processes_of(session):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(owner) == session and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.fixture(scope="session")
def processes_of():
    """Return a function that lists the processes of a session that are alive."""
    return _processes_of


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Return the prefix of directories with 37, 11 and 13 numbered samples, in 4 shards each."""
    directory = tmp_path_factory.mktemp("numbers")
    names = {"train": [], "val": [], "test": []}
    for split, n in (("train", 37), ("val", 11), ("test", 13)):
        for i in range(n):
            names[split].append(f"{split}{i:02d}")
            (directory / f"{split}{i:02d}.x.pyd").write_bytes(pickle.dumps(torch.tensor([float(i)])))
    PickledDataWDS(str(directory), "x.pyd", names, f"{directory}/", 4, n_tars_wds=4, executor="serial").prepare_data()
    return f"{directory}/"


@pytest.fixture
def make_data(shards):
    """Return a function that makes a data module over the shards, which gives keys and values."""

    def make_data(*, workers=0, size=4, splits=("train", "val"), loader_options=None, shards=shards, **kwargs):
        kwargs.setdefault("suffix_keys_wds", ["__key__", "x.pyd"])
        options = {"num_workers": workers, **(loader_options or {})}
        return WebDataModule(
            {split: f"{shards}{split}" for split in splits},
            kwargs.pop("n_samples", None),
            global_batch_size=size,
            kwargs_wld=dict.fromkeys(splits, options),
            **kwargs,
        )

    return make_data


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that makes a quiet Trainer."""

    def make_trainer(**kwargs):
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(
                isinstance(callback, ModelCheckpoint) for callback in kwargs.get("callbacks", [])
            ),
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**{**quiet, **kwargs})

    return make_trainer


@pytest.fixture
def recorder():
    """Return the model class."""
    return Recorder
