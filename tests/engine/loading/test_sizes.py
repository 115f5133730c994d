"""The sizes of samples for planners: from the index where the length of a field tells, else from the field."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import fsspec
import numpy as np
import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule import Codec, Use, WebDataModule, hookimpl
from bionemo.webdatamodule._engine.loading import sizes as measured
from bionemo.webdatamodule._engine.storage.remote import directory
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.builtins.weighted import Weighted
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import CorruptShardError, DecodeError, PluginError
from bionemo.webdatamodule.planning import grouped_plan
from bionemo.webdatamodule.plugins import Plugins

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


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A planner that notes the sizes that it gets."""

    size: str = "n.txt"
    seen: list[list[int]] = field(default_factory=list)

    def plan(self, sizes, request):
        """Return the plan of batches in order."""
        self.seen.append(sorted(set(sizes.tolist())))
        return grouped_plan([np.arange(len(sizes))], [1], request, n_samples=len(sizes))

    def __call__(self, samples):
        """Yield the batch of a share."""
        return iter([list(samples)])


@dataclass(frozen=True, kw_only=True)
class Measured(Seen):
    """One whose sizes depend on an option."""

    letters: int = 1

    def measure(self, value):
        """Return the number of tokens."""
        return -(-len(value) // self.letters)


@dataclass(frozen=True, kw_only=True)
class MeasuredByField(Seen):
    """One whose measure is a field."""

    measure: Callable[[Any], int] = len


def sizes_for(directory, stage, **options):
    """Return the different sizes that a planner gets at setup."""
    WebDataModule({"train": directory}, None, "n.txt", 1, pipeline_prebatch_wld={"train": stage}, **options).setup(
        "fit"
    )
    return stage.seen[-1]


@pytest.fixture
def names(base, monkeypatch, tmp_path):
    """A directory of text of two and three letters, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return str(base / "names")


def test_options_of_a_planners_measure_decide_its_sizes(names):
    """Another run with another option gets no sizes of the run before."""
    assert [2, 3] == sizes_for(names, Measured())
    assert [1, 2] == sizes_for(names, Measured(letters=2))
    assert [2, 3] == sizes_for(names, Seen())


def test_a_measure_whose_body_was_changed_is_asked_again(names, monkeypatch):
    """It has the name of the one before."""
    assert [2, 3] == sizes_for(names, Measured())
    changed = lambda self, value: 10 * len(value)  # noqa: E731 - it takes another's name
    changed.__qualname__ = Measured.measure.__qualname__
    monkeypatch.setattr(Measured, "measure", changed)

    assert [20, 30] == sizes_for(names, Measured())


def test_a_measure_that_is_a_field_is_asked(names):
    """The class of the planner says nothing of it."""
    assert [2, 3] == sizes_for(names, Seen())
    assert [2, 3] == sizes_for(names, MeasuredByField())
    assert [7] == sizes_for(names, MeasuredByField(measure=lambda value: 7))


def with_codec(factory):
    """Return plugins of which one has a codec of text."""

    class Plugin:
        @hookimpl
        def webdatamodule_codecs(self):
            yield Codec(name="text", summary="s", suffixes=("txt",), factory=factory, override=True)

    plugins = Plugins()
    plugins.register(Plugin(), "mine")
    return plugins


def test_a_codec_of_a_plugin_that_was_changed_is_asked_again(names, monkeypatch):
    """It has the name of the one before."""
    assert [1] == sizes_for(names, Seen(), plugins=with_codec(Letters))
    monkeypatch.setattr(Letters, "decode", lambda self, view: str(view, "utf-8") * 2)

    assert [4, 6] == sizes_for(names, Seen(), plugins=with_codec(Letters))
    assert [2, 3] == sizes_for(names, Seen())


def test_a_codec_that_does_not_pickle_serves_a_planner(names, monkeypatch):
    """Its sizes are not kept, and this process reads them all."""

    class Locked(Letters):
        def __init__(self):
            self.lock = threading.Lock()

    monkeypatch.setattr(measured, "_APART", 1)
    monkeypatch.setattr(measured, "usable_cpus", lambda: 3)
    assert [1] == sizes_for(names, Seen(), plugins=with_codec(Locked))


def test_a_class_that_pickles_may_name_is_asked_again(names, monkeypatch):
    """What is allowed beside the known types has a length by its own code."""
    assert [2, 3] == sizes_for(names, Seen(), allow_pickle=["pkg.Tokens"])
    monkeypatch.setattr(measured, "_size", lambda *_: 7)
    assert [7] == sizes_for(names, Seen(), allow_pickle=["pkg.Tokens"])


def test_sizes_by_code_of_this_package_are_kept_for_its_version(names, monkeypatch):
    """Default planners with a measure, and those without, ask again after an update."""
    for stage in (Weighted(by="n.txt"), Use("pack", size="n.txt", max_total=26, collate="list")):
        with monkeypatch.context() as patched:
            data = {"pipeline_prebatch_wld": {"train": stage}}
            WebDataModule({"train": names}, None, "n.txt", 1, **data).setup("fit")
            patched.setattr(measured, "_size", lambda *_: 1 / 0)
            WebDataModule({"train": names}, None, "n.txt", 1, **data).setup("fit")
            for version in (lambda name: "next", source_tree):
                patched.setattr(metadata, "version", version)
                with pytest.raises(ZeroDivisionError):
                    WebDataModule({"train": names}, None, "n.txt", 1, **data).setup("fit")


def source_tree(name):
    """Stand for the version of a package that is not installed."""
    raise metadata.PackageNotFoundError(name)


def test_damaged_sizes_are_refused_and_not_kept(tmp_path, monkeypatch):
    """They would decide the batches of all later runs; unchecked ones are used, and not kept either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = write(tmp_path / "data", lambda n: {"n.cls": b"%03d" % (100 + n)}, KEYS[:6])
    (shard,) = [path for path in sorted((tmp_path / "data").glob("*.tar")) if b"100" in path.read_bytes()]
    whole = shard.read_bytes()
    place = whole.index(b"100", whole.index(b"n.cls"))

    def sums(**options):
        pack = Use("batch_by_size", size="n.cls", max_total=250, total="sum")
        data = WebDataModule({"train": directory}, None, "n.cls", 4, pipeline_prebatch_wld={"train": pack}, **options)
        data.setup("fit")
        return [int(batch.sum()) for batch in data.train_dataloader()]

    shard.write_bytes(whole[:place] + b"0" + whole[place + 1 :])
    with pytest.raises(CorruptShardError, match="key=s00"):
        sums()
    assert sums(check="never")
    shard.write_bytes(whole)
    found = sums()
    assert 615 == sum(found)
    assert max(found) <= 250
