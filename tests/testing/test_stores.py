"""The kit says of a store what it does wrong."""

import pytest

from bionemo.webdatamodule.builtins.stores import FsspecStore
from bionemo.webdatamodule.components import Store
from bionemo.webdatamodule.plugins import Registered
from bionemo.webdatamodule.testing import NonconformingError, StoreConformance, Subject

URL = "memory://kit-of-stores/some-000000.tar"


class Views(FsspecStore):
    """A store that gives memory in place of bytes, and names in place of files."""

    def get(self, url):
        """Return a view of the file."""
        return memoryview(super().get(url))

    def list(self, url):
        """Return the names of the files."""
        return sorted(file.name for file in super().list(url))

    def stat(self, url):
        """Return the size of the file."""
        return super().stat(url).size


@pytest.mark.parametrize(
    ("test", "arguments", "message"),
    [
        ("files_keep_their_bytes", [URL], "get() returns memoryview; return bytes, which is all that the core accepts"),
        ("sizes_and_versions", [URL], "stat() returns int; return a StoredFile"),
        (
            "lists_files_of_a_directory",
            [URL.rpartition("/")[0]],
            "list() gives ['other.txt', 'some-000000.tar']; give a StoredFile for each file",
        ),
    ],
)
def test_what_the_core_refuses_is_found(test, arguments, message):
    """A store that passes gives the types of the protocol, which the core checks too."""
    store = Views()
    store.put(b"12", URL)
    subject = Subject(
        registered=Registered(
            component=Store(name="mine", summary="views", factory=Views, schemes=("memory",)), plugin="acme"
        ),
        options={},
    )
    with pytest.raises(NonconformingError) as caught:
        getattr(StoreConformance(), f"test_{test}")(subject, store, *arguments)
    assert f"plugin 'acme', store 'mine': {message}" == str(caught.value)


def check(schemes):
    """Run the check of a store's schemes."""
    store = Store(name="mine", summary="a store", schemes=schemes, factory=object)
    subject = Subject(registered=Registered(component=store, plugin="mine"), options={})
    StoreConformance().test_names_its_schemes(subject)


@pytest.mark.parametrize("schemes", [("s3", "gs"), ("git+ssh", "a.b-c"), ("*",)], ids=str)
def test_schemes_of_urls_pass(schemes):
    """Letters, digits, plus, dash and dot make a scheme, and the star is all others."""
    check(schemes)


@pytest.mark.parametrize(
    "schemes",
    [(), ["s3"], "s3", ("my_store",), ("S3",), ("s3://",), ("3s",), ("s",), ("s3\n",), (b"s3",), (None,), None],
    ids=repr,
)
def test_schemes_that_no_url_has_are_refused(schemes):
    """What would never match a URL, or could not be registered, fails with a remedy."""
    with pytest.raises(NonconformingError) as caught:
        check(schemes)

    assert str(caught.value) == (
        f"plugin 'mine', store 'mine': its record has schemes={schemes!r}; give a tuple of URL schemes such as "
        "('s3', 'gs'): two or more lower-case letters, digits, '+', '-' and '.', a letter first; or ('*',) for every "
        "scheme that no other store names"
    )
