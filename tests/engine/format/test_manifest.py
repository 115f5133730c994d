"""The manifest: what it keeps, and what of it is refused."""

import json

import pytest

from bionemo.webdatamodule._engine.format import manifest as manifest_module
from bionemo.webdatamodule._engine.format.manifest import (
    FORMAT,
    Manifest,
    ShardEntry,
    journal_path,
    manifest_path,
    read_manifest,
    shard_name,
)
from bionemo.webdatamodule.errors import ManifestError
from bionemo.webdatamodule.testing import imported_with


def entry(number, samples=2, sha256="00" * 32, **changes):
    """Return a shard entry."""
    given = {
        "name": f"p-{number:06d}.tar",
        "bytes": 4096,
        "samples": samples,
        "sha256": sha256,
        "index_sha256": "11" * 32,
        "inputs": "22" * 32,
    }
    return ShardEntry(**{**given, **changes})


def manifest(**changes):
    """Return a manifest of two shards."""
    return Manifest(
        **{
            "prefix": "p",
            "suffixes": ("cls", "x.pyd"),
            "codecs": {"cls": "bytes", "x.pyd": "pickle"},
            "shards": (entry(0), entry(1, samples=3)),
            "writer": {"name": "pickles", "options": {"directory": "d"}},
            "key_encoder": {"name": "dashes"},
            "versions": {"python": "3.11"},
            **changes,
        }
    )


def written(directory, text):
    """Write a manifest file and return the directory."""
    (directory / "p.manifest.json").write_text(text)
    return str(directory)


def test_reads_back_what_was_written(tmp_path):
    """A manifest survives its file, and the same manifest gives the same text."""
    assert manifest() == read_manifest(written(tmp_path, manifest().to_json()), "p")
    assert manifest().to_json() == manifest().to_json()
    assert 5 == manifest().n_samples


def test_without_a_file_there_is_no_manifest(tmp_path):
    """A missing manifest is not an error, a missing directory neither."""
    assert None is read_manifest(str(tmp_path), "p")
    assert None is read_manifest(str(tmp_path / "nowhere"), "p")


def test_digest_identifies_the_data_alone():
    """Other shards or codecs change the digest, another writer or place does not."""
    same = [manifest(), manifest(prefix="q", versions={}, writer={})]
    others = [
        manifest(shards=(entry(1, samples=3), entry(0))),
        manifest(shards=(entry(0, sha256="01" * 32), entry(1, samples=3))),
        manifest(codecs={"cls": "pickle", "x.pyd": "pickle"}),
    ]
    assert 1 == len({one.digest for one in same})
    assert 4 == len({one.digest for one in [manifest(), *others]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "garbage",
        manifest().to_json()[:-40],
        manifest().to_json()[: len(manifest().to_json()) // 2],
        "\x00" * 100,
        "[" * 200_000,
        '{"a":' * 200_000,
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text):
    """What is not a whole manifest is refused by name and with the remedy."""
    with pytest.raises(ManifestError, match="cut short or no manifest; run the conversion again"):
        read_manifest(written(tmp_path, text), "p")


def test_every_edit_of_a_manifest_is_noticed(tmp_path):
    """A changed number, name or field fails the checksum."""
    body = json.loads(manifest().to_json())
    edits = [
        {**body, "prefix": "q"},
        {**body, "n_samples": 4},
        {**body, "shards": body["shards"][:1]},
        {**body, "codecs": {}},
        {**body, "more": 1},
    ]
    for edited in edits:
        with pytest.raises(ManifestError, match="was changed after it was written"):
            read_manifest(written(tmp_path, json.dumps(edited)), "p")


def test_a_newer_format_is_refused(tmp_path):
    """A manifest of a later version says that the package is too old for it."""
    directory = written(tmp_path, manifest(format=FORMAT + 1).to_json())
    with pytest.raises(ManifestError, match=f"has format {FORMAT + 1}.*update bionemo-webdatamodule"):
        read_manifest(directory, "p")


@pytest.mark.parametrize(
    "name", ["../precious.txt", "/etc/passwd", "p-/../../x.tar", "p-a/b.tar", "q-000000.tar", "p-1.txt", "", 7, None]
)
def test_a_name_that_is_no_shard_of_the_prefix_is_refused(name):
    """A manifest with a good checksum cannot make anybody touch other files."""
    with pytest.raises(ManifestError, match=r"which is (not a shard of the prefix 'p'|not in its directory)"):
        Manifest.from_json(manifest(shards=(entry(0, name=name),)).to_json())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"inputs": "../../victim"}, "are not a hash"),
        ({"inputs": None}, "are not a hash"),
        ({"sha256": "../x"}, "gives no hash of p-000000.tar"),
        ({"sha256": "0" * 63}, "gives no hash"),
        ({"index_sha256": 7}, "gives no hash"),
        ({"bytes": "7"}, "gives no size"),
        ({"bytes": -1}, "gives no size"),
        ({"bytes": True}, "gives no size"),
    ],
)
def test_hashes_and_sizes_of_another_form_are_refused(wrong, said):
    """Hashes are file names in the staging directory, sizes are counted with."""
    with pytest.raises(ManifestError, match=said):
        Manifest.from_json(manifest(shards=(entry(0, **wrong),)).to_json())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shards": ()}, "lists no shards"),
        ({"shards": (entry(0), entry(0))}, "lists a shard twice"),
        ({"prefix": "../p"}, "is of the prefix"),
        ({"suffixes": (7,)}, "no list of suffixes"),
        ({"codecs": {"cls": 7}}, "how fields are encoded"),
    ],
)
def test_fields_that_make_no_sense_are_refused(wrong, said):
    """The error is one of the manifest, whoever reads it."""
    with pytest.raises(ManifestError, match=said):
        Manifest.from_json(manifest(**wrong).to_json())


@pytest.mark.parametrize("name", ["suffixes", "codecs", "shards", "writer", "prefix", "format"])
@pytest.mark.parametrize("value", [None, 7, "text", [7], {"a": {}}])
def test_fields_of_other_types_are_refused(name, value):
    """No wrong type leads to anything but an error of the manifest."""
    body = json.loads(manifest().to_json())
    del body["checksum"]
    body[name] = value
    text = json.dumps({**body, "checksum": manifest_module._checksum(body)})
    if (name, value) == ("writer", {"a": {}}):
        assert {"a": {}} == Manifest.from_json(text).writer
    else:
        with pytest.raises(ManifestError):
            Manifest.from_json(text)


def test_a_manifest_of_another_prefix_is_refused(tmp_path):
    """A file that was renamed does not lend its shards to another prefix."""
    (tmp_path / "q.manifest.json").write_text(manifest().to_json())
    with pytest.raises(ManifestError, match="is of the prefix 'p' instead of 'q'"):
        read_manifest(str(tmp_path), "q")


def test_unknown_fields_of_this_format_are_ignored():
    """A later version may add fields without a new format."""
    text = manifest().to_json()
    extended = Manifest.from_json(text)
    assert manifest() == extended


def test_a_directory_in_the_middle_of_a_publication_is_refused(tmp_path):
    """While the next manifest waits for its shards nobody reads."""
    directory = written(tmp_path, manifest().to_json())
    (tmp_path / "p.manifest.next.json").write_text(manifest().to_json())
    assert str(tmp_path / "p.manifest.next.json") == journal_path(directory, "p")
    with pytest.raises(ManifestError, match="is being published, or was stopped"):
        read_manifest(directory, "p")


def test_an_unreadable_manifest_is_an_error(tmp_path):
    """A directory in the manifest's place is named with the reason."""
    (tmp_path / "p.manifest.json").mkdir()
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_manifest(str(tmp_path), "p")


def test_names_of_shards_sort_in_their_order():
    """Six digits, more only for more than a million shards (row 29)."""
    assert "p-000007.tar" == shard_name("p", 7, 1_000_000)
    assert "p-0000007.tar" == shard_name("p", 7, 1_000_001)
    names = [shard_name("p", number, 2_000_000) for number in (0, 999_999, 1_000_000, 1_999_999)]
    assert names == sorted(names)
    assert "d/p.manifest.json" == manifest_path("d", "p")


def test_importing_it_brings_nothing_heavy():
    """Readers of manifests need neither torch nor numpy."""
    assert [] == [
        name for name in imported_with("bionemo.webdatamodule._engine.format.manifest") if name in {"torch", "numpy"}
    ]
