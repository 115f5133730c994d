"""Fields from several directories, joined by key: exact counts, the plan's order, exact resume, and named errors."""

import pickle
import shutil
import tarfile
from io import BytesIO

import fsspec
import numpy as np
import pytest
from tests.helpers.convert import convert
from tests.helpers.fetching import wait_for_background

from bionemo.webdatamodule import Use, WebDataModule
from bionemo.webdatamodule._engine.reading.joined import stored_keys
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.storage.remote import directory
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import ConfigError, CorruptShardError, DecodeError, MissingFieldError, ResumeError
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
        ({"join": {"train": [("labels", 2.0)]}}, "which have no weights"),
        ({"join": {"train": 3}}, r"join\[train\] is a directory"),
    ],
)
def test_what_does_not_go_with_a_join_is_named(base, given, message):
    """Weights do not, and what is not a directory."""
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


def damaged(base, tmp_path, keys):
    """Return a copy of the labels with damaged fields of some keys."""
    shutil.copytree(base / "labels", tmp_path / "damaged")
    for tar in (tmp_path / "damaged").glob("*.tar"):
        content = bytearray(tar.read_bytes())
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.partition(".")[0] in keys:
                    content[member.offset_data + member.size - 2] ^= 1
        tar.write_bytes(content)
    return tmp_path / "damaged"


@pytest.mark.parametrize("order", ["global", "shards"])
def test_a_damaged_field_of_another_directory_leaves_out_the_sample(base, tmp_path, caplog, order):
    """Once in each epoch, with its place there; without on_error it is an error, and there is a limit."""
    labels = str(damaged(base, tmp_path, {"s05", "s11"}))
    skipping = module(base, labels, order=order, on_error="skip")
    for _ in range(2):
        found = [sample for batch in epoch(skipping) for sample in batch]
        assert set(KEYS) - {"s05", "s11"} == {key for key, *_ in found}
        assert all(int(key[1:]) == int(x[0]) == label - 100 for key, x, label in found)
    lines = [record.message for record in caplog.records if "left out a sample" in record.message]
    assert ["s05", "s11"] == sorted(line.partition("key=")[2][:3] for line in set(lines))
    assert all(f"shard={labels}/wdshards-" in line and "split=train" in line for line in lines)
    with pytest.raises(CorruptShardError, match=r"damaged/wdshards-\d+.tar, key=(s05|s11), suffix=cls.pyd"):
        epoch(module(base, labels, order=order))
    with pytest.raises(CorruptShardError, match="1 sample already left out, which is max_skipped"):
        epoch(module(base, labels, order=order, on_error="skip", max_skipped=1))


def test_samples_left_out_for_a_field_of_another_directory_are_in_the_receipt(base, tmp_path):
    """With the reason and their numbers."""
    data = module(base, str(damaged(base, tmp_path, {"s05", "s11"})), on_error="skip")
    data.setup("fit")
    loader = data.train_dataloader()
    assert 6 == len(list(loader))
    tally = loader.progress.tally

    assert (22, {"corrupt-shard": 2}, (5, 11)) == (tally.samples, tally.skipped, tally.named)


@pytest.fixture
def remote(base, tmp_path, monkeypatch):
    """The same directories behind URLs, and the shards that bytes are fetched of, in order."""
    memory, seen = fsspec.filesystem("memory"), []
    memory.put(str(base), "memory://joined", recursive=True)
    for name in ("images", "labels"):  # so that keys are known, which are read of the tars once
        stored_keys(ShardSet.open(base / name, "wdshards"), None)
    read = directory.RemoteDirectory.read

    def noted(self, name, ranges, into):
        seen.append(f"{str(self).rpartition('/')[2]} {name[-5]}")
        read(self, name, ranges, into)

    monkeypatch.setattr(directory.RemoteDirectory, "read", noted)
    yield "memory://joined", seen, {"prefix": "wdshards", "cache_dir": str(tmp_path / "cache")}
    memory.rm("memory://joined", recursive=True)


@pytest.mark.parametrize("images", ["near", "far"])
@pytest.mark.parametrize(
    ("announced", "expected"),
    [
        (
            lambda reader: reader.follow([np.array([23]), np.array([0, 1])]),
            ["images 3", "labels 0", "images 0", "labels 1"],
        ),
        (lambda reader: reader.follow_shards([3, 0]), ["images 3", "labels 0", "images 0", "labels 1"]),
        (
            lambda reader: reader.follow_pieces([(0, 0, 6, 0), (3, 0, 6, 0)]),
            ["images 0", "labels 1", "images 3", "labels 0"],
        ),
    ],
    ids=["samples", "shards", "pieces"],
)
def test_what_is_needed_of_all_directories_is_fetched_ahead(base, remote, announced, expected, images):
    """In the order of need, before anything is read; what is read then is there."""
    url, seen, options = remote
    sets = [
        ShardSet.open(f"{at}/{name}", **options)
        for at, name in ((base if images == "near" else url, "images"), (url, "labels"))
    ]
    reader = ShardReader(sets[:1], ["x.pyd", "cls.pyd"], joined=sets[1:])
    reader._places._here().fetcher._most = 1  # so that requests follow each other
    seen.clear()
    announced(reader)
    wait_for_background()
    fetched = list(dict.fromkeys(seen))

    assert [shard for shard in expected if images == "far" or "labels" in shard] == fetched
    assert [(23.0, 123), (0.0, 100)] == [(float(x[0]), label) for x, label in reader.read(np.array([23, 0]))]
    assert fetched == list(dict.fromkeys(seen))


def test_only_the_directory_that_has_a_field_is_read_for_it(base, remote):
    """Sizes of a small field need nothing of the images."""
    url, seen, options = remote
    images, labels = (ShardSet.open(f"{url}/{name}", **options) for name in ("images", "labels"))
    reader = ShardReader([images], ["x.pyd", "cls.pyd"], joined=[labels]).only(["cls.pyd"])
    seen.clear()

    assert [(123,), (100,)] == reader.read(np.array([23, 0]))
    assert {"labels 0", "labels 1"} == set(seen)


def test_joined_directories_behind_urls_are_read_alike(base, remote):
    """With an optional field, in the plan's order for what is far away."""
    url, *_ = remote
    data = WebDataModule(
        {"train": f"{url}/images"}, None, ["__key__", "x.pyd", "cls.pyd", "score.pyd?"], 4,
        join={"train": [f"{url}/labels", f"{url}/scores"]}, on_error="skip",
        pipeline_prebatch_wld={"train": Use("batch", collate="list")},
    )  # fmt: skip
    data.setup("fit")
    found = {key: (int(x[0]), label, score) for batch in data.train_dataloader() for key, x, label, score in batch}

    assert {key: (n, 100 + n, None if n % 2 else n / 2) for n, key in enumerate(KEYS)} == found
