"""Every remedy that a message about pickles names is carried out here: message, remedy, outcome."""

import bz2
import collections
import dataclasses
import datetime as dt
import enum
import gzip
import io
import lzma
import operator
import pickle
import re
import shutil
import sys
import types
from decimal import Decimal

import dateutil.tz
import numpy as np
import pytest
import torch
from tests.helpers.sameness import same

from bionemo.webdatamodule import PickledDataWDS, Sample, SourceDataWDS, Use, WebDataModule
from bionemo.webdatamodule.errors import ConfigError, InputError, WebDataModuleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads

VALUE = {"x": np.arange(3), "n": 1}
TRUSTED = Policy(pickles="trusted")


@dataclasses.dataclass
class Thing:
    """A class of a user's."""

    size: int = 1


class Colour(enum.Enum):
    """An enumeration of a user's."""

    red = 1


class Held:
    """Two classes of a user's, one of which is a value."""

    def __init__(self):
        self.kind = Thing


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Make the classes of this file importable as ``things.…``."""
    module = types.ModuleType("things")
    for cls in (Thing, Held, Colour):
        monkeypatch.setattr(cls, "__module__", "things")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "things", module)


def saved(write, *args):
    """What a function writes into a file."""
    stream = io.BytesIO()
    write(stream, *args)
    return stream.getvalue()


def allow_all(message):
    """Return the policy that a message says, pasted as it stands."""
    return Policy(allow=eval(re.search(r"allow_pickle=(\[.*?\])", message)[1], {}))


EXPANDED = torch.zeros(1).expand(1 << 23)
RECORDS = np.rec.array([(1, 2.0), (3, 4.0)], names="a,b")
TEXTS = np.array(["a", "bc"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else np.array(["a"])
ELSEWHERE = dt.datetime(2020, 1, 1, tzinfo=dateutil.tz.tzoffset("X", 3600))
TWICE = {key * ((1 << 61) - 1): key for key in range(8000)}

REMEDIES = {
    "allow a class": (lambda: pickle.dumps(Thing(2)), r"pass allow_pickle=\[\"things.Thing\"\]", allow_all, Thing(2)),
    "allow all classes": (
        lambda: pickle.dumps([Thing(2), [Held()]]),
        r"if you know and trust all 2, pass allow_pickle=\[",
        allow_all,
        lambda found: found[0] == Thing(2) and found[1][0].kind is Thing,
    ),
    "allow a package": (
        lambda: pickle.dumps([Thing(2), [Held()]]),
        r"or allow_pickle=\[\"things\.\*\"\] for all of the package",
        lambda _: Policy(allow=["things.*"]),
        lambda found: found[1][0].kind is Thing,
    ),
    "allow a class that is a value": (
        lambda: pickle.dumps([float, int]),
        r"holds builtins.float, builtins.int as a value .* pass allow_pickle=\[",
        allow_all,
        [float, int],
    ),
    "allow a dtype": (
        lambda: pickle.dumps(np.dtype([("a", "O")])),
        r"pass allow_pickle=\[\"numpy.dtype\"\]",
        allow_all,
        np.dtype([("a", "O")]),
    ),
    "allow a matrix": (
        lambda: pickle.dumps(np.array([[1, 2]]).view(np.matrix)),
        r"pass allow_pickle=\[\"numpy.matrix\"\]",
        allow_all,
        lambda found: type(found) is np.matrix and found.tolist() == [[1, 2]],
    ),
    "allow a recarray": (
        lambda: pickle.dumps(RECORDS),
        r"pass allow_pickle=\[\"numpy.rec.recarray\", \"numpy.record\"\]",
        allow_all,
        lambda found: type(found) is np.recarray and found.dtype == RECORDS.dtype and found[1].b == 4.0,
    ),
    "allow an enumeration by the names of its members": (
        lambda: b"cbuiltins\ngetattr\n(cthings\nColour\nVred\ntR.",
        r"pass allow_pickle=\[\"things.Colour\"\]",
        allow_all,
        lambda found: found is Colour.red,
    ),
    "allow a class that Python 2 had elsewhere": (
        lambda: pickle.dumps(collections.UserList([1]), 2),
        r"pass allow_pickle=\[\"collections.UserList\"\]",
        allow_all,
        lambda found: repr(found) == "[1]",
    ),
    "allow a time zone of another package": (
        lambda: pickle.dumps(ELSEWHERE),
        r"pass allow_pickle=\[\"dateutil.tz.tz.tzoffset\"\]",
        allow_all,
        ELSEWHERE,
    ),
    "save text without a width as text of a width": (
        lambda: pickle.dumps(TEXTS),
        r"StringDType, .* save it as numpy.array\(array.tolist\(\)\), or",
        lambda _: pickle.dumps(np.array(TEXTS.tolist())),
        np.array(["a", "bc"]),
    ),
    "trust text without a width": (
        lambda: pickle.dumps(TEXTS),
        r"pickles=\"trusted\"",
        lambda _: TRUSTED,
        lambda found: found.dtype == TEXTS.dtype and found.tolist() == ["a", "bc"],
    ),
    "trust a function that can run code": (
        lambda: pickle.dumps([Thing(1), operator.attrgetter("size")]),
        r"names operator.attrgetter, which can run any code; if you trust .* pickles=\"trusted\"",
        lambda _: TRUSTED,
        lambda found: found[1](found[0]) == 1,
    ),
    "trust a method": (
        lambda: pickle.dumps([1, 2].count),
        r"takes the attribute 'count' of an object, .* pickles=\"trusted\"",
        lambda _: TRUSTED,
        lambda found: found(2) == 1,
    ),
    "trust a function that is a value": (
        lambda: pickle.dumps([getattr]),
        r"holds builtins.getattr as a value .* pickles=\"trusted\"",
        lambda _: TRUSTED,
        [getattr],
    ),
    "trust what uses other opcodes": (
        lambda: b"(ithings\nThing\nb.".replace(b"b.", b"."),
        r"uses INST at .* pickles=\"trusted\"",
        lambda _: TRUSTED,
        Thing(1),
    ),
    "save an expanded tensor as contiguous()": (
        lambda: pickle.dumps(EXPANDED),
        r"save expanded tensors as contiguous\(\)",
        lambda _: pickle.dumps(EXPANDED.contiguous()),
        lambda found: torch.equal(EXPANDED, found),
    ),
    "trust an expanded tensor": (
        lambda: pickle.dumps(EXPANDED),
        r"or read trusted data with pickles=\"trusted\"",
        lambda _: TRUSTED,
        lambda found: torch.equal(EXPANDED, found),
    ),
    "store keys in lists of pairs": (
        lambda: pickle.dumps(TWICE),
        "store large keys in lists of pairs",
        lambda _: pickle.dumps(list(TWICE.items())),
        list(TWICE.items()),
    ),
    "trust keys": (lambda: pickle.dumps(TWICE), r"pickles=\"trusted\"", lambda _: TRUSTED, TWICE),
    "make several objects a list": (
        lambda: pickle.dumps(1) + pickle.dumps(2),
        "has to become a list of them, or several files",
        lambda _: pickle.dumps([1, 2]),
        [1, 2],
    ),
    "unpack gzip": (
        lambda: gzip.compress(pickle.dumps(VALUE)),
        r"gzip .* gzip.open\(path\).read\(\)",
        lambda _: gzip.decompress(gzip.compress(pickle.dumps(VALUE))),
        VALUE,
    ),
    "unpack bzip2": (
        lambda: bz2.compress(pickle.dumps(VALUE)),
        r"bz2.open\(path\).read\(\)",
        lambda _: bz2.decompress(bz2.compress(pickle.dumps(VALUE))),
        VALUE,
    ),
    "unpack xz": (
        lambda: lzma.compress(pickle.dumps(VALUE)),
        r"lzma.open\(path\).read\(\)",
        lambda _: lzma.decompress(lzma.compress(pickle.dumps(VALUE))),
        VALUE,
    ),
    "pickle an array of numpy.save": (
        lambda: saved(np.save, VALUE["x"]),
        r"pickle.dump\(numpy.load\(path\), file\)",
        lambda _: pickle.dumps(np.load(io.BytesIO(saved(np.save, VALUE["x"])))),
        VALUE["x"],
    ),
    "pickle the arrays of numpy.savez": (
        lambda: saved(lambda stream: np.savez(stream, a=VALUE["x"])),
        r"pickle.dump\(dict\(numpy.load\(path\)\), file\)",
        lambda _: pickle.dumps(dict(np.load(io.BytesIO(saved(lambda stream: np.savez(stream, a=VALUE["x"])))))),
        {"a": VALUE["x"]},
    ),
    "pickle what torch.save wrote": (
        lambda: saved(lambda stream: torch.save(VALUE["n"], stream)),
        r"pickle.dump\(torch.load\(path\), file\)",
        lambda _: pickle.dumps(torch.load(io.BytesIO(saved(lambda stream: torch.save(VALUE["n"], stream))))),
        VALUE["n"],
    ),
    "write an empty file again": (
        lambda: b"",
        "write it again, or leave the sample out",
        lambda _: pickle.dumps(VALUE),
        VALUE,
    ),
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_the_remedy_of_a_message_works(remedy):
    """The data are refused with the advice; after following it they are read."""
    write, advice, follow, expected = REMEDIES[remedy]
    data = write()
    with pytest.raises(WebDataModuleError) as caught:
        loads(data)
    assert re.search(advice, caught.value.message)
    better = follow(caught.value.message)
    found = loads(data, policy=better) if isinstance(better, Policy) else loads(better)
    assert expected(found) if callable(expected) and not isinstance(expected, type) else same(expected, found)


def test_a_list_of_one_name_is_what_one_name_should_be():
    """The message shows the list."""
    with pytest.raises(ConfigError, match=r"takes a list of names: \['things.Thing'\]") as caught:
        Policy(allow="things.Thing")
    allow = eval(re.search(r"list of names: (\[.*?\])", caught.value.message)[1], {})
    assert loads(pickle.dumps(Thing(3)), policy=Policy(allow=allow)) == Thing(3)
    with pytest.raises(ConfigError, match="takes a list of names"):
        WebDataModule({"train": "d"}, None, "x.pyd", 2, allow_pickle="things.Thing")


@pytest.mark.parametrize("suffix", ["npy", "npz", "pth"])
def test_other_formats_are_read_as_they_are_under_their_own_suffix(suffix, tmp_path):
    """Storing it as it is works: the codec of that suffix reads it."""
    from bionemo.webdatamodule.plugins import default_plugins

    data = {
        "npy": saved(np.save, VALUE["x"]),
        "npz": saved(lambda stream: np.savez(stream, a=VALUE["x"])),
        "pth": saved(lambda stream: torch.save(torch.arange(3), stream)),
    }[suffix]
    with pytest.raises(WebDataModuleError, match=rf"under a suffix that ends in \.{suffix}"):
        loads(data)
    [record] = [
        found.component for found in default_plugins().registered if suffix in getattr(found.component, "suffixes", ())
    ]
    codec = record.factory(policy=Policy()) if suffix == "pth" else record.factory()
    expected = {"npy": VALUE["x"], "npz": {"a": VALUE["x"]}, "pth": torch.arange(3)}[suffix]
    assert same(expected, codec.decode(memoryview(data)))


@pytest.mark.parametrize(
    ("suffix", "data", "expected"), [("json", b'{"n": 1}', {"n": 1}), ("txt", b"30 days", "30 days")]
)
def test_text_is_stored_as_it_is_by_a_writer_of_ones_own(suffix, data, expected, tmp_path):
    """The codec of the suffix that the message names reads it."""
    with pytest.raises(WebDataModuleError, match=rf"SourceDataWDS and a writer of your own, .* ends in \.{suffix}"):
        loads(data)

    def read(names):
        yield from (Sample(name, {suffix: data}) for name in names)

    module = SourceDataWDS(
        read, {"train": ["a"]}, f"{tmp_path}/out-", suffix, 1, executor="serial",
        pipeline_prebatch_wld={"train": Use("batch", collate="list")},
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    assert [expected] == next(iter(module.train_dataloader()))


def test_a_conversion_names_each_file_that_is_no_pickle_and_works_without_them(tmp_path):
    """Gzip, npy and empty files in a folder of pickles, each by its name; left out of the names they do no harm."""
    source = tmp_path / "pickles"
    source.mkdir()
    files = {
        "good": pickle.dumps(torch.arange(3)),
        "packed": gzip.compress(pickle.dumps(1)),
        "array": saved(np.save, np.arange(3)),
        "nothing": b"",
    }
    for name, data in files.items():
        (source / f"{name}.x.pyd").write_bytes(data)

    def convert(names):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        module = PickledDataWDS(
            str(source),
            "x.pyd",
            {"train": names},
            {"train": str(out)},
            global_batch_size=1,
            n_tars_wds=1,
            executor="serial",
        )
        module.prepare_data()
        module.setup("fit")
        return next(iter(module.train_dataloader()))

    with pytest.raises(InputError) as caught:
        convert(list(files))
    lines = {line.split(":")[0].strip(): line for line in caught.value.message.splitlines() if ":" in line}
    assert "compressed with gzip" in lines["packed"]
    assert "numpy.save" in lines["array"]
    assert "this is empty" in lines["nothing"]
    assert [[0, 1, 2]] == convert(["good"]).tolist()


def test_numbers_out_of_bounds_say_so():
    """Their remedy is to store them in another way: as text."""
    large = Decimal("1E20000")
    with pytest.raises(WebDataModuleError, match="Decimal"):
        loads(pickle.dumps(large))
    assert large == Decimal(loads(pickle.dumps(str(large))))
    assert large == Decimal(loads(dumps(str(large))))


@pytest.mark.parametrize(
    "array", [np.array(["2020-01-01"], "M8[D]"), np.zeros(2, [("a", "i4")])], ids=["times", "records"]
)
def test_arrays_without_a_tensor_are_batched_by_a_function(array, tmp_path):
    """The batch that torch cannot make is named; the list, a function of one's own, holds the arrays."""
    (tmp_path / "p").mkdir()
    for number in range(2):
        (tmp_path / "p" / f"s{number}.x.pyd").write_bytes(pickle.dumps(array))

    def batch(collate):
        module = PickledDataWDS(
            str(tmp_path / "p"), "x.pyd", {"train": ["s0", "s1"]}, {"train": str(tmp_path / "out")},
            global_batch_size=2, n_tars_wds=1, executor="serial",
            pipeline_prebatch_wld={"train": Use("batch", collate=collate)},
        )  # fmt: skip
        module.prepare_data()
        module.setup("fit")
        return next(iter(module.train_dataloader()))

    with pytest.raises(WebDataModuleError, match=r"do not fit into one batch.* a function of your own"):
        batch("default")
    assert same([array, array], batch("list"))
