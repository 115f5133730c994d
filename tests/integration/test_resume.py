"""Exact resume through stock Lightning checkpoints, in one process: the rest of the run is the same, batch by batch."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from bionemo.webdatamodule import Use
from bionemo.webdatamodule.errors import ResumeError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*was in eval mode.*")


class SaveAt(Callback):
    """Saves a checkpoint after some step."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Save where asked."""
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.step:
            trainer.save_checkpoint(self.path)


class Crash(Exception):  # noqa: N818 - a crash is what it is
    """What a failing step raises."""


def fit(recorder, trainer, data, ckpt_path=None):
    """Train, and return what was seen."""
    model = recorder()
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model.trained


@pytest.fixture
def whole(make_data, make_trainer, recorder):
    """Return the batches of an undisturbed run of two epochs."""
    return fit(recorder, make_trainer(max_epochs=2), make_data())


@pytest.mark.parametrize("step", range(1, 20))
def test_a_run_goes_on_exactly_after_any_step(tmp_path, make_data, make_trainer, recorder, whole, step):
    """Saved after any step of two epochs, also at an epoch's last batch, the rest is the same."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)]), make_data())
    torch.manual_seed(step)

    assert whole[step:] == fit(recorder, make_trainer(max_epochs=2), make_data(), path)


@pytest.mark.parametrize("max_steps", [3, 10, 13, 20])
def test_a_run_cut_by_max_steps_goes_on(tmp_path, make_data, make_trainer, recorder, whole, max_steps):
    """A run that ended by its number of steps goes on with more of them, also at the end of an epoch."""
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    first = fit(recorder, make_trainer(max_steps=max_steps, callbacks=[checkpoint]), make_data())
    rest = fit(recorder, make_trainer(max_steps=20), make_data(), tmp_path / "last.ckpt")

    assert whole == first + rest


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_goes_on_after_an_epochs_end(tmp_path, make_data, make_trainer, recorder, whole, epochs):
    """A checkpoint written at the end of an epoch begins the next one, not the same again."""
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    first = fit(recorder, make_trainer(max_epochs=epochs, callbacks=[checkpoint]), make_data())
    rest = fit(recorder, make_trainer(max_epochs=2), make_data(), tmp_path / "last.ckpt")

    assert whole == first + rest


def test_a_run_goes_on_twice(tmp_path, make_data, make_trainer, recorder, whole):
    """A resumed run is saved and resumed again."""
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(3, tmp_path / "a.ckpt")]), make_data())
    fit(
        recorder,
        make_trainer(max_epochs=2, callbacks=[SaveAt(7, tmp_path / "b.ckpt")]),
        make_data(),
        tmp_path / "a.ckpt",
    )

    assert whole[7:] == fit(recorder, make_trainer(max_epochs=2), make_data(), tmp_path / "b.ckpt")


@pytest.mark.parametrize("workers", [(0, 2), (2, 0), (2, 1)])
def test_a_run_goes_on_with_other_workers(tmp_path, make_data, make_trainer, recorder, whole, workers):
    """The number of workers is not a part of the state; what workers had fetched ahead is not lost."""
    before, after = workers
    path = tmp_path / "some.ckpt"
    saving = make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)])
    fit(recorder, saving, make_data(workers=before, loader_options={"prefetch_factor": 4} if before else {}))

    assert whole[4:] == fit(recorder, make_trainer(max_epochs=2), make_data(workers=after), path)


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("where", ["training_step", "on_train_batch_end"])
def test_a_run_goes_on_after_an_exception(tmp_path, make_data, make_trainer, recorder, whole, at, where):
    """A checkpoint saved on an exception repeats the batch whose step failed, and none whose step ran."""

    class Failing(recorder):
        def training_step(self, batch, batch_idx):
            if where == "training_step" and batch_idx == at:
                raise Crash
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if where == "on_train_batch_end" and batch_idx == at:
                raise Crash

    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=100)
    with pytest.raises(Crash):
        fit(Failing, make_trainer(max_epochs=2, callbacks=[checkpoint]), make_data())
    [path] = tmp_path.glob("*.ckpt")
    done = at + (where == "on_train_batch_end")

    assert whole[done:] == fit(recorder, make_trainer(max_epochs=2), make_data(), path)


OPTIONS = [
    {"accumulate_grad_batches": 2},
    {"val_check_interval": 3},
    {"val_check_interval": 0.5},
    {"limit_train_batches": 7},
    {"reload_dataloaders_every_n_epochs": 1},
    {"num_sanity_val_steps": 2},
    {"check_val_every_n_epoch": 2},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.parametrize("step", [4, 7, 10])
def test_a_run_goes_on_under_any_option(tmp_path, make_data, make_trainer, recorder, kwargs, step):
    """Accumulation, validation in mid-epoch, limits and reloading change nothing."""
    expected = fit(recorder, make_trainer(max_epochs=2, **kwargs), make_data())
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)], **kwargs), make_data())

    assert expected[step:] == fit(recorder, make_trainer(max_epochs=2, **kwargs), make_data(), path)


def test_a_run_goes_on_from_a_checkpoint_in_mid_validation(tmp_path, make_data, make_trainer, recorder):
    """A checkpoint written by validation in the middle of an epoch counts what was trained."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="mean", save_top_k=-1)
    kwargs = {"max_epochs": 2, "val_check_interval": 3}
    expected = fit(recorder, make_trainer(callbacks=[checkpoint], **kwargs), make_data())
    for path in tmp_path.glob("*step=*.ckpt"):
        step = torch.load(path, weights_only=True)["global_step"]

        assert expected[step:] == fit(recorder, make_trainer(**kwargs), make_data(), path)


def test_the_estimated_number_of_steps_does_not_spoil_the_resume(tmp_path, make_data, make_trainer, recorder, whole):
    """Reading `estimated_stepping_batches` in `configure_optimizers` loads the data before the loops are restored."""

    class Scheduled(recorder):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            assert 20 == self.trainer.estimated_stepping_batches
            return optimizer

    path = tmp_path / "some.ckpt"
    fit(Scheduled, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())

    assert whole[4:] == fit(Scheduled, make_trainer(max_epochs=2), make_data(), path)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 8, 16, 37])
@pytest.mark.parametrize("step", [3, 9, 10])
def test_another_global_batch_size_takes_the_unseen_rest_once(tmp_path, make_data, make_trainer, recorder, size, step):
    """The epoch ends with every sample seen once, and the next one is whole."""
    path = tmp_path / "some.ckpt"
    before = fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)]), make_data())[:step]
    after = fit(recorder, make_trainer(max_epochs=2), make_data(size=size), path)
    epochs = [[key for epoch, _, batch in before + after if epoch == e for key in batch] for e in range(2)]

    assert [sorted(f"train{i:02d}" for i in range(37))] * 2 == [sorted(epoch) for epoch in epochs]


def test_another_global_batch_size_again_and_again(tmp_path, make_data, make_trainer, recorder):
    """Sizes 4, 3 and 5 in one epoch, from a checkpoint of a resumed run each."""
    seen, path = [], None
    for number, (size, steps) in enumerate([(4, 3), (3, 5), (5, None)]):
        saved = tmp_path / f"{number}.ckpt"
        total = None if steps is None else steps + (0 if path is None else 3)
        trainer = make_trainer(max_epochs=1, callbacks=[SaveAt(total, saved)] if steps else [])
        seen += fit(recorder, trainer, make_data(size=size), path)[:steps]
        path = saved

    assert [f"train{i:02d}" for i in range(37)] == sorted(key for _, _, batch in seen for key in batch)


def test_a_checkpoint_of_other_data_is_refused(tmp_path, make_data, make_trainer, recorder):
    """Another seed or other shards would repeat and lose samples: an error on every rank."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())

    with pytest.raises(ResumeError, match="seed"):
        fit(recorder, make_trainer(max_epochs=2), make_data(seed=1), path)
    with pytest.raises(ResumeError, match="n_samples"):
        fit(recorder, make_trainer(max_epochs=2), make_data(n_samples={"train": 20}), path)


def test_a_checkpoint_without_our_state_is_taken_at_its_batch(
    tmp_path, make_data, make_trainer, recorder, whole, caplog
):
    """What Lightning counts is all there is to go by, and the log says so."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())
    _forget(path)

    assert whole[4:] == fit(recorder, make_trainer(max_epochs=2), make_data(), path)
    assert "the checkpoint holds no state of this data module" in caplog.text


def _forget(path):
    """Take what the data module and its loader stored out of a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["WebDataModule"]
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    torch.save(checkpoint, path)


@pytest.mark.parametrize("at_end", [True, False])
def test_a_checkpoint_of_a_whole_epoch_without_our_state_begins_the_next(
    tmp_path, make_data, make_trainer, recorder, whole, caplog, at_end
):
    """Lightning still counts the batches of the epoch that is over, which are none of the next one's."""
    callback = ModelCheckpoint(tmp_path, save_last=True) if at_end else SaveAt(10, tmp_path / "last.ckpt")
    fit(recorder, make_trainer(max_epochs=1, callbacks=[callback]), make_data())
    _forget(tmp_path / "last.ckpt")

    assert whole[10:] == fit(recorder, make_trainer(max_epochs=2), make_data(), tmp_path / "last.ckpt")
    assert "holds no state" not in caplog.text


def test_a_trainer_that_fits_again_leaves_no_epoch_out(make_data, make_trainer, recorder, whole, caplog):
    """Lightning's counts of the first fit are still there when the second begins."""
    data, trainer = make_data(), make_trainer(max_epochs=1)
    first = fit(recorder, trainer, data)
    trainer.fit_loop.max_epochs = 2

    assert whole == first + fit(recorder, trainer, data)
    assert "holds no state" not in caplog.text


def test_a_fit_after_one_that_was_cut_begins_an_epoch(make_data, make_trainer, recorder, whole):
    """Lightning goes on with the next epoch, from its first batch."""
    data, trainer = make_data(), make_trainer(max_steps=3)
    fit(recorder, trainer, data)
    trainer.fit_loop.epoch_loop.max_steps = 13

    assert whole[10:] == fit(recorder, trainer, data)


def test_validating_from_a_checkpoint_leaves_training_alone(tmp_path, make_data, make_trainer, recorder, whole):
    """`validate(ckpt_path=...)` restores the data module too, and the next fit begins at the beginning."""
    path, data = tmp_path / "some.ckpt", make_data()
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())
    make_trainer().validate(recorder(), datamodule=data, ckpt_path=path, verbose=False)

    assert whole == fit(recorder, make_trainer(max_epochs=2), data)


def test_users_stages_that_buffer_go_on_exactly(tmp_path, make_data, make_trainer, recorder):
    """Stages run on one share at a time, so a shuffle among them needs no replay, on any number of workers."""
    stages = {"train": [Use("shuffle", size=8), Use("map", function=tuple)]}
    kwargs = {"pipeline_wds": stages, "pipeline_prebatch_wld": {"train": [Use("shuffle", size=3), "batch"]}}
    expected = fit(recorder, make_trainer(max_epochs=2), make_data(**kwargs))
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(6, path)]), make_data(workers=2, **kwargs))

    assert expected[6:] == fit(recorder, make_trainer(max_epochs=2), make_data(workers=1, **kwargs), path)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_order_goes_on_by_replaying(tmp_path, make_data, make_trainer, recorder, workers):
    """In shards order the epoch so far is run through once more, exactly, with our seeded stages."""
    kwargs = {"kwargs_wds": {"train": {"shardshuffle": 4}}, "pipeline_wds": {"train": Use("shuffle", size=8)}}
    expected = fit(recorder, make_trainer(max_epochs=2), make_data(workers=workers, **kwargs))
    for step in (4, 10, 13):
        path = tmp_path / f"{step}.ckpt"
        fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)]), make_data(workers=workers, **kwargs))

        assert expected[step:] == fit(recorder, make_trainer(max_epochs=2), make_data(workers=workers, **kwargs), path)


def test_a_mixture_goes_on_with_another_batch_size(tmp_path, shards, make_trainer, recorder):
    """A weighted mixture resumes exactly, and elastically."""
    from bionemo.webdatamodule import WebDataModule

    def data(size):
        mixture = [(f"{shards}train", 3.0), (f"{shards}test", 1.0)]
        return WebDataModule({"train": mixture}, {"train": 40}, ["__key__", "x.pyd"], size)

    def run(size, **kwargs):
        path = kwargs.pop("ckpt_path", None)
        return fit(recorder, make_trainer(max_epochs=2, limit_val_batches=0, **kwargs), data(size), path)

    whole, path = run(8), tmp_path / "some.ckpt"
    run(8, callbacks=[SaveAt(2, path)])

    assert whole[2:] == run(8, ckpt_path=path)
    rest = [key for epoch, _, batch in run(4, ckpt_path=path) if epoch == 0 for key in batch]
    assert [key for _, _, batch in whole[2:5] for key in batch] == rest


def test_the_learning_rate_finder_leaves_the_order_alone(tmp_path, make_data, make_trainer, recorder, whole):
    """After the tuner has trained and restored, fit begins at the beginning."""
    from lightning.pytorch.tuner import Tuner

    class Tuned(recorder):
        def __init__(self):
            super().__init__()
            self.lr = 0.01

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    model, data, trainer = Tuned(), make_data(), make_trainer(max_epochs=2, callbacks=[ModelCheckpoint(tmp_path)])
    Tuner(trainer).lr_find(model, datamodule=data, num_training=5)
    model.trained.clear()
    trainer.fit(model, datamodule=data)

    assert whole == model.trained


def test_states_are_the_same_whoever_writes_them(tmp_path, make_data, make_trainer, recorder):
    """Data module and loader write one state of plain numbers and strings, under 1 kB."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data(workers=2))
    checkpoint = torch.load(path, weights_only=True)
    [loader_state] = (
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        if ("combined_loader" in checkpoint["loops"]["fit_loop"]["state_dict"])
        else [checkpoint["WebDataModule"]]
    )

    assert checkpoint["WebDataModule"] == loader_state
    assert {"samples": 16, "epoch": 0} == {name: loader_state[name] for name in ("samples", "epoch")}
    assert len(repr(loader_state)) < 1000
    assert not [value for value in itertools.chain(loader_state.values()) if type(value) not in (int, str)]


@pytest.mark.parametrize("change", [{"epoch": 1}, {"epoch": 5}, {"samples": 0}, {"samples": 24}], ids=str)
def test_a_cursor_that_was_changed_is_refused(tmp_path, make_data, make_trainer, recorder, change):
    """Epoch and samples are held against what Lightning counted."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].update(change)
    torch.save(checkpoint, path)

    with pytest.raises(ResumeError, match="one of them was changed; take a checkpoint as the Trainer wrote it"):
        fit(recorder, make_trainer(max_epochs=2), make_data(), path)


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
def test_combined_loaders_go_on_with_the_same_batch_size_alone(tmp_path, make_data, make_trainer, recorder):
    """In the middle of an epoch another global batch size would change how the loaders meet; the remedy works."""
    from lightning.pytorch.utilities import CombinedLoader

    class Pairs(recorder):
        def training_step(self, batch, batch_idx):
            self.trained.append((self.current_epoch, batch_idx, [list(part[0]) for part in batch]))
            return self.weight * batch[0][1].float().mean()

    def run(size, **kwargs):
        model, loaders = Pairs(), []
        for seed in range(2):
            data = make_data(size=size, seed=seed, splits=("train",))
            data.setup("fit")
            loaders.append(data.train_dataloader())
        path = kwargs.pop("ckpt_path", None)
        trainer = make_trainer(limit_val_batches=0, **kwargs)
        trainer.fit(model, CombinedLoader(loaders, "min_size"), ckpt_path=path)
        return model.trained

    run(4, max_epochs=1, callbacks=[SaveAt(3, tmp_path / "mid.ckpt")])
    run(4, max_epochs=1, callbacks=[SaveAt(10, tmp_path / "end.ckpt")])
    with pytest.raises(ResumeError, match=r"several loaders are combined.*take that one to the end of the epoch"):
        run(5, max_epochs=2, ckpt_path=tmp_path / "mid.ckpt")

    assert run(5, max_epochs=2)[8:] == run(5, max_epochs=2, ckpt_path=tmp_path / "end.ckpt")


def test_gradients_that_a_checkpoint_lacks_are_named(tmp_path, make_data, make_trainer, recorder, caplog):
    """Lightning does not store accumulated gradients; at a multiple nothing is said."""
    for step, said in ((4, False), (5, True)):
        caplog.clear()
        path = tmp_path / f"{step}.ckpt"
        kwargs = {"max_epochs": 1, "accumulate_grad_batches": 2}
        fit(recorder, make_trainer(callbacks=[SaveAt(step, path)], **kwargs), make_data())
        fit(recorder, make_trainer(**kwargs), make_data(), path)

        assert said == ("after 1 of 2 batches whose gradients are accumulated" in caplog.text)


def test_a_state_that_fit_does_not_use_is_named(tmp_path, make_data, make_trainer, recorder, whole, caplog):
    """Without the checkpoint Lightning begins at the beginning, and so do the data; the remedy of the warning works."""
    path = tmp_path / "some.ckpt"
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(4, path)]), make_data())
    data = make_data()
    data.load_state_dict(torch.load(path, weights_only=True)["WebDataModule"])
    assert "was given" not in caplog.text

    assert whole == fit(recorder, make_trainer(max_epochs=2), data)
    assert "was given a state of epoch 0 after 16 samples, and fit() without ckpt_path begins" in caplog.text
    caplog.clear()
    assert whole[4:] == fit(recorder, make_trainer(max_epochs=2), data, path)
    assert "was given" not in caplog.text


@pytest.mark.parametrize("order", ["global", "shards"])
def test_a_loop_of_ones_own_goes_on_by_the_state_of_the_data_module(make_data, order):
    """Without a Trainer the next loader begins there, and until then the state is the one that was loaded."""

    def module():
        data = make_data(order=order, suffix_keys_wds="__key__")
        data.setup("fit")
        return data

    first = module()
    batches = iter(first.train_dataloader())
    next(batches)
    state, rest = first.state_dict(), list(batches)
    again = module()
    again.load_state_dict(state)
    assert state == again.state_dict()
    assert rest == list(again.train_dataloader())
    assert len(rest) + 1 == len(list(again.train_dataloader()))


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"order": "global"}, {"order": "shards"}, "made with order='global', and this run has order='shards'; set"),
        ({"order": "shards"}, {"order": "global"}, "made with order='shards', and this run has order='global'; set"),
        ({"order": "shards"}, {"order": "shards", "size": 3}, "made with 4, and this run has 3; set it to 4 to resume"),
    ],
    ids=["to shards", "to global", "batch size"],
)
def test_another_kind_of_order_is_named(make_data, then, now, message):
    """And what is to be set, rather than the length of an epoch that follows from it."""
    loaders = []
    for options in (then, now, then):
        data = make_data(**options)
        data.setup("fit")
        loaders.append(data.train_dataloader())
    batches = iter(loaders[0])
    next(batches)
    state = loaders[0].state_dict()
    with pytest.raises(ResumeError, match=message):
        loaders[1].load_state_dict(state)
    loaders[2].load_state_dict(state)
    assert [keys for keys, _ in batches] == [keys for keys, _ in loaders[2]]
