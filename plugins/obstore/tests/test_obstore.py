"""What obstore needs besides: processes that fork, errors with names, its place before fsspec."""

import http.server
import pickle
import threading

import pytest

from bionemo.webdatamodule import WebDataModule, context
from bionemo.webdatamodule.components import Store
from bionemo.webdatamodule.plugins import find
from bionemo_webdatamodule_obstore.store import ObstoreStore


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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
    """Wrong keys are a PermissionError, missing files and buckets a FileNotFoundError, from either process."""
    for worker in (context.Worker(), context.Worker(number=0, count=1)):
        store = ObstoreStore()
        with context.working(worker):
            for url in (f"{bucket}/missing", "s3://nowhere/missing"):
                with pytest.raises(FileNotFoundError):
                    store.get(url)
    with pytest.raises(OSError, match="127"):
        ObstoreStore().get("http://127.0.0.1:1/x")


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
