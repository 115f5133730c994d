"""Maps of files that keep no descriptor."""

import mmap
from pathlib import Path

import pytest

from bionemo.webdatamodule._engine.format.mapping import content, mapped


def maps_of(path):
    """Return the lines of this process's maps that are of a file."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]


def descriptors_of(path):
    """Return this process's descriptors of a file."""
    return [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.resolve() == path]


def test_a_map_outlives_its_file_and_keeps_no_descriptor(tmp_path):
    """It stays for as long as anything views it, and is read-only."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        data = mapped(file.fileno())
    assert [] == descriptors_of(path)
    part = data[3:5]
    del data
    assert 1 == len(maps_of(path))
    assert b"34" == part
    with pytest.raises(TypeError, match="read-only"):
        part[0] = 1
    del part
    assert [] == maps_of(path)


def test_part_of_a_file_is_mapped_for_writing(tmp_path):
    """What is written goes to the file."""
    path = tmp_path / "file"
    start = mmap.ALLOCATIONGRANULARITY
    path.write_bytes(bytes(start + 10))
    with path.open("r+b") as file:
        data = mapped(file.fileno(), size=5, offset=start, writable=True)
    data[1:3] = b"ab"
    assert 5 == len(data)
    assert b"\0ab" == path.read_bytes()[start : start + 3]


def test_what_cannot_be_mapped_is_an_error(tmp_path):
    """An empty file, and one that is open for writing only."""
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file, pytest.raises(ValueError, match="empty"):
        mapped(file.fileno())
    path.write_bytes(b"0")
    with path.open("ab") as file, pytest.raises(OSError, match="Permission denied"):
        mapped(file.fileno())


@pytest.mark.parametrize(
    ("n_bytes", "kind"),
    [(0, bytes), (1, bytes), (mmap.PAGESIZE - 1, bytes), (mmap.PAGESIZE, memoryview), (mmap.PAGESIZE + 1, memoryview)],
)
def test_a_file_of_less_than_a_page_is_read_and_a_larger_one_mapped(tmp_path, n_bytes, kind):
    """Its content is the same either way."""
    path = tmp_path / "file"
    path.write_bytes(data := bytes(number % 251 for number in range(n_bytes)))
    found = content(str(path))
    assert (kind, data) == (type(found), bytes(found))
