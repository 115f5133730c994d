"""Verification: every damage is found, nothing else is complained of."""

import argparse
import hashlib
import pickle
from dataclasses import replace

import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.format.manifest import read_manifest
from bionemo.webdatamodule._engine.format.tar_write import header
from bionemo.webdatamodule._engine.reading.verify import Report, find_prefixes, verify
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.builtins.key_encoders import encode_dashes
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import ManifestError, NoShardsError
from bionemo.webdatamodule.pickles import Policy

PAYLOADS = {
    "pyd": pickle.dumps(7),
    "json": b'{"a": 1}',
    "txt": "é".encode(),
}


class Reader:
    """A writer plugin whose samples have a pickle, JSON and text."""

    def __init__(self, **changed):
        self.fields = {**PAYLOADS, **changed}

    def __call__(self, names):
        """Yield the samples."""
        for name in names:
            yield Sample(name, self.fields)


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples each."""
    return made(tmp_path / "shards")


def made(directory, prefix="p", **changed):
    """Convert six samples and return the directory."""
    convert(
        reader=Reader(**changed),
        names={"train": [f"s{number}" for number in range(6)]},
        directories={"train": str(directory)},
        prefix=prefix,
        n_shards=3,
        key_encoder=encode_dashes,
        executor=Serial(),
    )
    return directory


def problems(directory, **options):
    """Return what is wrong."""
    return list(verify(str(directory), "p", **options).problems)


def test_reports_what_is_there(shards):
    """Numbers are those of the manifest, and a whole set has no problems."""
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    expected = Report(directory=str(shards), prefix="p", shards=3, samples=6, bytes=size, problems=(), notes=())
    assert expected == verify(str(shards), "p", deep=True)


@pytest.mark.parametrize("name", ["dir/.a", "https://host/a/.pyd", "nodot"])
def test_samples_without_a_key_are_found(shards, name):
    """What reading could not name is a problem, although every byte is what the manifest says."""
    path = shards / "p-000000.tar"
    data = bytearray(path.read_bytes())
    data[:512] = header(name.encode(), len(PAYLOADS["json"]))
    path.write_bytes(data)
    stored = read_manifest(str(shards), "p")
    first = replace(stored.shards[0], sha256=hashlib.sha256(data).hexdigest())
    text = replace(stored, shards=(first, *stored.shards[1:])).to_json()
    (shards / "p.manifest.json").write_text(text)
    assert ["p-000000.tar: sample 0 has no key, so it cannot be read"] == problems(shards, deep=True)


def test_every_flipped_bit_is_found(shards):
    """Wherever it is in a shard or an index, one bit is enough."""
    for name in ("p-000000.tar", "p-000002.tar.idx"):
        path = shards / name
        data = path.read_bytes()
        for position in range(0, len(data), 97):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            (found,) = problems(shards)
            assert "has other bytes than were written" in found
        path.write_bytes(data)
    assert [] == problems(shards)


def test_every_flipped_bit_of_the_manifest_is_found(shards):
    """The manifest carries a checksum of itself; only white space outside of it may change."""
    path = shards / "p.manifest.json"
    data = path.read_bytes()
    for position in range(0, len(data), 31):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        path.write_bytes(changed)
        if changed.split() != data.split():
            with pytest.raises(ManifestError):
                verify(str(shards), "p")


def test_every_truncation_is_found(shards):
    """Cut anywhere, at block boundaries, too."""
    path = shards / "p-000001.tar"
    data = path.read_bytes()
    for size in range(0, len(data), 256):
        path.write_bytes(data[:size])
        assert [f"p-000001.tar: it has {size} bytes instead of {len(data)}"] == problems(shards)
    path.write_bytes(data + b"\0")
    assert [f"p-000001.tar: it has {len(data) + 1} bytes instead of {len(data)}"] == problems(shards)


def test_missing_unreadable_and_swapped_files_are_found(shards):
    """All problems of all shards are listed, in the order of the shards."""
    (shards / "p-000000.tar").unlink()
    (shards / "p-000000.tar").mkdir()
    (shards / "p-000001.tar.idx").unlink()
    (shards / "p-000002.tar").unlink()
    assert [
        "p-000000.tar: it cannot be read: Is a directory",
        "p-000001.tar: its index is missing",
        "p-000002.tar: it is missing",
    ] == problems(shards)


def test_equally_large_shards_are_not_confused(shards):
    """A shard in another one's place has other bytes."""
    one, other = shards / "p-000000.tar", shards / "p-000001.tar"
    one.rename(shards / "x")
    other.rename(one)
    (shards / "x").rename(other)
    assert [
        "p-000000.tar: it has other bytes than were written",
        "p-000001.tar: it has other bytes than were written",
    ] == problems(shards)


def test_strangers_and_leftovers_are_noted(shards):
    """What is not read does no harm, but is told."""
    (shards / "p-000009.tar").write_bytes(b"")
    (shards / ".p.staging").mkdir()
    report = verify(str(shards), "p")
    assert () == report.problems
    assert (
        "p-000009.tar is not listed by the manifest, so it is not read",
        "a conversion is at work, or was stopped; the next one clears it away",
    ) == report.notes


def test_deep_finds_what_cannot_be_decoded(tmp_path):
    """Fields that a plugin delivered may be undecodable though no byte was changed."""
    directory = made(tmp_path / "shards", json=b"{")
    assert [] == problems(directory)
    found = problems(directory, deep=True)
    assert 6 == len(found)
    assert found[0].startswith("p-000000.tar: s0, json: ")


def test_deep_follows_the_policy(tmp_path):
    """What the safe codec refuses passes where it is trusted."""
    convert(
        reader=Reader(pyd=pickle.dumps(argparse.Namespace(a=1))),
        names={"train": ["a"]},
        directories={"train": str(tmp_path)},
        prefix="p",
        key_encoder=encode_dashes,
        executor=Serial(),
        codecs=Codecs(policy=Policy(pickles="trusted")),
    )
    assert ["p-000000.tar: a, pyd"] == [found[:20] for found in problems(tmp_path, deep=True)]
    assert [] == problems(tmp_path, deep=True, policy=Policy(pickles="trusted"))


def test_without_a_manifest_there_is_nothing_to_compare(tmp_path):
    """The error says what to do."""
    with pytest.raises(ManifestError, match=r"holds no p\.manifest\.json"):
        verify(str(tmp_path), "p")


def test_prefixes_are_found_by_their_manifests(shards):
    """Several sets may share a directory."""
    made(shards, prefix="p-more")
    assert ["p", "p-more"] == find_prefixes(str(shards))
    assert [] == problems(shards)


def test_a_directory_without_manifests_is_refused(tmp_path):
    """So is one that is not there."""
    with pytest.raises(NoShardsError, match="holds no manifest"):
        find_prefixes(str(tmp_path))
    with pytest.raises(NoShardsError, match="cannot be listed: No such file"):
        find_prefixes(str(tmp_path / "nowhere"))
