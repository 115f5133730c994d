"""What a pickle may ask for: enough for any data, and hostile ones end early; see ``hostile.py`` for more of those."""

import array
import datetime as dt
import io
import pathlib
import pickle
import pickletools
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.helpers.sameness import same

from bionemo.webdatamodule.builtins.pickle.safe import budget
from bionemo.webdatamodule.errors import RefusedPickleError
from bionemo.webdatamodule.pickles import dumps, loads

MAKERS = {
    "small integers": lambda n: n % 200,
    "integers": lambda n: n * 70_001,
    "floats": lambda n: n / 3,
    "large integers": lambda n: 10**30 + n,
    "texts": lambda n: f"text {n}",
    "bytes": lambda n: b"%d" % n,
    "bytearrays": lambda n: bytearray(b"%d" % n),
    "complex numbers": lambda n: complex(n, 1),
    "dates": lambda n: dt.date(2000 + n % 20, 1, 1),
    "times of the day": lambda n: dt.time(n % 24),
    "times": lambda n: dt.datetime(2000 + n % 20, 1, 1),  # noqa: DTZ001 - without a zone
    "durations": dt.timedelta,
    "Decimals": Decimal,
    "Fractions": lambda n: Fraction(n, 7),
    "UUIDs": lambda n: uuid.UUID(int=n),
    "paths": lambda n: pathlib.PurePosixPath(f"a/{n}"),
    "ranges": range,
    "slices": slice,
    "empty lists": lambda _n: [],
    "empty dicts": lambda _n: {},
    "tuples": lambda n: (n,),
    "lists": lambda n: [n, n + 1],
    "sets": lambda n: {n},
    "frozensets": lambda n: frozenset((n,)),
    "dicts": lambda n: {n: 1},
    "OrderedDicts": lambda n: OrderedDict({str(n): 1}),
    "defaultdicts": lambda n: defaultdict(list, {n: [1]}),
    "Counters": lambda n: Counter((n,)),
    "arrays of numbers": lambda n: array.array("d", [n]),
    "deques": lambda n: deque(range(n, n + 20)),
    "numpy scalars": np.float32,
    "numpy arrays": lambda n: np.array([n]),
    "tensors": lambda n: torch.tensor([n]),
    "dtypes": lambda n: np.dtype(("f4", "i8")[n % 2]),
}
KEYS = {
    "integers": lambda n: n,
    "negative integers": lambda n: -n,
    "large integers": lambda n: 10**30 + n,
    "floats": lambda n: n / 7,
    "texts": str,
    "tuples": lambda n: (n, "x"),
    "nested tuples": lambda n: ((n, 1), (None, "x", 2.5)),
    "frozensets": lambda n: frozenset((n, "x", 1)),
    "times": lambda n: dt.datetime(2000, 1, 1) + dt.timedelta(n),  # noqa: DTZ001
    "Decimals": lambda n: Decimal(n) / 8,
    "Fractions": lambda n: Fraction(n, 8),
    "UUIDs": lambda n: uuid.UUID(int=n),
    "paths": lambda n: pathlib.PurePosixPath(f"a/{n}"),
    "numpy scalars": np.int32,
}
ROUNDS = 600


@pytest.fixture
def bare(monkeypatch):
    """Take away what any pickle may ask for, so that small data show what holds for large data."""
    monkeypatch.setattr(budget, "HEADROOM", 4096)
    monkeypatch.setattr(budget, "WORK_HEADROOM", 4096)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", MAKERS)
def test_data_of_any_kind_and_size_are_read(kind, protocol):
    """What a list of many values asks for grows slower than what it may."""
    values = [MAKERS[kind](number) for number in range(ROUNDS)]
    for data in (pickle.dumps(values, protocol), dumps(values)):
        assert same(values, loads(data))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_kind_and_number_are_read(kind):
    """In one dict, in many, in sets, and where the memo hands them out again."""
    keys = [KEYS[kind](number) for number in range(ROUNDS)]
    values = [dict.fromkeys(keys, 1), set(keys), frozenset(keys), [{key: 1} for key in keys]]
    shared = [{keys[0]: number} for number in range(ROUNDS)]
    for value in (*values, shared):
        assert same(value, loads(pickle.dumps(value)))


@pytest.mark.usefixtures("bare")
def test_pickles_without_unused_memos_are_read():
    """An optimizer leaves one byte for an empty list."""
    values = [[] for _ in range(ROUNDS)] + [{} for _ in range(50)]
    assert values == loads(pickletools.optimize(pickle.dumps(values)))


def test_integers_of_equal_hash_are_read_while_they_are_few():
    """Some data hold such keys by chance; a thousand of them cost nothing."""
    keys = {number * ((1 << 61) - 1): number for number in range(1000)}
    assert keys == loads(pickle.dumps(keys))


def test_hashes_are_equal_over_several_opcodes():
    """Keys that are set one by one count as those that are set together."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 4)  # in Python, with small batches
    pickler._BATCHSIZE = 10
    pickler.dump({number * ((1 << 61) - 1): number for number in range(8000)})
    with pytest.raises(RefusedPickleError, match="more work"):
        loads(stream.getvalue())


@pytest.mark.parametrize("kind", ["a tuple", "a frozenset", "a set in a list"])
def test_sets_in_sets_are_written_without_repetition(kind):
    """The order of a set is that of its elements' pickles, which are made once each."""
    value = frozenset()
    for number in range(60):
        value = frozenset((value, (value, number))) if kind == "a tuple" else frozenset((value, number))
    item = [{value, 1}] if kind == "a set in a list" else value
    data = dumps(item)
    assert data == dumps(pickle.loads(data))
    assert len(data) < 3000
