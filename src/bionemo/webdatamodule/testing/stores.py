"""What every store has to do."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import ClassVar

import pytest

from bionemo.webdatamodule.components import ObjectStore, Store, StoredFile
from bionemo.webdatamodule.plugins import SCHEME
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject

_DATA = bytes(range(256)) * 300


def _is_scheme(scheme: object) -> bool:
    """Return whether the registry takes a scheme."""
    return isinstance(scheme, str) and SCHEME.fullmatch(scheme) is not None


class _WholeFiles(http.server.SimpleHTTPRequestHandler):
    """Python's own web server, which knows no ranges; like others, this one lists no files."""

    def list_directory(self, path: str | os.PathLike[str]) -> None:  # noqa: ARG002 - the base class's name
        """Refuse."""
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep the output clean."""


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Yield the URL of a web server of a directory."""
    handler = functools.partial(_WholeFiles, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class StoreConformance(ComponentConformance):
    """Checks of a store.

    Attributes:
        lists: Whether the store can list a directory; plain web servers cannot.
    """

    kind: ClassVar[type[Store]] = Store
    lists: ClassVar[bool] = True

    @pytest.fixture
    def base_url(self) -> str:
        """URL of a directory in which the tests may write; override it."""
        raise NotImplementedError("override the fixture base_url with a URL that the store can write")

    @pytest.fixture
    def directory(self, base_url: str) -> str:
        """URL of a directory that no other test uses."""
        return f"{base_url.rstrip('/')}/{uuid.uuid4().hex}"

    @pytest.fixture
    def store(self, subject: Subject) -> ObjectStore:
        """The working object."""
        made: ObjectStore = subject.make()
        return made

    @pytest.fixture
    def url(self, subject: Subject, store: ObjectStore, directory: str) -> Iterator[str]:
        """URL of a file that is there."""
        url = f"{directory}/some-000000.tar"
        with subject.trying("put() of bytes", "write the file as a whole"):
            store.put(_DATA, url)
        yield url
        store.delete(url)

    def test_names_its_schemes(self, subject: Subject) -> None:
        """The record says which URLs the store serves."""
        component = subject.registered.component
        schemes: object = component.schemes if isinstance(component, Store) else ()
        if not isinstance(schemes, tuple) or not schemes or not all(map(_is_scheme, schemes)):
            subject.wrong(
                f"its record has schemes={schemes!r}",
                "give a tuple of URL schemes such as ('s3', 'gs'): two or more lower-case letters, digits, '+', '-' "
                "and '.', a letter first; or ('*',) for every scheme that no other store names",
            )

    def test_files_keep_their_bytes(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """What was put is what comes back, and putting again replaces it."""
        if not isinstance(got := store.get(url), bytes):
            subject.wrong(f"get() returns {type(got).__name__}", "return bytes, which is all that the core accepts")
        if got != _DATA:
            subject.wrong(f"get() of a file of {len(_DATA)} bytes returns {len(got)} other bytes", "return its bytes")
        store.put(b"short", url)
        if (got := store.get(url)) != b"short":
            subject.wrong(f"a replaced file holds {got[:20]!r}…", "replace the file as a whole, and cache nothing")

    def test_local_files_are_put(self, subject: Subject, store: ObjectStore, url: str, tmp_path: Path) -> None:
        """A local file goes by its path, without being read into memory by the core."""
        (tmp_path / "local").write_bytes(_DATA[::-1])
        with subject.trying("put() of a path", "take bytes, and the path of a local file as str or os.PathLike"):
            store.put(str(tmp_path / "local"), url)
        if store.get(url) != _DATA[::-1]:
            subject.wrong("put() of a local file stores other bytes", "store the content of the file")

    def test_an_empty_file_is_a_file(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """A file may be empty."""
        store.put(b"", url)
        if store.get(url) != b"" or store.stat(url).size != 0:
            subject.wrong("an empty file does not come back empty", "store empty files like all others")

    def test_ranges_are_read_into_memory(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """Each range fills its memory, in any order, overlapping or of one byte, up to the last byte."""
        ranges = [(1000, 50_000), (0, 1), (len(_DATA) - 7, len(_DATA)), (999, 1001)]
        memory = [memoryview(bytearray(end - begin)) for begin, end in ranges]
        with subject.trying("read() of four ranges", "read each range, and write its bytes to the memory beside it"):
            store.read(url, ranges, memory)
        for (begin, end), got in zip(ranges, memory, strict=True):
            if got != _DATA[begin:end]:
                subject.wrong(f"read() of bytes {begin} to {end} gives other bytes", "the end of a range is exclusive")

    def test_no_ranges_are_no_request(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """Nothing asked for is nothing read."""
        with subject.trying("read() without ranges", "return at once"):
            store.read(url, [], [])

    def test_a_shorter_file_is_an_error(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """A range beyond the end of the file never gives memory that looks filled."""
        for begin in (len(_DATA) - 10, len(_DATA) + 10):
            try:
                store.read(url, [(begin, begin + 20)], [memoryview(bytearray(20))])
            except EOFError:
                continue
            except Exception as error:  # noqa: BLE001 - it becomes the failure's cause
                subject.wrong(f"reading beyond the end raises {type(error).__name__}: {error}", "raise EOFError", error)
            subject.wrong("reading beyond the end of a file raises nothing", "raise EOFError")

    def test_servers_of_whole_files_are_an_error(self, subject: Subject, store: ObjectStore, tmp_path: Path) -> None:
        """A store of ``http`` says of a server that sends no parts of files that it cannot, which is not retried."""
        component = subject.registered.component
        if not isinstance(component, Store) or "http" not in component.schemes:
            return
        (tmp_path / "whole").write_bytes(_DATA)
        with serving(tmp_path) as url:
            try:
                store.read(f"{url}/whole", [(1000, 2000)], [memoryview(bytearray(1000))])
            except NotImplementedError:
                return
            except Exception as error:  # noqa: BLE001 - it becomes the failure's cause
                subject.wrong(
                    f"a range of a web server that sends whole files raises {type(error).__name__}: {error}",
                    "raise NotImplementedError",
                    error,
                )
        subject.wrong(
            "a range of a web server that sends whole files raises nothing", "read no more than what was asked for"
        )

    def test_sizes_and_versions(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """``stat`` gives name and size; the version, where there is one, differs after a change."""
        before = store.stat(url)
        if not isinstance(before, StoredFile):
            subject.wrong(f"stat() returns {type(before).__name__}", "return a StoredFile")
        if (before.name, before.size) != ("some-000000.tar", len(_DATA)):
            subject.wrong(f"stat() gives {before}", f"give the name 'some-000000.tar' and the size {len(_DATA)}")
        store.put(_DATA[1:], url)
        after = store.stat(url)
        if after.size != len(_DATA) - 1 or (before.version and before.version == after.version):
            subject.wrong(f"stat() gives {after} after the file was replaced", "cache nothing between calls")

    @pytest.mark.usefixtures("url")
    def test_lists_files_of_a_directory(self, subject: Subject, store: ObjectStore, directory: str) -> None:
        """``list`` gives the files directly in a directory with their sizes, and no others."""
        if not self.lists:
            try:
                store.list(directory)
            except NotImplementedError:
                return
            subject.wrong("list() returns, and the test says that it cannot", "set lists = True in the test class")
        store.put(b"12", f"{directory}/other.txt")
        store.put(b"3", f"{directory}/below/deep.txt")
        try:
            files = list(store.list(directory))
            if any(not isinstance(file, StoredFile) for file in files):
                subject.wrong(f"list() gives {files!r:.60}", "give a StoredFile for each file")
            got = sorted((file.name, file.size) for file in files)
        finally:
            store.delete(f"{directory}/other.txt")
            store.delete(f"{directory}/below/deep.txt")
        if got != [("other.txt", 2), ("some-000000.tar", len(_DATA))]:
            subject.wrong(f"list() gives {got}", "give the files directly in the directory, by name and size")
        if "other.txt" in [file.name for file in store.list(directory)]:
            subject.wrong("list() gives a deleted file", "cache nothing between calls")

    def test_a_directory_that_is_not_there_has_no_files(
        self, subject: Subject, store: ObjectStore, directory: str
    ) -> None:
        """``list`` of a directory that is not there gives nothing or ``FileNotFoundError``."""
        if not self.lists:
            return
        try:
            got = list(store.list(f"{directory}/nowhere"))
        except FileNotFoundError:
            return
        if got:
            subject.wrong(f"list() of a missing directory gives {got}", "give no files, or raise FileNotFoundError")

    def test_missing_files_are_named_as_such(self, subject: Subject, store: ObjectStore, directory: str) -> None:
        """A file that is not there is a ``FileNotFoundError``, which the core does not try again."""
        url = f"{directory}/missing"
        calls: dict[str, Callable[[], object]] = {
            "stat": lambda: store.stat(url),
            "get": lambda: store.get(url),
            "read": lambda: store.read(url, [(0, 1)], [memoryview(bytearray(1))]),
        }
        for name, call in calls.items():
            try:
                call()
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001 - it becomes the failure's cause
                subject.wrong(
                    f"{name}() of a missing file raises {type(error).__name__}: {error}",
                    "raise FileNotFoundError",
                    error,
                )
            subject.wrong(f"{name}() of a missing file raises nothing", "raise FileNotFoundError")

    def test_deleted_files_are_gone(self, subject: Subject, store: ObjectStore, directory: str) -> None:
        """After ``delete`` the file is not there."""
        url = f"{directory}/deleted"
        store.put(b"x", url)
        with subject.trying("delete()", "delete the file"):
            store.delete(url)
        try:
            store.get(url)
        except FileNotFoundError:
            return
        subject.wrong("a deleted file can still be read", "delete it, and cache nothing")

    def test_many_threads_read_at_once(self, subject: Subject, store: ObjectStore, url: str) -> None:
        """One store serves several threads."""

        def read(number: int) -> bool:
            memory = memoryview(bytearray(5000))
            store.read(url, [(number, number + 5000)], [memory])
            return bool(memory == _DATA[number : number + 5000])

        with (
            subject.trying("reading in 16 threads", "protect what the threads share"),
            futures.ThreadPoolExecutor(16) as pool,
        ):
            right = list(pool.map(read, range(64)))
        if not all(right):
            subject.wrong("threads that read at once get bytes of one another", "protect what they share")
