"""Errors: they say who, what and what next, and they cross process borders whole."""

import inspect
import pickle

import pytest

from bionemo.webdatamodule import errors
from bionemo.webdatamodule.errors import CorruptShardError, NoShardsError, RemoteError, WebDataModuleError, count

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, WebDataModuleError)]


def test_the_place_and_the_code_follow_the_message():
    """An error shows its sentence, where it happened, and the code to look it up by."""
    error = CorruptShardError("the tar ends too early; restore it", split="train", shard="a.tar", key=None)

    assert "the tar ends too early; restore it (split=train, shard=a.tar) [corrupt-shard]" == str(error)
    assert {"split": "train", "shard": "a.tar"} == error.where


def test_outer_layers_add_what_they_know_and_change_nothing():
    """A place that is known already is not replaced by what a caller adds."""
    error = CorruptShardError("bad", shard="inner.tar").located(rank=1, worker=None, shard="outer.tar")

    assert {"rank": 1, "shard": "inner.tar"} == error.where


@pytest.mark.parametrize(
    ("n", "words", "shown"),
    [
        (0, ["shard"], "0 shards"),
        (1, ["shard"], "1 shard"),
        (2000, ["shard"], "2,000 shards"),
        (1, ["batch", "batches"], "1 batch"),
        (2, ["batch", "batches"], "2 batches"),
    ],
)
def test_one_thing_is_counted_in_the_singular(n, words, shown):
    """The plural is the noun with an s, unless it is given."""
    assert shown == count(n, *words)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind):
    """An error of a worker arrives with its type, text and place."""
    error = kind("what happened", split="val", rank=3)
    copy = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), error.where) == (type(copy), str(copy), copy.where)


def test_every_error_is_in_the_tree_and_has_a_code_of_its_own():
    """The module's docstring draws every class, and no two share a code."""
    codes = [kind.code for kind in CLASSES]

    assert len(set(codes)) == len(codes)
    assert [] == [kind.__name__ for kind in CLASSES if kind.__name__ not in errors.__doc__]
    assert [] == [kind.__name__ for kind in CLASSES if not kind.__doc__]


@pytest.mark.parametrize("kind", [NoShardsError, RemoteError])
def test_errors_of_the_system_show_our_text(kind):
    """Classes that are OSErrors too are not shown in the system's form."""
    assert f"gone (shard=s) [{kind.code}]" == str(kind("gone", shard="s"))
