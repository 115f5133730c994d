"""Calls of bionemo-webdatamodule 1.0.0: each works, or is answered with the same call in today's form."""

import pickle
import re

import lightning as L
import pytest
import torch
import webdataset as wds
from webdataset import batched

from bionemo.webdatamodule.datamodule import PickledDataWDS, SourceDataWDS, Split, WebDataModule
from bionemo.webdatamodule.errors import ConfigError, InputError
from bionemo.webdatamodule.testing.conversion import raw_samples
from bionemo.webdatamodule.utils import pickles_to_tars

pytestmark = pytest.mark.filterwarnings("ignore:.*in shards order (ranks|workers) need not:UserWarning")


def untuple(source):
    """Take the one value of each tuple."""
    return (sample for (sample,) in source)


batch = batched(4, collation_fn=torch.vstack)
NAMES = {Split.train: [f"s.{number}" for number in range(8)], Split.val: ["v.0", "v.1"]}
STAGES = {
    "pipeline_wds": {Split.train: [untuple], Split.val: untuple},
    "pipeline_prebatch_wld": {Split.train: [batch], Split.val: batch},
    "kwargs_wds": {split: {"shardshuffle": False} for split in Split},
    "kwargs_wld": {split: {"num_workers": 0} for split in Split},
    "invoke_wds": {split: [] for split in Split},
}


@pytest.fixture
def pickles(tmp_path, monkeypatch):
    """A directory of pickles beside the working directory's shards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickles").mkdir()
    for number, name in enumerate([*NAMES[Split.train], *NAMES[Split.val]]):
        (tmp_path / "pickles" / f"{name}.tensor.pyd").write_bytes(pickle.dumps(torch.tensor([number])))
    return tmp_path / "pickles"


DIRECTORIES = {Split.train: "first/dir-for-train", Split.val: "second/dir-for-val"}


def answered(kind, *args, **kwargs):
    """Return what today's form of a call makes: the call that the error shows, pasted."""
    with pytest.raises(ConfigError, match="this is a call in the form of") as caught:
        kind(*args, **kwargs)
    (code,) = re.findall(rf"^{kind.__name__}\(\n.*?^\)$", caught.value.message, re.MULTILINE | re.DOTALL)
    return eval(code, {**globals(), **STAGES, "kwargs_wds": kwargs.get("kwargs_wds")})


def batches(module):
    """Return the batches of both splits as lists."""
    module.prepare_data()
    module.setup("fit")
    return [[one.flatten().tolist() for one in loader()] for loader in (module.train_dataloader, module.val_dataloader)]


EXPECTED = [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9]]]
"""What 1.0.0 gives for all calls here."""


def test_pickles_by_the_call_of_its_docstring(pickles):
    """Names before suffixes, and a directory for each split."""
    args = str(pickles), NAMES, "tensor.pyd", DIRECTORIES
    module = answered(PickledDataWDS, *args, n_tars_wds=2, prefix_tars_wds="myshards", **STAGES)
    assert EXPECTED == batches(module)
    assert ["myshards-000000.tar", "myshards-000001.tar"] == sorted(
        path.name for path in (pickles.parent / "first/dir-for-train").glob("*.tar")
    )


def test_shards_by_the_call_of_its_docstring(pickles):
    """Suffixes before directories, without numbers of samples and a batch size."""
    for split, names in NAMES.items():
        pickles_to_tars(str(pickles), names, "tensor.pyd", DIRECTORIES[split], "shards", min_num_shards=2)
    for args, kwargs in (
        (("tensor.pyd", DIRECTORIES), {"prefix_tars_wds": "shards"}),
        ((["tensor.pyd"], DIRECTORIES, "shards"), {}),
        (("tensor.pyd",), {"dirs_tars_wds": DIRECTORIES, "prefix_tars_wds": "shards"}),
        ((), {"suffix_keys_wds": "tensor.pyd", "dirs_tars_wds": DIRECTORIES, "prefix_tars_wds": "shards"}),
    ):
        assert EXPECTED == batches(answered(WebDataModule, *args, **kwargs, **STAGES))


def test_batches_of_one_where_no_stage_makes_them(pickles):
    """1.0.0 left batching to torch, whose default is 1; the size of the loader's options is taken where given."""
    kwargs = {"n_tars_wds": 1, "pipeline_wds": STAGES["pipeline_wds"]}
    args = str(pickles), NAMES, "tensor.pyd", DIRECTORIES
    ones = batches(answered(PickledDataWDS, *args, **kwargs))
    assert [[[number] for number in range(8)], [[8], [9]]] == ones
    module = answered(PickledDataWDS, *args, **kwargs, kwargs_wld={split: {"batch_size": 4} for split in Split})
    assert EXPECTED == batches(module)


def test_calls_of_today_are_not_taken_for_former_ones(pickles):
    """The documented forms stay what they are."""
    module = PickledDataWDS(str(pickles), "tensor.pyd", NAMES, "out-", 4, pipeline_wds=STAGES["pipeline_wds"])
    assert 2 == len(batches(module)[0])
    with pytest.raises(ConfigError, match="global_batch_size is at least 1, not 0"):
        WebDataModule({"train": "out-train"}, None, "tensor.pyd")


def test_pickles_to_tars_stores_what_a_function_returns(pickles, tmp_path):
    """The function gets the key and the bytes by suffix, as in 1.0.0; objects are pickled."""

    def twice(key, data):
        assert "." not in key
        value = pickle.loads(data["tensor.pyd"])
        return {"__key__": key, "tensor.pyd": pickle.dumps(2 * value), "name.txt": key.encode()}

    pickles_to_tars(pickles, NAMES[Split.val], "tensor.pyd", tmp_path / "out", "x", twice, min_num_shards=1)
    samples = raw_samples([str(tmp_path / "out/x-000000.tar")])
    found = {key: (data["name.txt"], pickle.loads(data["tensor.pyd"]).item()) for key, data in samples.items()}
    assert {"v-0": (b"v-0", 16), "v-1": (b"v-1", 18)} == found
    args = pickles, NAMES[Split.val], "tensor.pyd", tmp_path / "b", "x"
    with pytest.raises(InputError, match=r"gives the key 'other' to the sample 'v\.0'"):
        pickles_to_tars(*args, lambda key, data: {"__key__": "other", **data})
    with pytest.raises(InputError, match="the function fails with KeyError: 'none'"):
        pickles_to_tars(*args, lambda key, data: data["none"])
    with pytest.raises(ConfigError, match="n_tars_wds"):
        pickles_to_tars(*args, min_num_shards=0)


def halves(name, fields):
    """Return the half of a tensor as an object."""
    return {"half.pyd": pickle.loads(fields["tensor.pyd"]) / 2}


def test_the_pickle_writer_stores_what_a_function_returns(pickles):
    """In YAML the function is an import path; it runs where the executor runs tasks."""
    options = {"directory": str(pickles), "suffixes": "tensor.pyd", "function": f"{__name__}.halves"}
    module = SourceDataWDS(
        {"name": "pickles", "options": options},
        {"train": NAMES[Split.train]},
        "out-",
        "half.pyd",
        8,
        n_tars_wds=2,
        order="shards",
    )
    module.prepare_data()
    module.setup("fit")
    assert [number / 2 for number in range(8)] == next(iter(module.train_dataloader())).flatten().tolist()


class Counting(L.LightningModule):
    """Notes the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch):
        """Note the batch."""
        self.seen.append(batch.flatten().tolist())
        return self.layer(batch.float().reshape(-1, 1)).sum()

    def validation_step(self, batch):
        """Do nothing."""

    def configure_optimizers(self):
        """Return any."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Hooked(WebDataModule):
    """A subclass that uses the hooks of 1.0.0."""

    def _setup_wds(self, split):
        return super()._setup_wds(split).compose(lambda source: (value + 100 for value in source))

    def _setup_dataloader(self, split):
        return super()._setup_dataloader(split).compose(lambda source: (-value for value in source))


class Own(WebDataModule):
    """A subclass that makes both by itself."""

    def _setup_wds(self, split):
        return (
            wds.WebDataset(f"out-{split.name}/wdshards-000000.tar", shardshuffle=False).decode().to_tuple("tensor.pyd")
        )

    def _setup_dataloader(self, split):
        return wds.WebLoader(self._dataset[split], batch_size=None).compose(untuple, batch)


class Half(Own):
    """A subclass that makes a dataset of its own only."""

    def _setup_dataloader(self, split):
        return WebDataModule._setup_dataloader(self, split)


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # webdataset leaves it open
def test_hooks_of_subclasses_work_or_are_named(pickles):
    """What a subclass adds to dataset and loader is used; what cannot work is an error that names the hook."""
    PickledDataWDS(str(pickles), "tensor.pyd", {"train": NAMES[Split.train]}, "out-", 4, n_tars_wds=1).prepare_data()
    given = {"train": "out-train"}, None, "tensor.pyd", 4
    stages = {"pipeline_prebatch_wld": {"train": batch}}
    negative = [[-100, -101, -102, -103], [-104, -105, -106, -107]]
    for kind, more, expected in ((Hooked, stages, negative), (Own, {}, EXPECTED[0])):
        model = Counting()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **quiet)
        trainer.fit(model, datamodule=kind(*given, order="shards", **more))
        assert expected == model.seen
    half = Half(*given, order="shards")
    half.setup("fit")
    with pytest.raises(ConfigError, match=r"_setup_wds\(\) of Half returns WebDataset; return what super\(\)"):
        half.train_dataloader()
