"""The two examples of the documented interface, nearly line by line."""

import pickle
import random

import lightning as L
import pytest
import torch
import webdataset as wds
from webdataset import batched, shuffle

from bionemo.webdatamodule.datamodule import PickledDataWDS, Split, WebDataModule


class Model(L.LightningModule):
    """Counts samples and learns one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        """Note the batch."""
        self.seen["train"].append(batch.shape)
        return (self.weight - batch.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        """Note the batch."""
        self.seen["val"].append(batch.shape)

    def test_step(self, batch, batch_idx):
        """Note the batch."""
        self.seen["test"].append(batch.shape)

    def predict_step(self, batch, batch_idx):
        """Return the sums."""
        return batch.sum(dim=1)

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(tmp_path, **kwargs):
    """Return a quiet trainer."""
    return L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **kwargs,
    )


@pytest.fixture
def dir_pickles(tmp_path):
    """Write 200 pickles of tensors of shape (1, 3)."""
    directory = tmp_path / "pickles"
    directory.mkdir()
    for i in range(200):
        (directory / f"sample{i}.tensor.pyd").write_bytes(pickle.dumps(torch.full((1, 3), float(i))))
    return str(directory)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_first_example_fits_and_validates(tmp_path, dir_pickles):
    """Lambdas as stages, shuffling with an rng, webdataset's arguments and workers, as documented."""
    tar_file_prefix = "shards"
    n_samples = {Split.train: 120, Split.val: 40, Split.test: 40}
    first = {Split.train: 0, Split.val: 120, Split.test: 160}
    PickledDataWDS(
        dir_pickles,
        "tensor.pyd",
        {split: [f"sample{i}" for i in range(first[split], first[split] + n_samples[split])] for split in Split},
        f"{tmp_path}/tars-",
        16,
        n_tars_wds=4,
        prefix_tars_wds=tar_file_prefix,
    ).prepare_data()

    dirs_of_tar_files = {split: f"{tmp_path}/tars-{split.name}" for split in Split}
    suffix_keys_wds = "tensor.pyd"
    global_batch_size = 16
    local_batch_size = 16
    seed_rng_shfl = 27193781

    untuple = lambda source: (sample for (sample,) in source)  # noqa: E731 - as documented

    pipeline_wds = {
        Split.train: [untuple, shuffle(n_samples[Split.train], rng=random.Random(seed_rng_shfl))],
        Split.val: untuple,
        Split.test: untuple,
    }
    batch = batched(local_batch_size, collation_fn=lambda list_samples: torch.vstack(list_samples))  # noqa: PLW0108 - as documented
    pipeline_prebatch_wld = {
        Split.train: [shuffle(n_samples[Split.train], rng=random.Random(seed_rng_shfl)), batch],
        Split.val: batch,
        Split.test: batch,
    }
    kwargs_wds = {
        split: {"shardshuffle": split == Split.train, "nodesplitter": wds.split_by_node, "seed": seed_rng_shfl}
        for split in Split
    }
    kwargs_wld = {split: {"num_workers": 2} for split in Split}

    data_module = WebDataModule(
        dirs_of_tar_files,
        n_samples,
        suffix_keys_wds,
        global_batch_size,
        prefix_tars_wds=tar_file_prefix,
        pipeline_wds=pipeline_wds,
        pipeline_prebatch_wld=pipeline_prebatch_wld,
        kwargs_wds=kwargs_wds,
        kwargs_wld=kwargs_wld,
    )
    model = Model()
    run = trainer(tmp_path, num_sanity_val_steps=0)
    run.fit(model, datamodule=data_module)
    run.test(model, datamodule=data_module, verbose=False)
    predictions = run.predict(model, datamodule=data_module)

    assert [(16, 3)] * 7 + [(8, 3)] == [tuple(shape) for shape in model.seen["train"][:8]]
    assert 16 == len(model.seen["train"])
    assert [(16, 3), (16, 3), (8, 3)] * 2 == [tuple(shape) for shape in model.seen["val"]]
    assert [(16, 3), (16, 3), (8, 3)] == [tuple(shape) for shape in model.seen["test"]]
    assert [3.0 * i for i in range(160, 200)] == sorted(torch.cat(predictions).tolist())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_example_converts_and_fits(tmp_path, workers):
    """Pickles under the documented suffix become shards, and the shards give objects, not bytes."""
    dir_pickles = tmp_path / "my" / "pickles"
    dir_pickles.mkdir(parents=True)
    names = [f"sample{i}" for i in range(1, 9)]
    for i, name in enumerate(names):
        (dir_pickles / f"{name}.mydata.pt").write_bytes(pickle.dumps(torch.full((3,), float(i))))
    suffix_pickles = "mydata.pt"
    names_subset = {Split.train: names[:6], Split.val: names[6:]}
    n_tars_wds = 2
    prefix_tars_wds = "myshards"
    output_dir_tar_files = f"{tmp_path}/tars/dir-"
    global_batch_size = 2
    untuple = lambda source: (sample for (sample,) in source)  # noqa: E731 - as documented
    pipeline_wds = {Split.train: untuple, Split.val: untuple}
    batch = batched(2, collation_fn=torch.vstack)
    pipelines_wdl_batch = {Split.train: batch, Split.val: batch}
    kwargs_wld = {split: {"num_workers": workers} for split in names_subset}

    data_module = PickledDataWDS(
        str(dir_pickles),
        suffix_pickles,
        names_subset,
        output_dir_tar_files,
        global_batch_size,  # `WebDataModule` args
        n_tars_wds=n_tars_wds,
        prefix_tars_wds=prefix_tars_wds,  # `WebDataModule` kwargs
        pipeline_wds=pipeline_wds,
        pipeline_prebatch_wld=pipelines_wdl_batch,
        kwargs_wld=kwargs_wld,
    )
    model = Model()
    trainer(tmp_path).fit(model, datamodule=data_module)

    assert [(2, 3)] * 6 == [tuple(shape) for shape in model.seen["train"]]
    assert ["myshards-000000.tar", "myshards-000001.tar"] == sorted(
        path.name for path in (tmp_path / "tars" / "dir-train").glob("*.tar")
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_the_shards_are_what_is_documented(tmp_path, dir_pickles):
    """Plain webdataset and plain pickle read `{"__key__": name with dashes, suffix: pickle of the data}`."""
    source = tmp_path / "pickles"
    (source / "a.b.tensor.pyd").write_bytes(pickle.dumps({"x": 1}))
    PickledDataWDS(
        dir_pickles, "tensor.pyd", {"train": ["a.b", "sample7"]}, f"{tmp_path}/out-", 2, n_tars_wds=1
    ).prepare_data()
    with wds.WebDataset(f"{tmp_path}/out-train/wdshards-000000.tar", shardshuffle=False) as dataset:
        samples = list(dataset)

    assert ["a-b", "sample7"] == [sample["__key__"] for sample in samples]
    assert {"x": 1} == pickle.loads(samples[0]["tensor.pyd"])
    assert [[7.0, 7.0, 7.0]] == pickle.loads(samples[1]["tensor.pyd"]).tolist()
