"""Subsets of existing shards: full batches, equal steps, true lengths and exact resume."""

import pickle

import fsspec
import numpy as np
import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule._engine.reading import reader, subset
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import ConfigError, ResumeError, WebDataModuleError
from bionemo.webdatamodule.splits import Fold, Fraction, Hashed

KEYS = [f"s{number:02d}" for number in range(40)]


class Reader:
    """A source of small samples."""

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            number = int(name[1:])
            yield Sample(name, {"x.pyd": pickle.dumps(number), "cls": b"%d" % (number % 4)})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A directory of forty samples in five shards."""
    directory = tmp_path_factory.mktemp("shards")
    convert(
        reader=Reader(),
        names={"train": KEYS},
        directories={"train": str(directory)},
        prefix="wdshards",
        n_shards=5,
        key_encoder=encode_dashes,
        executor=Serial(),
    )
    return str(directory)


def module(shards, where, **more):
    """Return a module of the keys of a subset."""
    given = {"global_batch_size": 4, "where": {"train": where, "val": where}, **more}
    return WebDataModule({"train": shards, "val": shards}, None, "__key__", **given)


def keys(module, split="train"):
    """Return the batches of keys of an epoch."""
    module.setup("fit")
    return [list(batch) for batch in getattr(module, f"{split}_dataloader")()]


def is_rare(value):
    """Take one class."""
    return value == 3


HALF = Hashed(stop=0.5, seed=1)
SUBSETS = {
    "hashed": (HALF, HALF(KEYS)),
    "fold": (Fold(number=1, of=4), Fold(number=1, of=4)(KEYS)),
    "rest of a fold": (Fold(number=1, of=4, rest=True), Fold(number=1, of=4, rest=True)(KEYS)),
    "fraction": (Fraction(stop=0.25), Fraction(stop=0.25)(KEYS)),
    "function": (lambda keys: keys[8:16], KEYS[8:16]),
    "list": (["s07", "s01", "s39"], ["s01", "s07", "s39"]),
    "array": (np.array(["s07", "s01"]), ["s01", "s07"]),
    "predicate": (("cls", is_rare), KEYS[3::4]),
    "import path": ({"field": "cls", "function": f"{__name__}.is_rare"}, KEYS[3::4]),
    "stored field": (("x.pyd", lambda value: value < 10), KEYS[:10]),
}


@pytest.mark.parametrize("kind", SUBSETS)
@pytest.mark.parametrize("order", ["global", "shards"])
def test_a_subset_is_what_an_epoch_has(shards, kind, order):
    """Evaluation has its samples in order, training all of them in full batches; the length says so."""
    where, expected = SUBSETS[kind]
    found = module(shards, where, order=order)
    assert expected == [key for batch in keys(found, "val") for key in batch][: len(expected)]
    batches = keys(found)
    assert -(-len(expected) // 4) == len(batches) == len(found.train_dataloader())
    if order == "global":
        assert expected == sorted(key for batch in batches for key in batch)
        assert [4] * (len(batches) - 2) == list(map(len, batches[:-2]))


def test_ranks_take_equal_steps(shards, monkeypatch):
    """Each sample once, and as many batches on each rank."""
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        found.append(keys(module(shards, HALF)))
    assert len(found[0]) == len(found[1])
    assert HALF(KEYS) == sorted(key for batches in found for batch in batches for key in batch)


@pytest.mark.parametrize("order", ["global", "shards"])
def test_resume_is_exact_and_only_with_the_same_subset(shards, order):
    """The state belongs to the subset."""
    first = module(shards, HALF, order=order)
    first.setup("fit")
    loader = first.train_dataloader()
    batches = iter(loader)
    taken = [list(next(batches)) for _ in range(2)]
    state = loader.state_dict()
    rest = [list(batch) for batch in batches]
    again = module(shards, HALF, order=order)
    again.setup("fit")
    resumed = again.train_dataloader()
    resumed.load_state_dict(state)
    assert rest == [list(batch) for batch in resumed]
    assert 2 == len(taken)
    other = module(shards, Hashed(start=0.5, seed=1), order=order)
    other.setup("fit")
    with pytest.raises(ResumeError):
        other.train_dataloader().load_state_dict(state)


def test_a_rule_is_evaluated_once(shards):
    """Another setup with the same rule does not read the shards again."""
    calls = []

    def count(value):
        calls.append(value)
        return value == 1

    found = module(shards, ("cls", count))
    found.setup("fit")
    found.setup("fit")
    found.setup("validate")
    assert [number % 4 for number in range(40)] == calls


def test_shuffled_pieces_and_mixtures_have_the_subset(shards):
    """Every kind of plan is one of the chosen samples."""
    where = ("cls", is_rare)
    assert KEYS[3::4] == sorted(key for batch in keys(module(shards, where, shuffle_shards=2)) for key in batch)
    mixed = WebDataModule(
        {"train": [(shards, 0.5), (shards, 0.5)]}, {"train": 20}, "__key__", 4, where={"train": where}
    )
    assert sorted(KEYS[3::4] * 2) == sorted(key for batch in keys(mixed) for key in batch)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (7, r"where\[train\] is a rule on keys"),
        ({"a": 1}, r"where\[train\] is a rule on keys"),
        ([1, 2], r"where\[train\] is a rule on keys"),
        ("no.such.function", r"where\[train\] is a function or its import path"),
        (["s00", "t1", "t2"], "the list of keys in where has keys that no sample has: 't1', 't2'"),
        (lambda keys: [], "where leaves no sample: the rule on keys takes none of 40"),
        (("cls", lambda value: value > 9), "where leaves no sample: the predicate on cls takes none of 40"),
        (("cls", lambda value: 1 / 0), "the predicate on cls in where fails with ZeroDivisionError.*key=s00"),
        (("none", bool), "no sample has the suffix 'none'"),
        (lambda keys: 1 / 0, "the rule on keys in where fails with ZeroDivisionError"),
    ],
)
def test_subsets_that_cannot_be_are_refused(shards, where, message):
    """The error names the split and what is wrong."""
    with pytest.raises(WebDataModuleError, match=message) as caught:
        WebDataModule({"train": shards}, None, "__key__", 4, where={"train": where}).setup("fit")
    assert "train" in str(caught.value)


@pytest.fixture(params=["local", "behind a URL"])
def place(request, shards):
    """The directory of the shards, or the URL of a copy."""
    if request.param == "local":
        yield shards
        return
    memory = fsspec.filesystem("memory")
    memory.put(shards, "memory://subsets", recursive=True)
    yield "memory://subsets"
    memory.rm("memory://subsets", recursive=True)


@pytest.mark.parametrize("kind", ["fold", "list", "predicate", "stored field"])
def test_what_a_rule_looks_at_is_read_once_by_all_runs(place, kind, monkeypatch):
    """Keys and small fields are kept beside the indexes; a process that begins anew reads no sample for them."""
    where, expected = SUBSETS[kind]
    subset._remembered.cache_clear()
    assert expected == [key for batch in keys(module(place, where), "val") for key in batch]
    subset._remembered.cache_clear()
    again = module(place, where)
    with monkeypatch.context() as patch:
        patch.setattr(reader.ShardReader, "read", None)
        patch.setattr(reader.ShardReader, "keys", None)
        again.setup("fit")
    assert expected == [key for batch in again.val_dataloader() for key in batch]
    assert expected == sorted(key for batch in again.train_dataloader() for key in batch)


def test_another_predicate_of_a_field_that_was_read_is_asked_anew(shards):
    """What is kept is the field, so no result is out of date."""
    for wanted in (0, 1):
        found = keys(module(shards, ("cls", lambda value, wanted=wanted: value == wanted)), "val")
        assert KEYS[wanted::4] == [key for batch in found for key in batch]


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
def test_a_damaged_cache_is_not_believed(shards, harm, tmp_path, monkeypatch):
    """What has another length is read again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    where, expected = SUBSETS["predicate"]
    for _ in range(2):
        subset._remembered.cache_clear()
        assert expected == [key for batch in keys(module(shards, where), "val") for key in batch]
        [file] = (tmp_path / "bionemo-webdatamodule/fields").iterdir()
        file.write_bytes(harm(file.read_bytes()))


def test_a_predicate_that_fails_names_the_sample(place):
    """By its key, also where the field came from the cache."""
    for _ in range(2):
        with pytest.raises(WebDataModuleError, match="fails with ZeroDivisionError") as caught:
            keys(module(place, ("x.pyd", lambda value: 1 // (value - 7))))
        assert "s07" == caught.value.where["key"]


def test_workers_read_a_subset(place):
    """Setup reads the field in the main process, and workers that are forked later read the samples."""
    found = keys(module(place, ("cls", is_rare), kwargs_wld={"train": {"num_workers": 2}}))
    assert KEYS[3::4] == sorted(key for batch in found for key in batch)


def test_a_large_field_is_looked_at_without_being_kept(shards, monkeypatch, tmp_path):
    """More than a bound is read sample by sample, and not into the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subset, "MOST_BYTES", 20)
    where, expected = SUBSETS["predicate"]
    subset._remembered.cache_clear()
    assert expected == [key for batch in keys(module(shards, where), "val") for key in batch]
    assert not (tmp_path / "bionemo-webdatamodule/fields").exists()


@pytest.mark.parametrize("first", ["integer", "text"])
def test_a_predicate_gets_what_the_codec_makes(shards, first):
    """Also in a process that asked it of what another codec makes."""
    texts = {"integer": {}, "text": {"codecs": {"cls": "text"}}}
    for name in sorted(texts, key=lambda name: name != first):
        found = keys(module(shards, ("cls", is_text), **texts[name]))
        assert (40 if name == "text" else 20) == sum(map(len, found))


def is_text(value):
    """Take all texts, and half of the numbers."""
    return isinstance(value, str) or value % 2


@pytest.mark.parametrize("rule", [lambda key: key == "s01", lambda _: None, lambda keys: keys[0]])
def test_a_rule_on_one_key_is_told_what_rules_get(shards, rule):
    """They get all keys, and give some."""
    with pytest.raises(
        ConfigError, match=r"gets all keys and gives those that are used, not .*; write it as lambda keys"
    ):
        keys(module(shards, rule))
