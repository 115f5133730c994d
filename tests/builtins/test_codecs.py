import contextlib
import gzip
import io
import json
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile
import zlib

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.helpers import hostile as attacks
from tests.helpers import sameness
from torch.utils.data import default_collate

from bionemo.webdatamodule import Codec, Use, context, hookimpl
from bionemo.webdatamodule._engine.codecs import Codecs, codecs_in
from bionemo.webdatamodule.columns import pad_values
from bionemo.webdatamodule.errors import DecodeError, ManifestError, PluginError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads
from bionemo.webdatamodule.plugins import Plugins

same = sameness.same

OLD = {"_use_new_zipfile_serialization": False}
DEFAULTS = codecs_in(Plugins())
SAFE, TRUSTED = Policy(), Policy(pickles="trusted")


def decode(suffix, data, policy=SAFE, recorded=None):
    """Decode a field by its suffix."""
    return codec(suffix, policy, recorded).decode(memoryview(data))


def codec(suffix, policy=SAFE, recorded=None):
    """Return the codec of a suffix."""
    return Codecs(policy=policy, registered=DEFAULTS).of(suffix, recorded).codec


def npy(array, **options):
    """Return the bytes of a npy file."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def saved(value, **options):
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("txt", "ü\n".encode()),
        ("text", b""),
        ("transcript", b"t"),
        ("cls", b"7"),
        ("cls2", b"-7\n"),
        ("index", b"0"),
        ("inx", b"12"),
        ("id", b"3"),
        ("json", b'{"a": [1, null]}'),
        ("jsn", b"1.5"),
        ("a.b.json", b"false"),
        ("pyd", pickle.dumps({"a": 1})),
        ("pkl", pickle.dumps([1, "b"])),
        ("pickle", pickle.dumps(2)),
    ],
)
def test_plain_extensions_decode_as_in_webdataset(suffix, data):
    """Where webdataset decodes an extension to plain Python values, the value is the same."""
    expected = wds.autodecode.basichandlers(f".{suffix}", data)
    found = decode(suffix, data)
    assert expected == found
    assert type(expected) is type(found)


@pytest.mark.parametrize("suffix", ["jpg", "bin", "dat", "unknown", "", "tar", "safetensors", "py"])
def test_all_other_extensions_stay_bytes(suffix):
    """What needs another package is handed out as it is."""
    found = decode(suffix, b"\x00raw")
    assert b"\x00raw" == found
    assert bytes is type(found)


def test_the_manifest_decides_before_the_extension():
    """A field that conversion pickled is unpickled whatever its suffix is; other bytes follow the extension."""
    for suffix in ("npy", "json", "jpg", "json.gz", "cls", "pth"):
        assert ["v"] == decode(suffix, dumps(["v"]), recorded="pickle")
    assert 5 == decode("cls", b"5", recorded="bytes")
    assert b"5" == decode("jpg", b"5", recorded="bytes")
    with pytest.raises(ManifestError, match="update"):
        codec("x", SAFE, "arrow")


@given(
    hnp.arrays(
        hnp.scalar_dtypes() | hnp.unicode_string_dtypes() | st.just(np.dtype([("a", "<i4"), ("b", "f4", 2)])),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    st.booleans(),
)
def test_arrays_come_back_as_they_were(array, fortran):
    """Any array of plain numbers keeps type, shape and values, and is writable."""
    array = np.asfortranarray(array) if fortran else array
    found = decode("npy", npy(array))
    assert (array.dtype, array.shape) == (found.dtype, found.shape)
    assert array.tobytes() == found.tobytes()
    assert found.flags.writeable
    assert found.flags.f_contiguous == array.flags.f_contiguous


def test_archives_of_arrays_are_dictionaries():
    """An npz gives its arrays by name, compressed or not."""
    arrays = {"a": np.arange(5), "b": np.eye(3, dtype=np.float32)}
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)
        found = decode("npz", stream.getvalue())
        assert ["a", "b"] == list(found)
        assert all(np.array_equal(arrays[name], found[name]) for name in arrays)


def test_files_of_torch_are_read_under_their_suffixes():
    """pth and pt take what torch.save wrote, in both its forms; pt also takes a plain pickle."""
    value = {"w": torch.arange(4.0), "n": [1, "a"]}
    for suffix, data in [
        ("pth", saved(value)),
        ("pt", saved(value)),
        ("pth", saved(value, **OLD)),
        ("pt", saved(value, **OLD)),
        ("pt", dumps(value)),
        ("pt", pickle.dumps(value)),
    ]:
        found = decode(suffix, data)
        assert torch.equal(value["w"], found["w"])
        assert value["n"] == found["n"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sameness.values, st.sampled_from([{}, OLD]), st.sampled_from([2, 4, 5]))
def test_files_of_torch_hold_what_pickles_hold(value, form, protocol):
    """Values of all kinds come back from torch.save as they come back from a pickle."""
    try:
        data = saved(value, pickle_protocol=protocol, **form)
    except RuntimeError:  # torch saves no memory that two dtypes share
        return
    assert same(loads(pickle.dumps(value, protocol)), decode("pth", data))


@pytest.mark.parametrize("form", [{}, OLD])
def test_state_dicts_of_torch_come_back(form):
    """Those of modules with their metadata, and those of optimizers."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    found = decode("pth", saved(model.state_dict(), **form))
    assert same(model.state_dict(), found)
    assert model.state_dict()._metadata == found._metadata
    assert same(optimizer.state_dict(), decode("pth", saved(optimizer.state_dict(), **form)))


@pytest.mark.parametrize("form", [{}, OLD])
def test_tensors_of_a_file_of_torch_share_memory_as_they_did(form):
    """Views show the change of their base, and what was one object is one."""
    base = torch.arange(10.0)
    weight = torch.nn.Parameter(base.clone())
    data = bytearray(saved([base, base[2:5], base.view(2, 5).t(), base, weight], **form))
    whole, part, turned, again, parameter = decode("pt", data)
    data[:] = bytes(len(data))
    whole[2] = 99
    assert ([99, 3, 4], 99) == (part.tolist(), turned[2, 0].item())
    assert whole is again
    assert same(weight, parameter)


@pytest.mark.parametrize("form", [{}, OLD])
def test_bare_storages_of_torch_come_back(form):
    """Of bytes, and next to a tensor that shows them."""
    base = torch.arange(4, dtype=torch.uint8)
    storage, shown = decode("pth", saved([base.untyped_storage(), base], **form))
    assert ([0, 1, 2, 3], [0, 1, 2, 3]) == (list(storage), shown.tolist())
    assert storage.data_ptr() == shown.data_ptr()


def test_files_of_torch_from_a_gpu_are_read_on_the_cpu():
    """As torch.load does it with map_location."""
    pickled = attacks.P + attacks.shown(attacks.held(location="cuda:3")) + b"."
    for form in (attacks.torch_zip, attacks.torch_old):
        found = decode("pth", form(pickled, [("0", np.arange(4, dtype=np.float32).tobytes())]))
        assert same(torch.arange(4.0), found)


def test_files_of_torch_need_no_checksums():
    """torch can leave them out, and does not look at them."""
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        data = saved(torch.arange(4.0))
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert same(torch.arange(4.0), decode("pth", data))


@pytest.mark.parametrize("form", [{}, OLD])
def test_cut_files_of_torch_are_errors(form):
    """Wherever they end."""
    data = saved([torch.arange(4.0), "text"], **form)
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode("pth", data[:end])


def test_files_of_torch_follow_the_policy_for_pickles():
    """A class is refused by its name with the argument to add, and read when it is allowed."""
    allow = ("torch._utils._rebuild_sparse_tensor", "torch.serialization._get_layout")
    for form in ({}, OLD):
        data = saved(torch.eye(3).to_sparse(), **form)
        with pytest.raises(RefusedPickleError, match=r'allow_pickle=\["torch'):
            decode("pth", data)
        assert torch.equal(torch.eye(3), decode("pth", data, Policy(allow=allow)).to_dense())


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


def hostile(path):
    """Return the bytes of a canary in every format that can hold a pickle, by codec; those of other codecs are none."""
    canary = Canary(path)
    objects = np.array([canary, canary], dtype=object)
    archive = io.BytesIO()
    np.savez(archive, a=objects, allow_pickle=True)
    pickles = [pickle.dumps(canary, protocol) for protocol in range(6)]
    files = [saved(canary), saved(canary, **OLD)]
    return {
        "pickle": pickles,
        "pt": [*files, *pickles],
        "pth": [*files, *pickles],
        "npy": [npy(objects, allow_pickle=True)],
        "npz": [archive.getvalue()],
        "gz": [],
        **dict.fromkeys(("bytes", "integer", "json", "msgpack", "ten", "text"), ()),
    }


def extensions():
    """Return the name of the codec of each extension."""
    return {suffix: found.component.name for found in DEFAULTS for suffix in found.component.suffixes}


def test_every_codec_is_tested_with_pickles(tmp_path):
    """[90] A codec that is added says here how it could hold a pickle."""
    assert {found.component.name for found in DEFAULTS} == set(hostile(tmp_path / "canary"))


def test_no_codec_runs_code(tmp_path):
    """[90] A pickle in any format is refused under every extension, and what looks like one elsewhere stays bytes."""
    canary = tmp_path / "canary"
    own = hostile(canary)
    everything = [data for found in own.values() for data in found]
    for extension, name in extensions().items():
        for suffix in (extension, extension.upper(), f"a.{extension}"):
            for data in own[name]:
                with pytest.raises(DecodeError):
                    decode(suffix, data)
            for data in everything:
                with contextlib.suppress(Exception):  # of another codec
                    decode(suffix, data)
                assert not canary.exists(), suffix
    for suffix in ("joblib", "bin", "hdf"):
        for data in everything:
            assert data == decode(suffix, data)
    assert not canary.exists()


def test_files_of_torch_cannot_claim_more_than_they_hold():
    """Compressed storages, and tensors that repeat a few numbers without end, are refused."""
    repeated = torch.zeros(1).expand(1 << 40)
    held = [saved(value) for value in (repeated, {repeated}, {repeated: 1}, [(repeated,)])]
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(1 << 20)))) as plain, zipfile.ZipFile(stream, "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    for suffix in ("pt", "pth"):
        for data in held:
            with pytest.raises(DecodeError, match=r"64 times its size.*contiguous\(\)"):
                decode(suffix, data)
        with pytest.raises(DecodeError, match="claim"):
            decode(suffix, stream.getvalue())


def test_trusted_data_may_run_code(tmp_path):
    """With pickles="trusted" pickles and torch's files do what they say; arrays of objects never do."""
    for suffix in ("pyd", "pth", "pt"):
        canary = tmp_path / suffix
        decode(suffix, hostile(canary)[extensions()[suffix]][0], TRUSTED)
        assert canary.exists()
    with pytest.raises(DecodeError, match="Python objects"):
        decode("npy", hostile(tmp_path / "npy")["npy"][0], TRUSTED)


def test_containers_in_files_of_torch_may_be_shared_but_not_endless():
    """A list that holds itself, and one that doubles thirty times, are errors; sharing as such is not."""
    inner = [torch.ones(1)]
    found = decode("pth", saved([inner, inner]))
    assert found[0] is found[1]
    circle = []
    circle.append(circle)
    doubled = [torch.ones(1)]
    for _ in range(30):
        doubled = [doubled, doubled]
    for endless in (circle, doubled):
        for form in ({}, OLD):
            with pytest.raises(DecodeError, match=r"contains itself|unfold"):
                decode("pth", saved(endless, **form))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        npy(np.arange(5))[:-1],
        npy(np.arange(5)) + b"x",
        npy(np.arange(5)).replace(b"(5,)", b"(9,)"),
        npy(np.arange(5)).replace(b"(5,), }      ", b"(99999999,)}"),
        npy(np.arange(5)).replace(b"(5,)", b"(-5)"),
        npy(np.arange(5)).replace(b"<i8", b"|O8"),
        npy(np.arange(5)).replace(b"NUMPY\x01", b"NUMPY\x09"),
        npy(np.zeros(0)).replace(b"<f8", b"<U0").replace(b"(0,), }   ", b"(1000,), }"),
    ],
)
def test_damaged_arrays_are_refused(data):
    """Headers that claim other data than there are, are errors, and nothing is allocated for them."""
    with pytest.raises((DecodeError, ValueError)):
        decode("npy", data)


BOMBS = """
import io, resource, sys, zipfile
import numpy as np
from bionemo.webdatamodule.pickles import Policy
from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule.builtins.pickle.safe import torch_files
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for suffix, path in zip(sys.argv[1::2], sys.argv[2::2]):
    data = open(path, "rb").read()
    try:
        Codecs(policy=Policy()).of(suffix).codec.decode(memoryview(data))
    except MemoryError:
        print("memory")
    except Exception as error:
        print(type(error).__name__)
    else:
        print("read")
"""


def test_bombs_are_refused_within_little_memory(tmp_path):
    """Small fields that claim to unpack to gigabytes are errors before they do."""
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(npy(np.zeros(1)).replace(b"(1,)", b"(9,)"))
        for _ in range(400):
            member.write(bytes(1 << 20))
    liar = zeros.getvalue().replace((400 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    huge = npy(np.zeros(1)).replace(b"(1,), }            ", b"(1099511627776,), }")
    wide = npy(np.zeros(0)).replace(b"<f8", b"<U0").replace(b"(0,), }           ", b"(100000000000,), }")
    arrays = [
        attacks.P + attacks.name("builtins", "bytearray") + attacks.value((size,)) + b"R."
        for size in (4 * 10**9, 10**15)
    ]
    claimed = attacks.P + attacks.held(numel=10**15) + b"."
    files = [form(data) for form in (attacks.torch_zip, attacks.torch_old) for data in (*arrays, claimed)]
    bombs = [
        ("npz", zeros.getvalue()),
        ("npz", liar),
        ("npy", huge),
        ("npy", wide),
        ("json", b"[" * 100_000),
        ("cls", b"9" * 100_000),
    ]
    bombs += [(suffix, data) for data in files for suffix in ("pt", "pth")]
    arguments = []
    for number, (suffix, data) in enumerate(bombs):
        path = tmp_path / str(number)
        path.write_bytes(data)
        arguments += [suffix, path]
    command = [sys.executable, "-c", BOMBS, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    results = run.stdout.split()
    assert len(bombs) == len(results)
    assert not {"memory", "read"} & set(results), results
    assert {"DecodeError"} == {
        result for (_, data), result in zip(bombs, results, strict=True) if data in (wide, *files)
    }


ARRAYS = {
    "alike": [np.full((2, 3), number, np.float32) for number in range(4)],
    "large": [np.full(2000, number, np.float32) for number in range(3)],
    "as large": [np.ones((2, 3)), np.ones((3, 2))],
    "as wide": [np.ones(2), np.ones(2, np.int64)],
    "scalars": [np.array(number) for number in range(3)],
    "lengths": [np.arange(size, dtype=np.int16) for size in (2, 0, 5)],
    "widths": [np.ones((size, size)) for size in (2, 3)],
    "types": [np.ones(2), np.ones(2, np.float32)],
    "fortran": [np.asfortranarray(np.arange(6).reshape(2, 3))] * 2,
    "swapped": [np.arange(3, dtype=">i4")] * 2,
    "text": [np.array(["a", "bc"])] * 2,
    "empty": [np.empty((0, 3))] * 2,
}


def outcome(function, *arguments):
    """Return what a function returns, or the type of what it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - compared with that of torch
        return type(error)


@pytest.mark.parametrize("kind", ARRAYS)
def test_batches_of_arrays_are_the_collated_values(kind):
    """The batches of a column, whole or of a slice, are those of the values; what those cannot be raises the same."""
    arrays = ARRAYS[kind]
    column = codec("npy").column([memoryview(npy(array)) for array in arrays])
    for where in (slice(None), slice(1, None)):
        values = [
            torch.as_tensor(array) if array.dtype.isnative and array.dtype.kind != "U" else array for array in arrays
        ]
        assert same(outcome(default_collate, values[where]), outcome(column[where].stack))
        assert same(outcome(pad_values, arrays[where]), outcome(column[where].pad))
        assert all(np.array_equal(one, other) for one, other in zip(arrays[where], column[where].values(), strict=True))


def test_batches_of_arrays_lie_in_the_memory_of_the_loader():
    """The worker's memory for batches is used, and padding is zero whatever was there."""
    column = codec("npy").column([memoryview(npy(np.ones(size))) for size in (3, 1)])
    with context.working(context.Worker(empty=lambda shape, dtype: torch.full(shape, 7, dtype=dtype))):
        assert [[1, 1, 1], [1, 0, 0]] == column.pad().tolist()


def test_compressed_fields_are_decoded_by_the_codec_of_what_is_inside():
    """gzip may be around any codec, several members included; its column is the inner codec's."""
    assert {"a": 1} == decode("x.json.gz", gzip.compress(b'{"a": 1}'))
    assert "ab" == decode("txt.GZ", gzip.compress(b"a") + gzip.compress(b"b"))
    assert b"raw" == decode("gz", gzip.compress(b"raw"))
    assert [1] == decode("x.pyd.gz", gzip.compress(pickle.dumps([1])))
    found = codec("x.npy.gz")
    views = [memoryview(gzip.compress(npy(np.full(2, number)))) for number in range(3)]
    assert [[0, 0], [1, 1], [2, 2]] == found.column(views).stack().tolist()
    assert [[0, 0], [1, 1]] == codec("npy.gz.gz").column(
        [memoryview(gzip.compress(view)) for view in views[:2]]
    ).stack().tolist()


@pytest.mark.parametrize(
    "data", [b"", b"junk", gzip.compress(b"1234")[:-5], gzip.compress(b"12") + b"x", gzip.compress(bytes(1 << 28))]
)
def test_bad_gzip_data_are_errors(data):
    """Data that are none, are cut short, or unpack to absurdly much, are refused before they are unpacked."""
    with pytest.raises((DecodeError, zlib.error, ValueError)):
        decode("json.gz", data)


def test_lists_of_arrays_are_read_as_webdataset_reads_them():
    """And lengths that run backwards or beyond the end are errors."""
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(3, dtype=np.uint8)]
    data = bytes(wds.tenbin.encode_buffer(arrays))
    found = decode("x.ten", data)
    assert all(
        one.dtype == other.dtype and np.array_equal(one, other) for one, other in zip(arrays, found, strict=True)
    )
    for length in (-1, -16, 1 << 40):
        with pytest.raises(DecodeError, match="chunk"):
            decode("ten", data[:8] + struct.pack("<q", length) + data[16:])


def test_messagepack_needs_its_package(monkeypatch):
    """Where it is installed it decodes; else the error says what to install."""
    msgpack = types.SimpleNamespace(
        unpackb=lambda view: json.loads(bytes(view)), packb=lambda value: json.dumps(value).encode()
    )
    monkeypatch.setitem(sys.modules, "msgpack", msgpack)
    assert {"a": [1]} == decode("x.mp", b'{"a": [1]}')
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(PluginError, match="pip install msgpack"):
        decode("x.mp", b"")


class Marked:
    """A codec of a plugin."""

    def __init__(self, *, mark="m"):
        self.mark = mark

    def decode(self, view):
        return self.mark + str(view, "ascii")


def plugin_of(*components):
    """Return a plugin that registers codecs."""

    class Plugin:
        @staticmethod
        @hookimpl
        def webdatamodule_codecs():
            return components

    return Plugin


def test_the_longest_suffix_decides_in_any_case():
    """A codec of a whole suffix goes before that of its extension."""
    plugins = Plugins()
    plugins.register(plugin_of(Codec(name="special", summary="x", suffixes=("image.TXT",), factory=Marked)), "one")
    found = Codecs(registered=codecs_in(plugins))
    assert "m1" == found.of("a.IMAGE.txt").codec.decode(memoryview(b"1"))
    assert "1" == found.of("a.images.txt").codec.decode(memoryview(b"1"))


def test_two_codecs_of_one_suffix_are_an_error_unless_one_overrides():
    """The message names both plugins; choosing one with codecs=, as it says, works."""
    plugins = Plugins()
    plugins.register(plugin_of(Codec(name="mine", summary="x", suffixes=("abc",), factory=Marked)), "one")
    plugins.register(plugin_of(Codec(name="other", summary="x", suffixes=("abc",), factory=Marked)), "two")
    registered = codecs_in(plugins)
    with pytest.raises(PluginError) as caught:
        Codecs(registered=registered).of("a.abc")
    assert (
        "several codecs decode the suffix 'abc': 'mine' of the plugin 'one' and 'other' of the plugin 'two'; choose "
        "one, for example with codecs={'a.abc': 'mine'}, or disable one, for example with "
        "WEBDATAMODULE_DISABLED_PLUGINS=two"
    ) == caught.value.message
    for chosen in ("mine", Use("mine", mark="m"), {"name": "mine"}, Marked()):
        assert "m1" == Codecs(registered=registered, chosen={"a.abc": chosen}).of("a.abc").codec.decode(
            memoryview(b"1")
        )


def test_a_suffix_of_a_default_is_taken_by_an_override_only():
    """Installing a plugin must not change how existing fields are decoded."""
    plugins = Plugins()
    with pytest.raises(PluginError, match="for the suffix 'txt', which the default codec 'text' decodes"):
        plugins.register(plugin_of(Codec(name="mine", summary="x", suffixes=("txt",), factory=Marked)), "one")
    plugins.register(
        plugin_of(Codec(name="mine", summary="x", suffixes=("txt",), factory=Marked, override=True)), "one"
    )
    assert "m1" == Codecs(registered=codecs_in(plugins)).of("a.txt").codec.decode(memoryview(b"1"))
