"""Two real ranks with gloo, killed and resumed on other topologies; each run is processes of its own."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers import scripts

pytestmark = pytest.mark.timeout(900)

SCRIPT = Path(__file__).parents[1] / "helpers" / "train.py"


@pytest.fixture
def train(tmp_path, shards):
    """Return a function that runs the training script and returns each rank's notes."""

    def train(name, *, expect=0, **config):
        config = {"shards": shards, "out": f"{tmp_path}/{name}", "checkpoints": f"{tmp_path}/checkpoints", **config}
        done = scripts.run(SCRIPT, json.dumps(config), ranks=config.get("ranks", 1), timeout=400)
        assert expect in (None, done.returncode), done.stderr[-3000:]
        ranks = sorted(tmp_path.glob(f"{name}.rank*"))
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in ranks]

    return train


def steps(ranks, what="train"):
    """Return the global batches: the keys of all ranks, side by side, for each step."""
    per_rank = [[note for note in notes if note[0] == what] for notes in ranks]
    assert len({len(notes) for notes in per_rank}) == 1, "ranks took different numbers of steps"
    return [(notes[0][1], notes[0][2], sum((note[3] for note in notes), [])) for notes in zip(*per_rank, strict=True)]


def test_two_ranks_take_equal_steps_and_see_the_batches_of_one(train):
    """Fit on two ranks with two workers each gives the global batches of one rank without, and exact validation."""
    one, two = train("one"), train("two", ranks=2, workers=2)

    assert steps(one) == steps(two)
    assert [20, 20] == [sum(note[0] == "train" for note in notes) for notes in two]
    assert sorted(key for *_, keys in steps(one, "val") for key in keys) == sorted(
        key for *_, keys in steps(two, "val") for key in keys
    )


def test_a_metric_of_two_ranks_is_that_of_one(train, tmp_path):
    """Validation on two ranks, logged as documented, gives the true mean of uneven shares."""
    train("metric", ranks=2, validate=True)

    assert "5.0" == Path(f"{tmp_path}/metric.metric").read_text()


@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 0)), ((1, 1), (2, 1))], ids=["2 to 1", "1 to 2"])
def test_a_killed_run_goes_on_with_other_ranks_and_workers(train, tmp_path, before, after):
    """After SIGKILL between checkpoints, the run on another topology repeats from the checkpoint, exactly."""
    whole = steps(train("whole"))
    train("killed", expect=None, ranks=before[0], workers=before[1], kill_at=[1, 4])
    rest = steps(train("rest", ranks=after[0], workers=after[1], ckpt_path=f"{tmp_path}/checkpoints/last.ckpt"))

    assert whole[12:] == rest


def test_a_terminated_run_goes_on(train, tmp_path):
    """After SIGTERM, saved by the checkpoint callback, no step is lost and none comes twice."""
    whole = steps(train("whole"))
    before = steps(train("stopped", expect=None, signal_at=[0, 4]))
    rest = steps(train("rest", workers=2, ckpt_path=f"{tmp_path}/checkpoints/epoch=0-step=5.ckpt"))

    assert whole == before + rest


PREPARE = """
import json, sys, warnings
import lightning as L, torch
from bionemo.webdatamodule import PickledDataWDS

warnings.filterwarnings("ignore")

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self.weight - batch.float().mean()) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

source, out = sys.argv[1:]
data = PickledDataWDS(source, "x.pyd", {"train": ["a", "b", "missing"]}, out, 2, n_tars_wds=1, executor="serial")
trainer = L.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False,
)
trainer.fit(Model(), datamodule=data)
"""


def test_a_conversion_that_fails_on_one_rank_ends_the_job(tmp_path):
    """[30] The rank that prepares the data finds bad input; the other one does not wait for it for ever."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.ones(1)))
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)
    done = subprocess.run(
        [sys.executable, str(script), str(source), f"{tmp_path}/out-"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )

    assert 0 != done.returncode
    assert f"missing: No such file or directory: {source}/missing.x.pyd" in done.stderr
    assert not Path(f"{tmp_path}/out-train").exists()


def test_bad_data_end_every_rank_with_the_same_words(tmp_path, shards):
    """More ranks than samples of a global batch is an error on every rank, not a hang."""
    config = {"shards": shards, "out": f"{tmp_path}/x", "checkpoints": f"{tmp_path}/c", "ranks": 2, "size": 1}
    done = scripts.run(SCRIPT, json.dumps(config), ranks=2, timeout=120)

    assert 0 != done.returncode
    assert 2 == done.stderr.count("PlanError: a global batch of 1 sample cannot serve 2 ranks")
    assert signal.SIGKILL != -done.returncode
