"""Fields from several directories, joined by key: exact counts, the plan's order, exact resume, and named errors."""

import pickle
import tarfile
from io import BytesIO

import numpy as np
import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule import Use, WebDataModule
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import ConfigError, DecodeError, MissingFieldError, ResumeError
from bionemo.webdatamodule.splits import Fold

KEYS = [f"s{number:02d}" for number in range(24)]


class Source:
    """A source of one field."""

    def __init__(self, suffix, make):
        self.suffix, self.make = suffix, make

    def __call__(self, names):
        """Yield samples."""
        for name in names:
            yield Sample(name, {self.suffix: pickle.dumps(self.make(int(name[1:])))})


def write(directory, suffix, make, keys=KEYS, n_shards=3):
    """Write shards of one field."""
    convert(
        reader=Source(suffix, make), names={"train": keys}, directories={"train": str(directory)}, prefix="wdshards",
        n_shards=n_shards, key_encoder=encode_dashes, executor=Serial(),
    )  # fmt: skip
    return str(directory)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Images in key order; labels in the opposite order and of more keys; scores of some keys."""
    base = tmp_path_factory.mktemp("joined")
    write(base / "images", "x.pyd", lambda number: np.full(2, number), n_shards=4)
    write(base / "labels", "cls.pyd", lambda number: 100 + number, [*KEYS[::-1], "s90", "s91"], n_shards=2)
    write(base / "scores", "score.pyd", lambda number: number / 2, KEYS[::2])
    write(base / "odd", "odd.pyd", lambda number: list(range(number % 2 + 1)))
    return base


def module(base, join, suffixes=("__key__", "x.pyd", "cls.pyd"), where=None, **more):
    """Return a data module over the images."""
    given = {"global_batch_size": 4, "pipeline_prebatch_wld": {"train": Use("batch", collate="list")}, **more}
    join = [str(base / name) for name in ([join] if isinstance(join, str) else join)]
    return WebDataModule(
        {"train": str(base / "images"), "val": str(base / "images")}, None, suffixes,
        join={"train": join, "val": join}, where={"train": where, "val": where}, **given,
    )  # fmt: skip


def epoch(module):
    """Return the samples of an epoch, batch by batch."""
    module.setup("fit")
    return [[tuple(sample) for sample in batch] for batch in module.train_dataloader()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["global", "shards"])
def test_each_sample_has_the_fields_of_all_directories(base, order, workers):
    """Whatever the order in the other directory is, and however many keys it has besides."""
    found = epoch(module(base, "labels", order=order, kwargs_wld={"train": {"num_workers": workers}}))
    samples = [sample for batch in found for sample in batch]

    assert sorted(KEYS) == sorted(key for key, *_ in samples)
    assert all(int(key[1:]) == int(x[0]) == label - 100 for key, x, label in samples)
    assert [4] * 6 == list(map(len, found))


def test_the_order_is_that_of_the_directory_alone(base):
    """A join changes no plan, and batches of tensors are made of columns as ever."""
    alone = WebDataModule({"train": str(base / "images")}, None, ["__key__"], 4)
    alone.setup("fit")
    expected = [list(keys) for keys in alone.train_dataloader()]
    joined = module(base, "labels", pipeline_prebatch_wld=None)
    joined.setup("fit")
    batches = list(joined.train_dataloader())

    assert expected == [list(keys) for keys, _, _ in batches]
    assert [[int(key[1:]) + 100 for key in keys] for keys in expected] == [labels.tolist() for _, _, labels in batches]


def test_three_directories_and_an_optional_field(base):
    """A field that some keys lack is None where it is asked for so."""
    asked = ("score.pyd?", "cls.pyd", "__key__", "x.pyd")
    samples = [sample for batch in epoch(module(base, ["labels", "scores"], asked)) for sample in batch]

    assert 24 == len(samples)
    for score, label, key, x in samples:
        number = int(key[1:])
        assert (number / 2 if number % 2 == 0 else None, 100 + number, number) == (score, label, int(x[0]))


def test_a_run_is_resumed_in_the_middle(base):
    """A state at any batch brings back the rest; a state of the images alone is refused."""
    whole = epoch(module(base, "labels"))
    for stop in (1, 3, 5):
        began, rest = module(base, "labels"), module(base, "labels")
        for each in (began, rest):
            each.setup("fit")
        loader, following = began.train_dataloader(), rest.train_dataloader()
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        following.load_state_dict(loader.state_dict())
        expected = [[key for key, *_ in batch] for batch in whole[stop:]]
        assert expected == [[sample[0] for sample in batch] for batch in following]
    other = module(base, ["labels", "scores"], ("__key__", "x.pyd", "cls.pyd", "score.pyd?"))
    other.setup("fit")
    with pytest.raises(ResumeError, match="other data"):
        other.train_dataloader().load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Fold(number=0, of=3), Fold(number=0, of=3)(KEYS)),
        (("cls.pyd", lambda label: label < 107), KEYS[:7]),
        (("x.pyd", lambda x: x[0] > 20), KEYS[21:]),
    ],
    ids=["keys", "joined", "own"],
)
def test_a_subset_of_what_is_joined(base, where, expected):
    """`where` takes keys, and fields of any of the directories."""
    found = [sample for batch in epoch(module(base, "labels", where=where)) for sample in batch]

    assert sorted(expected) == sorted(key for key, *_ in found)
    assert all(int(key[1:]) == label - 100 for key, _, label in found)


def test_sizes_of_a_joined_field(base):
    """A planner measures the field wherever it lies."""
    stage = Use("batch_by_size", size="cls.pyd", max_total=500, collate="list")
    found = epoch(module(base, "labels", pipeline_prebatch_wld={"train": stage}))

    assert sorted(KEYS) == sorted(key for batch in found for key, *_ in batch)
    assert all(len(batch) * max(label for *_, label in batch) <= 500 for batch in found)


def test_evaluation_has_each_sample_once_in_order(base):
    """As without a join."""
    data = module(base, "labels", pipeline_prebatch_wld={"val": Use("batch", collate="list")})
    data.setup("validate")
    assert [(key, int(key[1:]) + 100) for key in KEYS] == [
        (sample[0], sample[2]) for batch in data.val_dataloader() for sample in batch
    ]


def test_keys_that_are_missing_are_named_with_remedies_that_work(base):
    """They can be left out by where, or the field asked for as optional."""
    asked = ("__key__", "x.pyd", "score.pyd")
    with pytest.raises(MissingFieldError, match=r"lacks 12 of 24 keys: 's01', 's03', .* and 7 more") as caught:
        epoch(module(base, "scores", asked))
    assert "leave them out with where=" in caught.value.message
    assert 12 == sum(map(len, epoch(module(base, "scores", asked, where=KEYS[::2]))))
    assert "ask for 'score.pyd?'" in caught.value.message
    assert 24 == sum(map(len, epoch(module(base, "scores", ("__key__", "x.pyd", "score.pyd?")))))


def test_keys_that_come_twice_are_named(tmp_path, base):
    """Which of the two is meant nobody can know."""
    directory = tmp_path / "twice"
    directory.mkdir()
    for number, keys in enumerate([KEYS, ["s03", "s99", "s04"]]):
        with tarfile.open(directory / f"wdshards-{number:06d}.tar", "w") as tar:
            for key in keys:
                member = tarfile.TarInfo(f"{key}.y.txt")
                member.size = 2
                tar.addfile(member, BytesIO(b"ab"))
    with pytest.raises(ConfigError, match="has keys several times: 's03', 's04'; convert it with each key once"):
        epoch(module(base, [directory], ("__key__", "x.pyd", "y.txt")))


def test_a_suffix_in_both_is_refused(base):
    """With the directories that have it."""
    with pytest.raises(ConfigError, match=r"'x.pyd' is in .*images and .*images, which are joined"):
        epoch(module(base, "images", ("__key__", "x.pyd")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on_error": "skip"}, "join needs on_error='raise'"),
        ({"join": {"train": [("labels", 2.0)]}}, "which have no weights"),
        ({"join": {"train": 3}}, r"join\[train\] is a directory"),
    ],
)
def test_what_does_not_go_with_a_join_is_named(base, given, message):
    """Skipped samples and weights do not."""
    given = {"join": {"train": str(base / "labels")}, **given}
    with pytest.raises(ConfigError, match=message):
        WebDataModule({"train": str(base / "images")}, None, ["x.pyd", "cls.pyd"], 4, **given).setup("fit")


def test_what_cannot_be_read_names_the_sample(base):
    """A field of the other directory that cannot be decoded, and batches that do not fit."""

    class Broken:
        def decode(self, view):
            value = pickle.loads(bytes(view))
            if value == 105:
                raise ValueError("five")
            return value

    with pytest.raises(DecodeError, match="five") as caught:
        epoch(module(base, "labels", codecs={"cls.pyd": Broken()}))
    assert ("s05", "cls.pyd") == (caught.value.where["key"], caught.value.where["suffix"])
    with pytest.raises(DecodeError, match="do not fit into one batch"):
        epoch(module(base, "odd", ("x.pyd", "odd.pyd"), pipeline_prebatch_wld=None))
