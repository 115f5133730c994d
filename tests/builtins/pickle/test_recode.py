"""Recoding by copying: the same bytes as decoding and writing, or none at all."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bionemo.webdatamodule.builtins.pickle.write.recode import Recoder
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads, recode

SAFE = Policy()


def recoded(values, *, protocol=None):
    """What one recoder makes of the pickles of some values, and what decoding and writing each makes of them."""
    streams = [pickle.dumps(value, protocol) for value in values]
    recoder = Recoder(SAFE)
    return [recoder(stream) for stream in streams], [recode(stream, policy=SAFE) for stream in streams]


def random(number, length=256):
    """A tensor of its own for each number."""
    return torch.rand(length, generator=torch.Generator().manual_seed(number))


def check_outcome(recoder, stream):
    """Check that a stream gives the same bytes, or the same kind of error, as without the recoder."""
    try:
        expected = recode(stream, policy=SAFE)
    except (DecodeError, RefusedPickleError) as error:
        with pytest.raises(type(error)):
            recoder(stream)
    else:
        assert expected == recoder(stream)


def test_tensors_of_one_shape_are_one_kind(monkeypatch):
    """After the first one nothing is decoded any more."""
    streams = [pickle.dumps(random(number)) for number in range(20)]
    expected = [recode(stream, policy=SAFE) for stream in streams]
    recoder = Recoder(SAFE)
    first = recoder(streams[0])
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.write.recode.recode", None)
    assert expected == [first, *map(recoder, streams[1:])]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        random,
        lambda n: random(n, 30_000),
        lambda n: random(n).to(torch.bfloat16),
        lambda n: random(n) > 0.5,
        lambda n: np.arange(n, n + 7),
        np.float32,
        lambda n: {"tokens": torch.arange(n % 4 + 1), "embedding": random(n, 8), "label": n},
        lambda n: {"text": f"sample {n:03d}", "flag": n % 2 == 0, "weight": n / 3, "data": bytes([n % 256] * 5)},
        lambda n: [n, -n, n * 70_000, n % 3 == 0, None, (n, "x")],
    ],
)
def test_bytes_are_those_of_decoding_and_writing(make, protocol):
    """For every kind of data, whether it is copied or not, and for every protocol."""
    found, expected = recoded([make(number) for number in range(260)][::13], protocol=protocol)
    assert expected == found


def sequences(number):
    """A sample whose sequence is of a length of its own."""
    length = 1 + number * 37 % 1000
    return {
        "id": f"s{number:04d}",
        "tokens": torch.arange(length) % 33,
        "embedding": random(number, 8),
        "label": number,
    }


def test_sequences_of_any_length_are_of_few_kinds(monkeypatch):
    """After some have shown that only the sequence's length differs, nothing is decoded any more."""
    streams = [pickle.dumps(sequences(number)) for number in range(400)]
    expected = [recode(stream, policy=SAFE) for stream in streams]
    recoder = Recoder(SAFE)
    assert expected[::7] == list(map(recoder, streams[::7]))
    known = recoder._learnt
    assert expected == list(map(recoder, streams))
    assert recoder._learnt < known + 8


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        sequences,
        lambda n: torch.rand(1 + n * 13 % 700),
        lambda n: np.arange(1 + n * 13 % 700, dtype=np.int16),
        lambda n: torch.zeros(1 + n * 997 % 20_000),  # beyond one frame too
        lambda n: (random(n, 3), [torch.ones(n % 5 + 1, dtype=torch.bfloat16)], "end"),
        lambda n: [torch.arange(n % 9 + 1), torch.arange(n % 7 + 1)],
    ],
)
def test_bytes_of_any_length_are_those_of_decoding_and_writing(make, protocol):
    """Frames, counts, shapes and torch's numbers of elements are written anew."""
    found, expected = recoded([make(number) for number in range(120)], protocol=protocol)
    assert expected == found


@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 255), st.booleans(), st.sampled_from([2, 4, 5]))
def test_damage_of_sequences_is_found_as_by_decoding(length, place, change, cut, protocol):
    """Also where a length contradicts another, or the stream has bytes more or less."""
    recoder = Recoder(SAFE)
    make = torch.arange if protocol == 4 else np.arange
    for number in (3, 50, 200, 270):
        recoder(pickle.dumps({"x": make(number), "n": 300}, protocol))
    stream = bytearray(pickle.dumps({"x": make(length), "n": 300}, protocol))
    place = place % len(stream) if place % 2 else -1 - place // 2 % len(stream)
    if cut and change % 2:
        del stream[place]
    elif cut:
        stream[place:place] = bytes(change * 8)
    else:
        stream[place] ^= change
    check_outcome(recoder, bytes(stream))


def test_integers_keep_their_shortest_form():
    """A number in a longer form than it needs is written as the standard pickler writes it."""
    long_forms = [b"\x80\x04K\x05.", b"\x80\x04M\x05\x00.", b"\x80\x04J\x05\x00\x00\x00.", b"\x80\x04\x8a\x01\x05."]
    usual = [pickle.dumps(number, 4) for number in (300, 1_000_000, 7)]
    recoder = Recoder(SAFE)
    assert [dumps(300), dumps(1_000_000), dumps(7)] == list(map(recoder, usual))
    assert [dumps(5)] * 4 == list(map(recoder, long_forms))


def test_equal_single_bytes_become_one_object_again():
    """Python has each of them only once, so pickles of such numbers depend on whether they are equal."""
    pairs = [(a, b) for a in (0, 1, 2) for b in (0, 1, 2)]
    found, expected = recoded([[np.int8(a), np.int8(b), bytes([a]), chr(a), chr(b)] for a, b in pairs])
    assert expected == found


@given(st.lists(st.tuples(st.integers(), st.floats(), st.booleans(), st.text(), st.binary()), min_size=2, max_size=8))
def test_any_plain_values_come_out_the_same(values):
    """Also those whose lengths, and so whose programs, differ."""
    found, expected = recoded(values)
    assert expected == found


@given(st.data())
def test_damage_is_found_as_by_decoding(data):
    """One wrong byte anywhere gives the same bytes or the same kind of error as without the recoder."""
    stream = bytearray(pickle.dumps({"x": random(1, 4), "text": "größer", "flag": True, "n": 300}))
    recoder = Recoder(SAFE)
    recoder(bytes(stream))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    check_outcome(recoder, bytes(stream))


def test_data_of_no_kind_are_not_learnt_for_ever(monkeypatch):
    """Lists that hold one object twice are never traced into a kind, and soon nobody tries."""
    recoder = Recoder(SAFE)
    tried = []
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.write.recode.trace", lambda *a, **k: tried.append(a))
    for number in range(300):
        shared = [number]
        assert [shared, shared] == loads(recoder(pickle.dumps([shared, shared])))
    assert len(tried) == 2 * 64
