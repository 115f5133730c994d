import dataclasses
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import hostile, sameness
from tests.helpers.convert import convert

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.errors import ConfigError, DecodeError, InputError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads, recode

same, values, tensors = sameness.same, sameness.values, sameness.tensors
call, name, value, P = hostile.call, hostile.name, hostile.value, hostile.P

NO_WIDTH = hostile.dtype("U0", 3, "<", None, None, None, 0, 4, 8)


def saved(item, **options):
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(item, stream, **options)
    return stream.getvalue()


pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Point:
    """A class of a user's, in a module that can be imported by the name this one has."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and vars(other) == vars(self)

    __hash__ = None


class Slotted:
    """A class with slots, a state of its own and keywords for its constructor."""

    __slots__ = ("a", "b")

    def __new__(cls, *, a):
        made = super().__new__(cls)
        made.a = a
        return made

    def __getnewargs_ex__(self):
        return (), {"a": self.a}

    def __getstate__(self):
        return None, {"b": self.b}


class Items(list):
    """A list with an attribute."""


@dataclasses.dataclass
class Recorded:
    """A dataclass."""

    size: int
    name: str


CLASSES = (Point, Slotted, Items, Recorded)


@pytest.fixture
def importable(monkeypatch):
    """Make this module importable by its name, as a user's module is, and return what allows its classes."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())
    return Policy(allow=tuple(f"{__name__}.{cls.__name__}" for cls in CLASSES))


def _this_module():
    module = type(sys)(__name__)
    module.__dict__.update(globals())
    return module


# -- reading


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values, st.integers(0, 5))
def test_reads_what_the_stock_unpickler_reads(item, protocol):
    """Benign values of all kinds come back as pickle.loads gives them, in every protocol."""
    try:
        data = pickle.dumps(item, protocol=protocol)
        expected = pickle.loads(data)
    except (TypeError, AttributeError):  # complex in protocol 0; float8 and uint16 tensors, which torch cannot load
        return
    assert same(expected, loads(data))


@pytest.mark.parametrize("item", [None, False, 0, "", b"", [], {}, torch.empty(0), float("nan"), -0.0, 10**4000])
def test_keeps_values_that_look_like_nothing(item):
    """None, False, zero, empty and huge values are values."""
    assert same(item, loads(pickle.dumps(item, 4)))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("c")])
def test_reads_any_buffer(kind):
    """The data may be any contiguous buffer of bytes."""
    assert [1, "a"] == loads(kind(pickle.dumps([1, "a"])))


def test_arrays_are_writable_and_own_their_memory():
    """A sample may be changed in place without changing the next one that is read from the same bytes."""
    data = pickle.dumps([np.arange(3), torch.arange(3)], 5)
    first = loads(data)
    first[0][0] = first[1][0] = 9
    assert [0, 0] == [int(part[0]) for part in loads(data)]


def test_shared_objects_stay_shared():
    """Two references to one list are one list."""
    inner = [1]
    outer = loads(pickle.dumps([inner, inner]))
    assert outer[0] is outer[1]


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.uint16, torch.complex32, torch.uint64])
def test_reads_tensors_that_torch_itself_cannot_load(dtype):
    """Newer dtypes are pickled by torch in a form that pickle.loads fails on."""
    tensor = torch.zeros(3, dtype=torch.uint8).view(torch.uint8).repeat(dtype.itemsize).view(dtype)
    assert same(tensor, loads(pickle.dumps(tensor)))


def test_reads_a_storage():
    """A bare storage is a value too."""
    storage = torch.arange(4).untyped_storage()
    assert list(storage) == list(loads(pickle.dumps(storage)))


def test_reads_numpy_1_names():
    """Pickles of numpy 1 say numpy.core, those of numpy 2 numpy._core."""
    new = pickle.dumps(np.arange(3.0), 2)
    old = new.replace(b"numpy._core", b"numpy.core")
    assert new != old
    assert same(np.arange(3.0), loads(old))


# -- refusing


def test_a_refused_class_is_named_with_the_argument_to_add(importable):
    """The message says which class it was and what to pass."""
    with pytest.raises(RefusedPickleError, match=rf'allow_pickle=\["{__name__}.Point"\]'):
        loads(pickle.dumps(Point(1)))


@pytest.mark.parametrize("protocol", range(6))
def test_an_allowed_class_is_used_as_pickle_uses_it(importable, protocol):
    """NEWOBJ, __reduce__ of protocols 0 and 1, __dict__, list items: all as the stock unpickler does."""
    items = Items([1, 2])
    items.name = "n"
    found = loads(pickle.dumps([Point({"a": Recorded(1, "x")}), items], protocol), policy=importable)
    assert [Point({"a": Recorded(1, "x")}), [1, 2], "n"] == [found[0], found[1], found[1].name]


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_allowed_class_may_have_slots_and_keywords(importable, protocol):
    """NEWOBJ_EX and a state of slots; before protocol 4 that would take functools.partial."""
    made = Slotted(a=1)
    made.b = 2
    found = loads(pickle.dumps(made, protocol), policy=importable)
    assert (1, 2) == (found.a, found.b)


def test_only_the_classes_that_were_allowed(importable):
    """One class more in the pickle is refused."""
    with pytest.raises(RefusedPickleError, match="Recorded"):
        loads(pickle.dumps([Point(1), Recorded(1, "x")]), policy=Policy(allow=(f"{__name__}.Point",)))


def test_what_needs_memory_of_its_own_form_is_allowed_explicitly():
    """Sparse tensors, when the user asks for them."""
    sparse = torch.eye(3).to_sparse()
    allow = ("torch._utils._rebuild_sparse_tensor", "torch.serialization._get_layout")
    assert torch.equal(torch.eye(3), loads(pickle.dumps(sparse), policy=Policy(allow=allow)).to_dense())


@pytest.mark.parametrize("policy", [Policy(), Policy(pickles="trusted"), Policy(allow=("not_there.Ghost",))])
def test_a_class_that_is_not_there_is_named(policy):
    """A ghost class is an error with its name, in every mode."""
    with pytest.raises(RefusedPickleError, match=r"not_there\.Ghost"):
        loads(call("not_there", "Ghost"), policy=policy)


def test_an_attribute_that_is_not_there_is_named():
    """A module that lost the class is no better."""
    with pytest.raises(RefusedPickleError, match=r"collections\.Ghost"):
        loads(call("collections", "Ghost"), policy=Policy(pickles="trusted"))


@pytest.mark.parametrize("policy", [Policy(), Policy(pickles="trusted")])
@pytest.mark.parametrize("rest", [b"\n", b"junk", pickle.dumps(2)])
def test_one_object_and_nothing_else(policy, rest):
    """Trailing bytes and several objects in one file are refused, in every mode."""
    with pytest.raises(DecodeError, match=f"{len(rest)} bytes follow"):
        loads(pickle.dumps([1]) + rest, policy=policy)


@pytest.mark.parametrize("policy", [Policy(), Policy(pickles="trusted")])
def test_every_truncation_is_an_error(policy):
    """A pickle that ends early is a DecodeError, wherever it ends."""
    data = pickle.dumps({"a": [torch.arange(3), np.arange(3)], "b": "text", "c": 10**30, "d": 1.5}, 4)
    found = {_outcome(loads, data[:end], policy) for end in range(len(data))}
    assert {"DecodeError"} == found


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_a_decode_error_or_a_value(data):
    """No stream whatever raises anything but the documented error."""
    assert _outcome(loads, data, Policy()) in {"value", "DecodeError", "RefusedPickleError"}


def _outcome(function, data, policy):
    try:
        function(data, policy=policy)
    except (DecodeError, MemoryError, RecursionError) as error:
        return type(error).__name__
    return "value"


def test_trusted_means_the_stock_unpickler():
    """With pickles="trusted" a pickle does whatever it says."""
    assert os.getpid() == loads(call("os", "getpid"), policy=Policy(pickles="trusted"))


# -- hostile streams, read in a process of their own


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What became of every hostile stream; the process must survive and its memory is limited."""
    canary = tmp_path_factory.mktemp("hostile") / "canary"
    done = subprocess.run([sys.executable, hostile.__file__, str(canary)], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    return lines


def test_the_gadgets_work_where_nobody_refuses(tmp_path):
    """The canary is not a dead bird: the stock unpickler runs it."""
    canary = tmp_path / "canary"
    assert pickle.loads(hostile.gadgets(str(canary))["os.system"]) == 0
    assert canary.exists()


def test_no_gadget_runs(report):
    """Of the streams that run code elsewhere, none ran any here."""
    gadgets = [line for line in report if line["group"] in ("gadgets", "nested")]
    assert len(gadgets) > 90
    assert [] == [line["title"] for line in report if line["ran"]]


def test_every_gadget_is_refused_by_name(report):
    """By loads, by a codec that has templates, and by a batch."""
    refused = ["RefusedPickleError"] * 3
    assert [] == [line for line in report if line["group"] == "gadgets" and line["found"] != refused]


@pytest.mark.parametrize("group", ["nested", "states", "bombs", "work", "containers", "torch"])
def test_every_broken_state_and_bomb_is_an_error(report, group):
    """A known name with a hostile argument is a DecodeError."""
    errors = {"DecodeError", "RefusedPickleError"}
    lines = [line for line in report if line["group"] == group]
    assert lines
    assert [] == [line for line in lines if not errors.issuperset(line["found"])]


def test_what_is_hostile_in_a_pickle_is_refused_in_a_file_of_torch(report):
    """Every stream is an error also inside what torch.save writes, and so is every such file that claims too much."""
    errors = {"DecodeError", "RefusedPickleError"}
    assert {1, 2, 4} == {len(line["torch"]) for line in report}
    assert [] == [line for line in report if not errors.issuperset(line["torch"])]


def test_tracing_a_hostile_stream_does_nothing(report):
    """The compile step of templates never raises and never runs anything, even on what was not accepted."""
    assert [] == [line for line in report if line["traced"] != "VALUE"]


def test_memory_is_bounded_by_the_input(report):
    """No stream, the largest of which has 2 MB, makes the process grow by more than 80 MB."""
    assert [] == [line for line in report if line["grown"] > 80 << 10]


@pytest.mark.parametrize("data", [saved([1]), saved([torch.ones(2)], _use_new_zipfile_serialization=False)])
@pytest.mark.parametrize("policy", [Policy(), Policy(pickles="trusted")])
def test_files_of_torch_are_told_from_pickles(data, policy, tmp_path):
    """A conversion of pickles says, in a line for each file, that torch.save wrote it and what to do about it."""
    for number in range(2):
        (tmp_path / f"s{number}.mydata.pt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        convert(
            reader=PickleReader(directory=tmp_path, suffixes="mydata.pt"),
            names={"train": ["s0", "s1"]},
            directories={"train": str(tmp_path / "out")},
            prefix="p",
            n_shards=1,
            key_encoder=encode_dashes,
            executor=Serial(),
            writer="pickles",
            options={},
            codecs=Codecs(policy=policy),
        )
    lines = caught.value.message.splitlines()[1:]
    assert ["s0", "s1"] == [line.partition(":")[0].strip() for line in lines]
    assert all("torch.save" in line and "pickle.dump(torch.load(path), file)" in line for line in lines)
    assert not any("trusted" in line for line in lines)


def test_the_number_that_torch_begins_files_with_is_a_number():
    """On its own it is a plain pickle."""
    assert 0x1950A86A20F9469CFC6C == loads(pickle.dumps(0x1950A86A20F9469CFC6C, 2))


def test_state_dicts_keep_the_versions_of_their_modules():
    """The one attribute that an OrderedDict may have is the one that torch gives it."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    for found in (loads(pickle.dumps(state)), loads(recode(pickle.dumps(state), policy=Policy()))):
        assert OrderedDict is type(found)
        assert same(state, found)
        assert state._metadata == found._metadata
    for metadata in ([1], {"": [1]}, {1: {}}, {"": {"version": [1]}}):
        state._metadata = metadata
        with pytest.raises(DecodeError, match="unknown metadata"):
            loads(pickle.dumps(state))


def test_text_of_no_width_is_no_bomb():
    """It needs no bytes, so its shape is bounded by itself."""
    empty = np.ndarray((3,), "<U0")
    assert same(empty, loads(pickle.dumps(empty)))
    for made in (
        hostile.canonical((10**11,), "<U0", bytearray(0)),
        hostile.array((10**11,), NO_WIDTH, value(b"")),
    ):
        with pytest.raises(DecodeError, match="absurd"):
            loads(P + made + b".")


# -- the policy


def test_policy_is_a_plain_value():
    """Equal, hashable, picklable; a list of names becomes a tuple."""
    policy = Policy(allow=["a.B"])
    assert policy == pickle.loads(pickle.dumps(policy))
    assert hash(Policy(allow=("a.B",))) == hash(policy)


@pytest.mark.parametrize(
    "options",
    [
        {"pickles": "unsafe"},
        {"allow": "a.B"},
        {"allow": ["B"]},
        {"allow": ["a.B()"]},
        {"allow": [3]},
        {"allow": 3},
        {"allow": ["*"]},
        {"allow": ["a.*.B"]},
        {"allow": [lambda: 0]},
    ],
)
def test_policy_refuses_what_it_does_not_know(options):
    """A typo is an error when the policy is made."""
    with pytest.raises(ConfigError):
        Policy(**options)


# -- writing


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values)
def test_canonical_pickles_are_read_by_plain_pickle_and_by_us(item):
    """What dumps writes, pickle.loads and loads read with the same value and types."""
    data = dumps(item)
    assert same(item, pickle.loads(data))
    assert same(item, loads(data))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values, st.integers(0, 5))
def test_recode_is_stable(item, protocol):
    """Recoding any pickle of a value gives the value; recoding that again gives the same bytes."""
    try:
        data = pickle.dumps(item, protocol)
        first = recode(data, policy=Policy())
    except TypeError:  # complex in protocol 0
        return
    assert first == recode(first, policy=Policy())
    assert same(loads(data), loads(first))


@pytest.mark.parametrize("dtype", sameness.TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_every_dtype_and_shape_comes_back(dtype, shape):
    """Also 0-d and empty ones, and also for dtypes that numpy lacks."""
    tensor = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape).to(dtype)
    assert same(tensor, pickle.loads(dumps(tensor)))


def test_strides_without_gaps_come_back():
    """A channels-last image stays channels-last."""
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    assert image.stride() == pickle.loads(dumps(image)).stride()


def test_a_slice_is_written_without_the_tensor_it_was_cut_from():
    """Unlike torch's own pickles, which hold the whole storage."""
    large = torch.zeros(100_000)
    assert len(dumps(large[:10])) < 300
    assert len(dumps(large[::10_000])) < 300


def test_tensors_that_share_memory_still_do():
    """A change of one shows in the others, as before; tensors apart from them stay apart."""
    base = torch.arange(10.0)
    item = {"all": base, "part": base[2:5], "turned": base.view(2, 5).t(), "again": base, "other": torch.arange(3.0)}
    for read in (pickle.loads, loads):
        found = read(dumps(item))
        assert all(same(item[key], found[key]) for key in item)
        found["all"][2] = 99
        assert (99.0, 99.0) == (found["part"][0].item(), found["turned"][2, 0].item())
        assert found["all"] is found["again"]


def test_tensors_over_one_array_of_different_sizes_are_written():
    """Two storages may begin at one address."""
    array = np.arange(10.0)
    item = [torch.from_numpy(array[:5]), torch.from_numpy(array)]
    assert same(item, pickle.loads(dumps(item)))


def test_parameters_and_gradients_come_back():
    """A Parameter is a Parameter, and requires_grad is kept; no graph is."""
    weight = torch.nn.Parameter(torch.ones(2))
    item = [weight, weight * 2, torch.ones(2, requires_grad=True).t()]
    found = pickle.loads(dumps(item))
    assert [torch.nn.Parameter, torch.Tensor, torch.Tensor] == [type(part) for part in found]
    assert [True, True, True] == [part.requires_grad and part.is_leaf for part in found]


def test_lazy_conjugates_are_written_as_their_values():
    """The conj and neg bits are an optimisation, not data."""
    tensor = torch.tensor([1 + 2j]).conj()
    assert [1 - 2j] == pickle.loads(dumps(tensor)).tolist()
    assert [-2.0] == pickle.loads(dumps(tensor.imag)).tolist()


def test_what_is_not_special_is_written_as_the_standard_pickler_does():
    """Only arrays, tensors and sets have a form of their own."""
    item = {"a": [1, 2.5, "x" * 300, b"y", None], "b": OrderedDict(x=(1, 2))}
    assert pickle.dumps(item, 5) == dumps(item)


def test_a_canonical_pickle_names_public_functions_only():
    """Any Python with numpy and torch reads it: no name of this package, none that depends on a version."""
    item = [np.arange(3), torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 3).t()]
    texts = [arg for opcode, arg, _ in pickletools.genops(dumps(item)) if "UNICODE" in opcode.name]
    assert {
        "numpy",
        "ndarray",
        "torch",
        "from_numpy",
        "view_copy",
        "as_strided",
        "bfloat16",
        "<i8",
        "<f4",
        "<i2",
    } == set(texts)


def test_bytes_do_not_depend_on_the_hash_seed():
    """Sets are written in an order that every process agrees on, also deep inside."""
    program = (
        "import sys; from bionemo.webdatamodule.pickles import dumps;"
        "sys.stdout.buffer.write(dumps([{'a', 'b', 'c', 'd', ('e', 1), None}, {frozenset('xyz'): {'p', 'q'}}]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    assert [{"a", "b", "c", "d", ("e", 1), None}, {frozenset("xyz"): {"p", "q"}}] == pickle.loads(outputs[0])


def test_values_that_contain_themselves_can_be_written():
    """The standard pickler can, so conversion with pickles="trusted" can."""
    item = [{1, 2}]
    item.append(item)
    found = pickle.loads(dumps(item))
    assert found is found[1]


def test_values_nested_too_deeply_are_an_error():
    """Not a RecursionError."""
    item = []
    for _ in range(100_000):
        item = [item]
    with pytest.raises(DecodeError, match="too deeply"):
        dumps(item)


def test_reading_needs_no_torch_where_the_pickle_has_none():
    """Conversion of plain pickles stays light."""
    program = (
        "import sys, pickle; from bionemo.webdatamodule.pickles import Policy, recode;"
        "recode(pickle.dumps({'a': [1]}), policy=Policy()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
