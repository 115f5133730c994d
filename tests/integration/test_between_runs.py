"""What users change from one run to the next: data that grew, the batch size, Fabric, the number of ranks."""

import pickle

import lightning as L
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from tests.integration.test_resume import SaveAt, fit

from bionemo.webdatamodule import PickledDataWDS
from bionemo.webdatamodule._engine.loading import assemble
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule.errors import DataWarning, ResumeError, count

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*was in eval mode.*")


@pytest.fixture
def grown(tmp_path):
    """Return a function that makes a data module over the first so many samples."""
    for i in range(15):
        (tmp_path / f"s{i:02d}.x.pyd").write_bytes(pickle.dumps(torch.tensor([float(i)])))

    def grown(n, **kwargs):
        names = {"train": [f"s{i:02d}" for i in range(n)]}
        out = f"{tmp_path}/of-{n}-"
        kwargs.setdefault("suffix_keys_wds", ["__key__", "x.pyd"])
        return PickledDataWDS(tmp_path, "x.pyd", names, out, 4, n_tars_wds=1, executor="serial", **kwargs)

    return grown


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("order", ["global", "shards"])
def test_a_checkpoint_goes_on_with_data_that_grew(tmp_path, grown, make_trainer, recorder, caplog, step, order):
    """Refused with the remedy; with it the next epoch has all data in that epoch's order, and the log says so."""
    path = tmp_path / "some.ckpt"
    quiet = {"limit_val_batches": 0}
    fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)], **quiet), grown(12, order=order))
    expected = fit(recorder, make_trainer(max_epochs=3, **quiet), grown(15, order=order))
    epoch = (step + 2) // 3

    with pytest.raises(ResumeError, match="leave out the rest of the epoch with resume='next_epoch'"):
        fit(recorder, make_trainer(max_epochs=3, **quiet), grown(15, order=order), path)
    rest = fit(recorder, make_trainer(max_epochs=3, **quiet), grown(15, order=order, resume="next_epoch"), path)
    assert [batch for batch in expected if batch[0] >= epoch] == rest
    assert "train: continuing with the next epoch, since the checkpoint was made with other data" in caplog.text


def test_with_the_same_data_the_epoch_goes_on(tmp_path, grown, make_trainer, recorder):
    """`resume="next_epoch"` changes nothing where the state fits."""
    path, quiet = tmp_path / "some.ckpt", {"limit_val_batches": 0, "max_epochs": 2}
    whole = fit(recorder, make_trainer(callbacks=[SaveAt(2, path)], **quiet), grown(12))

    assert whole[2:] == fit(recorder, make_trainer(**quiet), grown(12, resume="next_epoch"), path)


def test_lightnings_batch_size_finder_sets_the_global_batch_size(tmp_path, make_data, make_trainer, recorder):
    """The largest size that works is kept, and training takes it."""
    seen = []

    class Limited(recorder):
        def training_step(self, batch, batch_idx):
            seen.append(len(batch[0]))
            if len(batch[0]) > 10:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(batch, batch_idx)

    data, model = make_data(size=2), Limited()
    trainer = make_trainer(max_epochs=1, callbacks=[SaveAt(10**9, "")], default_root_dir=tmp_path)
    Tuner(trainer).scale_batch_size(model, datamodule=data, batch_arg_name="global_batch_size", steps_per_trial=1)

    assert 8 == data.global_batch_size
    assert [2, 4, 8, 16] == sorted(set(seen))
    model.trained.clear()
    trainer.fit(model, datamodule=data)
    assert [8, 8, 8, 7, 6] == [len(keys) for _, _, keys in model.trained]


def test_the_batch_size_can_be_set_between_runs(make_data, make_trainer, recorder):
    """Loaders made from then on follow it, also without another setup."""
    data = make_data()
    fit(recorder, make_trainer(max_epochs=1), data)
    data.global_batch_size = 10

    assert [10, 10, 9, 8] == [len(batch[0]) for batch in data.train_dataloader()]
    assert [10, 10, 9, 8] == [len(keys) for _, _, keys in fit(recorder, make_trainer(max_epochs=1), data)]


def test_fabric_takes_the_loaders(make_data, make_trainer, recorder):
    """A loader made after `launch` needs no `setup_dataloaders`: the same batches as a Trainer gets, and its state."""
    fabric = L.Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    data = make_data()
    data.setup("fit")
    loader = data.train_dataloader()
    batches = ((epoch, number, batch) for epoch in range(2) for number, batch in enumerate(loader))
    seen = [(epoch, number, list(fabric.to_device(batch)[0])) for epoch, number, batch in batches]

    assert fit(recorder, make_trainer(max_epochs=2), make_data()) == seen


@pytest.mark.parametrize(("n", "ranks"), [(1, 2), (3, 8)])
def test_evaluation_works_on_more_ranks_than_samples(make_data, monkeypatch, n, ranks):
    """Every rank takes one step, every sample is there, and a warning says that some come twice."""
    seen = []
    for rank in range(ranks):
        monkeypatch.setattr(assemble, "topology_of", lambda *_, rank=rank: Topology(rank=rank, world_size=ranks))
        data = make_data(size=8, n_samples={"val": n})
        with pytest.warns(DataWarning, match=rf"val: .*{count(n, 'sample')} for {ranks} ranks|evaluation leaves out"):
            data.setup("validate")
        (batch,) = data.val_dataloader()
        seen += batch[0]

    assert [f"val{rank % n:02d}" for rank in range(ranks)] == seen


@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_makes_the_batches(make_data, order, workers):
    """`collate_fn` in kwargs_wld gets lists of samples as they are stored, as torch's DataLoader calls it."""
    seen = []

    def collate(samples):
        seen.append(len(samples))
        return [(key, float(value)) for key, value in samples]

    data = make_data(order=order, workers=workers, splits=("val",), loader_options={"collate_fn": collate})
    data.setup("validate")
    batches = list(data.val_dataloader())

    assert [(f"val{i:02d}", float(i)) for i in range(11)] == sorted(pair for batch in batches for pair in batch)
    assert all(isinstance(batch, list) for batch in batches)
    assert workers or [len(batch) for batch in batches] == seen
