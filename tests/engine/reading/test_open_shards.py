"""The shards that a process has open."""

from bionemo.webdatamodule._engine.reading import open_shards
from bionemo.webdatamodule._engine.reading.locate import _EMPTY
from bionemo.webdatamodule._engine.reading.open_shards import OpenShards, opened


def shard():
    """Return an open shard of nothing."""
    return opened(path="", place="", data=memoryview(b""), file=None, index=_EMPTY, suffixes=())


def test_a_shard_that_two_threads_open_is_kept_once():
    """The second one gets that of the first, and nothing is left when the reader is gone."""
    shards, first, second = OpenShards(), shard(), shard()

    def slowly(number, shards=shards):
        assert first is shards.open(number, lambda _: first)  # another thread, meanwhile
        return second

    assert first is shards.open(7, slowly)
    del slowly
    assert first is shards.get(7)
    assert second not in open_shards._recent
    del shards
    assert first not in open_shards._recent
