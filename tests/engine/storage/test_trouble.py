"""Remote shards and everything that goes wrong with them: an S3 server behind a proxy that injects trouble."""

import contextlib
import http.client
import http.server
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule.errors import RemoteError

from .test_remote_shards import ALL, read_all, write_set


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests to a server, and does to the next requests of a file what it is asked to do.

    Attributes:
        faults: For the end of a path what happens to its next requests: a status with headers and a body,
            ``("cut", bytes)``, ``("short", bytes)`` or ``("silent",)``; the last one is repeated.
        seen: Method and path of each request.
    """

    daemon_threads = True

    def __init__(self, host, port):
        self.target, self.faults, self.seen = (host, port), {}, []
        super().__init__(("127.0.0.1", 0), Passing)

    def handle_error(self, *_):
        """Say nothing of clients that went away."""


class Passing(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Pass a request on, or spoil it."""
        self.close_connection = True
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path))
        fault = None
        for end, faults in self.server.faults.items():
            if path.endswith(end) and faults:
                fault = faults.pop(0) if len(faults) > 1 or faults[0][0] != "always" else faults[0][1]
        if fault and fault[0] == "silent":
            time.sleep(30)
            return
        if fault and isinstance(fault[0], int):
            status, headers, body = fault
        else:
            length = int(self.headers.get("Content-Length") or 0)
            connection = http.client.HTTPConnection(*self.server.target)
            connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
            answer = connection.getresponse()
            status, headers, body = answer.status, dict(answer.getheaders()), answer.read()
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        if fault and fault[0] == "short":
            body = body[: fault[1]]
        size = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault[1]] if fault and fault[0] == "cut" else body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names that http.server asks for

    def log_message(self, *_):
        """Keep the tests' output clean."""


EXPIRED = (
    400,
    {"Content-Type": "application/xml"},
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
)
SLOW_DOWN = (503, {"Retry-After": "0"}, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>")
TOO_MANY = (429, {"Retry-After": "0"}, b"")
FAILED = (500, {}, b"<Error><Code>InternalError</Code></Error>")
LAST = "t-000001.tar"


@pytest.fixture(scope="module")
def moto():
    """An S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def proxy(moto, monkeypatch, tmp_path):
    """A bucket with shards behind a proxy."""
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(seconds=12, attempts=4, attempt_seconds=4, first_wait=0.01))
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    found = Proxy(*moto)
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.server_port}")
    bucket = fsspec.filesystem("s3", skip_instance_cache=True)
    with contextlib.suppress(FileExistsError):
        bucket.mkdir("bucket")
    bucket.put(str(write_set(tmp_path / "data")), f"bucket/{tmp_path.name}", recursive=True)
    found.bucket, found.url = bucket, f"s3://bucket/{tmp_path.name}"
    found.seen.clear()
    yield found
    bucket.rm(f"bucket/{tmp_path.name}", recursive=True)
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize(
    "faults",
    [
        [SLOW_DOWN, TOO_MANY],
        [FAILED, SLOW_DOWN],
        [("cut", 700), ("cut", 0)],
        [("short", 512), ("short", 9)],
        [("silent",)],
    ],
    ids=["throttled", "failing", "cut", "short", "silent"],
)
def test_passing_trouble_is_waited_out(proxy, faults):
    """Throttling, errors, cut, short and silent answers cost another attempt and nothing else."""
    found = ShardSet.open(proxy.url, "t")
    proxy.faults = {LAST: [*faults, (None,)]}
    assert ALL == read_all(found)


@pytest.mark.parametrize(
    ("fault", "message"),
    [(("silent",), "no answer within"), (FAILED, "tried 4 times"), (SLOW_DOWN, "tried 4 times"), (EXPIRED, "expired")],
    ids=["silent", "failing", "throttled", "expired"],
)
def test_lasting_trouble_is_a_named_error_within_the_budget(proxy, fault, message):
    """No layer of the client adds attempts of its own, and the error says where and why."""
    found = ShardSet.open(proxy.url, "t", split="train")
    proxy.faults = {LAST: [("always", fault)]}
    proxy.seen.clear()
    reader = ShardReader([found], ["x.pyd"], split="train")
    with pytest.raises(RemoteError, match=message) as caught:
        reader.read(np.arange(9))
    assert "train" == caught.value.where["split"]
    assert f"{proxy.url}/{LAST}" in str(caught.value)
    assert sum(path.endswith(LAST) for _, path in proxy.seen) <= 4


def test_credentials_that_were_renewed_are_used(proxy):
    """After an expired token the client is made anew once, and reads its credentials again."""
    found = ShardSet.open(proxy.url, "t")
    proxy.faults = {LAST: [EXPIRED, (None,)]}
    assert ALL == read_all(found)


def test_a_bucket_that_does_not_exist_is_named_at_once(proxy):
    """It is no data set without a manifest, no empty directory and no missing file, whether it is read or written."""
    directory = RemoteDirectory.at("s3://nobucket/some/train")
    for call in (
        lambda: ShardSet.open(directory.url, "t"),
        lambda: ShardSet.open(f"{directory.url}/t-{{000000..000001}}.tar", "t"),
        directory.list,
        lambda: directory.get("t.manifest.json"),
        lambda: directory.put(b"x", "t.manifest.json"),
        lambda: directory.delete("t.manifest.json"),
    ):
        proxy.seen.clear()
        with pytest.raises(RemoteError, match=r"the bucket of s3://nobucket/some/train\S* does not exist; create it"):
            call()
        assert len(proxy.seen) <= 4  # of several files, or ways to ask for one


def test_objects_replaced_or_deleted_while_read_are_named(proxy, tmp_path):
    """Other bytes of the same size never reach a batch; a deleted object is said to be gone."""
    found = ShardSet.open(proxy.url, "t")
    other = write_set(tmp_path / "other", first=100)
    proxy.bucket.put_file(str(other / LAST), f"{proxy.url}/{LAST}")
    with pytest.raises(RemoteError, match="do not have the checksums of the shard's index"):
        read_all(found)
    proxy.bucket.rm_file(f"{proxy.url}/{LAST}")
    with pytest.raises(RemoteError, match=f"{LAST} is not there"):
        read_all(found)


@pytest.mark.parametrize("kept", [0, 700], ids=["beyond the end", "across the end"])
def test_an_object_that_became_shorter_is_named_at_once(proxy, kept):
    """It is asked for its size, and not again."""
    found = ShardSet.open(proxy.url, "t", split="train")
    proxy.bucket.pipe_file(f"{proxy.url}/{LAST}", proxy.bucket.cat_file(f"{proxy.url}/{LAST}")[:kept])
    proxy.seen.clear()
    with pytest.raises(RemoteError) as caught:
        read_all(found)
    assert (
        f"{proxy.url}/{LAST} has {kept} bytes and must have at least 4096; it was replaced or damaged there: "
        "restore it, or run `webdatamodule convert` with --check"
    ) == caught.value.message
    assert f"{proxy.url}/{LAST}" == caught.value.where["shard"]
    methods = [method for method, path in proxy.seen if path.endswith(LAST)]
    assert (1, "HEAD") == (methods.count("HEAD"), methods[-1])


def test_what_rots_in_the_cache_is_fetched_again_and_never_skipped(proxy, tmp_path, caplog):
    """A later run finds the damage by the checksum; with on_error='skip', too, no sample is left out."""
    caplog.set_level(logging.WARNING, "bionemo.webdatamodule")
    found = ShardSet.open(proxy.url, "t", cache_dir=str(tmp_path / "cache"))
    assert ALL == read_all(found)
    (piece,) = (tmp_path / "cache").rglob(f"{LAST}.*.piece")
    data = bytearray(piece.read_bytes())
    data[513] ^= 1
    piece.write_bytes(data)
    reader = ShardReader([found], ["x.pyd"], on_error="skip")
    assert ALL == [value for (value,) in reader.read(np.arange(9))]
    assert 0 == reader.skipped
    assert "was damaged in the cache and is fetched again" in caplog.text


def test_a_full_cache_directory_that_is_read_only_is_used(proxy, tmp_path):
    """Nothing is written where everything is there."""
    cache = tmp_path / "cache"
    found = ShardSet.open(proxy.url, "t", cache_dir=str(cache))
    assert ALL == read_all(found)
    proxy.seen.clear()
    for path in [*cache.rglob("*"), cache]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert ALL == read_all(found)
        assert [] == proxy.seen
    finally:
        for path in [cache, *cache.rglob("*")]:
            path.chmod(0o755)


def test_a_cache_directory_that_cannot_be_used_is_named(proxy, tmp_path, monkeypatch):
    """A file in the way and a full disk are errors with a remedy; another cache_dir helps."""
    (tmp_path / "file").write_text("")
    found = ShardSet.open(proxy.url, "t", cache_dir=str(tmp_path / "file"))
    with pytest.raises(RemoteError, match=r"file cannot be used: .*; give a cache_dir that is a directory"):
        read_all(found)
    with monkeypatch.context() as patches:
        patches.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        full = ShardSet.open(proxy.url, "t", cache_dir=str(tmp_path / "full"))
        with pytest.raises(RemoteError, match="No space left on device; free space there"):
            read_all(full)
    assert ALL == read_all(ShardSet.open(proxy.url, "t", cache_dir=str(tmp_path / "full")))


def test_a_cache_deleted_while_it_is_used_is_filled_again(proxy, tmp_path):
    """What is mapped stays; what is needed comes again."""
    cache = tmp_path / "cache"
    found = ShardSet.open(proxy.url, "t", cache_dir=str(cache))
    reader = ShardReader([found], ["x.pyd"])
    assert [(0,)] == reader.read(np.array([0]))
    shutil.rmtree(cache)
    assert ALL == [value for (value,) in reader.read(np.arange(9))]


READ = """
import sys
sys.path.insert(0, sys.argv[3])
from tests.engine.storage.test_remote_shards import read_all, ALL
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
print("ready", flush=True)
assert ALL == read_all(ShardSet.open(sys.argv[1], "t", cache_dir=sys.argv[2]))
"""


def test_processes_share_a_cache_and_any_of_them_may_be_killed(proxy, tmp_path):
    """However far a killed process came, the others and the next one read the same data."""
    root = pathlib.Path(__file__).parents[3]
    command = [sys.executable, "-c", READ, proxy.url, str(tmp_path / "cache"), str(root)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for number, child in enumerate(children[:2]):
        child.stdout.readline()
        time.sleep(0.05 * number)
        child.send_signal(signal.SIGKILL)
    assert 0 == children[2].wait(120)
    for child in children:
        child.wait()
        child.stdout.close()
    assert ALL == read_all(ShardSet.open(proxy.url, "t", cache_dir=str(tmp_path / "cache")))
