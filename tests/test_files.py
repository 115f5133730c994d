"""Files of a folder: what writers list, and what they leave out."""

import logging
from operator import methodcaller

import pytest

from bionemo.webdatamodule.builtins.pickle.plugin import PickleReader
from bionemo.webdatamodule.errors import InputError
from bionemo.webdatamodule.files import HIDDEN_TABLES, is_visible, near, walk_files

TREE = ("b.x", "a.x", "sub/c.x", "sub/deep/d.x", "sub-1/e.x", ".hidden.x", ".git/f.x", "_temporary/g.x", "h.y")


def make(root, *paths):
    """Create empty files."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def messages(caplog, level):
    """Return the messages of a level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_all_files_below_are_listed_and_hidden_ones_are_logged_once(tmp_path, caplog):
    """Folders are walked in order; names that begin with a dot are left out, with one warning."""
    make(tmp_path, *TREE)
    found = list(walk_files(tmp_path, wanted=lambda name: name.endswith(".x")))
    assert ["a.x", "b.x", "_temporary/g.x", "sub/c.x", "sub/deep/d.x", "sub-1/e.x"] == found
    assert messages(caplog, logging.WARNING) == [
        f"{tmp_path}: left out 1 hidden file and 1 hidden folder, first {next_hidden(tmp_path)}"
    ]


def next_hidden(root):
    """Return the hidden entry that the system lists first."""
    return next(path.name for path in root.iterdir() if path.name.startswith("."))


def test_tables_leave_out_what_engines_keep_beside_them(tmp_path, caplog):
    """``_temporary`` and its like are no data; folders alone are no reason to warn."""
    make(tmp_path, "a.x", "_temporary/g.x", "day=1/b.x", "day=1/_SUCCESS")
    caplog.set_level(logging.INFO)
    found = walk_files(tmp_path, wanted=methodcaller("endswith", ".x"), hidden=HIDDEN_TABLES)
    assert ["a.x", "day=1/b.x"] == list(found)
    assert [f"{tmp_path}: left out 0 hidden files and 1 hidden folder, first _temporary"] == messages(
        caplog, logging.INFO
    )
    assert [] == messages(caplog, logging.WARNING)


def test_links_are_followed_but_not_in_circles(tmp_path, caplog):
    """A linked folder is listed like any other; one that leads back is not."""
    root = tmp_path / "data"
    make(root, "dogs/1.x")
    make(tmp_path / "elsewhere", "2.x", "in/3.x")
    (root / "cats").symlink_to(tmp_path / "elsewhere")
    (root / "dogs/up").symlink_to(root)
    (tmp_path / "elsewhere/in/back").symlink_to(tmp_path / "elsewhere")
    (root / "file.x").symlink_to(tmp_path / "elsewhere/2.x")
    (root / "broken.x").symlink_to(tmp_path / "nowhere")
    (root / "itself.x").symlink_to(root / "itself.x")
    expected = ["broken.x", "file.x", "itself.x", "cats/2.x", "cats/in/3.x", "dogs/1.x"]
    assert expected == list(walk_files(root))
    assert [f"{root}: did not follow 2 links to folders around them, first cats/in/back"] == messages(
        caplog, logging.WARNING
    )


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    """Nothing below it is left out in silence."""
    with pytest.raises(InputError, match="nowhere cannot be listed: No such file"):
        list(walk_files(tmp_path / "nowhere"))
    make(tmp_path, "file")
    with pytest.raises(InputError, match="cannot be listed: Not a directory"):
        list(walk_files(tmp_path / "file"))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("a.y", "the files beside it are named *.x, *.x.y"),
        ("b", "the files beside it are named *.x, *.x.y"),
        ("b.x", ""),
        ("empty/a.x", ""),
        ("many/a.x", "the files beside it are named *.0, *.1, *.2 and others"),
        ("bare/a.x", "the files beside it are named *"),
        ("none/a.x", "there is no folder {root}/none"),
        ("a.x/a.x", ""),
    ],
)
def test_of_a_missing_file_it_is_said_what_is_there_instead(tmp_path, missing, expected):
    """Its folder may be missing, or its suffix be another."""
    make(tmp_path, "a.x", "a.x.y", ".hidden", "bare/a", *(f"many/{number}.{number}" for number in range(5)))
    (tmp_path / "empty/below.y").mkdir(parents=True)
    assert expected.format(root=tmp_path) == near(f"{tmp_path}/{missing}")


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b.x", True), (".a/b.x", False), ("a/.b", False), ("_a/b", False), ("a/_b", False)]
)
def test_paths_of_other_listings_follow_the_same_rule(path, expected):
    """Every part of a path counts."""
    assert expected is is_visible(path, hidden=HIDDEN_TABLES)


def test_pickles_list_what_the_rule_lists(tmp_path, caplog):
    """Names of samples come from visible files with every suffix; the others are logged."""
    make(tmp_path, "a.pyd", "a.cls", "b.pyd", "sub/c.pyd", "sub/c.cls", ".d.pyd", ".d.cls")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    assert ["a", "b", "link/c", "sub/c"] == PickleReader(directory=tmp_path, suffixes="pyd").names()
    caplog.clear()
    assert ["a", "link/c", "sub/c"] == PickleReader(directory=tmp_path, suffixes=["pyd", "cls"]).names()
    hidden, partial = messages(caplog, logging.WARNING)
    assert "left out 2 hidden files and 0 hidden folders" in hidden
    assert f"{tmp_path}: left out 1 file of samples that lack one of the suffixes pyd, cls, first b.pyd" == partial
