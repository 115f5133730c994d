"""What obstore needs besides: processes that fork, errors with names, its place before fsspec."""

import http.server
import io
import pickle
import tarfile
import threading

import boto3
import pytest
from obstore import exceptions

from bionemo.webdatamodule import WebDataModule, context
from bionemo.webdatamodule._engine.storage.remote import directory as remote_directory
from bionemo.webdatamodule._engine.storage.remote import retry
from bionemo.webdatamodule._engine.storage.remote.directory import RemoteDirectory
from bionemo.webdatamodule.components import Store
from bionemo.webdatamodule.errors import ChangedDataError, RemoteError
from bionemo.webdatamodule.plugins import find, installed_plugins
from bionemo_webdatamodule_obstore.client import _named
from bionemo_webdatamodule_obstore.store import ObstoreStore


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_directory, "_clients", {})  # the server of each test has a port of its own


def test_workers_are_forked_after_the_main_process_read(bucket, tmp_path, monkeypatch):
    """The main process reads the manifest and converts, and forked workers read the same bucket."""
    from bionemo.webdatamodule import PickledDataWDS
    from bionemo.webdatamodule.pickles import dumps

    for number in range(40):
        (tmp_path / f"s{number:02d}.x.pyd").write_bytes(dumps(number))
    names = [f"s{number:02d}" for number in range(40)]
    data = PickledDataWDS(
        str(tmp_path), "x.pyd", {"train": names}, f"{bucket}/data-", 4, kwargs_wld={"train": {"num_workers": 2}}
    )
    data.prepare_data()
    data.setup("fit")
    assert names == sorted(f"s{int(value):02d}" for batch in data.train_dataloader() for value in batch)
    again = WebDataModule({"train": f"{bucket}/data-train"}, None, "x.pyd", 4)
    again.setup("fit")
    assert list(range(40)) == sorted(int(value) for batch in again.train_dataloader() for value in batch)


def test_errors_have_names(bucket, monkeypatch):
    """Missing files are a FileNotFoundError, missing buckets a RemoteError, from either process."""
    for worker in (context.Worker(), context.Worker(number=0, count=1)):
        store = ObstoreStore()
        with context.working(worker):
            with pytest.raises(FileNotFoundError):
                store.get(f"{bucket}/missing")
            with pytest.raises(RemoteError, match="the bucket of s3://nowhere/missing does not exist"):
                store.get("s3://nowhere/missing")
    with pytest.raises(OSError, match="127"):
        ObstoreStore().get("http://127.0.0.1:1/x")


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("worker", [context.Worker(), context.Worker(number=0, count=1)], ids=["helper", "worker"])
def test_a_bucket_that_does_not_exist_is_named(worker, monkeypatch):
    """It is no missing file and no empty directory to the core, and is not tried again."""
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(attempts=1, first_wait=0))
    with context.working(worker):
        directory = RemoteDirectory.at("s3://nowhere/some", installed_plugins().lookup(Store, "obstore"))
        for call in (
            directory.list,
            lambda: directory.get("x"),
            lambda: directory.read("x", [(0, 1)], [memoryview(bytearray(1))]),
            lambda: directory.put(b"x", "x"),
            lambda: directory.delete("x"),
        ):
            with pytest.raises(RemoteError, match=r"of s3://nowhere/some\S* does not exist; create it") as caught:
                call()
            assert "tried" not in str(caught.value)


@pytest.mark.usefixtures("bucket")
def test_data_in_a_bucket_that_does_not_exist(tmp_path):
    """Neither reading nor converting says that the data or a file are missing; the bucket is made and it works."""
    from bionemo.webdatamodule import PickledDataWDS
    from bionemo.webdatamodule.pickles import dumps

    (tmp_path / "s.x.pyd").write_bytes(dumps(1))
    reading = WebDataModule({"train": "s3://later/data-train"}, None, "x.pyd", 1)
    with pytest.raises(RemoteError, match=r"the bucket of s3://later/data-train/\S* does not exist"):
        reading.setup("fit")
    converting = PickledDataWDS(str(tmp_path), "x.pyd", {"train": ["s"]}, "s3://later/data-", 1)
    with pytest.raises(RemoteError, match=r"the bucket of s3://later/data-train/\S* does not exist"):
        converting.prepare_data()
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="later")
    converting.prepare_data()


@pytest.mark.parametrize(
    "ranges",
    [[(20, 30)], [(5, 30)], [(0, 3), (20, 30)], [(0, 3), (4, 5), (5, 30)]],
    ids=["beyond the end", "across the end", "one of two beyond", "one of three across"],
)
def test_an_object_that_became_shorter_is_named_at_once(bucket, ranges):
    """The core hears from either process that the file ends before, and does not ask again."""
    ObstoreStore().put(b"0123456789", f"{bucket}/x")
    into = [memoryview(bytearray(end - begin)) for begin, end in ranges]
    for worker in (context.Worker(), context.Worker(number=0, count=1)):
        with context.working(worker), pytest.raises(EOFError):
            ObstoreStore().read(f"{bucket}/x", ranges, into)
    with pytest.raises(RemoteError) as caught:
        RemoteDirectory.at(bucket, installed_plugins().lookup(Store, "obstore")).read("x", ranges, into)
    assert (
        f"{bucket}/x has 10 bytes and must have at least 30; it was replaced or damaged there: "
        "restore it, or run `webdatamodule convert` with --check"
    ) == caught.value.message


def test_a_listing_has_the_version_that_an_object_is_asked_for(bucket):
    """Also in a bucket with versioning, whose listings lack it; replaced objects are named."""
    s3 = boto3.client("s3", region_name="us-east-1")
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    old, new = (_tar({"a.txt": text, "b.txt": b"same"}) for text in (b"old", b"new"))
    s3.put_object(Bucket="bucket", Key="d/t-000000.tar", Body=old)
    (listed,), found = ObstoreStore().list(f"{bucket}/d"), ObstoreStore().stat(f"{bucket}/d/t-000000.tar")
    assert listed.version == found.version

    def module():
        data = WebDataModule({"train": f"{bucket}/d"}, None, "txt", 2, prefix_tars_wds="t")
        data.setup("fit")
        return data

    def read(data):
        return sorted(value for batch in data.train_dataloader() for value in batch)

    before = module()
    s3.put_object(Bucket="bucket", Key="d/t-000000.tar", Body=new)
    with pytest.raises(ChangedDataError, match=r"bucket/d/t-000000\.tar was replaced since the data were set up"):
        read(before)
    s3.put_object(Bucket="bucket", Key="d/t-000000.tar", Body=old)
    assert ["old", "same"] == read(module())


def _tar(members):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def test_a_panic_of_the_client_is_an_error_of_its_request(bucket):
    """It is no ``Exception``: obstore 0.12 raises one for neighbouring ranges where the file ends before the last."""
    store = ObstoreStore()
    store.put(b"0123456789", f"{bucket}/x")
    with pytest.raises((OSError, EOFError)):
        store.read(f"{bucket}/x", [(0, 15), (15, 30)], [memoryview(bytearray(15)) for _ in range(2)])
    assert b"0123456789" == store.get(f"{bucket}/x")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("503 Service Unavailable", "SlowDown", OSError),
        ("500 Internal Server Error", "InternalError", OSError),
        ("400 Bad Request", "ExpiredToken", PermissionError),
        ("403 Forbidden", "Other", PermissionError),
        ("401 Unauthorized", "Other", PermissionError),
        ("410 Gone", "Other", FileNotFoundError),
        ("416 Range Not Satisfiable", "InvalidRange", EOFError),
        ("404 Not Found", "Other", OSError),  # of the server that has the credentials; files have a class of their own
    ],
)
def test_only_status_and_code_of_an_answer_name_its_error(status, code, expected):
    """Numbers and words in the URL, the time that it took and the message are no part of the answer."""
    found = _named(
        exceptions.GenericError(
            "Generic S3 error: Error performing GET http://127.0.0.1:404/run-403/AccessDenied/train-000401.tar/range"
            f" in 410.416µs - Server returned non-2xx status code: {status}: <Error><Code>{code}</Code>"
            "<Message>404 NoSuchKey, 403 Forbidden, Range 416</Message></Error>\n\nDebug source:\nstatus: 404"
        ),
        "s3://bucket/x",
    )
    assert expected is type(found)
    assert status in str(found)


def test_what_has_no_status_is_named_by_its_class_or_its_end():
    """A refused deletion comes with the status 200; a connection that fails has no status at all."""
    for text, expected in {
        "DeleteObjects request failed for key a/404: Access Denied (code: AccessDenied)": PermissionError,
        "DeleteObjects request failed for key a (code: AccessDenied): Again (code: SlowDown)": OSError,
        "Received non-partial response when range requested": NotImplementedError,
        "Error performing GET http://127.0.0.1:404/403 in 401µs - HTTP error: error sending request": OSError,
        "Error performing list request: Error performing GET http://h/b?list-type=2 in 1ms - "
        "Server returned non-2xx status code: 404 Not Found: ": FileNotFoundError,
    }.items():
        error = exceptions.GenericError(f"Generic S3 error: {text}\n\nDebug source:\nx")
        assert expected is type(_named(error, "s3://bucket/x"))
    for made, expected in {
        exceptions.NotFoundError: FileNotFoundError,
        exceptions.PermissionDeniedError: PermissionError,
        exceptions.UnauthenticatedError: PermissionError,
        exceptions.NotSupportedError: NotImplementedError,
    }.items():
        assert expected is type(_named(made("503"), "s3://bucket/x"))


@pytest.mark.parametrize("number", [401, 403, 404, 410, 416])
def test_a_busy_server_is_asked_again_whatever_the_url_says(number, monkeypatch):
    """A file of the run 404 is fetched by the second attempt, and read as a whole and in part."""
    monkeypatch.setattr(retry, "BUDGET", retry.Budget(first_wait=0.001, attempts=2))
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            busy = len(seen) % 2
            self.send_response(503 if busy else 206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", "0" if busy else "3")
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Content-Range", "bytes 0-2/3")
            self.end_headers()
            self.wfile.write(b"" if busy else b"abc")

        def log_message(self, *_):
            """Keep the tests' output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with context.working(context.Worker(number=0, count=1)):
        directory = RemoteDirectory.at(
            f"http://127.0.0.1:{server.server_port}/run-{number}", installed_plugins().lookup(Store, "obstore")
        )
        assert b"abc" == directory.get(f"{number}.json")
        memory = memoryview(bytearray(3))
        directory.read(f"train-000{number}.tar", [(0, 3)], [memory])
        assert b"abc" == memory
    assert 4 == len(seen)
    server.shutdown()
    server.server_close()


def test_web_servers_are_read_by_ranges_and_not_listed():
    """Ranges, sizes and whole files of a web server; its names are quoted."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin, end = 0, 10
            if "Range" in self.headers:
                begin, end = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
                end += 1
            body = b"0123456789"[begin:end] if self.path == "/a%20b" else b""
            self.send_response((206 if "Range" in self.headers else 200) if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/10")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

        def log_message(self, *_):
            """Keep the tests' output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/a%20b"
    with context.working(context.Worker(number=0, count=1)):
        store = ObstoreStore()
        memory = memoryview(bytearray(3))
        store.read(url, [(2, 5)], [memory])
        assert b"234" == bytes(memory)
        assert b"0123456789" == store.get(url)
        with pytest.raises(FileNotFoundError):
            store.get(url.replace("b", "c"))
        with pytest.raises(NotImplementedError):
            store.list(url)
    server.shutdown()
    server.server_close()


def test_the_helper_ends_with_its_store_and_is_made_anew(bucket):
    """A helper that was killed is an error of that attempt, and the next attempt has a new one."""
    store = ObstoreStore()
    store.put(b"x", f"{bucket}/x")
    process = store._helper._process
    process.kill()
    process.wait()
    assert b"x" == store.get(f"{bucket}/x")
    assert process is not store._helper._process
    last = store._helper._process
    del store
    assert last.wait(20) is not None


def test_the_helper_imports_what_its_parent_would(bucket, tmp_path, monkeypatch):
    """Modules in the working directory do not take the place of others, which ``python -c`` would let them."""
    for name in ("asyncio", "bionemo_webdatamodule_obstore", "obstore", "pickle", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    store = ObstoreStore()
    store.put(b"x", f"{bucket}/x")
    assert b"x" == store.get(f"{bucket}/x")


def test_the_store_pickles_without_its_client(bucket):
    """A pickled store opens a client of its own."""
    store = ObstoreStore()
    store.put(b"x", f"{bucket}/x")
    assert b"x" == pickle.loads(pickle.dumps(store)).get(f"{bucket}/x")


def test_it_is_found_by_its_name():
    """The entry point works."""
    assert "s3" in find(Store, "obstore").schemes
