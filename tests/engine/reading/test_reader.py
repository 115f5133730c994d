import gc
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import pickle
import resource
import shutil
import tarfile
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import active_children, get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset, default_collate

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.format.index import index_name
from bionemo.webdatamodule._engine.format.manifest import (
    Manifest,
    ShardEntry,
    journal_path,
    manifest_path,
    read_manifest,
    staging_path,
)
from bionemo.webdatamodule._engine.format.tar_write import ShardWriter
from bionemo.webdatamodule._engine.reading import fields, open_shards
from bionemo.webdatamodule._engine.reading import reader as reader_module
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.storage import index_cache, page_cache
from bionemo.webdatamodule.columns import stack_fields
from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    CorruptShardError,
    DataWarning,
    DecodeError,
    ManifestError,
    MissingFieldError,
    NoShardsError,
    PluginError,
    RefusedPickleError,
)
from bionemo.webdatamodule.pickles import Policy, dumps


def write_set(directory, samples, n_shards=3, prefix="t", codecs=None):
    """Write samples, (key, {suffix: payload}), to a directory as a conversion does."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    entries, suffixes = [], set()
    for number, part in enumerate(np.array_split(np.arange(len(samples)), min(n_shards, len(samples)))):
        path = directory / f"{prefix}-{number:06d}.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file.fileno(), path=str(path))
            for place in part:
                key, payloads = samples[place]
                writer.add(key, payloads.items())
                suffixes.update(payloads)
            written = writer.finish()
        pathlib.Path(index_name(str(path))).write_bytes(written.index)
        entries.append(
            ShardEntry(
                name=path.name,
                bytes=written.bytes,
                samples=written.samples,
                sha256=written.sha256,
                index_sha256=hashlib.sha256(written.index).hexdigest(),
            )
        )
    codecs = codecs or dict.fromkeys(suffixes, "pickle")
    manifest = Manifest(prefix=prefix, suffixes=tuple(sorted(suffixes)), codecs=codecs, shards=tuple(entries))
    pathlib.Path(manifest_path(str(directory), prefix)).write_text(manifest.to_json())
    return str(directory)


def tensors(n=10, size=5):
    """Return n samples of a tensor and a number."""
    return [
        (f"s{number:03}", {"x.pyd": dumps(torch.arange(size) + 10.0 * number), "y.pyd": dumps(number)})
        for number in range(n)
    ]


def reader(directory, suffixes=("x.pyd",), **options):
    """Return a reader of prefix t in a directory."""
    return ShardReader([ShardSet.open(directory, "t", split="train")], suffixes, split="train", **options)


def batches_of(found, shares, *, lazily=True):
    """Yield the batch of each share."""
    return found.columns(shares, lambda _, fields: stack_fields(fields), lazily=lazily)


def batch_of(found, numbers):
    """Return the batch of some samples."""
    return next(batches_of(found, [numbers], lazily=False))


def ids(*numbers):
    """Return sample numbers as readers take them."""
    return np.array(numbers, np.int64)


def write_tar(path, members):
    """Write (name, payload) pairs as a foreign tar."""
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))


def test_samples_come_in_the_order_of_their_numbers(tmp_path):
    """Reading by number crosses shards, repeats and goes back, and keeps the order of the suffixes."""
    found = reader(write_set(tmp_path, tensors()), ["y.pyd", "__key__", "x.pyd"])
    samples = found.read(ids(7, 0, 9, 7))
    assert [(7, "s007"), (0, "s000"), (9, "s009"), (7, "s007")] == [sample[:2] for sample in samples]
    assert [70.0, 71.0, 72.0, 73.0, 74.0] == samples[0][2].tolist()
    assert [] == found.read(ids())
    assert ["s003", "s002"] == found.keys(ids(3, 2))
    assert 10 == found.n_samples


def test_batches_equal_the_collated_samples(tmp_path):
    """A batch is what default_collate makes of each column."""
    found = reader(write_set(tmp_path, tensors()), ["x.pyd", "y.pyd", "__key__"])
    numbers = ids(8, 1, 5, 3)
    expected = [default_collate(list(column)) for column in zip(*found.read(numbers), strict=True)]
    batch = batch_of(found, numbers)
    assert torch.equal(expected[0], batch[0])
    assert expected[1].tolist() == batch[1].tolist()
    assert expected[2] == batch[2] == ["s008", "s001", "s005", "s003"]


def test_values_belong_to_the_reader(tmp_path):
    """What is read can be changed in place and does not change what is read next."""
    found = reader(write_set(tmp_path, tensors()))
    found.read(ids(1))[0][0].zero_()
    batch_of(found, ids(1, 2))[0].zero_()
    assert [10.0, 11.0, 12.0, 13.0, 14.0] == found.read(ids(1))[0][0].tolist()


@pytest.mark.parametrize("value", [None, False, 0, "", torch.empty(0), np.empty((0, 3)), [], {}, b""], ids=repr)
def test_empty_values_stay_themselves(tmp_path, value):
    """None is None and not its pickle; nothing that is false is taken for missing."""
    found = reader(write_set(tmp_path, [("a", {"x.pyd": dumps(value)})], n_shards=1)).read(ids(0))[0][0]
    assert type(value) is type(found)
    assert repr(value) == repr(found)


def test_sets_are_numbered_one_after_another(tmp_path):
    """Several sets read as one; shards count over all of them."""
    first = ShardSet.open(write_set(tmp_path / "a", tensors(4)), "t")
    second = ShardSet.open(write_set(tmp_path / "b", tensors(5), n_shards=2), "t")
    found = ShardReader([first, second], ["y.pyd"])
    assert [0, 1, 2, 3, 0, 1, 2, 3, 4] == [value for (value,) in found.read(np.arange(9))]
    assert [3, 4] == [value for ids in found.runs(4) for (value,) in found.read(ids)]
    assert found.digest not in {first.digest, second.digest}


def test_shards_are_read_in_the_order_of_their_tar(tmp_path):
    """Iterating a shard gives all its samples, also more than are read together."""
    found = reader(write_set(tmp_path, tensors(200), n_shards=2), ["y.pyd"])
    assert list(range(100, 200)) == [value for ids in found.runs(1) for (value,) in found.read(ids)]


def test_numbers_outside_are_refused(tmp_path):
    """A number beyond the last sample is an error with both numbers, and none counts from the end."""
    found = reader(write_set(tmp_path, tensors()), on_error="skip")
    for number in (10, -1):
        with pytest.raises(ConfigError, match="there are 10"):
            found.read(ids(0, number))


def test_foreign_shards_read_as_webdataset_reads_them(tmp_path):
    """Shards of wds.ShardWriter need no manifest; keys and values are webdataset's."""
    with wds.ShardWriter(str(tmp_path / "t-%06d.tar"), maxcount=7, verbose=0) as writer:
        for number in range(20):
            writer.write({"__key__": f"d/s{number}", "x.pyd": {"n": number}, "cls": number, "txt": "ü" * number})
    expected = []
    for shard in range(3):
        with (tmp_path / f"t-{shard:06d}.tar").open("rb") as stream:  # webdataset leaves files open
            members = wds.tariterators.tar_file_expander([{"url": "", "stream": stream}])
            samples = wds.decode()(wds.tariterators.group_by_keys(members))
            expected += [tuple(s[name] for name in ("__key__", "x.pyd", "cls", "txt")) for s in samples]
    found = reader(tmp_path, ["__key__", "x.pyd", "cls", "txt"])
    assert expected == found.read(np.arange(20))
    assert (7, 7, 6) == found.sets[0].samples


def test_indexes_of_foreign_shards_are_kept_in_the_cache(tmp_path, monkeypatch):
    """A shard is walked once for each state of it, and the cache may be deleted or read-only."""
    monkeypatch.setattr(index_cache, "_SETTLED_NS", 0)
    write_tar(tmp_path / "t-0.tar", [("a.txt", b"1")])
    os.utime(tmp_path / "t-0.tar", (1, 1))
    first = ShardSet.open(tmp_path, "t")
    assert {} == first.kept
    folder = pathlib.Path(os.environ["XDG_CACHE_HOME"])
    (file,) = folder.rglob("*.idx")
    before = file.stat()
    assert first.digest == ShardSet.open(tmp_path, "t").digest
    assert before == file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert first.digest == ShardSet.open(tmp_path, "t").digest
    shutil.rmtree(folder)
    folder.write_text("no directory")
    assert first.digest == ShardSet.open(tmp_path, "t").digest
    assert [("1",)] == reader(tmp_path, ["txt"]).read(ids(0))
    write_tar(tmp_path / "t-0.tar", [("b.txt", b"2")])
    assert [("2",)] == reader(tmp_path, ["txt"]).read(ids(0))


@pytest.mark.parametrize(
    "name",
    ["run[1]", "run#1", "run?1", "100%d", "{a,b}", "a b", "a::b", "a;b", "ü", "s3:x", "a'b", "pipe:cat", "-", "*"],
)
@pytest.mark.parametrize("foreign", [True, False])
def test_local_paths_are_paths_whatever_is_in_them(tmp_path, name, foreign):
    """Brackets, hashes, percent signs and colons in a directory or prefix mean nothing."""
    directory = tmp_path / name
    write_set(directory, tensors(3), prefix=name)
    (tmp_path / "run1").mkdir(exist_ok=True)
    if foreign:
        pathlib.Path(manifest_path(str(directory), name)).unlink()
    found = ShardReader([ShardSet.open(directory, name)], ["y.pyd"])
    assert [(0,), (1,), (2,)] == found.read(np.arange(3))


def test_home_and_relative_directories_work(tmp_path, monkeypatch):
    """A tilde is the home directory, and a relative path starts where the process is."""
    write_set(tmp_path / "data", tensors(3))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert 3 == ShardSet.open("~/data", "t").n_samples
    monkeypatch.chdir(tmp_path)
    assert 3 == ShardSet.open("data", "t").n_samples


def test_a_prefix_does_not_take_the_shards_of_a_longer_one(tmp_path, caplog):
    """Prefix t leaves t-val alone, with a manifest and without, and shards added by hand are said and not read."""
    write_set(tmp_path, tensors(4))
    write_set(tmp_path, tensors(7), prefix="t-val")
    write_tar(tmp_path / "t-000009.tar", [("z.y.pyd", dumps(99))])
    assert (4, 7) == tuple(ShardSet.open(tmp_path, prefix).n_samples for prefix in ("t", "t-val"))
    assert ["holds 1 shard that its manifest does not list, such as t-000009.tar"] == [
        record.getMessage().removeprefix(f"{tmp_path} ") for record in caplog.records
    ]
    for prefix in ("t", "t-val"):
        pathlib.Path(manifest_path(str(tmp_path), prefix)).unlink()
    assert (5, 7) == tuple(ShardSet.open(tmp_path, prefix).n_samples for prefix in ("t", "t-val"))


def test_shards_without_numbers_are_sorted_by_name(tmp_path):
    """The documented pattern is used where no shard is numbered, and numbers count as numbers."""
    for name in ("t-b.tar", "t-a.tar"):
        write_tar(tmp_path / name, [(f"{name}.txt".replace(".tar", ""), name.encode())])
    assert [("t-a.tar",), ("t-b.tar",)] == reader(tmp_path, ["txt"]).read(np.arange(2))
    for number in (9, 10):
        write_tar(tmp_path / f"t-{number}.tar", [("k.txt", b"%d" % number)])
    with pytest.warns(DataWarning, match=r"such as t-9\.tar, so t-a\.tar and 1 more is not read"):
        assert [("9",), ("10",)] == reader(tmp_path, ["txt"]).read(np.arange(2))


def test_the_key_is_never_missing(tmp_path):
    """So it may be asked for as an optional field."""
    write_tar(tmp_path / "t-0.tar", [("k.txt", b"1")])
    assert [("k", "1")] == reader(tmp_path, ["__key__?", "txt"]).read(np.arange(1))


@pytest.mark.parametrize("name", ["t-0.tar", "t-000001.tar", "t-{0..3}.tar", "t-*.tar"])
def test_a_shard_in_place_of_a_directory_is_told_of_its_directory_and_prefix(tmp_path, name):
    """As are patterns of shards; what the message says works."""
    write_tar(tmp_path / "t-0.tar", [("a.txt", b"1")])
    with pytest.raises(NoShardsError) as caught:
        ShardSet.open(tmp_path / name, "wdshards")
    advice = f"give the directory that the shards lie in, {str(tmp_path)!r}, and prefix_tars_wds='t'"
    assert f"{tmp_path / name} is not a directory; {advice}" == caught.value.message
    assert 1 == ShardSet.open(str(tmp_path), "t").n_samples


def test_nothing_to_read_says_what_is_there(tmp_path):
    """No directory, and no shard of that prefix, are errors that help; commands are not run."""
    with pytest.raises(NoShardsError, match="is not a directory"):
        ShardSet.open(tmp_path / "nowhere", "t", split="val")
    with pytest.raises(NoShardsError, match="commands are never run"):
        ShardSet.open(f"pipe:touch {tmp_path}/ran", "t")
    with pytest.raises(NoShardsError, match=r"no manifest and no t-\*\.tar\. It has no tar at all"):
        ShardSet.open(tmp_path, "t")
    write_tar(tmp_path / "u-0.tar", [("a.x", b"")])
    with pytest.raises(NoShardsError, match=r"It has u-0\.tar; their prefix is 'u'") as caught:
        ShardSet.open(tmp_path, "t", split="val")
    assert "val" == caught.value.where["split"]
    assert [] == list(tmp_path.glob("ran"))


def test_leftovers_of_a_conversion_are_refused(tmp_path):
    """Shards whose conversion did not finish are not foreign shards, and shards being replaced are not read."""
    write_set(tmp_path, tensors())
    journal = pathlib.Path(journal_path(str(tmp_path), "t"))
    journal.write_text("{}")
    with pytest.raises(ManifestError, match="being published"):
        ShardSet.open(tmp_path, "t")
    journal.unlink()
    pathlib.Path(staging_path(str(tmp_path), "t")).mkdir()
    assert 10 == ShardSet.open(tmp_path, "t").n_samples  # a new conversion over old data, which stay whole
    pathlib.Path(manifest_path(str(tmp_path), "t")).unlink()
    with pytest.raises(ManifestError, match="stopped before it finished"):
        ShardSet.open(tmp_path, "t")


def test_environment_of_webdataset_means_nothing(tmp_path, monkeypatch):
    """The variables by which webdataset changes where data come from are not looked at."""
    good, bad = write_set(tmp_path / "good", tensors()), write_set(tmp_path / "bad", tensors(3))
    monkeypatch.setenv("GOPEN_REWRITE", f"{good}={bad}")
    monkeypatch.setenv("WDS_REWRITE", f"{good}={bad}")
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("USE_AIS_FOR", "file")
    assert 10 == len(reader(good).read(np.arange(10)))
    assert not (tmp_path / "cache").exists()


def test_a_listed_shard_must_be_there_with_its_size(tmp_path):
    """A missing shard and every truncation are named when the set is opened."""
    shard = pathlib.Path(write_set(tmp_path, tensors())) / "t-000001.tar"
    data = shard.read_bytes()
    for end in range(0, len(data), 512):
        shard.write_bytes(data[:end])
        with pytest.raises(CorruptShardError, match=f"has {end} bytes, the manifest says {len(data)}"):
            ShardSet.open(tmp_path, "t")
    shard.unlink()
    with pytest.raises(CorruptShardError, match=r"t-000001\.tar is listed in the manifest"):
        ShardSet.open(tmp_path, "t")


def test_every_flipped_bit_is_noticed(tmp_path):
    """A bit of a payload, of a header or of the end of the archive cannot change unseen."""
    directory = write_set(tmp_path, [("a", {"x.pyd": dumps([1, 2.5])}), ("b", {"x.pyd": dumps("two")})], n_shards=1)
    shard = tmp_path / "t-000000.tar"
    data = shard.read_bytes()
    index = ShardSet.open(directory, "t").index(0, open_shards.Stamp.of(str(shard)))
    padding = set()
    for start, size in zip(index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist(), strict=True):
        padding.update(range(start + size, start + 512))
    end = range(len(data) - 1024, len(data) - 1)
    for position in sorted(set(range(len(data))) - padding - set(end)) + list(end[::64]):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        shard.write_bytes(changed)
        with pytest.raises(CorruptShardError, match=r"checksum|not a tar header|end of the archive"):
            reader(directory).read(ids(0, 1))


@pytest.mark.parametrize("damage", ["missing", "changed", "empty", "of another shard"])
def test_a_lost_sidecar_is_made_anew_from_a_whole_shard(tmp_path, damage):
    """Without its index a listed shard is hashed as a whole: then all is as before, checksums included."""
    directory = write_set(tmp_path, tensors())
    sidecar = tmp_path / "t-000001.tar.idx"
    before = ShardSet.open(directory, "t").index(1, open_shards.Stamp.of(str(tmp_path / "t-000001.tar"))).to_bytes()
    if damage == "missing":
        sidecar.unlink()
    elif damage == "changed":
        sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"x")
    else:
        sidecar.write_bytes(b"" if damage == "empty" else (tmp_path / "t-000000.tar.idx").read_bytes())
    again = ShardSet.open(directory, "t").index(1, open_shards.Stamp.of(str(tmp_path / "t-000001.tar")))
    assert before == again.to_bytes()
    assert 10 == len(reader(directory).read(np.arange(10)))
    shard = tmp_path / "t-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptShardError, match="not the shard in the manifest"):
        reader(directory).read(np.arange(10))


def test_a_sidecar_that_the_manifest_lists_and_nobody_can_read_is_made_anew(tmp_path):
    """The tool that wrote both may have written it wrongly; the shard itself is what it says."""
    directory = write_set(tmp_path, tensors(), n_shards=1)
    sidecar = tmp_path / "t-000000.tar.idx"
    before = ShardSet.open(directory, "t").index(0).to_bytes()
    sidecar.write_bytes(sidecar.read_bytes()[:-4])
    stored = read_manifest(directory, "t")
    entry = replace(stored.shards[0], index_sha256=hashlib.sha256(sidecar.read_bytes()).hexdigest())
    pathlib.Path(manifest_path(directory, "t")).write_text(replace(stored, shards=(entry,)).to_json())
    assert before == ShardSet.open(directory, "t").index(0).to_bytes()


def test_an_index_that_was_made_anew_is_not_taken_for_other_data(tmp_path):
    """Another version of the data may have the same path, size and modification time, and no sidecars either."""
    found = []
    for value in (1.0, 2.0, 1.0):
        samples = [(key, {"x.pyd": dumps(torch.full((5,), value))}) for key, _ in tensors()]
        directory = write_set(tmp_path / "data", samples, n_shards=1)
        for path in (tmp_path / "data").iterdir():
            if path.suffix == ".idx":
                path.unlink()
            else:
                os.utime(path, (1_700_000_000, 1_700_000_000))
        found += [float(x[0]) for (x,) in reader(directory).read(np.arange(10))]
    assert [1.0] * 10 + [2.0] * 10 + [1.0] * 10 == found


def test_a_digest_can_be_expected(tmp_path):
    """Data that travelled can be pinned: another digest is an error with both."""
    directory = write_set(tmp_path, tensors())
    digest = ShardSet.open(directory, "t").digest
    assert 10 == ShardSet.open(directory, "t", expect=f"sha256:{digest}").n_samples
    write_set(tmp_path, tensors(11))
    with pytest.raises(ChangedDataError, match=digest):
        ShardSet.open(directory, "t", expect=digest)


def replace_shard(path):
    """Put another file of the same size in a shard's place."""
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, (1, 1))
    other.replace(path)


@pytest.mark.parametrize("change", [pathlib.Path.unlink, replace_shard, lambda path: os.truncate(path, 1024)])
@pytest.mark.parametrize("foreign", [True, False])
def test_shards_that_change_after_setup_are_named(tmp_path, change, foreign):
    """A shard removed, replaced or cut between setup and its first use is an error."""
    directory = write_set(tmp_path, tensors())
    if foreign:
        pathlib.Path(manifest_path(directory, "t")).unlink()
    found = reader(directory)
    change(tmp_path / "t-000001.tar")
    with pytest.raises(ChangedDataError, match=r"t-000001.tar (is gone|was changed)"):
        found.read(np.arange(10))


def test_a_shard_cut_while_it_is_open_does_not_kill_the_process(tmp_path):
    """Truncation under a memory map would be a SIGBUS; it is an error."""
    found = reader(write_set(tmp_path, tensors(size=5000), n_shards=1))
    found.read(ids(0))
    os.truncate(tmp_path / "t-000000.tar", 4096)
    with pytest.raises(ChangedDataError, match="changed while it was read"):
        found.read(ids(9))


@pytest.mark.parametrize("foreign", [True, False])
def test_an_error_about_a_shard_that_changes_says_where(tmp_path, foreign):
    """Cut while it is open, or swapped for another of its size: shard, split and what changed are named."""
    directory = write_set(tmp_path, tensors(size=5000), n_shards=2)
    if foreign:
        pathlib.Path(manifest_path(directory, "t")).unlink()
    found = reader(directory)
    found.read(ids(0))
    first, second = (tmp_path / f"t-00000{number}.tar" for number in (0, 1))
    os.truncate(first, 4096)
    with pytest.raises(ChangedDataError, match="was changed while it was read: it has 4096 bytes") as caught:
        found.read(ids(1))
    assert {"shard": str(first), "split": "train"} == caught.value.where
    os.utime(second, (1, 1))
    with pytest.raises(ChangedDataError, match="the data were set up: its modification time is another;") as caught:
        found.read(ids(9))
    assert {"shard": str(second), "split": "train"} == caught.value.where


def write_sizes(path, *sizes):
    """Write a foreign tar of fields of certain sizes, long ago."""
    write_tar(path, [(f"{key}.txt", key.encode() * size) for key, size in zip("abc", sizes, strict=True)])
    os.utime(path, (1, 1))


def test_a_foreign_shard_that_was_copied_over_another_is_indexed_anew(tmp_path, monkeypatch):
    """Neither its size nor its modification time tells it from the one before, whose index the cache has."""
    monkeypatch.setattr(index_cache, "_SETTLED_NS", 0)
    for sizes in ((100, 600, 100), (600, 100, 100), (100, 100, 600)):
        write_sizes(tmp_path / "other.tar", *sizes)
        shutil.copy2(tmp_path / "other.tar", tmp_path / "t-0.tar")
        found = reader(tmp_path, ["txt"])
        assert [(key * size,) for key, size in zip("abc", sizes, strict=True)] == found.read(np.arange(3))
        assert {} == found.sets[0].kept


@pytest.mark.parametrize("sizes", [(600, 100, 100), (100, 100, 600), (90, 600, 100)])
def test_a_stale_index_of_a_foreign_shard_does_not_serve_wrong_bytes(tmp_path, sizes):
    """Where the file is exchanged after its index was made, the header before each field shows it."""
    write_sizes(tmp_path / "t-0.tar", 100, 600, 100)
    found = reader(tmp_path, ["txt"])
    write_sizes(tmp_path / "t-0.tar", *sizes)
    with pytest.raises(
        CorruptShardError, match=r"checksum|not a tar header|not what it was when .* was indexed"
    ) as caught:
        found.read(np.arange(3))
    assert (str(tmp_path / "t-0.tar"), "train") == tuple(caught.value.where[name] for name in ("shard", "split"))


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_every_flipped_bit_of_a_foreign_header_is_noticed(tmp_path, format_):
    """Also after the shard was indexed, and while it is open."""
    path = tmp_path / "t-0.tar"
    with tarfile.open(path, "w", format=format_) as archive:
        for number in range(2):
            member = tarfile.TarInfo(f"s{number}.txt")
            member.size, member.mtime = 3, 1.5 if format_ == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(b"abc"))
    found = reader(tmp_path, ["txt"], check="always")
    assert [("abc",), ("abc",)] == found.read(ids(0, 1))
    data = path.read_bytes()
    header = data.index(b"s1.txt\0")
    with path.open("r+b", buffering=0) as file:
        for position in range(header, header + 512):
            os.pwrite(file.fileno(), bytes([data[position] ^ 1 << position % 8]), position)
            with pytest.raises(CorruptShardError, match=r"checksum|not a tar header"):
                found.read(ids(0, 1))
            os.pwrite(file.fileno(), data[position : position + 1], position)
    assert [("abc",), ("abc",)] == found.read(ids(0, 1))


def test_open_shards_outlive_a_new_conversion(tmp_path):
    """Files replaced by a rename stay readable for those who have them open: an epoch ends with its own data."""
    found = reader(write_set(tmp_path, tensors(), n_shards=1), ["y.pyd"])
    found.read(ids(0))
    replace_shard(tmp_path / "t-000000.tar")
    assert [(9,)] == found.read(ids(9))


def test_an_unknown_suffix_is_named_before_reading(tmp_path):
    """A suffix that no sample has is an error at once, which lists those that exist; there are no patterns."""
    directory = write_set(tmp_path, tensors())
    for suffix in ("z.pyd", "*.pyd", "yd", "z;w"):
        with pytest.raises(MissingFieldError, match=r"choose among x.pyd, y.pyd"):
            reader(directory, [suffix])


def test_a_suffix_may_be_an_ending_in_any_case(tmp_path):
    """Where the exact name is not there, the only suffix that ends so is meant; several are an error."""
    directory = write_set(tmp_path, tensors(2), n_shards=1)
    assert [(0,), (1,)] == reader(directory, ["Y.PYD"]).read(ids(0, 1))
    with pytest.raises(ConfigError, match=r"'pyd' could mean x.pyd or y.pyd; write it in full"):
        reader(directory, ["pyd"])
    samples = [("a", {"x.Cls": b"1", "cls.json": b"2"}), ("b", {"x.cls": b"3", "json": b"4"})]
    codecs = dict.fromkeys(("x.Cls", "x.cls", "cls.json", "json"), "bytes")
    found = reader(write_set(tmp_path / "more", samples, n_shards=1, codecs=codecs), ["cls", "CLS.JSON;JSON"])
    assert [(1, 2), (3, 4)] == found.read(ids(0, 1))
    assert [[1, 3], [2, 4]] == [column.tolist() for column in batch_of(found, ids(0, 1))]


def test_a_field_may_have_alternatives_or_be_optional(tmp_path):
    """Of each sample the first suffix that it has is taken, by its codec; None stands for what is optional."""
    samples = [("a", {"txt": b"t", "json": b"1"}), ("b", {"json": b"2"}), ("c", {"cls": b"3"})]
    directory = write_set(tmp_path, samples, codecs=dict.fromkeys(("txt", "json", "cls"), "bytes"))
    asked = ["txt;json?", "cls?", "nothing?", "__key__"]
    assert [("t", None, None, "a"), (2, None, None, "b"), (None, 3, None, "c")] == reader(directory, asked).read(
        ids(0, 1, 2)
    )
    with pytest.raises(MissingFieldError, match="has only the suffixes cls") as caught:
        reader(directory, ["txt;json"]).read(ids(0, 1, 2))
    assert ("c", "txt;json") == (caught.value.where["key"], caught.value.where["suffix"])
    skipping = reader(directory, ["txt;json"], on_error="skip")
    assert [("t",), (2,)] == skipping.read(ids(0, 1, 2))


def test_a_missing_field_names_the_sample(tmp_path):
    """A sample without the field is an error with its key, and says what the sample has."""
    samples = [("a", {"x.txt": b"1", "y.txt": b"2"}), ("b", {"y.txt": b"3"})]
    found = reader(write_set(tmp_path, samples, n_shards=1, codecs={"x.txt": "bytes"}), ["y.txt", "x.txt"])
    assert [("2", "1")] == found.read(ids(0))
    with pytest.raises(MissingFieldError, match=r"has only the suffixes y\.txt") as caught:
        found.read(ids(0, 1))
    assert ("b", "x.txt", "train") == tuple(caught.value.where[name] for name in ("key", "suffix", "split"))


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


def test_fields_that_were_not_asked_for_are_not_touched(tmp_path):
    """A hostile or broken pickle beside the field does not matter; asked for, it is refused and does not run."""
    canary = tmp_path / "canary"
    members = [("a.txt", b"1"), ("a.evil.pkl", pickle.dumps(Canary(canary))), ("a.junk.pyd", b"junk")]
    write_tar(tmp_path / "t-0.tar", members)
    assert [("1",)] == reader(tmp_path, ["txt"]).read(ids(0))
    with pytest.raises(RefusedPickleError) as caught:
        reader(tmp_path, ["evil.pkl"]).read(ids(0))
    assert ("a", "evil.pkl") == (caught.value.where["key"], caught.value.where["suffix"])
    assert not canary.exists()
    reader(tmp_path, ["evil.pkl"], codecs=Codecs(policy=Policy(pickles="trusted"))).read(ids(0))
    assert canary.exists()


def damaged(tmp_path, n=10, bad=(3, 7)):
    """Write samples of which some cannot be decoded."""
    samples = [(f"s{i}", {"json": b"{" if i in bad else json.dumps(i).encode()}) for i in range(n)]
    return write_set(tmp_path, samples, codecs={"json": "bytes"})


def test_a_field_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    """The error says where, keeps the cause, and survives pickling."""
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(DecodeError, match="JSONDecodeError: Expecting property name") as caught:
        reader(damaged(tmp_path), ["json"]).read(np.arange(10))
    where = {
        "shard": str(tmp_path / "t-000000.tar"), "key": "s3", "suffix": "json", "codec": "json", "split": "train",
        "rank": "2",
    }  # fmt: skip
    assert where == caught.value.where
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value)))


def test_bad_samples_can_be_left_out(tmp_path, caplog):
    """Skipping keeps the order of the rest, counts each sample once, and logs it once."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    found = reader(damaged(tmp_path), ["json"], on_error="skip")
    for _ in range(3):
        assert [9, 8, 6, 5, 4, 2, 1, 0] == [value for (value,) in found.read(np.arange(10)[::-1])]
    assert [2, 4] == batch_of(found, ids(2, 3, 4))[0].tolist()
    assert 2 == found.skipped
    assert 2 == len(caplog.records)
    assert "key=s7" in caplog.text
    with pytest.raises(DecodeError, match="every sample of this batch is left out"):
        batch_of(found, ids(3, 7))


def test_leaving_out_has_a_bound(tmp_path):
    """One bad sample more than max_skipped is an error, with the cause."""
    found = reader(damaged(tmp_path, bad=range(5)), ["json"], on_error="skip", max_skipped=4)
    with pytest.raises(DecodeError, match="4 samples already left out") as caught:
        found.read(np.arange(10))
    assert "s4" == caught.value.where["key"]
    assert 4 == found.skipped


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (MemoryError, MemoryError),
        (KeyboardInterrupt, KeyboardInterrupt),
        (ImportError, PluginError),
        (OSError, DecodeError),
    ],
)
def test_errors_that_are_no_samples_fault_are_never_skipped(tmp_path, monkeypatch, error, seen):
    """Memory, missing modules, files and the user's interrupt end the reading."""

    def fail(data):
        raise error

    found = reader(damaged(tmp_path, bad=()), ["json"], on_error="skip")
    found._fields[0] = replace(found._fields[0], codecs=(SimpleNamespace(decode=fail),))
    with pytest.raises(seen):
        found.read(np.arange(10))
    assert 0 == found.skipped


def test_damaged_fields_are_left_out_but_not_damaged_shards(tmp_path):
    """A wrong checksum of a field is that sample's fault; a shard that is not what it was is not."""
    directory = write_set(tmp_path, tensors(), n_shards=1)
    shard = tmp_path / "t-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(dumps(4))] ^= 1
    shard.write_bytes(data)
    found = reader(directory, ["y.pyd"], on_error="skip")
    assert [0, 1, 2, 3, 5, 6, 7, 8, 9] == [value for (value,) in found.read(np.arange(10))]
    data[-1] = 1
    shard.write_bytes(data)
    with pytest.raises(CorruptShardError, match="end of the archive"):
        reader(directory, ["y.pyd"], on_error="skip").read(np.arange(10))


@pytest.mark.parametrize("most", [3, 1024])
def test_batches_made_one_by_one_are_those_read_alone(tmp_path, monkeypatch, most):
    """With few shards or more than may be held, and whatever else is read between two batches."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", most)
    directory = write_set(tmp_path, tensors(40), n_shards=10)
    found, other = reader(directory, ["y.pyd"]), reader(directory, ["x.pyd"])
    before = n_descriptors()
    shares = np.array_split(np.random.default_rng(1).permutation(40), 7)
    for share, (batch,) in zip(shares, batches_of(found, shares), strict=True):
        assert share.tolist() == batch.tolist()
        other.read(np.arange(40))
        assert most > 3 or n_descriptors() <= before + 8


def test_readers_in_the_middle_of_their_batches_hold_few_shards_together(tmp_path, monkeypatch):
    """However many they are, they leave descriptors to others, and all are right."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", 40)
    directory = write_set(tmp_path, tensors(40), n_shards=4)
    readers = [reader(directory, ["y.pyd"]) for _ in range(30)]
    before = n_descriptors()
    shares = np.array_split(np.arange(40)[::-1], 4)
    running = [batches_of(found, shares) for found in readers]
    for share in shares:
        assert [share.tolist()] * 30 == [next(batches)[0].tolist() for batches in running]
        assert n_descriptors() <= before + 2 * 40 + 2 * 10
    assert 8 == sum(open_shards._held.values())
    running.clear()
    assert {} == open_shards._held


@pytest.mark.parametrize("check", ["first", "never", "always"])
def test_a_shard_cut_short_between_batches_is_an_error(tmp_path, check):
    """Batches are made when they are asked for, after another look at their shards."""
    found = reader(write_set(tmp_path, tensors(), n_shards=1), ["y.pyd"], check=check)
    found.read(np.arange(10))
    batches = batches_of(found, [ids(0, 1), ids(2, 3)])
    assert [0, 1] == next(batches)[0].tolist()
    os.truncate(tmp_path / "t-000000.tar", 4096)
    with pytest.raises(ChangedDataError, match="changed while it was read"):
        next(batches)


def test_what_comes_is_what_was_compared_with_its_checksum(tmp_path):
    """Damage is found or comes to nobody, also if it is mended between two batches."""
    directory = write_set(tmp_path, tensors(), n_shards=1)
    shard = tmp_path / "t-000000.tar"
    sound = shard.read_bytes()
    for check in ("first", "always"):
        found = reader(directory, ["x.pyd", "y.pyd"], check=check)
        found.read(ids(0, 1, 2))
        with shard.open("r+b") as file:
            file.seek(sound.index(dumps(7)) + 3)
            file.write(b"\x09")
        batches = batches_of(found, [ids(0, 1), ids(6, 7)])
        next(batches)
        with shard.open("r+b") as file:
            file.write(sound)
        assert [6, 7] == next(batches)[1].tolist()


@pytest.mark.parametrize("lazily", [False, True])
def test_one_damaged_sample_is_its_batchs_matter(tmp_path, lazily):
    """Of batches that are read together only the one with the damage is an error, or has a sample less."""
    directory, shares = damaged(tmp_path, bad=[4]), [ids(0, 1), ids(5, 4), ids(6, 7)]
    found = reader(directory, ["json"], on_error="skip")
    assert [[0, 1], [5], [6, 7]] == [batch.tolist() for (batch,) in batches_of(found, shares, lazily=lazily)]
    with pytest.raises(DecodeError) as caught:
        list(batches_of(reader(directory, ["json"]), shares, lazily=lazily))
    assert "s4" == caught.value.where["key"]
    batches = batches_of(reader(directory, ["json"]), shares)
    assert [0, 1] == next(batches)[0].tolist()


def test_what_comes_next_is_read_from_the_disk_and_nothing_else(tmp_path, monkeypatch):
    """The fields that are read and their headers, at once where they follow one another; and the end of the shard."""
    advised = []
    monkeypatch.setattr(open_shards, "expect", lambda memory: advised.append(("end", len(memory))))
    monkeypatch.setattr(fields, "expect", lambda memory: advised.append((bytes(memory[:6]), len(memory))))
    disk = itertools.count(step=1 << 20)
    monkeypatch.setattr(page_cache, "_disk_bytes", lambda: next(disk))
    payload = bytes(100_000)
    samples = [(f"s{number}", {"a": payload, "b": payload}) for number in range(6)]
    found = reader(write_set(tmp_path, samples, n_shards=1, codecs={"a": "bytes", "b": "bytes"}), ["b"])
    used = [run.tolist() for run in found.ahead(iter([ids(4, 0), ids(2), ids(1)]), lambda run: run)]
    assert [[4, 0], [2], [1]] == used
    one = 512 + len(payload)
    assert [("end", 1024), (b"s4.b\0\0", one), (b"s0.b\0\0", one), (b"s2.b\0\0", one), (b"s1.b\0\0", one)] == advised
    del advised[:]
    list(found.only(["a", "b"]).ahead(iter([ids(0, 1, 3)]), lambda run: run))
    assert [("end", 1024), (b"s0.a\0\0", 3 * 100_352 + 3 * 512 + one), (b"s3.a\0\0", 100_352 + 512 + one)] == advised


def test_samples_that_do_not_fit_into_a_batch_are_said(tmp_path):
    """Tensors of different shapes cannot be stacked; the error is not blamed on a sample."""
    samples = [(f"s{size}", {"x.pyd": dumps(torch.zeros(size))}) for size in (2, 3, 3)]
    with pytest.raises(DecodeError, match="2 samples do not fit into one batch"):
        batch_of(reader(write_set(tmp_path, samples)), ids(0, 1))


@pytest.mark.parametrize(("check", "expected"), [("first", 10), ("always", 30), ("never", 0)])
def test_checksums_are_compared_when_asked(tmp_path, monkeypatch, check, expected):
    """Each sample once in a reader's life, each time, or not at all."""
    checked = []
    found = reader(write_set(tmp_path, tensors()), check=check)
    seen = reader_module.sound_views
    monkeypatch.setattr(reader_module, "sound_views", lambda places, _: checked.extend(places) or seen(places, _))
    found.read(np.arange(10))
    batch_of(found, np.arange(10))
    found.read(np.arange(10))
    assert expected == len(checked)


class Samples(Dataset):
    """A reader as a map dataset."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return self.reader.n_samples

    def __getitem__(self, number):
        return [value for value, *_ in self.reader.read(ids(number))]


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_share_what_is_known_of_samples(tmp_path, start, workers):
    """Worker processes read the same, and their verdicts on samples reach the main process."""
    found = reader(damaged(tmp_path), ["json"], on_error="skip")
    loader = DataLoader(Samples(found), batch_size=None, num_workers=workers, multiprocessing_context=start)
    assert [[0], [1], [2], [], [4], [5], [6], [], [8], [9]] == list(loader)
    assert 2 == found.skipped
    assert 8 == np.count_nonzero(found._ledger.states == 1)


def test_errors_in_a_worker_say_which(tmp_path):
    """The worker's number is in the error that arrives in the main process."""
    loader = DataLoader(Samples(reader(damaged(tmp_path), ["json"])), batch_size=None, num_workers=1)
    with pytest.raises(DecodeError, match="worker=0"):
        list(loader)


def read_all(found):
    """Read a whole split, in another process."""
    return [value for (value,) in found.read(np.arange(found.n_samples))]


def test_readers_pickle_without_what_is_open(tmp_path):
    """A reader sent to another process opens its own shards there and knows nothing yet of the samples."""
    found = reader(write_set(tmp_path, tensors(1000)), ["y.pyd"])
    read_all(found)
    data = pickle.dumps(found)
    assert len(data) < 20_000
    assert 0 == np.count_nonzero(pickle.loads(data)._ledger.states)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(range(1000)) == pool.submit(read_all, found).result()


def n_descriptors():
    """Return how many files this process has open."""
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def test_no_more_shards_are_open_than_may_be(tmp_path, monkeypatch):
    """With many shards those that were not used lately are closed, and no descriptor is lost."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", 3)
    found = reader(write_set(tmp_path, tensors(40), n_shards=20), ["y.pyd"])
    before = n_descriptors()
    for seed in range(5):
        numbers = np.random.default_rng(seed).permutation(40)
        assert numbers.tolist() == [value for (value,) in found.read(numbers)]
        assert 3 == len(found._places._open)
        assert numbers.tolist() == batch_of(found, numbers)[0].tolist()
        assert n_descriptors() <= before + 6
    del found
    gc.collect()
    assert n_descriptors() < before  # the ledger had one too


def test_more_shards_than_descriptors_stay_open(tmp_path, monkeypatch):
    """Only the first of many shards keep a descriptor; all stay mapped, and one that is cut is an error too."""
    monkeypatch.setattr(open_shards, "most_descriptors", lambda: 3)
    monkeypatch.setattr(open_shards, "_LOOKUPS", 1e9)
    found = reader(write_set(tmp_path, tensors(40, size=2000), n_shards=20), ["y.pyd"])
    before = n_descriptors()
    numbers = np.random.default_rng(0).permutation(40)
    for _ in range(2):
        assert numbers.tolist() == [value for (value,) in found.read(numbers)]
        assert 20 == len(found._places._open)
        assert n_descriptors() == before + 3
    last = int(numbers[-1]) // 2
    os.truncate(tmp_path / f"t-{last:06d}.tar", 4096)
    with pytest.raises(ChangedDataError, match="changed while it was read"):
        found.read(ids(2 * last))
    assert 19 == len(found._places._open)


def test_a_shard_that_is_removed_while_it_is_mapped_is_still_read(tmp_path, monkeypatch):
    """Its bytes are there for as long as the map is."""
    monkeypatch.setattr(open_shards, "most_descriptors", lambda: 0)
    monkeypatch.setattr(open_shards, "_LOOKUPS", 1e9)
    found = reader(write_set(tmp_path, tensors(4), n_shards=1), ["y.pyd"])
    found.read(ids(0))
    (tmp_path / "t-000000.tar").unlink()
    assert [(3,)] == found.read(ids(3))


def test_batches_of_more_shards_than_may_be_open_have_the_same_errors(tmp_path, monkeypatch):
    """What does not fit together, or is left out as a whole, is said as of fewer shards."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", 1)
    samples = [(f"s{size}", {"x.pyd": dumps(torch.zeros(size))}) for size in (2, 3, 4)]
    with pytest.raises(DecodeError, match="3 samples do not fit into one batch"):
        batch_of(reader(write_set(tmp_path / "a", samples)), ids(0, 1, 2))
    found = reader(damaged(tmp_path / "b", bad=range(10)), ["json"], on_error="skip")
    with pytest.raises(DecodeError, match="every sample of this batch is left out"):
        batch_of(found, np.arange(10))


def test_all_readers_of_a_process_share_one_bound_of_open_shards(tmp_path, monkeypatch):
    """Whatever reader they belong to, the shards used longest ago are closed, and those in use stay open."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", 3)
    first, second = (reader(write_set(tmp_path / name, tensors(8), n_shards=8), ["y.pyd"]) for name in "ab")
    before = n_descriptors()
    first.read(ids(0, 1, 2))
    open_in_first = []
    for number in (5, 6, 7):
        assert [(number,)] == second.read(ids(number))
        assert [(2,)] == first.read(ids(2))
        open_in_first.append([shard for shard in range(8) if shard in first._places._open])
    assert [[1, 2], [2], [2]] == open_in_first
    assert [6, 7] == [shard for shard in range(8) if shard in second._places._open]
    assert n_descriptors() <= before + 6


class Descriptors(Dataset):
    """Reads with a reader in a worker, and tells how many descriptors that took."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return 1

    def __getitem__(self, _):
        before = n_descriptors()
        samples = self.reader.read(np.arange(self.reader.n_samples))
        return samples, n_descriptors() - before


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # as workers of loaders are
def test_what_a_forked_worker_inherits_counts_as_open(tmp_path, monkeypatch):
    """A worker closes what its parent read and it does not, before it would have too much open."""
    monkeypatch.setattr(open_shards, "MOST_OPEN", 3)
    train, val = (reader(write_set(tmp_path / name, tensors(8), n_shards=8), ["y.pyd"]) for name in "ab")
    val.read(np.arange(8))
    loader = DataLoader(Descriptors(train), batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [([(number,) for number in range(8)], 0)] == [(list(map(tuple, samples)), more) for samples, more in loader]
    assert 3 == len(val._places._open)


def data_module(directory, **workers):
    """Return a data module over a directory of each split, with its number of workers."""
    return WebDataModule(
        {split: f"{directory}/{split}" for split in workers},
        None,
        ["y.pyd"],
        8,
        "t",
        kwargs_wld={split: {"num_workers": count} for split, count in workers.items()},
    )


def read_in_turn(directory):
    """Read three splits as fit and test do, with few descriptors, and return how many samples came of each."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    module = data_module(directory, train=2, val=0, test=0)
    module.setup("fit")
    train, val = module.train_dataloader(), module.val_dataloader()
    counts = [sum(map(len, loader)) for loader in (val, train, val, train)]
    module.setup("test")
    return [*counts, sum(map(len, module.test_dataloader()))]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # as workers of loaders are
def test_many_shards_in_each_split_need_no_more_descriptors(tmp_path):
    """Training with workers between validations, and a test after it, keep within a low limit on open files."""
    for split in ("train", "val", "test"):
        write_set(tmp_path / split, tensors(80, size=1), n_shards=80)
    gc.collect()  # the process that is forked gets all descriptors, those in garbage of earlier tests too
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert [80] * 5 == pool.submit(read_in_turn, str(tmp_path)).result()


def test_a_data_module_closes_its_shards_when_it_goes(tmp_path):
    """Deleting module, loader and batch is enough; no cycle waits for the garbage collector."""
    write_set(tmp_path / "train", tensors(8), n_shards=8)
    gc.collect()
    before = n_descriptors()
    gc.disable()
    try:
        left = []
        for _ in range(3):
            module = data_module(tmp_path, train=0)
            module.setup("fit")
            loader = module.train_dataloader()
            assert [8] == [len(batch) for batch in loader]
            assert n_descriptors() >= before + 8
            del module, loader
            left.append(n_descriptors() - before)
    finally:
        gc.enable()
    assert [0, 0, 0] == left


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_leave_no_descriptor_and_no_process(tmp_path, workers):
    """After twenty epochs over real shards as many files are open and children alive as after two."""
    write_set(tmp_path / "train", tensors(40), n_shards=5)
    module = data_module(tmp_path, train=workers)
    module.setup("fit")
    loader = module.train_dataloader()
    states = []
    for epochs in (2, 9, 9):
        for _ in range(epochs):
            assert list(range(40)) == sorted(torch.cat(list(loader)).tolist())
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "QueueFeederThread":  # multiprocessing's own, which ends soon after its queue
                thread.join(60)
        states.append((n_descriptors(), len(active_children())))
    assert [states[0]] * 3 == states


def test_memory_stays_flat_while_reading(tmp_path):
    """Neither the number of samples read nor that of epochs shows in what Python has allocated."""
    samples = [(f"s{number}", {"y.pyd": dumps(number)}) for number in range(20_000)]
    found = reader(write_set(tmp_path, samples), ["y.pyd"])
    used = []
    tracemalloc.start()
    try:
        for _ in range(3):
            for part in np.array_split(np.random.default_rng(1).permutation(20_000), 200):
                (values,) = batch_of(found, part)
                assert part.tolist() == values.tolist()
                used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    grown = max(used[20:]) - min(used[20:])
    assert grown < 200_000  # the interpreter's own free lists fill up; an object for each sample would take millions


def test_suffixes_stored_in_two_ways_are_refused(tmp_path):
    """Sets that do not agree on how a suffix is stored cannot be read together."""
    first = ShardSet.open(write_set(tmp_path / "a", [("a", {"json": dumps(1)})], n_shards=1), "t")
    second = ShardSet.open(damaged(tmp_path / "b"), "t")
    with pytest.raises(ConfigError, match=r"'json' is stored as .*pickle in .* and json in"):
        ShardReader([first, second], ["json"])


def test_a_codec_of_the_future_is_refused(tmp_path):
    """A manifest that names a codec this version lacks says to update."""
    directory = write_set(tmp_path, tensors(), codecs={"x.pyd": "zstd-pickle", "y.pyd": "pickle"})
    with pytest.raises(ManifestError, match=r"'zstd-pickle'.*update"):
        reader(directory)
