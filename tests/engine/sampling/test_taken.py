"""Which samples the stages took for what they made, and the order in which workers take turns."""

import itertools
import pickle

import numpy as np

from bionemo.webdatamodule._engine.sampling.taken import Groups, Taken, interleave
from bionemo.webdatamodule._engine.sampling.tally import Tally
from bionemo.webdatamodule.components import Item


def test_interleaving_takes_turns():
    """Each worker gives one sample in its turn, and those that are done are passed over."""
    items = [
        Item(epoch=0, start=0, worker=worker, values=list(values), delivered=[[ord(value)] for value in values])
        for worker, values in [(0, "a"), (1, "b"), (2, "c"), (0, "de"), (2, "fg"), (0, "h"), (2, "ijkl")]
    ]

    for some, expected in (items[:-1], "abcdfegh"), (items, "abcdfeghijkl"):
        values, groups = zip(*interleave(some, 3), strict=True)
        assert expected == "".join(itertools.chain.from_iterable(values))
        assert [[ord(value)] for value in expected] == list(itertools.chain.from_iterable(groups))


def test_groups_are_a_sequence_of_sequences():
    """Groups give the numbers of each value, of several values, and of none."""
    groups = Groups.of([[3, 1], [], [2]])

    assert [[3, 1], [], [2]] == list(groups)
    assert [[], [2]] == list(groups[1:])
    assert [2] == groups[-1]
    assert groups == pickle.loads(pickle.dumps(groups))


def test_what_was_taken_is_that_of_the_values_that_were_taken():
    """The numbers are those of the values that left the list since the last time, then those of no value, if any."""
    taken = Taken()
    taken.begin(Groups.of([[3, 1], [], [2], [7]]), left := iter("abcd"))
    found = []
    for values in (1, 2, 0):
        list(itertools.islice(left, values))
        found.append([ids.tolist() for ids, _ in taken.take()])
    taken.also([8])
    taken.begin(Groups.of([[9]]), iter("e"))  # the one before is used up
    parts = taken.take()

    assert [[[3, 1]], [[2]], []] == found
    assert [[8], [7]] == [ids.tolist() for ids, _ in parts]
    assert Tally.of(np.array([7, 8]), {}) == Tally.of_sums(parts)
