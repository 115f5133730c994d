"""URLs that name no bucket or server, which no store is asked for."""

import pytest

from bionemo.webdatamodule import PickledDataWDS, WebDataModule
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote.urls import without_host
from bionemo.webdatamodule.errors import ConfigError

BUCKET = "names no bucket; write {}://bucket/directory"
WRONG = [
    ("s3://", BUCKET.format("s3")),
    ("s3:///key", BUCKET.format("s3")),
    ("s3a://?versionId=1", BUCKET.format("s3a")),
    ("gs:///x", BUCKET.format("gs")),
    ("gcs:// /x", BUCKET.format("gcs")),
    ("az:///x", "names no container; write az://container/directory"),
    ("abfs://", "names no container; write abfs://container/directory"),
    ("http://", "names no server; write http://server/directory"),
    ("https://:443/x", "names no server; write https://server/directory"),
]


@pytest.mark.parametrize(("url", "message"), WRONG)
@pytest.mark.parametrize(
    "form", [lambda url: url, lambda url: [url], lambda url: [(url, 1)], lambda url: {0: [(url, 1)]}]
)
def test_the_constructor_refuses_a_url_without_a_host(url, message, form):
    """With the argument, the split and an example, and before any store is asked."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule({"val": form(url)}, None, "cls", 4)
    shown = url.partition("?")[0]
    assert f"dirs_tars_wds[val] holds {shown!r}, which {message}" == caught.value.message


@pytest.mark.parametrize(
    ("argument", "given"),
    [("join[val]", {"join": {"val": "s3:///x"}}), ("dirs_tars_wds[val]", {"dirs_tars_wds": {"val": "s3:///x"}})],
)
def test_the_message_names_the_argument(argument, given):
    """A directory may be joined, too."""
    with pytest.raises(ConfigError) as caught:
        WebDataModule(**{"dirs_tars_wds": {"val": "data"}, "suffix_keys_wds": "cls", "global_batch_size": 4, **given})
    assert f"{argument} holds 's3:///x', which names no bucket; write s3://bucket/directory" == caught.value.message


@pytest.mark.parametrize(
    ("given", "argument", "url"),
    [
        ("s3:///x-", "prefix_dir_tars_wds", "s3:///x-val"),
        ({"val": "s3:///x"}, "prefix_dir_tars_wds[val]", "s3:///x"),
    ],
)
def test_shards_are_written_to_no_url_without_a_host(given, argument, url):
    """The constructor of a conversion names its own argument."""
    with pytest.raises(ConfigError) as caught:
        PickledDataWDS("pickles", "cls", {"val": ["a"]}, given, 4)
    assert f"{argument} holds {url!r}, which names no bucket; write s3://bucket/directory" == caught.value.message


@pytest.mark.parametrize(("url", "message"), WRONG)
def test_nothing_opens_a_url_without_a_host(url, message):
    """As the command line would, which has no data module."""
    with pytest.raises(ConfigError) as caught:
        ShardSet.open(url, "wdshards")
    assert f"{url.partition('?')[0]} {message}" == caught.value.message


def test_a_password_is_not_in_the_message():
    """Only what follows it, as in all messages about URLs."""
    with pytest.raises(ConfigError) as caught:
        ShardSet.open("https://me:secret@/x", "wdshards")
    assert "https:///x names no server; write https://server/directory" == caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "abfs://container@account.dfs.core.windows.net/x",
        "http://[::1]:8000/x",
        "http://me:secret@server/x",
        "https://server?x=1",
        "mem:///x",
        "mem://x",
        "memory://",
        "file:///x",
        "/x",
    ],
)
def test_other_urls_are_left_to_their_stores(url):
    """Also those of schemes that have no host, such as a plugin's own."""
    assert not without_host(url)
