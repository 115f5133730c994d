import io
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bionemo.webdatamodule.errors import DecodeError, ManifestError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps
from bionemo.webdatamodule.shards.decode import codec_name, make_codec

SAFE, TRUSTED = Policy(), Policy(pickles="trusted")


def decode(suffix, data, policy=SAFE, recorded=None):
    """Decode a field by its suffix."""
    return make_codec(codec_name(suffix, recorded), policy).values([memoryview(data)])[0]


def npy(array, **options):
    """Return the bytes of a npy file."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def saved(value):
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
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


@pytest.mark.parametrize("suffix", ["jpg", "bin", "dat", "json.gz", "gz", "unknown", "", "tar", "safetensors", "py"])
def test_all_other_extensions_stay_bytes(suffix):
    """What needs another package, or is compressed, is handed out as it is."""
    found = decode(suffix, b"\x00raw")
    assert b"\x00raw" == found
    assert bytes is type(found)


def test_the_manifest_decides_before_the_extension():
    """A field that conversion pickled is unpickled whatever its suffix is; other bytes follow the extension."""
    for suffix in ("npy", "json", "jpg", "gz", "cls", "pth"):
        assert ["v"] == decode(suffix, dumps(["v"]), recorded="pickle")
    assert 5 == decode("cls", b"5", recorded="bytes")
    assert b"5" == decode("jpg", b"5", recorded="bytes")
    with pytest.raises(ManifestError, match="update"):
        codec_name("x", "arrow")


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


def test_files_of_torch_are_read_as_weights_only():
    """pth and pt take what torch.save wrote; pt also takes a plain pickle."""
    value = {"w": torch.arange(4.0), "n": [1, "a"]}
    for suffix, data in [
        ("pth", saved(value)),
        ("pt", saved(value)),
        ("pt", dumps(value)),
        ("pt", pickle.dumps(value)),
    ]:
        found = decode(suffix, data)
        assert torch.equal(value["w"], found["w"])
        assert value["n"] == found["n"]


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


def hostile(path):
    """Return the bytes of a canary in every format that can hold a pickle, by suffix."""
    canary = Canary(path)
    objects = np.array([canary, canary], dtype=object)
    archive = io.BytesIO()
    np.savez(archive, a=objects, allow_pickle=True)
    pickled = pickle.dumps(canary)
    return {
        "pyd": pickled,
        "pkl": pickled,
        "pickle": pickled,
        "pt": pickled,
        "PKL": pickled,
        "zip.pt": saved(canary),
        "pth": saved(canary),
        "old.pth": pickle.dumps(canary, protocol=2),
        "npy": npy(objects, allow_pickle=True),
        "npz": archive.getvalue(),
    }


def test_no_codec_runs_code(tmp_path):
    """A pickle in any format is refused, and what looks like one elsewhere stays bytes."""
    canary = tmp_path / "canary"
    for suffix, data in hostile(canary).items():
        with pytest.raises((RefusedPickleError, DecodeError, pickle.UnpicklingError)):
            decode(suffix, data)
        assert not canary.exists(), suffix
    for suffix in ("joblib", "bin", "tb"):
        assert pickle.dumps(Canary(canary)) == decode(suffix, pickle.dumps(Canary(canary)))
    assert not canary.exists()


def test_files_of_torch_cannot_claim_more_than_they_hold():
    """Compressed storages, and tensors that repeat a few numbers without end, are refused."""
    repeated = saved(torch.zeros(1).expand(1 << 40))
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(1 << 20)))) as plain, zipfile.ZipFile(stream, "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    for suffix in ("pt", "pth"):
        with pytest.raises(DecodeError, match="claims"):
            decode(suffix, repeated)
        with pytest.raises(DecodeError, match="claim"):
            decode(suffix, stream.getvalue())


def test_trusted_data_may_run_code(tmp_path):
    """With pickles="trusted" pickles and torch's files do what they say; arrays of objects never do."""
    for suffix in ("pyd", "pth", "pt"):
        canary = tmp_path / suffix
        decode(suffix, hostile(canary)[suffix], TRUSTED)
        assert canary.exists()
    with pytest.raises(DecodeError, match="Python objects"):
        decode("npy", hostile(tmp_path / "npy")["npy"], TRUSTED)


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
from bionemo.webdatamodule.shards.decode import codec_name, make_codec
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for suffix, path in zip(sys.argv[1::2], sys.argv[2::2]):
    data = open(path, "rb").read()
    try:
        make_codec(codec_name(suffix), Policy()).values([memoryview(data)])
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
    bombs = [("npz", zeros.getvalue()), ("npz", liar), ("npy", huge), ("json", b"[" * 100_000), ("cls", b"9" * 100_000)]
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


def test_batches_are_the_collated_values():
    """The batch of a codec is default_collate of its values."""
    codec = make_codec("npy", SAFE)
    views = [memoryview(npy(np.full(3, number))) for number in range(4)]
    assert [[0] * 3, [1] * 3, [2] * 3, [3] * 3] == codec.batches(views, [4])[0].tolist()
    assert {"a": [1, 2]} == {
        name: value.tolist()
        for name, value in make_codec("json", SAFE)
        .batches([memoryview(json.dumps({"a": number}).encode()) for number in (1, 2)], [2])[0]
        .items()
    }
