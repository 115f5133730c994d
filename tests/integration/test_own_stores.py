"""A store of a user's own set of plugins serves the URLs of a data module."""

import os
import pickle
from pathlib import Path

import pytest

from bionemo.webdatamodule import PickledDataWDS, Store, WebDataModule
from bionemo.webdatamodule.components import StoredFile
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.hookspecs import hookimpl
from bionemo.webdatamodule.plugins import Plugins


class Shelf:
    """A store whose URLs, ``shelf:///directory/file``, are paths."""

    def list(self, url):
        """Return the files of a directory."""
        return [StoredFile(name=path.name, size=path.stat().st_size) for path in sorted(_path(url).iterdir())]

    def stat(self, url):
        """Return the size of a file."""
        return StoredFile(name=_path(url).name, size=_path(url).stat().st_size)

    def get(self, url):
        """Return a file."""
        return _path(url).read_bytes()

    def read(self, url, ranges, into):
        """Read ranges of a file."""
        data = self.get(url)
        for (begin, end), memory in zip(ranges, into, strict=True):
            memory[:] = data[begin:end]

    def put(self, data, url):
        """Write a file."""
        _path(url).parent.mkdir(parents=True, exist_ok=True)
        _path(url).write_bytes(data if isinstance(data, bytes) else Path(os.fspath(data)).read_bytes())

    def delete(self, url):
        """Delete a file."""
        _path(url).unlink()


def _path(url):
    return Path(url.removeprefix("shelf://"))


class Plugin:
    """A plugin with the store."""

    @hookimpl
    def webdatamodule_stores(self):
        """Register the store."""
        yield Store(name="shelf", summary="paths", schemes=("shelf",), factory=Shelf)


def _plugins(**options):
    found = Plugins(**options)
    found.register(Plugin(), "shelf")
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_written_to_and_read_from_a_store_of_the_set(tmp_path, monkeypatch, num_workers):
    """Conversion, reading in the process and in workers, and a pickled module all use it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"s{number}" for number in range(6)]
    (tmp_path / "pickles").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "pickles" / f"{name}.x.pyd").write_bytes(pickle.dumps(number))
    data = PickledDataWDS(
        tmp_path / "pickles",
        "x.pyd",
        {"test": names},
        f"shelf://{tmp_path}/shards/",
        2,
        kwargs_wld={"test": {"num_workers": num_workers}},
        n_tars_wds=2,
        plugins=_plugins(),
    )
    data.prepare_data()
    data = pickle.loads(pickle.dumps(data))
    data.setup("test")

    assert (tmp_path / "shards" / "test" / "wdshards-000001.tar").is_file()
    assert [[0, 1], [2, 3], [4, 5]] == [batch.tolist() for batch in data.test_dataloader()]


def test_a_set_without_a_store_for_the_url_is_refused(tmp_path):
    """The set alone is asked, not the installed plugins."""
    with pytest.raises(ConfigError, match=r"no store serves s3://; install a plugin that does"):
        WebDataModule(
            {"test": "s3://bucket/x"},
            None,
            "x.pyd",
            2,
            plugins=_plugins(defaults=["loaders", "batching", "stages", "codecs", "pickles"]),
        )
