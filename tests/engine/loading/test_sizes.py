"""The sizes of samples for planners: from the index where the length of a field tells, else from the field."""

from dataclasses import dataclass, field

import fsspec
import numpy as np
import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule import Use, WebDataModule
from bionemo.webdatamodule._engine.storage.remote import directory
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import DecodeError, PluginError

LENGTHS = [1 + (7 * number) % 13 for number in range(30)]
KEYS = [f"s{number:02d}" for number in range(30)]


@dataclass
class Tokens:
    """Numbers of 16 bits."""

    decoded: list[int] = field(default_factory=list)

    def decode(self, view):
        """Return the numbers, and note how many they are."""
        value = np.frombuffer(bytes(view), np.uint16)
        self.decoded.append(len(value))
        return value


class SizedTokens(Tokens):
    """The same, whose sizes follow from their lengths."""

    def sizes(self, lengths):
        """Return half of them."""
        if (lengths % 2).any():
            raise ValueError("half a number")
        return lengths // 2


class Letters:
    """Text, whose size is that of its letters."""

    def decode(self, view):
        """Return the letters."""
        return [letter for letter in str(view, "utf-8") if letter.isalpha()]


def write(directory, make, keys=KEYS):
    """Write shards of the fields that a function makes of a number."""
    convert(
        reader=lambda names: (Sample(name, make(int(name[1:]))) for name in names),
        names={"train": keys}, directories={"train": str(directory)}, prefix="wdshards",
        n_shards=3, key_encoder=encode_dashes, executor=Serial(),
    )  # fmt: skip
    return str(directory)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Tokens in one directory, and in another, in the opposite order."""
    base = tmp_path_factory.mktemp("sizes")
    write(base / "tokens", lambda number: {"x.u2": np.arange(LENGTHS[number], dtype=np.uint16).tobytes()})
    write(base / "names", lambda number: {"n.txt": f"{number}é".encode()}, KEYS[::-1])
    return base


def planned(train, codec, size="x.u2", max_total=26, **more):
    """Return the sizes of the samples of each batch of a data module, and what it decoded for the plan."""
    stage = Use("pack", size=size, max_total=max_total, collate="list")
    data = WebDataModule(
        {"train": str(train)}, None, ("__key__", size), 1, codecs={size: codec} if codec else None,
        pipeline_prebatch_wld={"train": stage}, **more,
    )  # fmt: skip
    data.setup("fit")
    loader, decoded = data.train_dataloader(), list(getattr(codec, "decoded", ()))
    return [[(key, len(value)) for key, value in batch] for batch in loader], decoded


def test_sizes_from_the_index_are_those_of_the_fields(base):
    """The same plan, for which no field is decoded."""
    expected, decoded = planned(base / "tokens", Tokens())
    assert sorted(LENGTHS) == sorted(decoded)
    assert expected == planned(base / "tokens", SizedTokens())[0]
    assert [] == planned(base / "tokens", SizedTokens())[1]
    assert dict(zip(KEYS, LENGTHS, strict=True)) == dict(sample for batch in expected for sample in batch)
    assert all(sum(size for _, size in batch) <= 26 for batch in expected)


@pytest.mark.parametrize(
    ("train", "more"),
    [("tokens", {"where": {"train": KEYS[3:25]}}), ("names", {"join": {"train": "tokens"}})],
    ids=["subset", "joined"],
)
def test_sizes_of_subsets_and_of_joined_fields(base, train, more):
    """Numbers of samples that count are not those of samples that are stored."""
    more = {name: {"train": str(base / given["train"])} if name == "join" else given for name, given in more.items()}
    expected, _ = planned(base / train, Tokens(), **more)
    found, decoded = planned(base / train, SizedTokens(), **more)

    assert (expected, []) == (found, decoded)


def test_no_shard_is_fetched_for_sizes(base, monkeypatch):
    """Behind a URL only indexes are read in setup."""
    memory, seen = fsspec.filesystem("memory"), []
    memory.put(str(base / "tokens"), "memory://sizes", recursive=True)
    read = directory.RemoteDirectory.read
    monkeypatch.setattr(
        directory.RemoteDirectory, "read", lambda self, name, *args: (seen.append(name), read(self, name, *args))
    )
    data = WebDataModule(
        {"train": "memory://sizes"}, None, "x.u2", 1,
        pipeline_prebatch_wld={"train": Use("pack", size="x.u2", max_total=52, collate="list")},
    )  # fmt: skip
    data.setup("fit")
    assert [] == seen
    assert sorted(LENGTHS) == sorted(len(data) // 2 for batch in data.train_dataloader() for data in batch)
    memory.rm("memory://sizes", recursive=True)


def test_a_field_of_another_length_is_named(base, tmp_path):
    """The codec says that a length cannot be, and decoding says which sample it is."""
    write(tmp_path / "odd", lambda number: {"x.u2": bytes(7 if number == 5 else 8)})
    with pytest.raises(DecodeError, match=r"key=s05, suffix=x\.u2"):
        planned(tmp_path / "odd", SizedTokens())


@pytest.mark.parametrize("given", [[1, 2], [0.5] * 30, [-1] * 30], ids=["too few", "fractions", "negative"])
def test_sizes_that_are_none_are_refused(base, given):
    """They are checked as far as they can be."""
    codec = SizedTokens()
    codec.sizes = lambda lengths: np.array(given)
    with pytest.raises(PluginError, match=r"sizes\(lengths\) of the codec of 'x.u2' gives"):
        planned(base / "tokens", codec)


def test_sizes_that_are_kept_are_those_of_the_codec(base):
    """Another codec makes another length of the same bytes; one that is no plugin's is asked again."""
    sizes = {}
    for name, codec in [("text", None), ("bytes", "bytes"), ("letters", Letters()), ("again", None)]:
        batches, _ = planned(base / "names", codec, size="n.txt")
        sizes[name] = sorted(size for batch in batches for _, size in batch)
        assert all(sum(size for _, size in batch) <= 26 for batch in batches)

    assert [2] * 10 + [3] * 20 == sizes["text"] == sizes["again"]
    assert [3] * 10 + [4] * 20 == sizes["bytes"]
    assert [1] * 30 == sizes["letters"]
    assert 2 == len(planned(base / "names", Letters(), size="n.txt", max_total=15)[0])
