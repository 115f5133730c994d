"""Everything that the constructors take can be said in one YAML file of LightningCLI."""

import subprocess
import sys

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*was in eval mode.*",
    "ignore::DeprecationWarning",  # Lightning's CLI uses parts of jsonargparse that are deprecated
)


class Model(L.LightningModule):
    """Learns one number, and remembers the shapes of its batches."""

    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.lr = lr
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shapes = []

    def training_step(self, batch, batch_idx):
        """Take a step."""
        self.shapes.append(tuple(batch.shape))
        return (self.weight - batch.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        """Do nothing."""

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.fixture(autouse=True)
def words(monkeypatch):
    """Take pytest's own words off the command line, which LightningCLI looks at."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def run(tmp_path, data, *arguments):
    """Run `fit` with a data module from YAML, and return the CLI."""
    quiet = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": data, "trainer": quiet}))
    return LightningCLI(
        Model,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=False,
        args=["fit", "--config", str(path), *arguments],
    )


def module(name, **arguments):
    """Return a data module's part of a configuration."""
    return {"class_path": f"bionemo.webdatamodule.{name}", "init_args": arguments}


def reading(shards):
    """Return a configuration that names everything a pipeline can be built of."""
    return module(
        "WebDataModule",
        dirs_tars_wds={"train": [[f"{shards}train", 0.75], [f"{shards}test", 0.25]], "val": f"{shards}val"},
        n_samples={"train": 40},
        suffix_keys_wds="x.pyd",
        global_batch_size=8,
        pipeline_wds={"train": ["untuple", {"name": "map", "options": {"function": "torch.neg"}}]},
        pipeline_prebatch_wld={"train": {"name": "batch", "options": {"collate": "pad"}}},
        kwargs_wld={"train": {"num_workers": 2}},
        loader={"name": "webloader", "options": {"pin_memory": False}},
        order="global",
        seed=3,
        tail="drop",
    )


def test_one_yaml_configures_reading(tmp_path, shards):
    """Mixture, stages, loader options and order come from the file."""
    cli = run(tmp_path, reading(shards))

    assert [(8, 1)] * 5 == cli.model.shapes
    assert 3 == cli.datamodule._settings.seed


def test_one_yaml_configures_converting_pickles(tmp_path, shards):
    """PickledDataWDS takes its parents' arguments by name, and splits by rules."""
    data = module(
        "PickledDataWDS",
        dir_pickles=shards,
        suffix_pickles="x.pyd",
        names_subset={"train": [f"train{i:02d}" for i in range(6)], "val": ["val00", "val01"]},
        prefix_dir_tars_wds=f"{tmp_path}/out-",
        global_batch_size=2,
        n_tars_wds=2,
        key_encoder="escaped",
        executor="serial",
    )

    assert [(2, 1)] * 3 == run(tmp_path, data).model.shapes
    assert 2 == len(list((tmp_path / "out-train").glob("*.tar")))


def test_one_yaml_configures_any_writer(tmp_path, shards):
    """SourceDataWDS takes writer, key encoder and executor as names with options."""
    data = module(
        "SourceDataWDS",
        writer={"name": "pickles", "options": {"directory": shards, "suffixes": ["x.pyd"]}},
        names_subset={"train": ["train00", "train01"], "val": ["val00"]},
        prefix_dir_tars_wds=f"{tmp_path}/out-",
        suffix_keys_wds="x.pyd",
        global_batch_size=1,
        n_tars_wds=1,
        executor={"name": "processes", "options": {"workers": 1}},
    )

    assert [(1, 1)] * 2 == run(tmp_path, data).model.shapes


def test_command_line_words_override_the_file(tmp_path, shards):
    """A single option is changed without touching the file."""
    cli = run(tmp_path, reading(shards), "--data.global_batch_size=10")

    assert [(10, 1)] * 4 == cli.model.shapes


SCRIPT = """
import sys
import lightning as L
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
LightningCLI(
    BoringModel, L.LightningDataModule, subclass_mode_data=True, seed_everything_default=False, args=sys.argv[1:]
)
"""


def test_a_printed_configuration_round_trips(tmp_path, shards):
    """What `--print_config` prints says the same when it is read again."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": reading(shards)}))

    def printed(config):
        words = [sys.executable, "-W", "ignore", "-c", SCRIPT, "fit", "--config", str(config), "--print_config"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    (tmp_path / "again.yaml").write_text(printed(path))
    given = yaml.safe_load(path.read_text())["data"]["init_args"]
    shown = yaml.safe_load((tmp_path / "again.yaml").read_text())["data"]["init_args"]

    assert given == {name: shown[name] for name in given}
    assert (tmp_path / "again.yaml").read_text() == printed(tmp_path / "again.yaml")
