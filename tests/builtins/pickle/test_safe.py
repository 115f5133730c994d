"""What people really bring: classes of a package, tensors of a GPU, pickles of Python 2, other numpy arrays."""

import collections
import datetime as dt
import enum
import io
import pickle
import struct
import sys
import types
import zoneinfo

import numpy as np
import pytest
import torch
from pandas import DataFrame, to_datetime
from tests.helpers import hostile
from tests.helpers.sameness import same

from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads, recode

TRUSTED = Policy(pickles="trusted")
P, name, raw_call, text, value = hostile.P, hostile.name, hostile.raw_call, hostile.text, hostile.value


@pytest.fixture
def package(monkeypatch):
    """A package ``shapes`` with modules and classes, which pickles can name."""
    modules = {title: types.ModuleType(title) for title in ("shapes", "shapes.plane", "shapes.solid")}
    for title, module in modules.items():
        monkeypatch.setitem(sys.modules, title, module)
    for title, cls in (("shapes.plane", "Circle"), ("shapes.plane", "Square"), ("shapes.solid", "Cube")):
        same_state = {"__eq__": lambda one, other: vars(one) == vars(other), "__hash__": None}
        made = type(cls, (), {"__module__": title, **same_state})
        setattr(modules[title], cls, made)
    return types.SimpleNamespace(
        Circle=modules["shapes.plane"].Circle,
        Square=modules["shapes.plane"].Square,
        Cube=modules["shapes.solid"].Cube,
    )


def make(cls, **state):
    """An object with attributes."""
    made = cls()
    vars(made).update(state)
    return made


# -- classes


@pytest.mark.parametrize("protocol", range(6))
def test_all_unknown_classes_are_in_one_message(package, protocol):
    """In the order in which the pickle names them, each once, ready to be allowed."""
    values = [make(package.Square, x=1), make(package.Square, x=2), make(package.Cube, side=make(package.Circle, r=1))]
    data = pickle.dumps({"a": values, "t": torch.ones(1)}, protocol)
    with pytest.raises(RefusedPickleError) as caught:
        loads(data)
    names = '"shapes.plane.Square", "shapes.solid.Cube", "shapes.plane.Circle"'
    assert f"pass allow_pickle=[{names}], or" in caught.value.message
    allowed = Policy(allow=["shapes.plane.Square", "shapes.solid.Cube", "shapes.plane.Circle"])
    assert values == loads(data, policy=allowed)["a"]


def test_classes_of_several_packages_are_in_one_message(package):
    """Names that are known or allowed already are not among them."""
    data = pickle.dumps([make(package.Square), make(package.Cube), sys.intern, dt.date(2020, 1, 1)], 4)
    with pytest.raises(RefusedPickleError) as caught:
        loads(data, policy=Policy(allow=["shapes.plane.Square"]))
    assert caught.value.message.endswith('pass allow_pickle=["shapes.solid.Cube", "sys.intern"]')


def test_names_behind_damage_are_left_out(package):
    """What is found until the pickle breaks off is listed."""
    data = pickle.dumps([make(package.Square), make(package.Cube)], 2)
    with pytest.raises(RefusedPickleError, match=r'allow_pickle=\["shapes.plane.Square"\]'):
        loads(data[: data.index(b"shapes.solid") + 3])


@pytest.mark.parametrize(
    "allow",
    [
        lambda package: [package.Circle, package.Square, package.Cube],
        lambda package: {package.Circle, "shapes.plane.Square", "shapes.solid.Cube"},
        lambda _: ["shapes.*"],
        lambda _: ["shapes.plane.*", "shapes.solid.*"],
    ],
)
def test_classes_are_allowed_themselves_by_name_or_by_package(package, allow):
    """All three are kept as names."""
    values = [make(package.Circle, r=1), make(package.Square), make(package.Cube)]
    policy = Policy(allow=allow(package))
    assert values == loads(pickle.dumps(values), policy=policy)
    assert {str} == set(map(type, policy.allow))
    assert values == PickleCodec(policy).decode(memoryview(recode(pickle.dumps(values), policy=policy)))


@pytest.mark.parametrize("allow", ["shape.*", "shapes.plan.*", "shapes.solid.*", "shapes.plane.Circle.*"])
def test_a_package_is_no_prefix(package, allow):
    """Only whole names of packages and modules count."""
    with pytest.raises(RefusedPickleError, match=r"shapes\.plane\.Circle"):
        loads(pickle.dumps(make(package.Circle)), policy=Policy(allow=[allow]))


@pytest.mark.parametrize("protocol", range(6))
def test_an_allowed_class_may_be_a_value(package, protocol):
    """In a list, as a key, in the state of an object, as the factory of a defaultdict."""
    values = [package.Square, {package.Circle: package.Cube}, make(package.Cube, kind=package.Circle)]
    assert values == loads(pickle.dumps(values, protocol), policy=Policy(allow=["shapes.*"]))


def test_a_class_that_is_a_value_is_named(package):
    """Also one that this package knows, as what it makes."""
    with pytest.raises(RefusedPickleError, match=r'holds builtins.float, numpy.ndarray as .* allow_pickle=\["builtins'):
        loads(pickle.dumps([float, np.ndarray, {"x": float}]))
    allowed = Policy(allow=["builtins.float", np.ndarray])
    assert [float, np.ndarray] == loads(pickle.dumps([float, np.ndarray]), policy=allowed)


def test_pandas_frames_can_be_allowed_after_one_message():
    """The names that the message lists are all that it takes."""
    frame = DataFrame({"a": [1, 2], "b": ["x", "y"], "c": to_datetime(["2020-01-01", "2021-01-01"])})
    data = pickle.dumps(frame)
    with pytest.raises(RefusedPickleError) as caught:
        loads(data)
    allow = eval(caught.value.message.split("allow_pickle=")[1].partition(", or ")[0])
    assert frame.equals(loads(data, policy=Policy(allow=allow)))


@pytest.mark.parametrize("protocol", range(6))
def test_times_of_a_zone_are_built(protocol):
    """With the zone that its key names, through a conversion as well."""
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    values = [dt.datetime(2020, 1, 1, tzinfo=zone), dt.time(3, tzinfo=zone), zone]
    data = pickle.dumps(values, protocol)
    for found in (loads(data), loads(recode(data, policy=Policy())), loads(data, policy=Policy(allow=["zoneinfo.*"]))):
        assert values == found
        assert zone is found[2]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("Europe/Atlantis", "the time zone Europe/Atlantis, which this machine does not know; install the package"),
        ("Europe", "the time zone Europe, which this machine does not know; install the package tzdata"),
        ("../../etc/passwd", "a time zone without a name"),
        ("/etc/localtime", "a time zone without a name"),
        (1, "a time zone without a name"),
    ],
)
def test_a_zone_is_a_key_of_the_database(key, message):
    """Other keys are refused, and other files are not read."""
    maker = raw_call(name("builtins", "getattr"), name("zoneinfo", "ZoneInfo"), value("_unpickle"))
    with pytest.raises(DecodeError, match=message):
        loads(P + raw_call(maker, value(key), value(True)) + b".")


@pytest.mark.parametrize("attribute", ["no_cache", "from_file", "__init__", "_unpickle.__func__"])
def test_a_zone_has_no_other_attribute(attribute):
    """The constructor of pickles is all that a pickle may take of it."""
    taken = raw_call(name("builtins", "getattr"), name("zoneinfo", "ZoneInfo"), value(attribute))
    with pytest.raises(RefusedPickleError, match="takes the attribute"):
        loads(P + taken + b".")


def test_an_enumeration_gives_its_members_only(package, monkeypatch):
    """Not its methods, or what else it has."""
    monkeypatch.setattr(sys.modules["shapes"], "Kind", enum.Enum("Kind", "ROUND", module="shapes"), raising=False)
    taken = raw_call(name("builtins", "getattr"), name("shapes", "Kind"), value("mro"))
    with pytest.raises(RefusedPickleError, match=r'takes the attribute .mro. of an object, .* pickles="trusted"'):
        loads(P + taken + b".", policy=Policy(allow=["shapes.Kind"]))


class Marked(np.ndarray):
    """An array of a user's, with a state of its own."""

    def __reduce__(self):
        function, args, state = super().__reduce__()
        return function, args, (state, "note")

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.note = state[1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_allowed_class_of_arrays_is_built(protocol):
    """By its own state if it has one, and through a codec that has read plain arrays before."""
    made = np.arange(3).view(Marked)
    policy = Policy(allow=[Marked, np.matrix])
    codec = PickleCodec(policy)
    for data in (np.arange(3), np.array([[1, 2]]).view(np.matrix), np.array([[3, 4]]).view(np.matrix), np.arange(3)):
        assert type(data) is type(codec.decode(memoryview(pickle.dumps(data, protocol))))
    found = loads(pickle.dumps(made, protocol), policy=policy)
    assert (Marked, "note", [0, 1, 2]) == (type(found), found.note, found.tolist())


def test_the_data_of_an_allowed_class_of_arrays_are_checked():
    """As those of a plain array: they fit the shape, and hold no objects."""
    data = pickle.dumps(np.array([[1, 2]]).view(np.matrix), 4)
    policy = Policy(allow=["numpy.matrix"])
    with pytest.raises(DecodeError, match="an array and data of two sizes"):
        loads(data.replace(b"K\x01K\x02\x86", b"K\x01K\x03\x86"), policy=policy)


def plain_pickle(value, protocol):
    """Return a pickle that no package changes by what it registers in ``copyreg``, as tblib does for exceptions."""
    made = io.BytesIO()
    pickler = pickle.Pickler(made, protocol)
    pickler.dispatch_table = {}
    pickler.dump(value)
    return made.getvalue()


@pytest.mark.parametrize("made", [KeyError("x"), OSError("x"), collections.UserList([1]), collections.Counter("ab")])
@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_names_of_python_2_are_those_of_python_3(made, protocol):
    """Protocols 0 to 2 write them; the message has the name to allow, and it works."""
    data = plain_pickle(made, protocol)
    cls = f"{type(made).__module__}.{type(made).__name__}"
    if type(made) is not collections.Counter:
        with pytest.raises(RefusedPickleError, match=rf'pass allow_pickle=\["{cls}"\]'):
            loads(data)
    assert repr(made) == repr(loads(data, policy=Policy(allow=[cls])))


def test_a_module_named_as_one_of_python_2_is_itself(monkeypatch):
    """From protocol 3 on, a name is what it says."""
    module = types.ModuleType("commands")
    module.Order = type("Order", (), {"__module__": "commands"})
    monkeypatch.setitem(sys.modules, "commands", module)
    for protocol in (3, 4, 5):
        data = pickle.dumps(module.Order(), protocol)
        with pytest.raises(RefusedPickleError, match=r'allow_pickle=\["commands.Order"\]'):
            loads(data)
        assert module.Order is type(loads(data, policy=Policy(allow=["commands.Order"])))


@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load"])
def test_what_runs_code_is_not_offered(function):
    """The only remedy is to trust the data."""
    module, _, last = function.rpartition(".")
    with pytest.raises(RefusedPickleError) as caught:
        loads(P + raw_call(name(module, last), name("shapes", "Any")) + b".")
    assert (
        f"the pickle names {function}, which can run any code; "
        'if you trust where the data come from, read them with pickles="trusted"'
    ) == caught.value.message


# -- what is no pickle

IMAGES = (
    'convert it with SourceDataWDS and the writer "images" of the package bionemo-webdatamodule-images, '
    'and decode it with its stage "decode_image"'
)
TABLES = 'convert it with SourceDataWDS and the writer "parquet" of the package bionemo-webdatamodule-parquet'
CELLS = (
    'convert an h5ad file with SourceDataWDS and the writer "h5ad" of the package bionemo-webdatamodule-h5ad, '
    "or pickle the arrays that you read from it"
)
AS_IT_IS = "store it as it is, with SourceDataWDS and a writer of your own, under a suffix that ends in "


@pytest.mark.parametrize("policy", [Policy(), TRUSTED])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG", f"this looks like a PNG image and is no pickle; {IMAGES}"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", f"this looks like a JPEG image and is no pickle; {IMAGES}"),
        (b"GIF89a\1\0\1\0", f"this looks like a GIF image and is no pickle; {IMAGES}"),
        (b"II*\0\x08\0\0\0", f"this looks like a TIFF image and is no pickle; {IMAGES}"),
        (b"MM\0*\0\0\0\x08", f"this looks like a TIFF image and is no pickle; {IMAGES}"),
        (b"RIFF\n\0\0\0WEBPVP8 ", f"this looks like a WebP image and is no pickle; {IMAGES}"),
        (b"RIFF\n\0\0\0WAVEfmt ", f"this looks like a WAV file and is no pickle; {AS_IT_IS}.wav"),
        (b"%PDF-1.7\n\xe2\xe3", f"this looks like a PDF file and is no pickle; {AS_IT_IS}.pdf"),
        (b'{"n": 1}', f"this looks like JSON and is no pickle; {AS_IT_IS}.json"),
        (b"\n[1, 2]\n", f"this looks like JSON and is no pickle; {AS_IT_IS}.json"),
        (b"<svg/>", f"this looks like text and is no pickle; {AS_IT_IS}.txt"),
        (b">sp|P1\nMKV\n" * 9, f"this looks like text and is no pickle; {AS_IT_IS}.txt"),
        (b"3\n", f"this looks like text and is no pickle; {AS_IT_IS}.txt"),
        (
            b"\x28\xb5\x2f\xfd\x04",
            "this is compressed with zstd and is not a plain pickle; unpack it: zstandard.open(path).read()",
        ),
        (
            b"PAR1\x15\x04",
            f"this looks like a Parquet file and is no pickle; {TABLES}",
        ),
        (
            b"\x89HDF\r\n\x1a\n",
            f"this looks like an HDF5 file and is no pickle; {CELLS}",
        ),
    ],
)
def test_files_of_other_formats_are_named(policy, data, message):
    """With what reads them, whatever the policy: to trust them would not help."""
    with pytest.raises(DecodeError) as caught:
        loads(data, policy=policy)
    assert message == caught.value.message


@pytest.mark.parametrize("made", [1, -1.5, "x" * 99, "", b"GIF89a", [], [1], (), (1,), {}, {"a": 1}, {1}, None, True])
@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_is_taken_for_another_format(made, protocol):
    """Those of protocol 0 are text, too."""
    assert made == loads(pickle.dumps(made, protocol))


@pytest.mark.parametrize("data", [b"Pabc\n.", P + text("abc") + b"Q.", b"\x80\x05\x97."])
def test_an_object_that_is_elsewhere_is_no_matter_of_trust(data):
    """The stock unpickler cannot make it either, so the remedy is to write it again."""
    with pytest.raises(
        RefusedPickleError, match=r"means an object that is not in it; .* write it again with"
    ) as caught:
        loads(data)
    assert "trusted" not in caught.value.message
    with pytest.raises(DecodeError):
        loads(data, policy=TRUSTED)


# -- tensors of other devices


def on_gpu(tensor, protocol):
    """The pickle of a tensor as a machine with a GPU writes it: its storage says where it was."""
    storage = io.BytesIO()
    torch.save(tensor.untyped_storage(), storage, _use_new_zipfile_serialization=False)
    there = b"X\x06\x00\x00\x00cuda:0"
    function, args = tensor.__reduce_ex__(protocol)
    typed = tensor._typed_storage()
    blob = typed.__reduce__()[1][0]
    assert 1 == blob.count(b"X\x03\x00\x00\x00cpu")
    moved = raw_call(name("torch.storage", "_load_from_bytes"), value(blob.replace(b"X\x03\x00\x00\x00cpu", there)))
    hooks = name("collections", "OrderedDict") + b")R"
    return P + raw_call(name(function.__module__, function.__name__), moved, *map(value, args[1:5]), hooks) + b"."


@pytest.mark.parametrize("policy", [Policy(), TRUSTED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16])
def test_tensors_of_a_gpu_come_to_the_cpu(policy, dtype):
    """Where there is no GPU too, and through a template as well."""
    tensors = [torch.arange(6).reshape(2, 3).to(dtype) + number for number in range(3)]
    data = [on_gpu(tensor, 4) for tensor in tensors]
    assert same(tensors, [loads(one, policy=policy) for one in data])
    assert same(tensors, PickleCodec(policy).column(list(map(memoryview, data))).values())
    column = PickleCodec(policy).column(list(map(memoryview, data)))
    assert same(torch.stack(tensors), column.stack())


def test_tensors_of_devices_without_storages_come_to_the_cpu():
    """torch pickles those as an array or as a tensor of the CPU."""
    hooks = [value("xla:0"), value(False)]
    array = P + raw_call(
        name("torch._utils", "_rebuild_device_tensor_from_numpy"),
        value(np.arange(3.0)),
        name("torch", "bfloat16"),
        *hooks,
    )
    tensor = P + raw_call(
        name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
        value(torch.arange(3)),
        name("torch", "int64"),
        *hooks,
    )
    assert same(torch.arange(3).bfloat16(), loads(array + b"."))
    assert same(torch.arange(3), loads(tensor + b"."))


# -- pickles of Python 2


def old(text):
    """The opcode of a short string of Python 2."""
    return b"U" + bytes([len(text)]) + text


@pytest.mark.parametrize("policy", [Policy(), TRUSTED])
def test_strings_of_python_2_are_text(policy):
    """One character for each byte, in all three opcodes."""
    assert ["a", "b\xff\n", "c'\xe4"] == loads(
        b"(" + old(b"a") + b"T" + struct.pack("<I", 3) + b"b\xff\n" + b"S'c\\'\\xe4'\np0\nl.", policy=policy
    )
    assert {"name": "x", "n": [1, 2, True]} == loads(
        b"(dp0\nS'name'\np1\nS\"x\"\np2\nsS'n'\np3\n(lp4\nI1\naL2L\naI01\nas.", policy=policy
    )


@pytest.mark.parametrize("policy", [Policy(), TRUSTED])
def test_arrays_and_times_of_python_2_are_read(policy):
    """Their bytes are strings there."""
    dtype = (
        b"cnumpy\ndtype\n("
        + old(b"f4")
        + b"K\x00K\x01tR(K\x03"
        + old(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + old(b"b") + b"tR(K\x01(K\x02t" + dtype
        + b"\x89" + old(struct.pack("<ff", 1.5, -2)) + b"tb"
    )  # fmt: skip
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + old(struct.pack("<f", 0.5)) + b"tR"
    time = b"cdatetime\ndatetime\n(" + old(b"\x07\xe4\x02\x03\x04\x05\x06\x00\x00\x07") + b"tR"
    numbers = b"c__builtin__\nset\n((lK\x01aK\x02atR"
    found = loads(b"\x80\x02(" + array + scalar + time + numbers + b"l.", policy=policy)
    expected = [np.array([1.5, -2], "f4"), np.float32(0.5), dt.datetime(2020, 2, 3, 4, 5, 6, 7), {1, 2}]  # noqa: DTZ001
    assert same(expected, found)


@pytest.mark.parametrize("data", [b"S'a\n.", b"Sa\n.", b"S'\n.", b"U\x05abc.", b"T\xff\xff\xff\xffa."])
def test_broken_strings_of_python_2_are_errors(data):
    """Without quotes, or longer than the pickle."""
    with pytest.raises(DecodeError):
        loads(data)


# -- other arrays


RECORD = np.dtype([("id", "i4"), ("x", "f8"), ("name", "U3"), ("when", "M8[s]"), ("pair", "i2", (2,))])
ARRAYS = {
    "records": np.array([(1, 2.5, "abc", "2020-01-01", (3, 4)), (2, -1, "d", "NaT", (5, 6))], RECORD),
    "aligned records": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "records in records": np.zeros((2, 2), [("p", [("x", "f4"), ("y", "f4")]), ("q", "?")]),
    "records of big-endian numbers": np.arange(4).astype([("a", ">i4")]),
    "padded records": np.zeros(2, {"names": ["a"], "formats": ["i2"], "offsets": [4], "itemsize": 16}),
    "no records": np.zeros(0, [("a", "i4")]),
    "raw memory": np.frombuffer(b"abcdefgh", "V4"),
    "times": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "durations": np.array([1, 2], "m8[25us]"),
    "masked numbers": np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
    "masked integers": np.ma.masked_array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]], fill_value=7),
    "masked in another order": np.ma.masked_array(np.asfortranarray(np.arange(6).reshape(2, 3)), mask=False),
    "masked records": np.ma.masked_array([(1, 2.0), (3, 4.0)], mask=[(0, 1), (0, 0)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked texts": np.ma.masked_array(["a", "bc"], mask=[1, 0], fill_value="x"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ARRAYS)
def test_other_arrays_are_read(kind, protocol):
    """As the stock unpickler reads them, also after conversion, and elements of them."""
    array = ARRAYS[kind]
    values = [array, {"x": array}, *array.reshape(-1)[:1]] if not np.ma.isMA(array) else [array]
    for data in (pickle.dumps(values, protocol), recode(pickle.dumps(values, protocol), policy=Policy())):
        for found in (loads(data), PickleCodec(Policy()).decode(memoryview(data))):
            assert repr(values) == repr(found)
            assert [array.dtype, array.shape] == [found[0].dtype, found[0].shape]
            assert array.dtype.isalignedstruct == found[0].dtype.isalignedstruct
            assert array.tobytes() == found[0].tobytes()
            if np.ma.isMA(array):
                assert np.ma.getmaskarray(array).tolist() == np.ma.getmaskarray(found[0]).tolist()
                assert array.fill_value == found[0].fill_value


def test_the_masked_constant_is_itself():
    """There is only one of it."""
    assert loads(pickle.dumps(np.ma.masked)) is np.ma.masked


def record(names, fields, size, inner=None, align=1):
    """The bytes of a structured dtype, as a pickle spells it."""
    made = raw_call(name("numpy", "dtype"), value(f"V{size}"), value(False), value(True))
    if inner is None:
        inner = value(None)
    return (
        made + b"(" + value(3) + value("|") + inner + names + fields + b"".join(map(value, (size, align, 16))) + b"tb"
    )


def fields(*found):
    """A dict of fields."""
    return b"}(" + b"".join(value(title) + b"(" + dtype + value(offset) + b"t" for title, dtype, offset in found) + b"u"


def deep_record(levels):
    """A record of a record of a record."""
    made = hostile.FLOAT
    for _ in range(levels):
        made = record(value(("a",)), fields(("a", made, 0)), 4)
    return made


def doubled_record(levels):
    """Records of two fields that lie in one place and are the same record."""
    made = hostile.FLOAT
    for level in range(levels):
        memo = b"q" + bytes([100 + level]) + b"0"
        again = b"h" + bytes([100 + level])
        made = made + memo + record(value(("a", "b")), fields(("a", again, 0), ("b", again, 0)), 4)
    return made


@pytest.mark.parametrize(
    "dtype",
    {
        "a field beyond": record(value(("a",)), fields(("a", hostile.FLOAT, 2)), 4),
        "a field before": record(value(("a",)), fields(("a", hostile.FLOAT, -4)), 4),
        "a field far away": record(value(("a",)), fields(("a", hostile.FLOAT, 2**70)), 4),
        "a field of objects": record(value(("a",)), fields(("a", hostile.OBJECT, 0)), 8),
        "a field that is not a dtype": record(value(("a",)), fields(("a", value(3), 0)), 4),
        "names of other fields": record(value(("b",)), fields(("a", hostile.FLOAT, 0)), 4),
        "names that are not text": record(value((1,)), fields((1, hostile.FLOAT, 0)), 4),
        "a name twice": record(value(("a", "a")), fields(("a", hostile.FLOAT, 0)), 4),
        "fields that are not a dict": record(value(("a",)), value([1]), 4),
        "a field that is not a tuple": record(value(("a",)), value({"a": 1}), 4),
        "another size": record(value(("a",)), fields(("a", hostile.FLOAT, 0)), 4).replace(value(4), value(9)),
        "a sub-array that is larger": record(b"N", b"N", 4, inner=b"(" + hostile.FLOAT + value((2,)) + b"t"),
        "a sub-array of objects": record(b"N", b"N", 8, inner=b"(" + hostile.OBJECT + value((1,)) + b"t"),
        "a sub-array of absurd shape": record(b"N", b"N", 4, inner=b"(" + hostile.FLOAT + value((2**62, 2)) + b"t"),
        "records, deep": deep_record(50),
        "records, doubled": doubled_record(40),
    }.items(),
    ids=lambda item: item[0],
)
def test_hostile_records_are_refused(dtype):
    """By this package, before numpy sees them."""
    for data in (dtype[1], hostile.array((1,), dtype[1], value(bytes(4)))):
        with pytest.raises(DecodeError) as caught:
            loads(P + data + b".")
        assert "Error" not in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {1: (4,)},
        {4: bytes(23)},
        {5: bytes(4)},
        {5: bytes(2)},
        {6: np.float32(1)},
        {6: np.zeros(2)},
        {2: np.dtype("O")},
        {3: "x"},
        {0: 2},
    ],
)
def test_hostile_masks_are_refused(change):
    """Data and mask have to be those of the shape."""
    function, args, state = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]).__reduce__()
    changed = tuple(change.get(place, part) for place, part in enumerate(state))
    made = raw_call(name(function.__module__, function.__name__), *map(value, args))
    with pytest.raises(DecodeError):
        loads(P + made + value(changed) + b"b.")
    assert loads(P + made + value(state) + b"b.").tolist() == [1.0, None, 3.0]


@pytest.mark.parametrize("kind", ["records", "times", "masked numbers"])
def test_arrays_without_a_tensor_are_listed_and_not_stacked(kind):
    """A column gives their values; its batch is the error of torch, which the reader puts its place to."""
    data = [memoryview(dumps(ARRAYS[kind]))] * 3
    codec = PickleCodec(Policy())
    for _ in range(2):
        column = codec.column(data)
        assert repr([ARRAYS[kind]] * 3) == repr(column.values())
        with pytest.raises(TypeError):
            column.stack()
