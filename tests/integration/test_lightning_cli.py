"""Everything that the constructors take can be said in one YAML file of LightningCLI."""

import contextlib
import itertools
import json
import pickle
import re
import sys
from pathlib import Path

import fsspec
import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from moto.server import ThreadedMotoServer
from tests.helpers import scripts
from tests.helpers.convert import convert

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.builtins.executors import Serial

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

    (tmp_path / "script.py").write_text(SCRIPT)

    def printed(config):
        return scripts.run(tmp_path / "script.py", "fit", "--config", config, "--print_config").stdout

    (tmp_path / "again.yaml").write_text(printed(path))
    given = yaml.safe_load(path.read_text())["data"]["init_args"]
    shown = yaml.safe_load((tmp_path / "again.yaml").read_text())["data"]["init_args"]

    assert given == {name: shown[name] for name in given}
    assert (tmp_path / "again.yaml").read_text() == printed(tmp_path / "again.yaml")


PAGE = (Path(__file__).parents[2] / "docs/how-to/lightningcli-cluster.md").read_text()
SMALL = {
    "accelerator: gpu": "accelerator: cpu",
    "devices: 8": "devices: 2",
    "num_nodes: 4": "num_nodes: 1",
    "precision: bf16-mixed": "precision: 32",
    "max_epochs: 10": "max_epochs: 1",
    "every_n_train_steps: 500": "every_n_train_steps: 1",
    "num_workers: 8": "num_workers: 1",
    "num_workers: 2": "num_workers: 0",
    "max_total: 8192": "max_total: 40",
    "/scratch/shards": "cache",
}
TRAIN = """
import json, sys
import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, pack, batch_idx):
        with open(f"seen.{self.global_rank}", "a") as stream:
            stream.write(json.dumps(sorted(set(pack["values"].tolist()))) + "\\n")
        return (self.weight - pack["values"].float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        assert batch.ndim == 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


LightningCLI(Model, L.LightningDataModule, subclass_mode_data=True, save_config_callback=None, args=sys.argv[1:])
"""


class Sequences:
    """Reads a sequence for each name: the name's number, some times."""

    def __call__(self, names):
        for name in names:
            yield Sample(name, {"tokens.pyd": pickle.dumps(torch.full((3 + int(name) % 7,), int(name)))})


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Serve the shards of the page, 20 sequences in each directory, as S3 does."""
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    bucket = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket.mkdir("proteins")
    for first, name in enumerate(["swissprot-train", "mgnify-train", "swissprot-val"]):
        convert(
            reader=Sequences(),
            names={"train": [str(20 * first + number) for number in range(20)]},
            directories={"train": str(tmp_path / name)},
            prefix="wdshards",
            key_encoder=str,
            executor=Serial(),
            n_shards=2,
        )
        bucket.put(str(tmp_path / name), f"proteins/{name}", recursive=True)
    yield
    server.stop()
    with contextlib.suppress(AttributeError):
        bucket.clear_instance_cache()


def test_the_yaml_of_a_whole_run_trains_on_two_ranks_and_resumes(tmp_path, bucket):
    """Packs of two directories in S3, stopped after one step: each rank goes on, and every sample comes once."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for word, small in SMALL.items():
        assert word in text
        text = text.replace(word, small)
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "train.py").write_text(TRAIN)
    commands = [line.removeprefix("srun python ").split() for line in PAGE.splitlines() if line.startswith("srun")]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

    def run(command, *more):
        script, *words = command
        done = scripts.run(tmp_path / script, *words, *quiet, *more, ranks=2, directory=tmp_path)
        assert 0 == done.returncode, done.stderr[-3000:]

    run(commands[0], "--trainer.max_steps=1")
    run(commands[1])
    seen = [[json.loads(line) for line in (tmp_path / f"seen.{rank}").read_text().splitlines()] for rank in range(2)]
    assert len(seen[0]) == len(seen[1]) > 1
    assert list(range(40)) == sorted(itertools.chain.from_iterable(itertools.chain(*seen)))
