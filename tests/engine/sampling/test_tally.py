"""Tallies: counts and order-free hashes of what was delivered."""

import json
import random

import numpy as np

from bionemo.webdatamodule._engine.sampling.tally import Tally, hash_of_all, mixed, tallies, total


def test_numbers_are_mixed_as_splitmix64_does():
    """The first outputs of the generator from 0, as its authors and java.util give them."""
    assert [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F] == mixed(np.arange(3)).tolist()


def test_neither_order_nor_division_matters():
    """However the samples of an epoch are shuffled and dealt, the sum is that of all of them."""
    rng = np.random.default_rng(0)
    for n in (1, 7, 1000):
        cuts = np.sort(rng.choice(np.arange(1, n + 1), size=min(n - 1, 5), replace=False)) if n > 1 else []
        shares = [share for share in np.split(rng.permutation(n), cuts) if len(share)]
        found = tallies(shares)
        random.Random(n).shuffle(found)
        assert (n, hash_of_all(n)) == (total(found).samples, total(found).hash)


def test_a_sample_that_comes_twice_in_the_place_of_another_is_noticed():
    """The number of samples is the same, and the hash is not."""
    twice = total(tallies([np.array([0, 1, 1, 3])]))

    assert 4 == twice.samples
    assert hash_of_all(4) != twice.hash


def test_what_was_left_out_is_counted_by_reason_and_named():
    """Reasons add up, and the first twenty numbers are kept, whatever comes first."""
    one = Tally.of(np.arange(10), {3: "decode", 4: "corrupt-shard"})
    other = Tally.of(np.arange(10, 60), dict.fromkeys(range(20, 50), "decode"))

    assert (8, {"corrupt-shard": 1, "decode": 1}, (3, 4)) == (one.samples, one.skipped, one.named)
    both = one.plus(other)
    assert both == other.plus(one)
    assert (28, {"corrupt-shard": 1, "decode": 31}, (3, 4, *range(20, 38))) == (both.samples, both.skipped, both.named)
    assert hash_of_all(60) != both.hash


def test_a_state_is_small_and_plain():
    """It goes through JSON, and its size does not depend on the number of samples."""
    found = Tally.of(np.arange(1000), dict.fromkeys(range(500), "decode"))

    assert found == Tally.from_state(json.loads(json.dumps(found.to_state())))
    assert len(json.dumps(found.to_state())) < 300
