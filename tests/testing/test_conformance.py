import math
import operator
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch

from bionemo.webdatamodule import Codec, pickles
from bionemo.webdatamodule.plugins import default_plugins
from bionemo.webdatamodule.testing import (
    CodecConformance,
    ComponentConformance,
    ExecutorConformance,
    KeyEncoderConformance,
    LoaderConformance,
    PlannerConformance,
    StageConformance,
    StoreConformance,
    WriterConformance,
)


class TestPickles(WriterConformance):
    """One pickle file a sample, in nested directories, of objects that plain pickle wrote."""

    name = "pickles"

    @pytest.fixture
    def expected(self):
        values = {"a": {"x": [1, 2.5, None]}, "b.1": np.arange(5), "deep/c": torch.arange(3.0), "d": "text"}
        return {name: {"mydata.pt": pickle.dumps(value)} for name, value in values.items()}

    @pytest.fixture
    def options(self, expected, tmp_path):
        (tmp_path / "deep").mkdir()
        for name, files in expected.items():
            (tmp_path / f"{name}.mydata.pt").write_bytes(files["mydata.pt"])
        return {"directory": str(tmp_path), "suffixes": "mydata.pt"}


class TestPicklesOfSeveralSuffixes(WriterConformance):
    """Two files a sample."""

    name = "pickles"

    @pytest.fixture
    def expected(self):
        return {f"s{number}": {"x.pyd": pickles.dumps(number), "y.pyd": pickles.dumps([number])} for number in range(3)}

    @pytest.fixture
    def options(self, expected, tmp_path):
        for name, files in expected.items():
            for suffix, data in files.items():
                (tmp_path / f"{name}.{suffix}").write_bytes(data)
        return {"directory": str(tmp_path), "suffixes": ["x.pyd", "y.pyd"]}


class TestDashes(KeyEncoderConformance):
    """The documented encoder, which gives some names one key."""

    name = "dashes"
    collides = True


class TestEscaped(KeyEncoderConformance):
    """The encoder that takes any name and collides for none."""

    name = "escaped"
    takes_any_name = True


class _Stage(StageConformance):
    """The stages below work on pairs of a tensor and a number, unless they say otherwise."""

    @pytest.fixture
    def samples(self):
        return [(torch.full((3,), float(number)), number) for number in range(7)]


class TestUntuple(_Stage):
    """1-tuples to their value."""

    name = "untuple"

    @pytest.fixture
    def samples(self):
        return [(number,) for number in range(7)]

    @pytest.fixture
    def expected(self):
        return list(range(7))


class TestShuffle(_Stage):
    """A buffered shuffle, with its default place in a run."""

    name = "shuffle"

    @pytest.fixture
    def options(self):
        return {"size": 4}


class TestBatch(_Stage):
    """Batches with torch's collation, the last one partial."""

    name = "batch"

    @pytest.fixture
    def options(self):
        return {"size": 3}

    @pytest.fixture
    def expected(self):
        return [
            [torch.tensor([[float(n)] * 3 for n in numbers]), torch.tensor(numbers)]
            for numbers in ([0, 1, 2], [3, 4, 5], [6])
        ]


class TestBatchBySize(_Stage):
    """Lists of like length, six values at most in a padded batch, from a stream that is sorted four at a time."""

    name = "batch_by_size"

    @pytest.fixture
    def options(self):
        return {"size": len, "max_total": 6, "window": 4, "collate": "list"}

    @pytest.fixture
    def samples(self):
        return [[number] * (1 + number % 3) for number in range(9)]


class TestPack(_Stage):
    """Lists of lists, six values at most in a pack, from a stream that is packed four at a time."""

    name = "pack"

    @pytest.fixture
    def options(self):
        return {"size": len, "max_total": 6, "window": 4, "collate": "list"}

    @pytest.fixture
    def samples(self):
        return [[number] * (1 + number % 3) for number in range(9)]


class TestPlansBySize(PlannerConformance):
    """The same as a planner: equal steps, every sample once, resume."""

    name = "batch_by_size"

    @pytest.fixture
    def options(self):
        return {"size": len, "max_total": 64, "collate": "list"}

    @pytest.fixture
    def other_options(self):
        return {"max_total": 50}

    @pytest.fixture
    def samples(self):
        return ["a", "bb", "cc"]

    @pytest.fixture
    def expected(self):
        return ["a", "bb", "cc"]


class TestPlansOfPacks(TestPlansBySize):
    """Packs, as a planner."""

    name = "pack"


class TestWeighted(TestPlansBySize):
    """A planner whose epochs repeat samples on purpose."""

    name = "weighted"
    repeats = True

    @pytest.fixture
    def options(self):
        return {"by": len, "collate": "list"}

    @pytest.fixture
    def other_options(self):
        return {"replacement": False}


class TestFsspec(StoreConformance):
    """The default store, on a file system in memory."""

    name = "fsspec"

    @pytest.fixture
    def base_url(self):
        return "memory://kit"


class TestUnbatch(_Stage):
    """Lists to their items."""

    name = "unbatch"

    @pytest.fixture
    def samples(self):
        return [[0, 1], [2], [], [3, 4]]

    @pytest.fixture
    def expected(self):
        return [0, 1, 2, 3, 4]


class TestMap(_Stage):
    """A function of each sample."""

    name = "map"

    @pytest.fixture
    def options(self):
        return {"function": math.sqrt}

    @pytest.fixture
    def samples(self):
        return [0, 1, 4, 9]

    @pytest.fixture
    def expected(self):
        return [0.0, 1.0, 2.0, 3.0]


class TestMapTuple(_Stage):
    """A function of each value, by import path and as itself."""

    name = "map_tuple"

    @pytest.fixture
    def options(self):
        return {"functions": ["torch.neg", operator.neg]}

    @pytest.fixture
    def expected(self, samples):
        return [(-tensor, -number) for tensor, number in samples]


class TestSelect(_Stage):
    """The samples that a function likes."""

    name = "select"

    @pytest.fixture
    def options(self):
        return {"predicate": math.isfinite}

    @pytest.fixture
    def samples(self):
        return [1.0, math.nan, 2.0, math.inf]

    @pytest.fixture
    def expected(self):
        return [1.0, 2.0]


class TestNamed(_Stage):
    """Tuples to dictionaries."""

    name = "named"

    @pytest.fixture
    def options(self):
        return {"names": ["x", "y"]}

    @pytest.fixture
    def expected(self, samples):
        return [{"x": tensor, "y": number} for tensor, number in samples]


class TestWebLoader(LoaderConformance):
    """The default loader."""

    name = "webloader"
    keeping: ClassVar = {"num_workers": 2, "persistent_workers": True}


class TestSpawnedWebLoader(LoaderConformance):
    """The default loader with workers that inherit nothing."""

    name = "webloader"

    @pytest.fixture
    def options(self):
        return {"multiprocessing_context": "spawn"}

    @pytest.fixture(params=[1], ids=["workers=1"])
    def count(self, request):
        return request.param


class TestProcesses(ExecutorConformance):
    """The default executor."""

    name = "processes"

    @pytest.fixture
    def options(self):
        return {"workers": 2}


class TestSerial(ExecutorConformance):
    """The executor without processes."""

    name = "serial"


class TestPickleCodec(CodecConformance):
    """Pickles of one kind, of tensors of several lengths."""

    name = "pickle"

    @pytest.fixture
    def values(self):
        return [{"x": torch.arange(float(size)), "n": size} for size in (3, 5, 3, 0)]


class TestPlainPickle(CodecConformance):
    """Pickles of values of any kind."""

    name = "pickle"

    @pytest.fixture
    def encoded(self):
        return [pickle.dumps(value) for value in (1, [2.5, "a"], np.arange(4), {"b": (None,)})]


class TestNpyCodec(CodecConformance):
    """Arrays of one shape."""

    name = "npy"

    @pytest.fixture
    def values(self):
        return [np.full((2, 3), number, np.float32) for number in range(4)]


class TestNpyCodecOfLengths(CodecConformance):
    """Arrays of several lengths and types."""

    name = "npy"

    @pytest.fixture(params=["lengths", "types", "text"])
    def values(self, request):
        return {
            "lengths": [np.arange(size) for size in (3, 1, 4)],
            "types": [np.ones(2), np.ones(2, np.int16)],
            "text": [np.array(["a", "bc"])] * 2,
        }[request.param]


class TestNpzCodec(CodecConformance):
    """Archives of arrays."""

    name = "npz"

    @pytest.fixture
    def values(self):
        return [{"a": np.arange(number + 1), "b": np.ones(2)} for number in range(2)]


class TestJsonCodec(CodecConformance):
    """JSON."""

    name = "json"

    @pytest.fixture
    def values(self):
        return [{"a": [1, 2]}, {"a": [3, 4]}]


class TestTextCodec(CodecConformance):
    """Text."""

    name = "text"

    @pytest.fixture
    def values(self):
        return ["ä", ""]


class TestIntegerCodec(CodecConformance):
    """Numbers."""

    name = "integer"

    @pytest.fixture
    def values(self):
        return [0, -12]


class TestBytesCodec(CodecConformance):
    """Bytes."""

    name = "bytes"

    @pytest.fixture
    def values(self):
        return [b"\x00a", b""]


class TestPtCodec(CodecConformance):
    """Pickles, or files of torch."""

    name = "pt"

    @pytest.fixture
    def values(self):
        return [{"a": torch.ones(2)}, {"a": torch.zeros(2)}]


class TestPthCodec(CodecConformance):
    """Files of torch."""

    name = "pth"

    @pytest.fixture
    def values(self):
        return [{"a": torch.ones(2)}, {"a": torch.zeros(2)}]


class TestTenCodec(CodecConformance):
    """webdataset's lists of arrays."""

    name = "ten"

    @pytest.fixture
    def values(self):
        return [[np.arange(3, dtype=np.float32)], [np.ones(3, np.float32)]]


class TestGzCodec(CodecConformance):
    """gzip around bytes."""

    name = "gz"

    @pytest.fixture
    def values(self):
        return [b"", b"abc" * 100]


def test_every_default_component_is_here():
    """A new default component needs a class above."""
    tested = {
        (suite.kind, suite.name)
        for suite in globals().values()
        if isinstance(suite, type) and issubclass(suite, ComponentConformance) and hasattr(suite, "name")
    }

    registered = {(type(found.component), found.component.name) for found in default_plugins().registered}

    assert registered == {*tested, (Codec, "msgpack")}  # which needs a package that is optional
