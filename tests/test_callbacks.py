"""The share of a training run that waits for data: measured, logged, and without effect on the run."""

import csv
import logging
import pickle
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from bionemo.webdatamodule import PickledDataWDS, WebDataModule
from bionemo.webdatamodule import callbacks as monitor
from bionemo.webdatamodule._engine.stopwatch import Stopwatch
from bionemo.webdatamodule._engine.verdict import slowest, waits
from bionemo.webdatamodule.callbacks import DataWaitMonitor

BATCHES = 8


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Return the monitor's clock."""
    clock = Clock()
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class Model(L.LightningModule):
    """A line whose step takes some time."""

    def __init__(self, clock, step=0.0):
        super().__init__()
        self.clock = clock
        self.step = step
        self.line = torch.nn.Linear(4, 1)
        self.losses = []

    def training_step(self, batch):
        self.clock.sleep(self.step)
        loss = torch.nn.functional.dropout(self.line(batch), 0.5).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ValidatedModel(Model):
    """The same with a validation that takes very long."""

    def validation_step(self, batch):
        self.clock.sleep(1000)


class Batches:
    """Batches that take some time to come."""

    def __init__(self, clock, wait=0.0):
        self.clock = clock
        self.wait = wait

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for number in range(BATCHES):
            self.clock.sleep(self.wait)
            yield torch.full((2, 4), float(number))


def fit(tmp_path, model, batches, *callbacks, datamodule=None, **options):
    """Train for two epochs."""
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **{"logger": False, "log_every_n_steps": 1, **options},
    )
    validation = Batches(batches.clock, 10) if batches and isinstance(model, ValidatedModel) else None
    trainer.fit(model, batches, validation, datamodule=datamodule)
    return trainer


@pytest.mark.parametrize(
    ("expected", "wait", "step"), [(0.75, 3.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_share_is_the_wait_over_the_whole_step(tmp_path, clock, expected, wait, step):
    """It counts one epoch, and is 0 where no time passed at all."""
    measured = DataWaitMonitor()
    fit(tmp_path, Model(clock, step), Batches(clock, wait), measured)
    assert (BATCHES * wait, BATCHES * (wait + step), expected) == (measured.waited, measured.total, measured.share)


def test_validation_does_not_count(tmp_path, clock):
    """Time between the end of a step and the wait for the next batch is nobody's wait."""
    measured = DataWaitMonitor()
    fit(tmp_path, ValidatedModel(clock, 1.0), Batches(clock, 1.0), measured, val_check_interval=2)
    assert (BATCHES * 1.0, BATCHES * 2.0) == (measured.waited, measured.total)


def test_the_share_is_logged_for_each_step(tmp_path, clock):
    """It is in the logger's table and on the progress bar, under the name that was chosen."""
    logger = CSVLogger(tmp_path, name="", version="")
    measured = DataWaitMonitor("waiting", prog_bar=True)
    trainer = fit(tmp_path, Model(clock, 1.0), Batches(clock, 1.0), measured, logger=logger)
    with (tmp_path / "metrics.csv").open() as file:
        assert [0.5] * 2 * BATCHES == [float(row["waiting"]) for row in csv.DictReader(file) if row["waiting"]]
    assert 0.5 == trainer.progress_bar_metrics["waiting"]


def test_the_share_of_each_epoch_is_logged_at_its_end(tmp_path, clock):
    """Batches that come in chunks make single steps jump; over an epoch they tell how long it waited."""

    class Chunks(Batches):
        def __iter__(self):
            for number in range(BATCHES):
                self.clock.sleep(0 if number % 4 else self.wait)
                yield torch.full((2, 4), float(number))

    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, Model(clock, 1.0), Chunks(clock, 4.0), DataWaitMonitor(), logger=logger)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [float(row["data_wait"]) for row in rows if row["data_wait"]]
    assert [pytest.approx(0.8), 0, 0, 0] * 4 == steps
    assert [0.5, 0.5] == [float(row["data_wait_epoch"]) for row in rows if row["data_wait_epoch"]]


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (1.0, "waited for data 50 % of its time; more num_workers or fewer stages would make it faster"),
        (0.01, "waited for data 1 % of its time; faster loading would gain nothing"),
    ],
)
def test_a_line_of_each_epoch_says_whether_it_waited(tmp_path, caplog, clock, wait, said):
    """One line an epoch, at level INFO; of another package's loader it says no more."""
    with caplog.at_level(logging.INFO, logger="bionemo.webdatamodule"):
        fit(tmp_path, Model(clock, 1.0), Batches(clock, wait), DataWaitMonitor())
    ours = [record.message for record in caplog.records if record.name == "bionemo.webdatamodule"]
    assert [f"epoch {epoch} {said}" for epoch in range(2)] == ours


class Slow:
    """A stage that takes a second for each sample."""

    def __init__(self, clock):
        self.clock = clock

    def __repr__(self):
        return "slow"

    def __call__(self, samples):
        for sample in samples:
            self.clock.sleep(1)
            yield sample


@pytest.fixture
def stopped(monkeypatch, clock):
    """Let the stopwatches of stages follow the clock, too."""
    monkeypatch.setattr(Stopwatch, "_now", staticmethod(lambda: (clock.now, clock.now)))
    monkeypatch.setattr(monitor, "usable_cpus", lambda: 1)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize("argument", ["pipeline_wds", "pipeline_prebatch_wld"])
def test_the_stage_that_an_epoch_waited_for_is_named(tmp_path, numbers, clock, argument, order):
    """Whether it runs where workers would or behind the loader."""
    stages = ["untuple", Slow(clock)] if argument == "pipeline_wds" else [Slow(clock), "batch"]
    data = WebDataModule(
        {"train": numbers, "val": numbers}, None, "x.pyd", 4, order=order, **{argument: {"train": stages}}
    )
    measured = DataWaitMonitor()
    fit(tmp_path, ValidatedModel(clock), None, measured, datamodule=data)

    assert measured.verdict == (
        ", 100% of that for the stage slow; change pipeline_wds: what is the same in each epoch belongs into the "
        "conversion"
    )


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(("order", "workers", "count"), [("global", 2, 10), ("shards", 1, 40)])
def test_workers_measure_their_work(numbers, clock, order, workers, count):
    """What stages take in worker processes arrives with the batches or samples, for all by the measured ones."""
    data = WebDataModule(
        {"train": numbers},
        None,
        "x.pyd",
        4,
        pipeline_wds={"train": ["untuple", Slow(clock)]},
        kwargs_wld={"train": {"num_workers": workers}},
        order=order,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    loader.measure()

    assert 10 == len(list(loader))
    assert (count, 40.0) == (loader.work.batches, loader.work.seconds()["slow"])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Return a directory of shards with 40 samples."""
    directory = tmp_path_factory.mktemp("numbers")
    names = [str(number) for number in range(40)]
    for name in names:
        (directory / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.full((4,), float(name))))
    PickledDataWDS(str(directory), "x.pyd", {"train": names}, f"{directory}/", 4, executor="serial").prepare_data()
    return f"{directory}/train"


@pytest.mark.parametrize(
    ("spent", "own", "workers", "expected"),
    [
        ({"store": 1, "decoding": 3}, {}, 0, {"store": 1, "decoding": 3}),
        ({"decoding": 3, "a": 1}, {"a": 2}, 0, {"decoding": 3, "a": 3}),
        # two workers that are busy all the time: the wait is theirs
        ({"store": 5, "decoding": 15}, {}, 2, {"store": 1, "decoding": 3, "transport": 0, "start": 0}),
        # workers that are busy a fifth of the time: the batches were late for another reason
        ({"decoding": 4}, {}, 2, {"decoding": 0, "transport": 4, "start": 0}),
        # a stage in the main process explains that
        ({"decoding": 4}, {"a": 3}, 2, {"decoding": 0, "a": 3, "transport": 1, "start": 0}),
    ],
)
def test_a_wait_is_divided_among_its_causes(spent, own, workers, expected):
    """Of ten seconds four were waited for."""
    assert expected == pytest.approx(waits(spent, own, waited=4, total=10, started=0, workers=workers))


def test_the_start_of_workers_is_a_cause_of_its_own():
    """In a short epoch, the first batch comes late and the others are there."""
    found = waits({"decoding": 1}, {}, waited=4, total=5, started=3, workers=1)

    assert {"decoding": 0, "transport": 1, "start": 3} == pytest.approx(found)
    assert ("start", 0.75, "persistent_workers in kwargs_wld, to True") == slowest(found, more=8)


def test_it_changes_nothing(tmp_path, clock):
    """Losses and random numbers are the same with it and without."""
    losses = []
    for callbacks in ([], [DataWaitMonitor()]):
        L.seed_everything(3, verbose=False)
        model = Model(clock)
        fit(tmp_path, model, Batches(clock), *callbacks)
        losses.append((model.losses, torch.rand(2).tolist()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("profiler", [None, SimpleProfiler()], ids=["none", "simple"])
def test_profilers_go_on_as_before(tmp_path, clock, profiler):
    """What the user's profiler records is complete, and it is left as it was found."""
    trainer = fit(tmp_path, Model(clock), Batches(clock), DataWaitMonitor(), profiler=profiler)
    assert [] == sorted({"start", "stop"} & set(vars(trainer.profiler)))
    if profiler is not None:
        assert 2 * BATCHES == len(profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"])


def test_a_barebones_trainer_measures_without_logging(tmp_path, clock):
    """Where Lightning refuses to log, the attributes still tell."""
    measured = DataWaitMonitor()
    trainer = L.Trainer(
        default_root_dir=tmp_path, barebones=True, max_epochs=1, accelerator="cpu", callbacks=[measured]
    )
    trainer.fit(Model(clock, 1.0), Batches(clock, 3.0))
    assert 0.75 == measured.share


def test_an_exception_leaves_the_profiler_as_it_was(tmp_path, clock):
    """Lightning calls no teardown after an exception."""
    profiler = SimpleProfiler()

    class FailingModel(Model):
        def training_step(self, batch):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(tmp_path, FailingModel(clock), Batches(clock), DataWaitMonitor(), profiler=profiler)
    assert [] == sorted({"start", "stop"} & set(vars(profiler)))


def test_lightning_does_not_announce_the_callback_of_the_entry_point(monkeypatch):
    """Every Trainer has it, also those of runs that have nothing to do with this package."""
    from lightning.fabric.utilities import registry

    said = []
    monkeypatch.setattr(registry._log, "info", said.append)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert 1 == sum(type(callback).__name__ == "ResumeCallback" for callback in trainer.callbacks)
    assert [] == [line for line in said if "bionemo-webdatamodule" in line]
