"""Every remedy that a message names is carried out here: what fails, the words of the message, what works.

Those about pickles are in ``test_pickles_remedies.py``, those about foreign tars in ``test_real_tars.py``, and those
of the command line and of plugins beside their tests.
"""

import re
import shutil

import pytest
import torch

from bionemo.webdatamodule import PickledDataWDS, Use, WebDataModule
from bionemo.webdatamodule.errors import WebDataModuleError
from bionemo.webdatamodule.pickles import dumps, loads

N = 12
ALL = [f"s{number:02d}" for number in range(N)]


class Few:
    """Passes on the samples whose number is in a range."""

    def __init__(self, stop):
        self.stop = stop

    def __call__(self, samples):
        return (sample for sample in samples if int(sample[0][1:]) < self.stop)


def identity(samples):
    """Pass on what comes."""
    return samples


def ragged(samples):
    """Give each sample another length."""
    return ((key, torch.zeros(int(key[1:]) + 1)) for key, _ in samples)


def alike(samples):
    """Give each sample one length."""
    return ((key, torch.zeros(3)) for key, _ in samples)


def named(samples):
    """Make dictionaries."""
    return ({"__key__": key, "x.pyd": value} for key, value in samples)


def length(sample):
    """Return the size of a sample."""
    return len(sample[-1])


def parity(sample):
    """Return the class of a sample."""
    return int(sample[0][1:]) % 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Twelve samples of a tensor and a text in four shards, twelve more in another directory, and some odd ones."""
    base = tmp_path_factory.mktemp("remedies")
    (base / "pickles").mkdir()
    for number, name in enumerate(ALL):
        for suffix, value in (
            ("x.pyd", torch.arange(number + 1.0)),
            ("a.x.pyd", torch.zeros(2)),
            ("class.pyd", number % 3),
            ("ratio.pyd", 0.5),
        ):
            (base / "pickles" / f"{name}.{suffix}").write_bytes(dumps(value))
    for target, suffixes in (
        ("one", ["x.pyd", "class.pyd", "ratio.pyd"]),
        ("two", ["x.pyd"]),
        ("both", ["a.x.pyd", "x.pyd"]),
        ("small", ["x.pyd"]),
    ):
        n = 1 if target == "small" else 4
        PickledDataWDS(
            base / "pickles", suffixes, {"train": ALL}, {"train": base / target}, 4, n_tars_wds=n, executor="serial"
        ).prepare_data()
    return base


def train(base, **changed):
    """Return the sorted keys of an epoch."""
    arguments = {
        "dirs_tars_wds": "one",
        "suffix_keys_wds": ["__key__", "x.pyd"],
        "global_batch_size": 4,
        "pipeline_prebatch_wld": Use("batch", collate="list"),
        **changed,
    }
    module = data(base, **arguments)
    module.setup("fit")
    return keys_of(module.train_dataloader())


def data(base, dirs_tars_wds, n_samples=None, **arguments):
    """Return a data module of one split; directories are named below ``base``."""
    if isinstance(dirs_tars_wds, str):
        dirs_tars_wds = base / dirs_tars_wds
    else:
        dirs_tars_wds = [base / d if isinstance(d, str) else (base / d[0], d[1]) for d in dirs_tars_wds]
    whole = {"suffix_keys_wds", "global_batch_size", "order", "tail", "on_error", "codecs", "prefix_tars_wds", "seed"}
    given = {name: value if name in whole else {"train": value} for name, value in arguments.items()}
    return WebDataModule({"train": dirs_tars_wds}, {"train": n_samples}, **given)


def keys_of(batches):
    """Return the sorted keys of batches of any form."""
    keys = []
    for batch in batches:
        if isinstance(batch, dict):
            keys += batch["__key__"] if "__key__" in batch else batch["0"]
        elif isinstance(batch[0], dict):
            keys += [sample["__key__"] for sample in batch]
        elif torch.is_tensor(batch[-1]):
            keys += batch[0]
        else:
            keys += [sample[0] for sample in batch]
    return sorted(keys)


SHARDS = {"shardshuffle": 4}
BY_SIZE = {"size": "x.pyd", "max_total": 48, "collate": "list"}

ROWS = {
    "shard arguments in global order": (
        {"order": "global", "kwargs_wds": SHARDS},
        [("leave them out", {"kwargs_wds": {}}), ("or take order='shards'", {"order": "shards"})],
        ALL,
    ),
    "a handler of webdataset": (
        {"kwargs_wds": {"handler": print}},
        [
            ("give on_error='raise'", {"kwargs_wds": {}, "on_error": "raise"}),
            ("or 'skip' in its place", {"kwargs_wds": {}, "on_error": "skip"}),
        ],
        ALL,
    ),
    "weights for some directories": (
        {"dirs_tars_wds": [("one", 1.0), "two"], "n_samples": 12},
        [("give all of them one", {"dirs_tars_wds": [("one", 1.0), ("two", 1.0)]})],
        N,
    ),
    "weights in shards order": (
        {"dirs_tars_wds": [("one", 1.0), ("two", 1.0)], "kwargs_wds": SHARDS},
        [
            ("leave webdataset's shard arguments out of kwargs_wds", {"kwargs_wds": {}}),
            ("or the weights out of dirs_tars_wds", {"dirs_tars_wds": ["one", "two"]}),
        ],
        2 * N,
    ),
    "drop_last": (
        {"kwargs_wld": {"drop_last": True}},
        [("leave it out", {"kwargs_wld": {}}), ("give tail='drop'", {"kwargs_wld": {}, "tail": "drop"})],
        ALL,
    ),
    "a batch size of the loader": (
        {"kwargs_wld": {"batch_size": 2}},
        [
            ("leave batch_size out", {"kwargs_wld": {}}),
            (r"or choose global_batch_size", lambda found: {"kwargs_wld": {}, "global_batch_size": 2}),
        ],
        ALL,
    ),
    "with_epoch on the dataset": (
        {"invoke_wds": [("with_epoch", {"nsamples": 8})]},
        [
            ("set the epoch's length with n_samples", {"invoke_wds": [], "n_samples": 8}),
            ("or read in order='shards'", {"order": "shards"}, N),
        ],
        8,
    ),
    "several batches of a share": (
        {"pipeline_prebatch_wld": Use("batch", size=2, collate="list")},
        [
            (
                r"share of (\d+) samples.*make one batch of at least that size",
                lambda found: {"pipeline_prebatch_wld": Use("batch", size=int(found[1]), collate="list")},
            ),
            ("or read in order='shards'", {"order": "shards"}, 6),
        ],
        ALL,
    ),
    "a stage that leaves nothing": (
        {"pipeline_wds": Few(3), "global_batch_size": 2},
        [
            ("leave samples out with where=", {"pipeline_wds": identity, "where": ALL[:3]}),
            ("take larger batches", {"global_batch_size": N}),
            ("or read in order='shards'", {"order": "shards"}, sorted([*ALL[:3]] * 3)),
        ],
        ALL[:3],
    ),
    "a planner behind a stage": (
        {"pipeline_prebatch_wld": [identity, Use("batch_by_size", **BY_SIZE)]},
        [
            (
                "make it the first stage of pipeline_prebatch_wld, and put stages of single samples into pipeline_wds",
                {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE), "pipeline_wds": identity},
            )
        ],
        ALL,
    ),
    "a planner in pipeline_wds": (
        {"pipeline_wds": Use("batch_by_size", **BY_SIZE)},
        [
            (
                "make it the first stage of pipeline_prebatch_wld",
                {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE), "pipeline_wds": identity},
            )
        ],
        ALL,
    ),
    "a planner and a batch size of the loader": (
        {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE), "kwargs_wld": {"batch_size": 4}},
        [("leave batch_size out of kwargs_wld", {"kwargs_wld": {}})],
        ALL,
    ),
    "a planner and n_samples": (
        {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE), "n_samples": 4},
        [("leave n_samples out", {"n_samples": None})],
        ALL,
    ),
    "a sample larger than a batch": (
        {"pipeline_prebatch_wld": Use("batch_by_size", **{**BY_SIZE, "max_total": 11})},
        [
            (
                r"has size (\d+).*raise max_total",
                lambda found: {
                    "pipeline_prebatch_wld": Use("batch_by_size", **{**BY_SIZE, "max_total": int(found[1])})
                },
            ),
            (
                "a batch of its own with oversize='alone'",
                {"pipeline_prebatch_wld": Use("batch_by_size", **{**BY_SIZE, "max_total": 11}, oversize="alone")},
            ),
        ],
        ALL,
    ),
    "a sample larger than a batch, left out": (
        {"pipeline_prebatch_wld": Use("batch_by_size", **{**BY_SIZE, "max_total": 11})},
        [
            (
                r"sample (\d+) .*leave the sample out",
                lambda found: {"where": [k for k in ALL if k != ALL[int(found[1])]]},
            )
        ],
        ALL[:-1],
    ),
    "sums cannot stand alone": (
        {"pipeline_prebatch_wld": ("batch_by_size", {**BY_SIZE, "oversize": "alone", "total": "sum"})},
        [
            (
                "oversize='alone' needs total='padded'",
                {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE, oversize="alone", total="padded")},
            ),
        ],
        ALL,
    ),
    "the size of a tuple in a stream": (
        {"pipeline_prebatch_wld": Use("batch_by_size", **BY_SIZE), "order": "shards"},
        [
            (
                "give it a function as size",
                {"pipeline_prebatch_wld": Use("batch_by_size", **{**BY_SIZE, "size": length})},
            ),
            ("samples that are dictionaries", {"pipeline_wds": named}),
            ("or order='global'", {"order": "global"}),
        ],
        ALL,
    ),
    "a pack's size of a tuple in a stream": (
        {"pipeline_prebatch_wld": Use("pack", size="x.pyd", max_total=30), "order": "shards"},
        [
            ("give it a function as size", {"pipeline_prebatch_wld": Use("pack", size=length, max_total=30)}),
            ("samples that are dictionaries", {"pipeline_wds": named}),
            ("or order='global'", {"order": "global"}),
        ],
        ALL,
    ),
    "a sample larger than a pack": (
        {"pipeline_prebatch_wld": Use("pack", size="x.pyd", max_total=11)},
        [
            (
                r"has size (\d+).*raise max_total",
                lambda found: {"pipeline_prebatch_wld": Use("pack", size="x.pyd", max_total=int(found[1]))},
            )
        ],
        ALL,
    ),
    "a sample larger than a pack, left out": (
        {"pipeline_prebatch_wld": Use("pack", size="x.pyd", max_total=11)},
        [
            (
                r"sample (\d+) .*or leave the sample out",
                lambda found: {"where": [k for k in ALL if k != ALL[int(found[1])]]},
            )
        ],
        ALL[:-1],
    ),
    "a pack without a dimension": (
        {
            "pipeline_prebatch_wld": Use("pack", size="class.pyd", max_total=24),
            "suffix_keys_wds": ["__key__", "class.pyd"],
        },
        [("collate='list'", {"pipeline_prebatch_wld": Use("pack", size="class.pyd", max_total=24, collate="list")})],
        ALL,
    ),
    "classes without replacement": (
        {"pipeline_prebatch_wld": Use("weighted", by="class.pyd", n_samples=20, replacement=False, collate="list")},
        [
            (
                r"lower n_samples to (\d+)",
                lambda found: {
                    "pipeline_prebatch_wld": Use(
                        "weighted", by="class.pyd", n_samples=int(found[1]), replacement=False, collate="list"
                    )
                },
            )
        ],
        ALL,
    ),
    "classes with replacement": (
        {"pipeline_prebatch_wld": Use("weighted", by="class.pyd", n_samples=20, replacement=False, collate="list")},
        [
            (
                "or allow replacement",
                {"pipeline_prebatch_wld": Use("weighted", by="class.pyd", n_samples=20, collate="list")},
            )
        ],
        20,
    ),
    "a class that is not a number": (
        {"pipeline_prebatch_wld": Use("weighted", by="ratio.pyd", collate="list")},
        [
            (
                "give as by a function of the sample",
                {"pipeline_prebatch_wld": Use("weighted", by=parity, collate="list")},
            )
        ],
        N,
    ),
    "more samples than there are": (
        {"n_samples": 20},
        [
            (
                r"only (\d+) available samples|only (\d+) samples: lower it|only (\d+).*lower it",
                lambda found: {"n_samples": int(next(filter(None, found.groups())))},
            ),
            ("leave it out to take all there are", {"n_samples": None}),
        ],
        ALL,
    ),
    "fewer shards than workers": (
        {"dirs_tars_wds": "small", "order": "shards", "kwargs_wds": SHARDS, "kwargs_wld": {"num_workers": 2}},
        [("take fewer workers", {"kwargs_wld": {"num_workers": 0}})],
        ALL,
    ),
    "fewer shards than workers, in global order": (
        {"dirs_tars_wds": "small", "kwargs_wds": SHARDS, "kwargs_wld": {"num_workers": 2}},
        [("leave the shard arguments out of kwargs_wds", {"kwargs_wds": {}})],
        ALL,
    ),
    "a suffix with several meanings": (
        {"dirs_tars_wds": "both", "suffix_keys_wds": ["__key__", "pyd"]},
        [
            (r"could mean (\S+) or \S+; write it in full", lambda found: {"suffix_keys_wds": ["__key__", found[1]]}),
            (r"could mean \S+ or (\S+); write it in full", lambda found: {"suffix_keys_wds": ["__key__", found[1]]}),
        ],
        ALL,
    ),
    "a suffix that is not there": (
        {"suffix_keys_wds": ["__key__", "y.pyd"]},
        [(r"choose among (?:.*, )?(\S+)$", lambda found: {"suffix_keys_wds": ["__key__", found[1]]})],
        ALL,
    ),
    "another prefix": (
        {"prefix_tars_wds": "shards"},
        [(r"prefix is '(\w+)'", lambda found: {"prefix_tars_wds": found[1]})],
        ALL,
    ),
    "samples that do not fit together": (
        {"pipeline_prebatch_wld": "batch", "pipeline_wds": ragged},
        [
            ("make them alike in a stage", {"pipeline_wds": alike}),
            ("or batch them with a function of your own", {"pipeline_prebatch_wld": Use("batch", collate=list)}),
        ],
        ALL,
    ),
    "a batch that is not filled": (
        {"global_batch_size": 20, "tail": "drop"},
        [("lower global_batch_size", {"global_batch_size": N}), ("or use tail='share'", {"tail": "share"})],
        ALL,
    ),
    "a source without a sample": (
        {"dirs_tars_wds": [("one", 1.0), ("two", 0.001)], "n_samples": N},
        [("or leave the source out", {"dirs_tars_wds": [("one", 1.0)]})],
        N,
    ),
    "a source without a sample, longer epochs": (
        {"dirs_tars_wds": [("one", 1.0), ("two", 0.1)], "n_samples": 2},
        [("raise n_samples", {"n_samples": 20})],
        20,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_remedy_for_an_argument_works(row, base):
    """The arguments are refused with the advice; after following it an epoch has the samples."""
    given, remedies, expected = ROWS[row]
    for words, change, *other in remedies:
        with pytest.raises(WebDataModuleError) as caught:
            train(base, **_made(given))
        message = caught.value.message
        found = re.search(words, message, re.DOTALL)
        assert found, message
        keys = train(base, **{**_made(given), **(change(found) if callable(change) else change)})
        due = other[0] if other else expected
        assert due == (keys if isinstance(due, list) else len(keys))


def _made(given):
    """Return arguments with stages that are refused when they are made."""
    return {
        name: Use(value[0], **value[1]) if isinstance(value, tuple) and isinstance(value[1], dict) else value
        for name, value in given.items()
    }


def convert(base, **changed):
    """Convert, and return the sorted keys of an epoch."""
    out = base / "again"
    shutil.rmtree(out, ignore_errors=True)
    given = {"names_subset": {"train": ALL}, "executor": "serial", "suffix_pickles": "x.pyd", **changed}
    names = given.pop("names_subset")
    module = PickledDataWDS(
        base / "pickles", given.pop("suffix_pickles"), names, {split: out / split for split in names}, 4,
        suffix_keys_wds=["__key__", "x.pyd"], pipeline_prebatch_wld={"train": Use("batch", collate="list")}, **given,
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    return keys_of(module.train_dataloader())


CONVERSIONS = {
    "names without an order": (
        {"names_subset": {"train": set(ALL)}},
        [("give a list, such as sorted\\(names\\)", {"names_subset": {"train": sorted(set(ALL))}})],
    ),
    "names as one string": (
        {"names_subset": {"train": "s00"}},
        [("give a list of names", {"names_subset": {"train": ["s00"]}})],
    ),
    "an empty split": (
        {"names_subset": {"train": ALL, "val": []}},
        [
            ("leave it out", {"names_subset": {"train": ALL}}),
            ("or give it names", {"names_subset": {"train": ALL[:-1], "val": ALL[-1:]}}),
        ],
    ),
    "a key encoder that cannot be sent": (
        {"key_encoder": lambda name: name, "executor": Use("processes", workers=2), "n_tars_wds": 2},
        [
            ("make it of module-level functions and classes", {"key_encoder": str.strip}),
            ("or use executor='serial'", {"executor": "serial"}),
        ],
    ),
    "a key that no tar holds": (
        {"names_subset": {"train": ["s\udc80" + "0" * 200]}, "key_encoder": "dashes"},
        [("use key_encoder='escaped'", {"key_encoder": "escaped"})],
    ),
    "arguments twice": (
        {"names_subset": {"train": ALL}, "suffix_pickles": ["x.pyd", "x.pyd"]},
        [("names a suffix twice: x.pyd", {"suffix_pickles": "x.pyd"})],
    ),
}


@pytest.mark.parametrize("row", CONVERSIONS)
def test_the_remedy_for_a_conversion_works(row, base):
    """A conversion is refused with the advice; after following it the shards are written and read."""
    given, remedies = CONVERSIONS[row]
    for words, change in remedies:
        for names in given.get("names_subset", {}).values():
            for name in names if isinstance(names, list) else ():
                (base / "pickles" / f"{name}.x.pyd").write_bytes(dumps(torch.arange(2.0)))
        with pytest.raises(WebDataModuleError) as caught:
            convert(base, **given)
        assert re.search(words, caught.value.message, re.DOTALL), caught.value.message
        assert convert(base, **{**given, **change})


@pytest.mark.parametrize(("what", "other"), [("seed", 5), ("n_samples", 10)])
def test_the_remedy_for_a_checkpoint_of_another_run_works(base, what, other):
    """The message says which argument to set to which value."""
    arguments = {"dirs_tars_wds": "one", "suffix_keys_wds": "__key__", "global_batch_size": 4}
    first = data(base, **arguments)
    again = data(base, **arguments, **{what: other})
    for module in (first, again):
        module.setup("fit")
    state = first.train_dataloader().state_dict()
    with pytest.raises(WebDataModuleError) as caught:
        again.train_dataloader().load_state_dict(state)
    found = re.search(rf"set {what}=(\d+) to resume", caught.value.message)
    module = data(base, **arguments, **{what: int(found[1])})
    module.setup("fit")
    loader = module.train_dataloader()
    loader.load_state_dict(state)
    assert N == sum(map(len, loader))


def test_the_remedy_for_too_many_ranks_works(base, monkeypatch):
    """A larger batch, as large as the message says, or fewer ranks."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(WebDataModuleError) as caught:
        train(base, global_batch_size=4)
    found = re.search(r"raise global_batch_size to (\d+) or more, or use fewer ranks", caught.value.message)
    assert 2 == len(train(base, global_batch_size=int(found[1])))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert 3 == len(train(base, global_batch_size=4))


def test_the_remedy_for_a_loader_before_setup_works(base):
    """The message names the call."""
    module = data(base, "one", suffix_keys_wds="__key__", global_batch_size=4)
    with pytest.raises(WebDataModuleError) as caught:
        module.train_dataloader()
    module.setup(re.search(r"call setup\('(fit)'\)", caught.value.message)[1])
    assert 3 == len(module.train_dataloader())


def test_the_remedy_for_other_data_than_expected_works(base):
    """The digest in the message is that of the data."""
    arguments = {"dirs_tars_wds": "one", "suffix_keys_wds": "__key__", "global_batch_size": 4}
    with pytest.raises(WebDataModuleError) as caught:
        data(base, **arguments, expect="0" * 64).setup("fit")
    digest = re.search(r"its digest is (\w+)", caught.value.message)[1]
    data(base, **arguments, expect=digest).setup("fit")


def test_the_remedy_for_samples_left_out_works(base):
    """A batch of damaged samples alone is an error; a larger one has others beside them."""
    options = {"on_error": "skip", "codecs": {"x.pyd": Odd()}, "where": ALL[:2]}
    with pytest.raises(WebDataModuleError, match="or take a larger global_batch_size"):
        train(base, global_batch_size=1, **options)
    assert ALL[:1] == train(base, global_batch_size=2, **options)


class Odd:
    """Decodes the smallest samples alone."""

    def decode(self, view):
        """Return a number."""
        value = loads(view)
        if len(value) > 1:
            raise ValueError(len(value))
        return value


def test_the_remedy_for_what_workers_cannot_send_works(base):
    """Plain objects cross, and without workers anything does."""
    options = {"kwargs_wld": {"num_workers": 1}, "pipeline_prebatch_wld": Use("batch", collate="list")}
    with pytest.raises(WebDataModuleError) as caught:
        train(base, pipeline_wds=unsendable, **options)
    assert "turn it into tensors, arrays or plain objects in pipeline_wds" in caught.value.message
    assert ALL == train(base, pipeline_wds=identity, **options)
    assert "or set num_workers=0" in caught.value.message
    assert ALL == train(base, pipeline_wds=unsendable)


def unsendable(samples):
    """Add what no process can send."""
    return ((key, lambda: None) for key, _ in samples)
