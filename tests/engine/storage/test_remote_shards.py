import contextlib
import fcntl
import hashlib
import http.server
import logging
import multiprocessing
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from tests.helpers.fetching import wait_for_background

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule._engine.format.index import index_name
from bionemo.webdatamodule._engine.format.manifest import Manifest, ShardEntry, journal_path, manifest_path
from bionemo.webdatamodule._engine.format.tar_write import ShardWriter
from bionemo.webdatamodule._engine.loading import dataset
from bionemo.webdatamodule._engine.reading import open_shards
from bionemo.webdatamodule._engine.reading.open_pieces import OpenPieces
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule._engine.storage.remote.urls import shown
from bionemo.webdatamodule._engine.storage.shard_cache import Cache
from bionemo.webdatamodule._engine.writing.adopt import adopt_remote
from bionemo.webdatamodule.errors import (
    ChangedDataError,
    ConfigError,
    CorruptShardError,
    ManifestError,
    NoShardsError,
    RemoteError,
)
from bionemo.webdatamodule.pickles import dumps


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0.001, attempts=5))


def write_set(directory, first=0, n=9, n_shards=3, value=lambda number: number):
    """Write numbers as samples to a directory, as a conversion does, or what a function makes of them."""
    directory.mkdir(parents=True)
    entries = []
    for number in range(n_shards):
        path = directory / f"t-{number:06d}.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file.fileno(), path=str(path))
            for sample in range(number, n, n_shards):
                writer.add(f"s{sample}", [("x.pyd", dumps(value(first + sample)))])
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
    manifest = Manifest(prefix="t", suffixes=("x.pyd",), codecs={"x.pyd": "pickle"}, shards=tuple(entries))
    pathlib.Path(manifest_path(str(directory), "t")).write_text(manifest.to_json())
    return directory


ALL = [0, 3, 6, 1, 4, 7, 2, 5, 8]


def read_all(found):
    """Return all samples of a set."""
    reader = ShardReader([found], ["x.pyd"])
    return [value for (value,) in reader.read(np.arange(reader.n_samples))]


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory, and misbehaves as often as it is told to.

    Attributes:
        faults: For each path a list of what happens to its next requests: a status, seconds to wait, or ("cut", bytes).
        seen: The paths asked for.
        asked: The paths of which only the size and the version were asked for.
        tagged: Whether files have an ETag.
        ranges: Whether parts of files are sent.
        missing: The status of files that are not there.
        dated: Whether answers say when a file was modified.
    """

    def __init__(self, root):
        self.root, self.faults, self.seen, self.ranges = root, {}, [], True
        self.missing, self.dated = 404, False
        self.asked, self.tagged = [], False
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_):
        """Say nothing of clients that went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    def do_HEAD(self):
        """Say how large a file is."""
        path = self.path.partition("?")[0].lstrip("/")
        self.server.asked.append(path)
        file = self.server.root / path
        faults = self.server.faults.get(f"HEAD {path}", [])
        fault = faults.pop(0) if faults else None
        self.send_response(fault or (200 if file.is_file() else self.server.missing))
        self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
        if self.server.dated and file.is_file():
            self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        if self.server.tagged and file.is_file():
            self.send_header("ETag", hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest())
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        """Send a file, part of it, or an error."""
        path = self.path.partition("?")[0].lstrip("/")
        self.server.seen.append(self.path.lstrip("/"))
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        file = self.server.root / path
        if isinstance(fault, float):
            time.sleep(fault)
        if isinstance(fault, int) or not file.is_file():
            self.send_error(fault or self.server.missing)
            return
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = asked if self.server.ranges else None
        if asked and int(asked[1]) >= len(data):
            self.send_error(416)
            return
        if asked:
            data = data[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        self.wfile.write(data if not isinstance(fault, tuple) else data[: fault[1]])
        self.close_connection = True

    def log_message(self, *_):
        """Keep the tests' output clean."""


@pytest.fixture
def server(tmp_path):
    """Serve the directory ``www``."""
    found = Server(tmp_path / "www")
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    found.url = f"http://127.0.0.1:{found.server_port}"
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_shards_come_down_once(server):
    """A second reader, also in another epoch or process, finds them in the store and only asks for the manifest."""
    write_set(server.root / "data")
    first = ShardSet.open(f"{server.url}/data", "t")
    assert 9 == first.n_samples
    assert ALL == read_all(first)
    server.seen.clear()
    assert ALL == read_all(pickle.loads(pickle.dumps(first)))
    assert [] == server.seen
    assert ALL == read_all(ShardSet.open(f"{server.url}/data/", "t"))
    assert ["data/t.manifest.json", "data/t.manifest.next.json"] == sorted(server.seen)


@pytest.mark.parametrize("part", [0, 0.2, 0.4, 0.6, 0.8, 0.99])
def test_cut_downloads_are_repeated(server, part, caplog):
    """A connection that closes early never gives short data, wherever it is cut."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    size = (write_set(server.root / "data") / "t-000001.tar").stat().st_size
    server.faults["data/t-000001.tar"] = [("cut", int(size * part))] * 2
    assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t"))
    assert 2 == caplog.text.count("trying again")


def test_busy_servers_and_changed_bytes_are_tried_again(server):
    """Status 503 and a file that came down with other bytes are repeated, manifest and index included."""
    write_set(server.root / "data")
    server.faults = {
        "data/t.manifest.json": [503, 500],
        "data/t-000000.tar": [503, "flip", ("cut", 1000)],
        "data/t-000002.tar.idx": ["flip"],
    }
    assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t"))


def test_what_does_not_work_is_an_error_with_the_url(server, tmp_path):
    """After all attempts the error names the URL, keeps the cause, and nothing is left behind."""
    write_set(server.root / "data")
    server.faults["data/t-000001.tar"] = [503] * 100
    found = ShardSet.open(f"{server.url}/data", "t", split="val", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(
        RemoteError, match=r"/data/t-000001.tar cannot be fetched or stored, tried 5 times in 0 s; .*503"
    ) as caught:
        read_all(found)
    assert caught.value.__cause__ is not None
    assert 5 == 100 - len(server.faults["data/t-000001.tar"])
    (server.root / "data" / "t-000001.tar").unlink()
    server.faults.clear()
    with pytest.raises(RemoteError, match=r"t-000001.tar is not there"):
        read_all(found)
    wait_for_background()
    names = sorted(path.name for path in (tmp_path / "cache").rglob("*.*"))
    assert [] == [name for name in names if name.startswith((".", "t-000001.tar.lock"))]


def test_a_shard_that_never_fits_the_manifest_is_refused(server):
    """A shard replaced on the server is not read in place of the one that the manifest lists."""
    data = write_set(server.root / "data")
    shutil.copy(write_set(server.root / "other", first=100) / "t-000001.tar", data)
    with pytest.raises(
        RemoteError, match="do not have the checksums of the shard's index; it was replaced or damaged there"
    ):
        read_all(ShardSet.open(f"{server.url}/data", "t"))


@pytest.mark.parametrize("kept", [0, 700], ids=["beyond the end", "across the end"])
def test_a_shard_that_became_shorter_is_an_error_at_once(server, kept):
    """The server's 416 and its short answer are not asked for again where the file itself is shorter."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t")
    os.truncate(server.root / "data" / "t-000001.tar", kept)
    server.seen.clear()
    url = f"{server.url}/data/t-000001.tar"
    with pytest.raises(RemoteError) as caught:
        read_all(found)
    assert (
        f"{url} has {kept} bytes and must have at least 4096; it was replaced or damaged there: "
        "restore it, or run `webdatamodule convert` with --check"
    ) == caught.value.message
    assert url == caught.value.where["shard"]
    assert 1 == server.seen.count("data/t-000001.tar")


@pytest.mark.parametrize("kept", [0, 50])
def test_an_index_that_became_shorter_is_made_anew(server, kept):
    """It is fetched as a whole, so that its hash is what shows it."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t")
    os.truncate(server.root / "data" / "t-000001.tar.idx", kept)
    assert ALL == read_all(found)


def test_a_missing_index_is_made_anew(server):
    """A shard whose index is not on the server is hashed and indexed here."""
    (write_set(server.root / "data") / "t-000001.tar.idx").unlink()
    assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t"))


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 50), lambda path: path.write_bytes(b"")])
def test_a_made_index_that_is_damaged_in_the_cache_is_made_again(server, tmp_path, damage):
    """As everything there that rots."""
    (write_set(server.root / "data") / "t-000001.tar.idx").unlink()
    for _ in range(2):
        assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache")))
        (made,) = (tmp_path / "cache").rglob("*.made")
        damage(made)


def test_many_readers_make_a_missing_index_once(server, tmp_path):
    """None removes the shard that another is looking at."""
    (write_set(server.root / "data") / "t-000001.tar.idx").unlink()
    server.faults["data/t-000001.tar"] = [0.2]
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache"))
    copies = [pickle.loads(pickle.dumps(found)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert [3] * 8 == [index.n_samples for index in pool.map(lambda copy: copy.index(1), copies)]
    assert 1 == server.seen.count("data/t-000001.tar")


def test_the_right_to_read_is_enough_for_whole_data(server):
    """Where listing is not permitted, servers say so of each missing file: here of the journal and an index."""
    (write_set(server.root / "data") / "t-000001.tar.idx").unlink()
    server.missing = 403
    assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t"))
    url = f"{server.url}/nowhere"
    with pytest.raises(RemoteError) as caught:
        ShardSet.open(url, "t")
    assert (
        f"{url}/t.manifest.json is not permitted: the server answers 403; a server that does not permit listing says "
        "so of a missing file as well: correct the URL, or ask for the right to read and to list"
    ) == caught.value.message


@pytest.mark.parametrize("cut", [b"", b"half"])
def test_a_manifest_that_arrives_cut_is_asked_for_again(server, monkeypatch, cut):
    """Where the answer has no length, nothing else shows it."""
    write_set(server.root / "data")
    get, answers = RemoteDirectory.get, [cut]

    def once_cut(self, name):
        return answers.pop() if answers and name == "t.manifest.json" else get(self, name)

    monkeypatch.setattr(RemoteDirectory, "get", once_cut)
    assert ALL == read_all(ShardSet.open(f"{server.url}/data", "t"))
    assert [] == answers


def test_a_server_that_sends_whole_files_is_not_asked_again(server):
    """Shards are read by parts; the error says what kind of server they need."""
    write_set(server.root / "data")
    server.ranges = False
    directory = RemoteDirectory.at(f"{server.url}/data")
    with pytest.raises(RemoteError, match=r"t-000000\.tar: the server does not send parts of files.*such as nginx"):
        directory.read("t-000000.tar", [(512, 1024)], [memoryview(bytearray(512))])
    assert ["data/t-000000.tar"] == server.seen


def test_no_manifest_says_what_to_do(server):
    """Without a manifest, or while a conversion is published, remote shards are not read."""
    with pytest.raises(
        NoShardsError,
        match=r"no manifest at http.*, and the files of .* cannot be listed; give the shards as a pattern",
    ) as caught:
        ShardSet.open(f"{server.url}/data", "t", split="val")
    assert "val" == caught.value.where["split"]
    data = write_set(server.root / "data")
    pathlib.Path(journal_path(str(data), "t")).write_text("{}")
    with pytest.raises(ManifestError, match="being published"):
        ShardSet.open(f"{server.url}/data", "t")


def test_splits_do_not_share_names_in_the_store(server):
    """Shards of one name in two directories stay apart, and so do two states of one directory."""
    write_set(server.root / "data-train")
    write_set(server.root / "data-val", first=100)
    train, val = (ShardSet.open(f"{server.url}/data-{split}", "t") for split in ("train", "val"))
    assert ALL == read_all(train)
    assert [100 + number for number in ALL] == read_all(val)
    shutil.rmtree(server.root / "data-train")
    write_set(server.root / "data-train", first=500)
    assert [500 + number for number in ALL] == read_all(ShardSet.open(f"{server.url}/data-train", "t"))
    assert ALL == read_all(train)


def test_secrets_in_a_url_are_used_and_not_shown(server, caplog):
    """Signatures stay at the end of each URL; user names, passwords and signatures are in no message."""
    caplog.set_level(logging.INFO, "bionemo.webdatamodule")
    write_set(server.root / "data")
    url = f"{server.url}/data?token=geheim"
    server.faults["data/t-000001.tar"] = [503]
    assert ALL == read_all(ShardSet.open(url, "t"))
    assert all(path.endswith("?token=geheim") for path in server.seen)
    with pytest.raises(NoShardsError) as caught:
        ShardSet.open(url, "u")
    assert "503" in caplog.text
    assert "geheim" not in caplog.text + str(caught.value)
    assert "https://host/a" == shown("https://me:geheim@host/a?b")


def test_quotes_in_a_url_run_nothing(server, tmp_path):
    """A URL is never part of a command."""
    with pytest.raises(NoShardsError):
        ShardSet.open(f"{server.url}/x'; touch {tmp_path}/ran; '", "t")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("url", ["nothing://data", "gopher+x://data"])
def test_unknown_kinds_of_urls_are_refused(url):
    """A scheme that fsspec does not know is an error of configuration."""
    with pytest.raises(ConfigError, match="cannot be opened"):
        ShardSet.open(url, "t")


def test_any_file_system_of_fsspec_works(tmp_path):
    """memory:// stands for all the others."""
    memory = fsspec.filesystem("memory")
    memory.put(str(write_set(tmp_path / "data")), "/remote", recursive=True)
    assert ALL == read_all(ShardSet.open("memory://remote", "t"))
    memory.rm("/remote", recursive=True)


def test_s3_works(tmp_path, monkeypatch):
    """Shards in a bucket are read through fsspec, with keys and endpoint from the environment."""
    from moto.server import ThreadedMotoServer

    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        bucket = fsspec.filesystem("s3")
        bucket.mkdir("bucket")
        bucket.put(str(write_set(tmp_path / "data")), "bucket/some/data", recursive=True)
        found = ShardSet.open("s3://bucket/some/data", "t")
        assert ALL == read_all(found)
        with pytest.raises(NoShardsError):
            ShardSet.open("s3://bucket/nowhere", "t")
    finally:
        server.stop()
        with contextlib.suppress(AttributeError):
            bucket.clear_instance_cache()


def test_the_store_is_bounded(server, tmp_path):
    """What was used longest ago goes first; readers go on, and fetch again what is gone."""
    shard = write_set(server.root / "data", n=90, n_shards=9) / "t-000000.tar"
    room = 4 * shard.stat().st_size
    cache = tmp_path / "cache"
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(cache), cache_size=room)
    reader = ShardReader([found], ["x.pyd"])
    for _ in range(2):
        for number in range(0, 90, 10):
            assert 10 == len(reader.read(np.arange(number, number + 10)))
            wait_for_background()
            used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
            assert used <= room + shard.stat().st_size
    assert sorted(range(90)) == sorted(read_all(found))


def removed_pieces(pid="self"):
    """Return the pieces that a process has mapped although they were removed, so that they take space on the disk."""
    lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if line.endswith(".piece (deleted)")}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_disk_is_bounded(server, tmp_path, monkeypatch, workers):
    """No process keeps pieces on the disk that were removed from the cache, but for a few that it is reading."""
    monkeypatch.setattr(open_shards, "KEPT", 200_000)  # four pieces of two samples
    monkeypatch.setattr(dataset, "CHUNK_BYTES", 1)  # one batch is read at a time
    write_set(server.root / "data", n=512, n_shards=32, value=lambda number: (number, bytes(20_000)))
    where = {"cache_dir": str(tmp_path / "cache"), "cache_size": 1_000_000}
    module = WebDataModule(
        {"train": f"{server.url}/data"},
        None,
        "x.pyd",
        8,
        prefix_tars_wds="t",
        kwargs_wds={"train": where},
        kwargs_wld={"train": {"num_workers": workers}},
    )
    module.setup("fit")
    before = removed_pieces()  # of other tests
    for _ in range(2):
        seen, peak = [], 0
        for numbers, _ in module.train_dataloader():
            seen += numbers.tolist()
            pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            peak = max(peak, *(len(removed_pieces(pid) - before) for pid in pids))
        assert list(range(512)) == sorted(seen)
        assert peak <= 4 + 2 * 8 + 4  # kept, of this batch and the next, and a part of the cache just removed
        wait_for_background()
        assert len(removed_pieces() - before) <= 4 + 8  # kept, and of the last batch


def test_removed_pieces_are_closed_but_for_those_that_are_read(server, tmp_path, monkeypatch):
    """What was read to its end is closed first, then what was opened first; on a full disk everything is."""
    write_set(server.root / "data", n=40, n_shards=4)
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache"))
    reader = ShardReader([found], ["x.pyd"])
    reader.follow([range(40)], 0)
    reader.read(np.arange(10))
    for first in (10, 20, 30):
        reader.read(np.arange(first, first + 5))
    wait_for_background()
    pieces = sorted((tmp_path / "cache").rglob("*.piece"))
    before = removed_pieces()
    cache = found.remote.cache

    def left(**options):
        open_shards.close_removed([cache.root], **options)
        return len(removed_pieces() - before)

    cache.free(1 << 30)
    assert not any(map(os.path.exists, pieces))
    assert 4 == len(removed_pieces() - before)
    assert 3 == left()
    monkeypatch.setattr(open_shards, "KEPT", 20_000)
    assert 3 == left()  # nothing was removed since
    pieces[0].write_bytes(b"a piece that takes the place of one that was removed")
    cache.free(1)
    assert 1 == left()
    assert list(range(40)) == sorted(value for (value,) in reader.read(np.arange(40)))
    cache.free(1 << 30)
    assert 0 == left(is_full=True)
    assert list(range(40)) == sorted(value for (value,) in reader.read(np.arange(40)))


def test_files_removed_from_the_store_are_fetched_again(server, tmp_path):
    """The store may be deleted at any time, also in part, also while it is used."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache"))
    reader = ShardReader([found], ["x.pyd"])
    assert [(0,)] == reader.read(np.array([0]))
    wait_for_background()
    shutil.rmtree(tmp_path / "cache")
    assert ALL == [value for (value,) in reader.read(np.arange(9))]
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert ALL == read_all(found)


@pytest.mark.parametrize("failures", [4, 5])
def test_pieces_that_others_remove_are_opened_again(server, tmp_path, monkeypatch, failures):
    """Five times are enough for anybody's cache; what the last attempt finds counts as well."""
    write_set(server.root / "data", n_shards=1)
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache"))
    opened, left = OpenPieces._map, [failures]

    def removed(self, piece):
        left[0] -= 1
        if left[0] >= 0:
            raise FileNotFoundError(piece.path)
        return opened(self, piece)

    monkeypatch.setattr(OpenPieces, "_map", removed)
    if failures < 5:
        assert list(range(9)) == read_all(found)
        return
    with pytest.raises(RemoteError, match="pieces of 1 shard are removed from the cache before they are read"):
        read_all(found)


def test_cut_files_in_the_store_are_fetched_again(server, tmp_path):
    """A file of the wrong size, as a full disk leaves it, is not taken for the shard."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t", cache_dir=str(tmp_path / "cache"))
    assert ALL == read_all(found)
    kept = sorted((tmp_path / "cache").rglob("t-*"))
    assert [".piece"] * 3 + [".idx"] * 3 == sorted((path.suffix for path in kept), reverse=True)
    for path in kept:
        path.write_bytes(b"half")
    assert ALL == read_all(found)


def test_what_will_be_read_is_fetched_ahead(server):
    """Before anything is read, the pieces that a plan needs come in its order."""
    write_set(server.root / "data", n=12, n_shards=6)
    found = ShardSet.open(f"{server.url}/data", "t")
    reader = ShardReader([found], ["x.pyd"])
    server.seen.clear()
    reader.follow([np.array([8, 9]), range(2, 4)])
    until(lambda: 2 == sum(name.endswith(".tar") for name in server.seen))
    wait_for_background()
    assert ["data/t-000001.tar", "data/t-000004.tar"] == sorted(name for name in server.seen if name.endswith(".tar"))
    server.seen.clear()
    assert [(4,), (1,), (7,), (10,)] == reader.read(np.array([8, 2, 3, 9]))
    assert [] == server.seen


def until(true, seconds=20):
    """Wait until something becomes true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_readers_fetch_a_shard_once(server):
    """Whoever needs a shard that is on its way waits for it."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t")
    server.seen.clear()
    with ThreadPoolExecutor(8) as pool:
        assert [ALL] * 8 == list(pool.map(read_all, [found] * 8))
    assert 6 == len(server.seen)
    assert 6 == len(set(server.seen))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # as workers of loaders are
def test_readers_in_forked_processes_fetch_a_shard_once(server):
    """Processes agree through the store; what a parent had open does not disturb its children."""
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data", "t")
    read_all(ShardSet.open(f"{server.url}/data", "t", cache_dir=os.environ["XDG_CACHE_HOME"] + "/other"))
    server.seen.clear()
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = int(read_all(found) != ALL)
            os._exit(code)
        children.append(child)
    assert [0, 0, 0] == [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert 6 == len(server.seen)


def test_what_a_dead_process_left_is_removed(tmp_path):
    """A half written file of a killed download goes with the next one, and its lock does not last."""
    store = Cache.of("x", root=str(tmp_path))
    directory = pathlib.Path(store.path("a")).parent

    def die(target):
        pathlib.Path(target).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        store.fetch("a", 3, die)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert b"half" in [found.read_bytes() for found in directory.iterdir()]
    path = store.fetch("a", 3, lambda target: pathlib.Path(target).write_bytes(b"abc"))
    assert b"abc" == pathlib.Path(path).read_bytes()
    assert ["a"] == [found.name for found in directory.iterdir()]


def test_a_failed_download_leaves_nothing(tmp_path):
    """An error while a file is written removes what there is of it."""
    store = Cache.of("x", root=str(tmp_path))

    def fail(target):
        pathlib.Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch("a", 3, fail)
    assert [] == list(pathlib.Path(store.path("a")).parent.iterdir())


def test_a_store_without_locks_works(tmp_path, monkeypatch):
    """Some network file systems cannot lock; then two may fetch, and the result is the same."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    store = Cache.of("x", root=str(tmp_path))
    path = store.fetch("a", 3, lambda target: pathlib.Path(target).write_bytes(b"abc"))
    assert b"abc" == pathlib.Path(path).read_bytes()


def test_shards_without_a_manifest_are_listed_and_indexed_once(tmp_path):
    """Their headers are walked by ranges, samples are counted, and the next time the index comes from the cache."""
    data = write_set(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    for path in data.glob("*.tar"):
        memory.pipe_file(f"/foreign/{path.name}", path.read_bytes())
    try:
        found = ShardSet.open("memory://foreign", "t")
        assert (3, 3, 3) == found.samples
        assert ALL == read_all(found)
        (data / "t.manifest.json").unlink()
        assert ShardSet.open(data, "t").digest == found.digest
        assert found.digest == ShardSet.open("memory://foreign", "t").digest
        with pytest.raises(NoShardsError, match=r"their prefix is 't'"):
            ShardSet.open("memory://foreign", "u")
    finally:
        memory.rm("/foreign", recursive=True)


def test_shards_of_a_web_server_are_given_as_a_pattern(server):
    """Where files cannot be listed, their names are expanded from ranges of numbers."""
    data = write_set(server.root / "data")
    for path in data.glob("t.manifest*"):
        path.unlink()
    found = ShardSet.open(f"{server.url}/data/t-{{000000..000002}}.tar", "t")
    assert ALL == read_all(found)
    server.seen.clear()
    assert ALL == read_all(ShardSet.open(f"{server.url}/data/t-{{000000..000002}}.tar", "t"))
    assert [] == server.seen


def test_a_busy_server_does_not_lack_shards_of_a_pattern(server, caplog):
    """What is not known to be missing is asked for again."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    write_set(server.root / "data")
    for number, fault in enumerate((503, 429, 500)):
        server.faults[f"HEAD data/t-00000{number}.tar"] = [fault]
        server.faults[f"data/t-00000{number}.tar"] = [fault]
    assert ALL == read_all(ShardSet.open(f"{server.url}/data/t-{{000000..000002}}.tar", "t"))
    assert 3 == caplog.text.count("trying again")


def test_shards_of_a_pattern_that_are_replaced_are_read_anew(server, tmp_path):
    """The time of modification is the version where a server has no other."""
    server.dated = True
    data = write_set(server.root / "data")
    for path in (write_set(server.root / "other", first=100)).glob("*.tar"):
        os.utime(path, (1e9, 1e9))
    pattern = f"{server.url}/data/t-{{000000..000002}}.tar"
    for first in (0, 100):
        found = ShardSet.open(pattern, "t", cache_dir=str(tmp_path / "cache"))
        assert [first + number for number in ALL] == read_all(found)
        for path in (server.root / "other").glob("*.tar"):
            shutil.copy2(path, data)


@pytest.fixture
def replaced(server, tmp_path):
    """Return what puts shards without a manifest on a server whose files have versions, and returns their pattern."""
    server.tagged = True

    def put(first):
        made = tmp_path / f"made-{first}"
        if not made.exists():
            write_set(made, first=first)
        for path in made.glob("*.tar"):
            (server.root / "data").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, server.root / "data" / f".{path.name}")
            (server.root / "data" / f".{path.name}").replace(server.root / "data" / path.name)
        return f"{server.url}/data/t-{{000000..000002}}.tar"

    return put


def _tag(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("first", [100, 100_000], ids=["the same layout", "longer fields"])
def test_shards_without_a_manifest_that_are_replaced_are_named(server, replaced, tmp_path, first):
    """Bytes of another version are neither read nor kept, and a new module reads what is there by then."""
    pattern, cache = replaced(0), tmp_path / "cache"
    before = ShardSet.open(pattern, "t", split="train", cache_dir=str(cache))
    shard = server.root / "data" / "t-000001.tar"
    old = _tag(shard)
    assert pattern == replaced(first)
    url = f"{server.url}/data/t-000001.tar"
    server.asked.clear()
    with pytest.raises(ChangedDataError) as caught:
        ShardReader([before], ["x.pyd"], split="train").read(np.array([3]))
    assert (
        f"{url} was replaced since the data were set up: its version is {_tag(shard)!r} and was {old!r}; "
        "start again, or write a manifest with `webdatamodule index`, whose checksums are compared instead"
    ) == caught.value.message
    assert {"split": "train", "shard": url} == {name: caught.value.where[name] for name in ("split", "shard")}
    assert ["data/t-000001.tar"] == server.asked
    with pytest.raises(ChangedDataError, match="was replaced since"):
        read_all(before)
    wait_for_background()
    assert not [path for path in cache.rglob("*.piece") if any(path.read_bytes())]
    assert [first + number for number in ALL] == read_all(ShardSet.open(pattern, "t", cache_dir=str(cache)))
    replaced(0)
    assert ALL == read_all(ShardSet.open(pattern, "t", cache_dir=str(cache)))


def test_a_shard_that_is_replaced_while_it_is_fetched_is_named(replaced, tmp_path, monkeypatch):
    """The walk over headers, a piece and a whole shard are of one version, or an error that leaves nothing."""
    cache = tmp_path / "cache"
    read, then = RemoteDirectory.read, []

    def read_and_replace(self, *args):
        read(self, *args)
        if then:
            replaced(then.pop())

    monkeypatch.setattr(RemoteDirectory, "read", read_and_replace)
    then.append(100)
    with pytest.raises(ChangedDataError, match="was replaced since the data were set up"):
        ShardSet.open(replaced(0), "t", cache_dir=str(cache))
    found = ShardSet.open(replaced(0), "t", cache_dir=str(cache))
    then.append(200)
    with pytest.raises(ChangedDataError, match="was replaced since the data were set up"):
        ShardReader([found], ["x.pyd"]).read(np.array([3]))
    replaced(0)
    then.append(300)
    with pytest.raises(ChangedDataError, match="was replaced since the data were set up"):
        found.remote.whole(1)
    wait_for_background()
    assert not [path for path in cache.rglob("*.piece") if any(path.read_bytes())]
    assert not list(cache.rglob("*.tar"))


def test_versions_are_asked_for_only_where_there_are_no_checksums(server, replaced, tmp_path):
    """Each piece of a shard without a manifest costs two requests for its version; checksums need none."""
    found = ShardSet.open(replaced(0), "t", cache_dir=str(tmp_path / "cache"))
    server.asked.clear()
    assert ALL == read_all(found)
    assert sorted([f"data/t-00000{number}.tar" for number in range(3)] * 2) == sorted(server.asked)
    assert ALL == read_all(found)
    assert 6 == len(server.asked)
    write_set(server.root / "listed")
    server.asked.clear()
    assert ALL == read_all(ShardSet.open(f"{server.url}/listed", "t"))
    assert [] == server.asked


def test_a_shard_without_a_version_that_was_replaced_gets_a_manifest(server, replaced):
    """Where the server has no versions, a member of another size is named with a remedy that works for a URL."""
    server.tagged = False
    found = ShardSet.open(replaced(0), "t")
    replaced(100_000)
    with pytest.raises(CorruptShardError) as caught:
        read_all(found)
    assert (
        "the header at byte 0 is not what it was when the shard was indexed; "
        "restore the shard, or write a manifest with `webdatamodule index`"
    ) == caught.value.message
    adopt_remote(f"{server.url}/data/t-{{000000..000002}}.tar", "t", output=str(server.root / "data"))
    assert [100_000 + number for number in ALL] == read_all(ShardSet.open(f"{server.url}/data", "t"))


def test_the_signature_of_a_pattern_is_used_and_not_shown(server, caplog):
    """It follows the name of each shard, slashes in it included, as it does those of a directory."""
    caplog.set_level(logging.INFO, "bionemo.webdatamodule")
    write_set(server.root / "data")
    found = ShardSet.open(f"{server.url}/data/t-{{000000..000002}}.tar?token=ge/heim", "t")
    assert ALL == read_all(found)
    assert {f"data/t-00000{number}.tar?token=ge/heim" for number in range(3)} == set(server.seen)
    assert "heim" not in caplog.text + " ".join(map(str, found.paths))


def test_a_process_that_ends_while_it_fetches_says_nothing(server, tmp_path):
    """What is fetched ahead is given up, without a retry, when the interpreter closes its connections."""
    write_set(server.root / "data")
    server.faults = {"data/t-000002.tar": [3.0] * 9}
    code = f"""
from bionemo.webdatamodule import WebDataModule

options = {{"test": {{"cache_dir": {str(tmp_path / "cache")!r}}}}}
module = WebDataModule(
    {{"test": "{server.url}/data"}}, None, "x.pyd", 1, prefix_tars_wds="t", kwargs_wds=options
)
module.setup("test")
next(iter(module.test_dataloader()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "", "") == (ended.returncode, ended.stdout, ended.stderr)
    assert "data/t-000002.tar" in server.seen
