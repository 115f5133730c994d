"""Every Trainer method on real shards, in one process: exact sequences of keys."""

import copy
import logging
import pickle
import time

import pytest
import torch
import webdataset as wds

from bionemo.webdatamodule import PickledDataWDS, Split, Use, WebDataModule
from bionemo.webdatamodule._engine.format.manifest import read_manifest
from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    DataWarning,
    DecodeError,
    MissingFieldError,
    NoShardsError,
    PlanError,
    UnknownNameError,
    UsageError,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*was in eval mode.*")


def keys(split, numbers):
    """Return keys of the fixture's samples."""
    return [f"{split}{i:02d}" for i in numbers]


def epochs_of(loader, n=1):
    """Return the keys of each batch of several epochs."""
    return [[list(batch[0]) for batch in loader] for _ in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_trains_every_sample_once_an_epoch_and_validates_all(make_data, make_trainer, recorder, workers):
    """Two epochs of ten steps, in another order each, and validation in canonical order."""
    model, data = recorder(), make_data(workers=workers)
    make_trainer(max_epochs=2).fit(model, datamodule=data)
    epochs = [[key for epoch, _, batch in model.trained if epoch == e for key in batch] for e in range(2)]

    assert [keys("train", range(37))] * 2 == [sorted(epoch) for epoch in epochs]
    assert epochs[0] != epochs[1]
    assert list(range(10)) * 2 == [index for _, index, _ in model.trained]
    assert keys("val", range(11)) * 2 == sum(model.validated, [])


def test_the_order_is_that_of_a_plain_loop(make_data, make_trainer, recorder):
    """What a Trainer sees is what iterating the loader gives."""
    model = recorder()
    make_trainer(max_epochs=2).fit(model, datamodule=make_data())
    plain = make_data()
    plain.setup("fit")

    assert sum(epochs_of(plain.train_dataloader(), 2), []) == [batch for _, _, batch in model.trained]


@pytest.mark.parametrize("workers", [0, 2])
def test_validate_test_and_predict_see_every_sample_once_in_order(make_data, make_trainer, recorder, workers):
    """Evaluation is exact, and predictions can be joined back by key."""
    model, data = recorder(), make_data(workers=workers, splits=("val", "test"))
    trainer = make_trainer()
    metrics = trainer.validate(model, datamodule=data, verbose=False)
    trainer.test(model, datamodule=data, verbose=False)
    predictions = trainer.predict(model, datamodule=data)

    assert keys("val", range(11)) == sum(model.validated, [])
    assert keys("test", range(13)) == sum(model.tested, [])
    assert [(f"test{i:02d}", 2.0 * i) for i in range(13)] == sum(predictions, [])
    assert 5.0 == metrics[0]["mean"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method_gives_the_same_sequence(make_data, make_trainer, recorder, method):
    """Workers that are forked, spawned or served see the same plan, also with per-sample stages."""
    sequences = []
    for options in ({"workers": 0}, {"workers": 1, "loader_options": {"multiprocessing_context": method}}):
        model = recorder()
        data = make_data(pipeline_prebatch_wld={"train": "batch", "val": Use("batch", size=9)}, **options)
        make_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
        sequences.append(model.trained)

    assert sequences[0] == sequences[1]


def test_a_stage_that_cannot_be_pickled_is_named_where_it_must_be(make_data):
    """With spawn the culprit and the remedy are said before a worker starts; with the default lambdas work."""
    stages = {"train": [lambda source: source]}
    data = make_data(workers=1, pipeline_wds=stages, loader_options={"multiprocessing_context": "spawn"})
    data.setup("fit")
    with pytest.raises(ConfigError, match=r"stages\[0\] does not pickle.*multiprocessing_context='fork'"):
        next(iter(data.train_dataloader()))
    data = make_data(workers=1, pipeline_wds=stages)
    data.setup("fit")

    assert 10 == len(list(data.train_dataloader()))


def test_fit_works_without_a_val_split(make_data, make_trainer, recorder):
    """A training run that validates nothing needs no val split."""
    model = recorder()
    make_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=make_data(splits=("train",)))

    assert 10 == len(model.trained)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"fast_dev_run": 2},
        {"num_sanity_val_steps": 2},
        {"limit_train_batches": 3},
        {"max_steps": 13},
        {"val_check_interval": 3},
        {"val_check_interval": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"accumulate_grad_batches": 3},
    ],
    ids=str,
)
def test_trainer_options_take_batches_from_the_same_plan(make_data, make_trainer, recorder, kwargs):
    """Whatever the options, batch i of epoch e is the plan's."""
    model, plain = recorder(), make_data()
    make_trainer(**{"max_epochs": 2, **kwargs}).fit(model, datamodule=make_data())
    plain.setup("fit")
    expected = epochs_of(plain.train_dataloader(), 2)

    assert model.trained
    assert [(e, i, expected[e][i]) for e, i, _ in model.trained] == model.trained


def test_overfitting_takes_the_same_batches_every_epoch(make_data, make_trainer, recorder):
    """`overfit_batches` means the first batches of one epoch, again and again."""
    model = recorder()
    make_trainer(max_epochs=3, overfit_batches=2).fit(model, datamodule=make_data())
    batches = [batch for _, _, batch in model.trained]

    assert batches[:2] * 3 == batches


def test_fitting_twice_begins_again(make_data, make_trainer, recorder):
    """A second fit with the same data module is a new run from epoch 0."""
    data, runs = make_data(), []
    for _ in range(2):
        model = recorder()
        make_trainer(max_epochs=1).fit(model, datamodule=data)
        runs.append(model.trained)

    assert runs[0] == runs[1]


def test_a_virtual_epoch_goes_on_where_the_last_one_stopped(make_data):
    """Epochs of 10 of 37 samples see all samples before any comes again."""
    data = make_data(n_samples={"train": 10})
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [sum(epoch, []) for epoch in epochs_of(loader, 4)]

    assert [3, 10] == [len(loader), len(epochs[0])]
    assert 37 == len(set(sum(epochs, [])[:37]))


def test_evaluation_of_a_part_is_the_first_samples_with_a_warning(make_data):
    """`n_samples` below what is there cuts evaluation, and says what is left out."""
    data = make_data(n_samples={"val": 5})
    with pytest.warns(DataWarning, match="val: n_samples is 5, so evaluation leaves out 6 of 11 samples"):
        data.setup("validate")

    assert keys("val", range(5)) == sum(epochs_of(data.val_dataloader())[0], [])


def test_mixtures_draw_by_weight(shards):
    """A list of directories with weights gives each its part of an epoch."""
    mixture = [(f"{shards}train", 3.0), (f"{shards}test", 1.0)]
    data = WebDataModule({"train": mixture}, {"train": 40}, "__key__", 8)
    data.setup("fit")
    epoch = [key for batch in data.train_dataloader() for key in batch]
    drawn = [key for key in epoch if key.startswith("train")]

    assert [40, 30, 30] == [len(epoch), len(drawn), len(set(drawn))]


def test_several_directories_are_one_data_set(shards):
    """Without weights their samples are all read, once."""
    data = WebDataModule({"test": [f"{shards}val", f"{shards}test"]}, None, "__key__", 8)
    data.setup("test")

    assert keys("val", range(11)) + keys("test", range(13)) == [
        key for batch in data.test_dataloader() for key in batch
    ]


def test_plain_batches_are_torchs(shards):
    """With no pipeline at all a batch is torch's default collation: of one suffix, of several, as a list."""
    one = WebDataModule({"val": f"{shards}val"}, None, "x.pyd", 4)
    one.setup("validate")
    several = WebDataModule({Split.val: f"{shards}val"}, None, ["x.pyd", "__key__"], 4)
    several.setup("validate")
    untouched = WebDataModule({"val": f"{shards}val"}, None, "x.pyd", 4, pipeline_wds={"val": []})
    untouched.setup("validate")

    assert [[0.0], [1.0], [2.0], [3.0]] == next(iter(one.val_dataloader())).tolist()
    first = next(iter(several.val_dataloader()))
    assert [list, [0.0, 1.0, 2.0, 3.0], keys("val", range(4))] == [type(first), first[0].flatten().tolist(), first[1]]
    assert [[0.0], [1.0], [2.0], [3.0]] == next(iter(untouched.val_dataloader()))[0].tolist()


def test_untuple_refuses_several_suffixes(shards):
    """Taking the only value of two would lose one, so it is an error and not the first of them."""
    data = WebDataModule({"val": f"{shards}val"}, None, ["x.pyd", "__key__"], 4, pipeline_wds={"val": "untuple"})
    data.setup("validate")

    with pytest.raises(ConfigError, match="untuple takes samples of one suffix"):
        next(iter(data.val_dataloader()))


def test_stages_see_tuples_in_the_order_asked(shards):
    """Several suffixes give tuples in their order, one gives 1-tuples; `pipeline_wds` sees them first."""
    seen = []

    def spy(samples):
        for sample in samples:
            seen.append(sample)
            yield sample

    data = WebDataModule(
        {"val": f"{shards}val"},
        None,
        ["x.pyd", "__key__"],
        11,
        pipeline_wds={"val": spy},
        pipeline_prebatch_wld={"val": Use("batch", collate="list")},
    )
    data.setup("validate")
    list(data.val_dataloader())

    assert [(float(i), f"val{i:02d}") for i in range(11)] == [(float(x), key) for x, key in seen]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_batching_works_too(shards, workers):
    """`batch_size` and `collate_fn` in kwargs_wld do what they do in torch."""
    options = {"val": {"batch_size": 4, "collate_fn": len, "num_workers": workers}}
    data = WebDataModule({"val": f"{shards}val"}, None, "x.pyd", 4, kwargs_wld=options)
    data.setup("validate")

    assert [4, 4, 3] == list(data.val_dataloader())


def test_invoked_methods_apply_after_the_pipelines(shards):
    """`invoke_wds` and `invoke_wld` call webdataset's fluid methods."""
    data = WebDataModule(
        {"val": f"{shards}val"},
        None,
        "x.pyd",
        11,
        pipeline_prebatch_wld={"val": Use("batch", collate="list")},
        invoke_wds={"val": [("map", {"f": float})]},
        invoke_wld={"val": [("map", {"f": sum})]},
    )
    data.setup("validate")

    assert [55.0] == list(data.val_dataloader())
    bad = WebDataModule({"val": f"{shards}val"}, None, "x.pyd", 11, invoke_wld={"val": [("mapp", {})]})
    bad.setup("validate")
    with pytest.raises(ConfigError, match="invoke_wld names 'mapp', which is no method"):
        bad.val_dataloader()


def test_the_order_is_said_with_its_reason(make_data, caplog):
    """One INFO line for each split says how it is read and why."""
    with caplog.at_level(logging.INFO, "bionemo.webdatamodule"):
        make_data().setup("validate")
        make_data(kwargs_wds={"val": {"shardshuffle": False}}).setup("validate")
    lines = [record.message for record in caplog.records if record.name == "bionemo.webdatamodule"]

    assert [
        "val: 11 samples in 4 shards, order='global' since kwargs_wds names no shard argument",
        "val: 11 samples in 4 shards, order='shards' since kwargs_wds names shardshuffle",
    ] == lines


def test_data_modules_pickle(make_data):
    """A data module can be sent to another process."""
    data = pickle.loads(pickle.dumps(make_data()))
    data.setup("validate")

    assert keys("val", range(11)) == sum(epochs_of(data.val_dataloader())[0], [])


def test_a_gpu_less_pinned_loader_works(make_data):
    """`pin_memory=True` is accepted where there is nothing to pin for."""
    data = make_data(workers=1, loader_options={"pin_memory": True})
    data.setup("validate")

    with pytest.warns(UserWarning, match="pin_memory"):
        assert keys("val", range(11)) == sum(epochs_of(data.val_dataloader())[0], [])


WRONG = {
    "no such split": (lambda d, s: WebDataModule({"training": s}, None, "x.pyd", 4), ConfigError, "splits are train"),
    "no mapping": (lambda d, s: WebDataModule(s, None, "x.pyd", 4), ConfigError, "dirs_tars_wds must map splits"),
    "no batch size": (lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 0), ConfigError, "global_batch_size is at"),
    "no suffix": (lambda d, s: WebDataModule({"val": s}, None, [], 4), ConfigError, "suffix_keys_wds is a suffix"),
    "unknown stage": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4, pipeline_wds={"val": "untupel"}),
        UnknownNameError,
        "did you mean 'untuple'",
    ),
    "unknown option": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4, kwargs_wld={"val": {"workers": 2}}),
        ConfigError,
        "the loader 'webloader' has no option 'workers'; did you mean 'num_workers'",
    ),
    "count as text": (lambda d, s: WebDataModule({"val": s}, {"val": "3"}, "x.pyd", 4), ConfigError, "n_samples"),
    "unknown order": (lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4, order="gobal"), ConfigError, "order is"),
    "setup missing": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4).val_dataloader(),
        UsageError,
        "before setup",
    ),
    "unknown stage name": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4).setup("training"),
        ConfigError,
        "setup takes the stages fit, validate, test, predict",
    ),
    "missing split": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4).setup("fit"),
        ConfigError,
        "fit needs the split 'train', and dirs_tars_wds has val",
    ),
    "missing directory": (
        lambda d, s: WebDataModule({"val": f"{s}nowhere"}, None, "x.pyd", 4).setup("validate"),
        NoShardsError,
        "nowhere",
    ),
    "no shard": (
        lambda d, s: WebDataModule({"val": str(d)}, None, "x.pyd", 4).setup("validate"),
        NoShardsError,
        "wdshards-",
    ),
    "other prefix": (
        lambda d, s: WebDataModule({"val": s}, None, "x.pyd", 4, "other").setup("validate"),
        NoShardsError,
        "other-",
    ),
    "suffix not there": (
        lambda d, s: WebDataModule({"val": s}, None, "y.pyd", 4).setup("validate"),
        MissingFieldError,
        "x.pyd",
    ),
    "too many samples asked": (
        lambda d, s: WebDataModule({"val": s}, {"val": 99}, "x.pyd", 4).setup("validate"),
        PlanError,
        "99.*11",
    ),
    "unordered workers": (
        lambda d, s: _loader(WebDataModule({"val": s}, None, "x.pyd", 4, kwargs_wld={"val": {"in_order": False}})),
        ConfigError,
        "in_order=False",
    ),
}


def _loader(data):
    data.setup("validate")
    return data.val_dataloader()


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_answered_in_one_sentence(tmp_path, shards, call, error, message):
    """Each mistake has an error that names it and what to do."""
    with pytest.raises(error, match=message) as caught:
        call(tmp_path, f"{shards}val")

    assert "\n" not in str(caught.value)


def test_data_can_be_pinned_to_a_digest(tmp_path, shards):
    """`expect` takes what `info` prints; other data are refused, and what is not a digest is said at once."""
    digest = read_manifest(f"{shards}val", "wdshards").digest

    def data(expect, directory=f"{shards}val"):
        return WebDataModule({"val": directory}, None, "x.pyd", 4, expect={"val": expect})

    data(f"sha256:{digest}").setup("validate")
    data([digest, digest], [f"{shards}val"] * 2).setup("validate")
    with pytest.raises(ChangedDataError, match="holds other data than expected"):
        data("0" * 64).setup("validate")
    with pytest.raises(ConfigError, match="holds '12', which is not a digest"):
        data("12")
    with pytest.raises(ConfigError, match="holds 1 digest for 2 directories"):
        data(digest, [f"{shards}val"] * 2)


def damaged(tmp_path, bad, n=8):
    """Write shards with plain text in place of some numbers."""
    directory = tmp_path / "damaged"
    directory.mkdir()
    with wds.TarWriter(f"{directory}/wdshards-000000.tar") as sink:
        for i in range(n):
            sink.write({"__key__": f"k{i}", "cls": b"?" if i in bad else b"%d" % i})
    return directory


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["global", "shards"])
def test_samples_left_out_are_counted_and_logged_once_an_epoch(tmp_path, caplog, workers, order):
    """By split on the data module, and in one line at the end of the epoch in which they were met."""
    data = WebDataModule(
        {"val": damaged(tmp_path, {2, 5})},
        None,
        "cls",
        4,
        on_error="skip",
        order=order,
        kwargs_wld={"val": {"num_workers": workers}},
        kwargs_wds={"val": {"empty_check": False}},
    )
    data.setup("validate")
    loader = data.val_dataloader()
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    for _ in range(2):
        list(loader)

    assert {"val": 2} == data.skipped
    assert ["val: 2 of 8 samples left out"] == [
        record.getMessage() for record in caplog.records if "samples left out" in record.getMessage()
    ]


@pytest.mark.parametrize("pipeline", [None, {"val": ["untuple", list]}])
def test_a_batch_of_which_nothing_is_left_names_its_samples(tmp_path, pipeline):
    """With stages and without: ranks must take equal steps, so such a batch cannot just be left out."""
    data = WebDataModule({"val": damaged(tmp_path, {2, 3})}, None, "cls", 2, on_error="skip", pipeline_wds=pipeline)
    data.setup("validate")
    with pytest.raises(DecodeError, match="every sample of this batch is left out: k2, k3, and a batch needs one"):
        list(data.val_dataloader())


def begin_late(worker):
    """Let the second worker begin after everything else."""
    time.sleep(worker)


@pytest.mark.parametrize("order", ["global", "shards"])
def test_two_loaders_of_one_split_with_persistent_workers_do_not_meet(shards, order):
    """Each has its own place in its own epochs."""
    options = {"num_workers": 2, "persistent_workers": True, "worker_init_fn": begin_late}
    data = WebDataModule(
        {"train": f"{shards}train"}, None, ["__key__", "x.pyd"], 4, kwargs_wld={"train": options}, order=order
    )
    data.setup("fit")
    alone = data.train_dataloader()
    expected = epochs_of(alone, 2)
    one, other = data.train_dataloader(), data.train_dataloader()
    first = epochs_of(one)
    others = iter(other)
    begun = [list(next(others)[0])]
    ones = iter(one)
    second = [list(next(ones)[0])]
    begun += [list(keys_) for keys_, _ in others]
    second += [list(keys_) for keys_, _ in ones]

    assert expected == [*first, second]
    assert expected[0] == begun


def test_setup_without_a_stage_sets_up_every_split(make_data):
    """`setup(None)`, as some tools call it, is every split there is."""
    data = make_data()
    data.setup(None)

    assert [10, 3] == [len(data.train_dataloader()), len(data.val_dataloader())]


def test_foreign_shards_are_read_alike(tmp_path, shards):
    """Shards that webdataset wrote, with its headers and pickles, need no manifest."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    with wds.ShardWriter(f"{directory}/wdshards-%06d.tar", maxcount=4, verbose=0) as sink:
        for i in range(10):
            sink.write({"__key__": f"k{i}", "x.pyd": torch.tensor([float(i)])})
    data = WebDataModule({"val": directory}, None, ["__key__", "x.pyd"], 4)
    data.setup("validate")

    assert [(f"k{i}", float(i)) for i in range(10)] == [
        pair for keys_, values in data.val_dataloader() for pair in zip(keys_, values.flatten().tolist(), strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_by_size_take_equal_steps_and_every_sample_once(tmp_path, monkeypatch, workers, ranks):
    """The plan follows the stored sizes: limited batches, equal steps, exact resume."""
    directory = tmp_path / "proteins"
    directory.mkdir()
    names = [f"p{i:02d}" for i in range(50)]
    for i, name in enumerate(names):
        (directory / f"{name}.tokens.pyd").write_bytes(pickle.dumps(torch.full((1 + (7 * i) % 13,), i)))
    PickledDataWDS(
        directory, "tokens.pyd", {"train": names}, f"{tmp_path}/", 1, n_tars_wds=3, executor="serial"
    ).prepare_data()
    seen, lengths = [], set()
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        data = WebDataModule(
            {"train": f"{tmp_path}/train"},
            None,
            "tokens.pyd",
            1,
            kwargs_wld={"train": {"num_workers": workers}},
            pipeline_prebatch_wld={"train": Use("batch_by_size", size="tokens.pyd", max_total=26)},
        )
        data.setup("fit")
        loader = data.train_dataloader()
        iterator = iter(loader)
        first = [next(iterator), next(iterator)]
        again = WebDataModule(
            {"train": f"{tmp_path}/train"},
            None,
            "tokens.pyd",
            1,
            pipeline_prebatch_wld={"train": Use("batch_by_size", size=len, max_total=26)},
        )
        again.setup("fit")
        resumed = again.train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        batches = first + list(resumed)
        lengths.add((len(batches), len(loader)))
        seen += [int(row.max()) for batch in batches for row in batch]

        assert all(batch.numel() <= 26 for batch in batches)
    assert list(range(50)) == sorted(seen)
    assert 1 == len(lengths)
    assert 1 == len(set(lengths.pop()))


def test_remote_shards_train_through_a_cache(tmp_path, shards, make_trainer, recorder):
    """A URL in place of a directory: shards come once into the cache that kwargs_wds names, with the same plan."""
    import fsspec

    remote = fsspec.filesystem("memory")
    for split in ("train", "val"):
        remote.put(f"{shards}{split}", f"memory://bucket/{split}", recursive=True)
    cache = tmp_path / "cache"

    def data(prefix, **kwargs):
        options = {split: {"cache_dir": cache} for split in ("train", "val")} if "://" in prefix else None
        directories = {split: f"{prefix}{split}" for split in ("train", "val")}
        return WebDataModule(directories, None, ["__key__", "x.pyd"], 4, kwargs_wds=options, shuffle_shards=2, **kwargs)

    runs = []
    for prefix in (shards, "memory://bucket/"):
        model = recorder()
        make_trainer(max_epochs=2).fit(model, datamodule=data(prefix))
        runs.append(model.trained)
    remote.rm("memory://bucket", recursive=True)

    assert runs[0] == runs[1]
    assert [path for path in cache.rglob("*") if path.is_file()]


def test_weights_are_refused_where_shards_order_would_ignore_them(shards):
    """A mixture is a matter of the plan, and shards order has none."""
    directories = {"train": [(f"{shards}train", 1), (f"{shards}val", 2)]}
    with pytest.raises(ConfigError, match=r"weights need order='global'.*shardshuffle"):
        WebDataModule(directories, None, "x.pyd", 4, kwargs_wds={"train": {"shardshuffle": True}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3}, "batch_size in kwargs_wld is 3, and each rank's share of a global batch is 4 samples"),
        ({"batch_size": 4, "drop_last": True}, "drop_last in kwargs_wld would drop samples"),
    ],
)
def test_torchs_batching_options_are_refused_where_they_would_fail_in_mid_epoch(make_data, options, message):
    """In global order the plan makes batches; what contradicts it is said before the run, by its own name."""
    with pytest.raises(ConfigError, match=message):
        make_data(loader_options=options).setup("fit")


def test_torchs_batch_size_of_a_share_or_more_makes_one_batch_of_each(make_data):
    """As torch's own loader would, but for the last batches, which share what is left."""
    data = make_data(loader_options={"batch_size": 5}, suffix_keys_wds="__key__")
    data.setup("fit")

    assert [4] * 8 + [3, 2] == [len(batch) for batch in data.train_dataloader()]


def test_evaluation_in_shards_order_is_warned_of(make_data):
    """Workers that batch have each a smaller last batch, so the count of batches is not the samples'."""
    shards_order = {"kwargs_wds": {"val": {"shardshuffle": False}}, "suffix_keys_wds": "__key__"}
    data = make_data(workers=2, loader_options={"batch_size": 4}, **shards_order)
    data.setup("validate")
    with pytest.warns(DataWarning, match="val: in shards order workers need not have the same number of batches"):
        data.val_dataloader()


@pytest.mark.parametrize(("size", "taken"), [(3, 9), (5, 11), (4, None)])
def test_evaluation_in_shards_order_with_batches_of_another_size_is_warned_of(make_data, size, taken):
    """The number of batches follows from global_batch_size, which is 4 for 11 samples here."""
    shards_order = {"kwargs_wds": {"val": {"shardshuffle": False}}, "suffix_keys_wds": "__key__"}
    data = make_data(pipeline_prebatch_wld={"val": Use("batch", size=size)}, **shards_order)
    data.setup("validate")
    loader = data.val_dataloader()
    if taken == 9:
        with pytest.warns(DataWarning, match="val: in shards order this epoch of evaluation took 9 samples, and 11"):
            assert [3, 3, 3] == [len(batch) for batch in loader]
    else:
        assert [size, size, 11 - 2 * size] == [len(batch) for batch in loader]


def test_a_change_of_directory_after_setup_does_not_matter(shards, monkeypatch, tmp_path):
    """Shards are opened when they are read, by then perhaps from elsewhere."""
    monkeypatch.chdir(shards)
    data = WebDataModule({"train": "train"}, None, "__key__", 4)
    data.setup("fit")
    monkeypatch.chdir(tmp_path)

    assert 37 == sum(map(len, data.train_dataloader()))


def test_a_data_module_pickles_after_a_run(make_data, make_trainer, recorder):
    """Strategies that spawn send it to their processes, with the trainer that it has."""
    data, trainer = make_data(), make_trainer(max_epochs=1)
    trainer.fit(recorder(), datamodule=data)
    copied = pickle.loads(pickle.dumps(data))
    copied.trainer = None
    copied.setup("fit")

    assert 10 == len(list(copied.train_dataloader()))
    assert 10 == len(list(copy.deepcopy(data.train_dataloader())))


def test_batching_by_a_suffix_in_shards_order_needs_dictionaries(make_data):
    """A tuple has no suffixes; the stage says what to do instead."""
    batch = Use("batch_by_size", size="x.pyd", max_total=16)
    data = make_data(order="shards", pipeline_prebatch_wld={"train": batch})
    data.setup("fit")
    with pytest.raises(ConfigError, match=r"cannot find 'x\.pyd' in a"):
        next(iter(data.train_dataloader()))


def test_slicing_a_loader_in_shards_order_sets_its_length(make_data):
    """`slice(n)` is an epoch of n batches, as with_epoch; leaving out the first ones is refused."""
    data = make_data(order="shards", suffix_keys_wds="__key__")
    data.setup("fit")

    assert (3, 3) == (len(data.train_dataloader().slice(3)), len(list(data.train_dataloader().slice(3))))
    for call in (lambda loader: loader.slice(1, 3), lambda loader: loader.with_epoch()):
        with pytest.raises(ConfigError, match="epoch"):
            call(data.train_dataloader())


def test_printing_a_module_reads_nothing(make_data, shards):
    """Before and after setup it names the directories."""
    data = make_data()
    expected = f"WebDataModule(train: {shards}train; val: {shards}val)"
    assert expected == str(data)
    data.setup("fit")
    assert expected == str(data)
