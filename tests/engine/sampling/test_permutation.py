import itertools
import math
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from bionemo.webdatamodule._engine.sampling.permutation import Permutation, key

LENGTHS = [1, 2, 3, 7, 16, 17, 64, 4095, 4096, 4097, 10_000, 65_536, 99_991]


PROMISED = {
    10: [0, 4, 6, 5],
    4096: [1417, 4036, 2940, 3634],
    4097: [3643, 260, 2961, 1476],
    10**6: [13170, 88912, 562011, 741821],
    10**9: [472805296, 193636648, 396704220, 698847942],
    10**12: [455370612199, 344243702640, 698477224086, 265392626785],
}


def whole(permutation):
    """Return all that a permutation gives, in order."""
    return permutation(np.arange(permutation.n))


@pytest.mark.parametrize("n", LENGTHS)
def test_everything_comes_once(n):
    """A permutation of any length, by table or by network, gives each number below it once."""
    order = whole(Permutation(n, key(n)))

    assert np.array_equal(np.arange(n), np.sort(order))
    assert order.dtype == np.int64


@pytest.mark.parametrize("n", LENGTHS)
def test_one_place_is_as_many(n):
    """A single place asked for by itself gives what the array gives there."""
    permutation = Permutation(n, key("one"))
    order = whole(permutation)

    assert order[:200].tolist() == [permutation.at(place) for place in range(min(n, 200))]
    assert order[:7].tolist() == permutation(np.arange(min(n, 7))).tolist()
    assert order[-100:].tolist() == [permutation.at(place) for place in range(max(0, n - 100), n)]


@settings(deadline=None)
@given(n=st.integers(1, 10**12), seed=st.integers(), data=st.data())
@example(n=10**12, seed=0, data=None)
def test_long_ones_stay_inside_and_do_not_repeat(n, seed, data):
    """Of lengths that no table could hold, any stretch is inside and free of repetitions."""
    first = data.draw(st.integers(0, n - 1)) if data else n - 100
    places = np.arange(first, min(n, first + 100))
    permutation = Permutation(n, key(seed))
    found = permutation(places)

    assert len(places) == len(set(found.tolist()))
    assert found.min() >= 0
    assert found.max() < n
    assert found[:3].tolist() == [permutation.at(place) for place in places[:3].tolist()]


def test_the_order_is_a_promise():
    """These orders never change, or a checkpoint of an older version would go on with other samples."""
    assert PROMISED == {
        n: Permutation(n, key("pass", 0, -1, 0))(np.array([0, 1, n // 2, n - 1])).tolist() for n in PROMISED
    }


def test_all_orders_of_few_are_equally_frequent():
    """Over many keys each of the 120 orders of five things comes as often as chance allows."""
    seen = Counter(tuple(whole(Permutation(5, key("few", number))).tolist()) for number in range(12_000))
    expected = 12_000 / math.factorial(5)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in itertools.permutations(range(5)))

    assert 119 - 4 * math.sqrt(2 * 119) < chi_square < 119 + 4 * math.sqrt(2 * 119)


@pytest.mark.parametrize("n", [1000, 50_000, 1_000_003])
def test_places_are_uniform(n):
    """Where a stretch of neighbours goes is uniform: counts in 50 bins are as even as chance allows."""
    counts = np.zeros(50)
    for number in range(40):
        found = Permutation(n, key("uniform", number))(np.arange(500))
        counts += np.bincount(found * 50 // n, minlength=50)
    expected = counts.sum() / 50
    chi_square = float(((counts - expected) ** 2 / expected).sum())

    assert chi_square < 49 + 4 * math.sqrt(2 * 49)


@pytest.mark.parametrize("n", [1000, 50_000, 1_000_003])
def test_neighbours_are_independent(n):
    """Neighbours in the order are unrelated: neither near nor correlated, and one in n follows its predecessor."""
    order = whole(Permutation(n, key("pairs"))).astype(np.float64)
    correlation = float(np.corrcoef(order[:-1], order[1:])[0, 1])
    distance = float(np.abs(np.diff(order)).mean())
    followers = int((np.diff(order) == 1).sum())

    assert abs(correlation) < 4 / math.sqrt(n)
    assert distance == pytest.approx(n / 3, rel=4 / math.sqrt(n))
    assert followers <= 6  # a Poisson count of mean 1


@pytest.mark.parametrize("n", [1000, 50_000])
def test_two_keys_are_unrelated(n):
    """Epochs have nothing to do with each other: about one sample keeps its place."""
    first, second = whole(Permutation(n, key("pass", 0, 0, 1))), whole(Permutation(n, key("pass", 0, 0, 2)))

    assert int((first == second).sum()) <= 6
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 4 / math.sqrt(n)


def test_keys_tell_parts_apart():
    """No two different lists of parts share a key, whatever their text joined together."""
    parts = [(1, 23), (12, 3), (123,), ("1", 23), (1, "23"), ("1/23",), (-1, 23), ()]

    assert len(parts) == len({key(*part) for part in parts})
    assert len(key(2**200)) == 48


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_lengths_out_of_range_are_refused(n):
    """A length without places, or one that the arithmetic cannot hold, is an error."""
    with pytest.raises(ValueError, match="1 to 2"):
        Permutation(n, key())
