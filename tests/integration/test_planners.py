"""Planner stages decide the epochs of a data module: a default one and a third party's, by the same way."""

import itertools
import os
import pickle

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from tests.helpers.twin_planner import TwinBySize

from bionemo.webdatamodule import PickledDataWDS, Use, WebDataModule
from bionemo.webdatamodule._engine.loading import sizes
from bionemo.webdatamodule.errors import ConfigError, PlanError, PluginError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:You passed in a `val_dataloader` but have no",
    "ignore:Total length of `list` across ranks is zero",
)

PACK = Use("pack", size="x.pyd", max_total=26)
WEIGHTED = Use("weighted", by=lambda sample: int(sample[0][1:]) % 5 == 0, weights={True: 1, False: 2}, collate="pad")
DEFAULT = Use("batch_by_size", size="x.pyd", max_total=26)
TWIN = TwinBySize(
    size="x.pyd", max_total=26, collate=lambda samples: [list(field) for field in zip(*samples, strict=True)]
)


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """Return a directory with a split of 50 tensors of 1 to 13 tokens."""
    directory = tmp_path_factory.mktemp("proteins")
    names = [f"p{i:02d}" for i in range(50)]
    for i, name in enumerate(names):
        (directory / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.full((1 + (7 * i) % 13,), float(i))))
        (directory / f"{name}.d.pyd").write_bytes(pickle.dumps({"a": list(range(1 + (7 * i) % 13)), "b": i}))
    PickledDataWDS(
        directory, ("x.pyd", "d.pyd"), {"train": names}, f"{directory}/", 1, n_tars_wds=3, executor="serial"
    ).prepare_data()
    return str(directory / "train")


@pytest.fixture
def make_planned(proteins):
    """Return a function that makes a data module whose batches a stage plans."""

    def make_planned(*stages, suffixes=("__key__", "x.pyd"), **kwargs):
        return WebDataModule({"train": proteins}, None, suffixes, 6, pipeline_prebatch_wld={"train": stages}, **kwargs)

    return make_planned


class SaveAt(Callback):
    """Saves a checkpoint after some step of the first epoch."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Save where asked."""
        if (trainer.current_epoch, batch_idx + 1) == (0, self.step):
            trainer.save_checkpoint(self.path)


class Model(L.LightningModule):
    """Remembers the keys of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained = []

    def training_step(self, batch, batch_idx):
        """Note epoch, batch and keys."""
        self.trained.append((self.current_epoch, batch_idx, list(batch["0"] if isinstance(batch, dict) else batch[0])))
        return self.weight**2

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def keys_of(loader):
    """Return the keys of each batch of an epoch."""
    return [list(batch["0"] if isinstance(batch, dict) else batch[0]) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_third_partys_planner_gives_the_same_batches_on_all_ranks(make_planned, monkeypatch, ranks, workers):
    """The same batches as the default one, equal steps, and every sample once."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    by_rank = []
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        epochs = []
        for stage in (DEFAULT, TWIN):
            data = make_planned(stage, kwargs_wld={"train": {"num_workers": workers}})
            data.setup("fit")
            loader = data.train_dataloader()
            epochs.append(keys_of(loader))
            assert len(loader) == len(epochs[-1])
        assert epochs[0] == epochs[1]
        by_rank.append(epochs[0])

    assert 1 == len(set(map(len, by_rank)))
    assert [f"p{i:02d}" for i in range(50)] == sorted(key for rank in by_rank for keys in rank for key in keys)


@pytest.mark.parametrize("stage", [DEFAULT, TWIN, PACK, WEIGHTED], ids=["default", "twin", "pack", "weighted"])
def test_a_trainer_goes_on_exactly_in_mid_epoch(tmp_path, make_planned, make_trainer, stage):
    """Saved after five steps, the rest of the run is the same, and loaders of other ranks take what is left."""
    whole, again = Model(), Model()
    path = tmp_path / "five.ckpt"
    make_trainer(max_epochs=2, callbacks=[SaveAt(5, path)]).fit(whole, datamodule=make_planned(stage))
    make_trainer(max_epochs=2).fit(again, datamodule=make_planned(stage), ckpt_path=path)

    assert whole.trained[5:] == again.trained


@pytest.mark.parametrize("stage", [DEFAULT, TWIN, PACK], ids=["default", "twin", "pack"])
def test_the_rest_of_an_epoch_is_dealt_to_other_ranks(make_planned, monkeypatch, stage):
    """After two steps of one rank, three ranks take the rest once."""
    data = make_planned(stage)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    seen = [key for keys in keys_of([next(batches), next(batches)]) for key in keys]
    state = loader.state_dict()
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        rest = make_planned(stage)
        rest.setup("fit")
        resumed = rest.train_dataloader()
        resumed.load_state_dict(state)
        seen += [key for keys in keys_of(resumed) for key in keys]

    assert [f"p{i:02d}" for i in range(50)] == sorted(seen)


@pytest.mark.parametrize("stage", [DEFAULT, TWIN], ids=["default", "twin"])
def test_a_planner_where_it_decides_nothing_is_refused(make_planned, stage):
    """Behind another stage, or in the workers' pipeline, its limit would not hold; the remedy works."""
    doubled = Use("map", function=tuple)
    first = "make it the first stage of pipeline_prebatch_wld, and put stages of single samples into pipeline_wds"
    with pytest.raises(ConfigError, match=f"behind other stages of pipeline_prebatch_wld.*{first}"):
        make_planned(doubled, stage)
    with pytest.raises(ConfigError, match=f"in pipeline_wds.*{first}"):
        make_planned(pipeline_wds={"train": [stage]})

    remedied = make_planned(stage, pipeline_wds={"train": doubled})
    remedied.setup("fit")
    assert all(sum(map(len, values)) <= 26 for _, values in remedied.train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kwargs_wld": {"train": {"batch_size": 4}}}, "decides the batches; leave batch_size out"),
        ({"dirs": [("train", 1.0), ("train", 2.0)]}, "plans one data set, so directories have no weights"),
    ],
)
def test_what_contradicts_a_planner_is_refused(proteins, options, message):
    """Another source of batches or of their mixture is an error of the constructor."""
    directories = [(proteins, weight) for _, weight in options.pop("dirs", [])] or proteins
    with pytest.raises(ConfigError, match=message):
        WebDataModule({"train": directories}, None, "x.pyd", 1, pipeline_prebatch_wld={"train": TWIN}, **options)


def test_a_shorter_epoch_is_refused(proteins):
    """A planner takes all samples, so n_samples is an error that says what to do."""
    data = WebDataModule({"train": proteins}, {"train": 20}, "x.pyd", 1, pipeline_prebatch_wld={"train": TWIN})
    with pytest.raises(PlanError, match=r"n_samples is 20.*plans all 50 samples; leave n_samples out"):
        data.setup("fit")


def test_the_size_of_a_dictionary_is_an_error_with_a_remedy(make_planned):
    """Suffix and key are named, and a function of the sample works."""
    wrong = make_planned(Use("batch_by_size", size="d.pyd", max_total=26), suffixes="d.pyd")
    with pytest.raises(
        PlanError, match=r"the field 'd.pyd' is a dictionary with 'a', 'b'.*give as size a function.*p00"
    ):
        wrong.setup("fit")

    stage = Use("batch_by_size", size=lambda value: len(value["a"]), max_total=26, collate="list")
    right = make_planned(stage, suffixes="d.pyd")
    right.setup("fit")
    batches = list(right.train_dataloader())
    assert 50 == sum(map(len, batches))
    assert max(len(batch) * max(len(value["a"]) for value in batch) for batch in batches) <= 26


@pytest.mark.parametrize(("size", "message"), [(1.5, "gives 1.5"), (-1, "gives -1"), (None, "gives None")])
def test_a_function_that_gives_no_size_is_named(make_planned, size, message):
    """Sizes are whole numbers from 0 on."""

    def wrong(sample):
        return size

    data = make_planned(Use("batch_by_size", size=wrong, max_total=26))
    with pytest.raises(PlanError, match=rf"the function .*wrong {message} as the size of a sample.*p00"):
        data.setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_packs_of_a_data_module_are_concatenated(make_planned, workers):
    """Tokens in a row, where each sample begins, keys as a list; at most 26 tokens."""
    data = make_planned(PACK, kwargs_wld={"train": {"num_workers": workers}})
    data.setup("fit")
    packs = list(data.train_dataloader())

    assert 50 == sum(len(pack["0"]) for pack in packs)
    for pack in packs:
        ends, tokens = pack["cu_seqlens"].tolist(), pack["1"]
        assert (torch.int32, len(pack["0"]) + 1, len(tokens)) == (pack["cu_seqlens"].dtype, len(ends), ends[-1])
        assert len(tokens) <= 26
        assert pack["max_seqlen"] == max(stop - first for first, stop in itertools.pairwise(ends))
        for key, first, stop in zip(pack["0"], ends, ends[1:], strict=False):
            assert [float(key[1:])] * (1 + (7 * int(key[1:])) % 13) == tokens[first:stop].tolist()


def test_classes_have_their_part_of_every_epoch(make_planned, monkeypatch):
    """A third of the samples are the 10 whose number divides by five, on two ranks in equal steps."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen, steps = [], set()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        data = make_planned(WEIGHTED)
        data.setup("fit")
        batches = keys_of(data.train_dataloader())
        seen += [int(key[1:]) for keys in batches for key in keys]
        steps.add((len(batches), len(data.train_dataloader())))

    assert {(9, 9)} == steps
    assert (50, 17) == (len(seen), sum(number % 5 == 0 for number in seen))


def test_sizes_are_read_once_and_cached(make_planned, monkeypatch):
    """A second setup takes them from the cache; a function is asked anew, since it may be another one."""
    first = make_planned(DEFAULT)
    first.setup("fit")
    expected = keys_of(first.train_dataloader())
    monkeypatch.setattr("bionemo.webdatamodule._engine.loading.sizes._size", lambda *_: 1 / 0)
    again = make_planned(DEFAULT)
    again.setup("fit")

    assert expected == keys_of(again.train_dataloader())
    with pytest.raises(ZeroDivisionError):
        make_planned(Use("batch_by_size", size=lambda sample: len(sample[1]), max_total=26)).setup("fit")


def test_sums_of_sizes_can_be_limited(make_planned):
    """batch_by_size(total="sum") makes batches for what is joined without padding, as graphs are."""
    stage = Use("batch_by_size", size="x.pyd", max_total=40, total="sum", collate="list")
    data = make_planned(stage, suffixes="x.pyd")
    data.setup("fit")
    totals = [sum(map(len, batch)) for batch in data.train_dataloader()]

    assert sum(1 + (7 * i) % 13 for i in range(50)) == sum(totals)
    assert max(totals) <= 40
    assert len(totals) == 9  # 344 tokens need 8.6 batches of 40


def test_a_planner_without_a_plan_is_named(make_planned):
    """What it gives must follow the protocol, and it must say what a size is."""

    class NoPlan(TwinBySize):
        def plan(self, sizes, request):
            return sizes

    class NoSize:
        def __call__(self, samples):
            return samples

        def plan(self, sizes, request):
            return None

    with pytest.raises(PluginError, match="which is no EpochPlan"):
        make_planned(NoPlan(size="x.pyd", max_total=26)).setup("fit")
    with pytest.raises(ConfigError, match="and no size; a planner has both"):
        make_planned(NoSize())


def length_of(sample):
    """Return the length of the tokens; a sample of thirteen tokens has none."""
    if len(sample[1]) == 13:
        return "thirteen"
    return len(sample[1])


def test_many_sizes_are_read_by_several_processes(make_planned, monkeypatch):
    """They are those of one process, an error names the first such sample, and a function that cannot cross works."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)  # so that nothing is known
    expected = make_planned(PACK)
    expected.setup("fit")
    monkeypatch.setattr(sizes, "_APART", 1)
    monkeypatch.setattr(sizes, "usable_cpus", lambda: 3)
    data, local = make_planned(PACK), make_planned(Use("pack", size=lambda sample: len(sample[1]), max_total=26))
    data.setup("fit")
    local.setup("fit")

    batches = [keys_of(each.train_dataloader()) for each in (expected, data, local)]
    assert batches[0] == batches[1] == batches[2]
    with pytest.raises(PlanError, match=r"gives 'thirteen' as the size of a sample.*key=p11"):
        make_planned(Use("pack", size=length_of, max_total=26)).setup("fit")
