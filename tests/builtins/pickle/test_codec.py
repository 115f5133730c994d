import itertools
import pickle
import random
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers import fuzz_pickles, sameness
from torch.utils.data import default_collate

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.columns import collate_values, pad_values
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError
from bionemo.webdatamodule.pickles import Policy, dumps, loads

same, values = sameness.same, sameness.values

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def tokens(rng):
    """A token array, of a length of its own."""
    return torch.randint(0, 30, (rng.randint(2, 400),))


KINDS = {
    "vector": lambda rng: torch.rand(16),
    "vectors of any length": tokens,
    "matrix": lambda rng: torch.rand(3, 4),
    "matrices": lambda rng: torch.rand(rng.randint(1, 5), rng.randint(1, 5)),
    "bfloat16": lambda rng: torch.rand(2, 3).bfloat16(),
    "number": lambda rng: torch.tensor(rng.random()),
    "array": lambda rng: np.array([rng.random() for _ in range(5)], np.float32),
    "arrays": lambda rng: np.arange(rng.randint(1, 400) * 2).reshape(-1, 2),
    "dict": lambda rng: {"tokens": tokens(rng), "embedding": torch.rand(8), "label": rng.randint(0, 3)},
    "dict of arrays": lambda rng: {
        "tokens": tokens(rng).numpy(),
        "mask": np.ones(3, bool),
        "label": rng.randint(0, 300),
    },
    "scalars": lambda rng: {
        "int": rng.randint(-(2**40), 2**40),
        "float": rng.random(),
        "bool": rng.random() < 0.5,
        "numpy": np.float32(rng.random()),
        "name": "x" * rng.randint(0, 300),
        "bytes": bytes(rng.randint(0, 20)),
        "none": None,
    },
    "nested": lambda rng: [{"a": (torch.rand(2), [rng.random()])}, (1, "x" * rng.randint(1, 4)), []],
}
WRITERS = {
    "canonical": dumps,
    **{f"protocol {number}": lambda item, number=number: pickle.dumps(item, number) for number in (2, 4, 5)},
}


def streams(kind, writer, count, seed=0):
    """Pickles of one kind."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    return [WRITERS[writer](KINDS[kind](rng)) for _ in range(count)]


def outcome(function, data):
    """A value, or the error in words."""
    try:
        return function(data)
    except (DecodeError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def stacked(codec):
    """Batches of one codec."""
    return lambda views: codec.column(views).stack()


def values_of(codec):
    """Values of one codec, of many pickles."""
    return lambda views: codec.column(views).values()


# -- equality


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_gives_what_loads_gives(kind, writer):
    """Over samples of one kind, of which the first few become templates."""
    codec = PickleCodec(Policy())
    for data in streams(kind, writer, 40):
        assert same(loads(data), codec.decode(memoryview(data)))


@pytest.mark.parametrize("writer", ["canonical", "protocol 4", "protocol 5"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_one_kind_are_decoded_by_templates(kind, writer, monkeypatch):
    """After a few samples loads is called no more."""
    codec = PickleCodec(Policy())
    for data in streams(kind, writer, 200):
        codec.decode(memoryview(data))
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.codec.loads", None)
    for data in streams(kind, writer, 50, seed=1):
        codec.decode(memoryview(data))


@slow
@given(st.lists(values, min_size=1, max_size=4), st.integers(0, 5), st.booleans())
def test_equal_for_values_of_any_kind(items, protocol, canonical):
    """Each value is read twice, so that the second time may be by a template."""
    codec = PickleCodec(Policy())
    for item in items * 2:
        try:
            data = dumps(item) if canonical else pickle.dumps(item, protocol)
        except TypeError:  # complex in protocol 0
            continue
        assert same(loads(data), codec.decode(memoryview(data)))


@slow
@given(
    st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(WRITERS)), st.integers(0, 5), st.data(),
)  # fmt: skip
def test_equal_for_changed_streams(kind, writer, seed, data):
    """Whatever byte is changed in a stream that has a template: the same value, or the same refusal, as loads."""
    known = streams(kind, writer, 4, seed)
    codec = PickleCodec(Policy())
    for stream in known:
        codec.decode(memoryview(stream))
    stream = bytearray(data.draw(st.sampled_from(known)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(stream) - 1))
        change = data.draw(st.sampled_from(["set", "flip", "insert", "delete", "splice", "number"]))
        if change == "set":
            stream[place] = data.draw(st.integers(0, 255))
        elif change == "flip":
            stream[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "insert":
            stream[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "delete":
            del stream[place : place + data.draw(st.integers(1, 8))]
        elif change == "splice":
            other = data.draw(st.sampled_from(known))
            stream[place:] = other[min(place, len(other)) :]
        else:
            number = data.draw(st.sampled_from([0, 1, 2, 255, 256, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
            packed = struct.pack("<Q", number)[: data.draw(st.sampled_from([1, 2, 4, 8]))]
            stream[place : place + len(packed)] = packed
    if not stream:
        return
    expected = outcome(loads, bytes(stream))
    assert same(expected, outcome(codec.decode, memoryview(bytes(stream))))
    twice = [memoryview(bytes(stream)), memoryview(known[0])]
    assert same(_attempt(_collated, twice), _attempt(stacked(codec), twice))


def _collated(views):
    values = [loads(view) for view in views]
    return (collate_values if "Counter" in repr(values) else default_collate)(values)  # torch doubles its counts


def _changes(stream):
    """Every single byte of a stream, set to a few others."""
    for place in range(len(stream)):
        for change in (1, 0x80, 0xFF):
            changed = bytearray(stream)
            changed[place] ^= change
            yield bytes(changed)


@pytest.mark.parametrize("kind", ["vectors of any length", "matrices", "dict of arrays"])
@pytest.mark.parametrize("writer", ["canonical", "protocol 2", "protocol 4", "protocol 5"])
def test_equal_for_every_changed_byte(kind, writer):
    """All bytes of the stream, one after the other, with templates whose lengths are open."""
    known = sorted(streams(kind, writer, 12), key=len)
    codec = PickleCodec(Policy())
    for stream in known:
        codec.decode(memoryview(stream))
    codec._tries = 0  # so that it learns nothing from the changed ones
    for changed in _changes(known[0]):
        assert same(outcome(loads, changed), outcome(codec.decode, memoryview(changed)))


@pytest.mark.parametrize("kind", ["dict", "vector", "scalars"])
@pytest.mark.parametrize("writer", ["canonical", "protocol 4"])
def test_a_changed_byte_is_noticed_among_others_of_its_kind(kind, writer):
    """Streams are compared many at a time; one that differs in any byte is decoded by itself, the others as before."""
    known = sorted(streams(kind, writer, 12), key=len)
    codec = PickleCodec(Policy())
    for stream in known:
        codec.decode(memoryview(stream))
    codec._tries = 0
    first, last = loads(known[1]), loads(known[2])
    for changed in itertools.islice(_changes(known[0]), 0, None, 2):
        views = [memoryview(known[1]), memoryview(changed), memoryview(known[2])]
        expected, found = outcome(loads, changed), outcome(values_of(codec), views)
        assert same(expected if isinstance(expected, str) else [first, expected, last], found)
        assert same(_attempt(_collated, views), _attempt(stacked(codec), views))


# -- what must not become a hole


def twice(first, second):
    """Decode two streams in turn with one codec, after each was seen before."""
    codec = PickleCodec(Policy())
    return [codec.decode(memoryview(data)) for data in (first, second, first, second, first, second)][-2:]


def test_memory_that_is_used_twice():
    """One bytearray in two places stays one object, and is not a hole."""

    def stream(byte):
        shared = bytearray([byte]) * 8
        return pickle.dumps([shared, shared], 5)

    first, second = twice(stream(1), stream(2))
    assert first[0] is first[1]
    assert [bytearray([2]) * 8] * 2 == second


def test_text_that_is_used_twice():
    """Text that is a value and a key, through the memo."""
    found = twice(*(pickle.dumps([text, {text: 1}], 5) for text in ("ab", "cd")))
    assert [["ab", {"ab": 1}], ["cd", {"cd": 1}]] == found


def test_keys_are_part_of_the_program():
    """Two dicts with other keys are two programs."""
    assert [{"ab": 1}, {"cd": 1}] == twice(*(pickle.dumps({text: 1}, 5) for text in ("ab", "cd")))


def test_keys_that_are_numbers():
    """1 and True are one key to Python and two to a reader of types."""
    assert [[int], [bool]] == [[type(key) for key in found] for found in twice(*map(pickle.dumps, ({1: 2}, {True: 2})))]


def test_tensors_that_share_memory():
    """Two views of one memory stay two views of one memory."""
    base, other = torch.arange(4.0), torch.zeros(4)
    for found in twice(dumps([base, base[1:]]), dumps([other, other[1:]])):
        found[0][1] = 9
        assert found[1][0].item() == 9


def test_values_are_fresh():
    """Changing a sample, its lists or its arrays, changes no later sample."""
    data = dumps({"a": [torch.zeros(2), np.zeros(2)], "b": [], "c": {}})
    codec = PickleCodec(Policy())
    for _ in range(4):
        found = codec.decode(memoryview(data))
        assert [0.0, 0.0] == [found["a"][0][0].item(), found["a"][1][0]]
        assert ([], {}) == (found["b"], found["c"])
        found["a"][0][0] = found["a"][1][0] = 1
        found["b"].append(1)
        found["c"][1] = 1


def test_values_outlive_the_buffer():
    """Nothing points into the stream, so its memory may be reused."""
    codec = PickleCodec(Policy())
    buffer = bytearray(dumps({"x": torch.arange(4), "y": np.arange(4), "z": "text"}))
    found = [codec.decode(memoryview(buffer)) for _ in range(3)]
    buffer[:] = bytes(len(buffer))
    assert [[0, 1, 2, 3]] * 3 == [item["x"].tolist() for item in found]
    assert [[0, 1, 2, 3]] * 3 == [item["y"].tolist() for item in found]


def test_a_class_of_the_users_is_no_template():
    """Names in allow_pickle do what they do now, every time."""
    calls = []
    policy = Policy(allow=("numpy.dtype", "collections.OrderedDict"))
    codec = PickleCodec(policy)
    for number in range(4):
        data = pickle.dumps(np.arange(3) + number, 4)
        calls.append(codec.decode(memoryview(data)).tolist())
    assert [[n, n + 1, n + 2] for n in range(4)] == calls
    assert [] == codec.templates


def test_a_refused_pickle_is_refused_every_time():
    """A refusal is not a template either."""
    codec = PickleCodec(Policy())
    data = memoryview(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.")
    for _ in range(3):
        with pytest.raises(RefusedPickleError, match=r"os\.system"):
            codec.decode(data)


def test_a_codec_learns_a_bounded_number_of_times(monkeypatch):
    """Data of no kind at all stop paying for it."""
    traced = []
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.codec.trace", lambda data, allowed: traced.append(data))
    codec = PickleCodec(Policy())
    for number in range(200):
        codec.decode(memoryview(pickle.dumps({str(number): number})))
    assert len(traced) == 32


def test_a_codec_travels_without_its_templates():
    """It is pickled to workers as its policy."""
    codec = PickleCodec(Policy(allow=("a.B",)))
    codec.decode(memoryview(dumps([1])))
    copy = pickle.loads(pickle.dumps(codec))
    assert codec.policy == copy.policy
    assert len(pickle.dumps(codec)) < 300


# -- batches


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7])
def test_a_batch_is_the_default_collate_of_the_values(kind, writer, size):
    """With and without templates, also where default_collate raises."""
    codec = PickleCodec(Policy())
    for seed in range(3):
        views = [memoryview(data) for data in streams(kind, writer, size, seed)]
        assert same(outcome(_collated, views), outcome(stacked(codec), views))


@slow
@given(values, st.booleans())
def test_batches_of_values_of_any_kind(item, canonical):
    """Whatever default_collate makes of the values, or raises."""
    data = dumps(item) if canonical else pickle.dumps(item, 4)
    codec = PickleCodec(Policy())
    for _ in range(2):
        views = [memoryview(data)] * 3
        expected, found = _attempt(_collated, views), _attempt(stacked(codec), views)
        assert same(expected, found)


def _apart(column, lengths):
    stops = list(itertools.accumulate(lengths))
    return [column[stop - length : stop].stack() for stop, length in zip(stops, lengths, strict=True)]


def _attempt(function, views):
    try:
        return function(views)
    except Exception as error:  # noqa: BLE001  # whatever default_collate raises over odd values
        return type(error).__name__


def test_samples_that_differ_in_operand_sizes_make_one_batch(monkeypatch):
    """A label of 3 and one of 300 are other opcodes, but the tensors still go straight into the batch."""
    items = [{"x": torch.rand(4), "y": label, "z": "n" * label} for label in (3, 300, 7, 70000, 0)]
    views = [memoryview(dumps(item)) for item in items]
    codec = PickleCodec(Policy())
    for _ in range(2):
        for view in views:
            codec.decode(view)
    asked = []

    def empty(shape, dtype):
        asked.append((shape, dtype))
        return torch.empty(shape, dtype=dtype)

    with context.working(context.Worker(empty=empty)):
        assert same(default_collate(items), codec.column(views).stack())
    assert [((5, 4), torch.float32)] == asked


def test_a_batch_uses_the_memory_it_is_given():
    """The transport may hand out shared memory; arrays count as tensors of their dtype."""
    items = [{"a": np.full((2, 2), n, np.int16), "b": torch.full((3,), float(n))} for n in range(3)]
    views = [memoryview(dumps(item)) for item in items]
    codec = PickleCodec(Policy())
    codec.decode(views[0])
    made = []

    def empty(shape, dtype):
        made.append(torch.empty(shape, dtype=dtype).share_memory_())
        return made[-1]

    with context.working(context.Worker(empty=empty)):
        batch = codec.column(views).stack()
    assert [((3, 2, 2), torch.int16), ((3, 3), torch.float32)] == [(tuple(t.shape), t.dtype) for t in made]
    assert batch["a"] is made[0]
    assert batch["b"] is made[1]
    assert same(default_collate(items), batch)


def test_columns_below_tuples_are_tuples():
    """default_collate leaves text as it finds it: in a list below a dict, in a tuple below a list."""
    views = [memoryview(dumps(({"a": "x"}, "y")))] * 2
    codec = PickleCodec(Policy())
    codec.decode(views[0])
    assert [{"a": ["x", "x"]}, ("y", "y")] == codec.column(views).stack()


@pytest.mark.parametrize("kind", KINDS)
def test_several_batches_at_once_are_those_of_each(kind):
    """What is read together comes apart again, also where only one batch does not fit together."""
    codec = PickleCodec(Policy())
    lengths = (3, 1, 5)
    for seed in range(3):
        views = [memoryview(data) for data in streams(kind, "canonical", 9, seed)]
        bounds = itertools.pairwise(itertools.accumulate(lengths, initial=0))
        expected = [_attempt(_collated, views[start:stop]) for start, stop in bounds]
        found = _attempt(lambda views: _apart(codec.column(views), lengths), views)
        errors = [one for one in expected if isinstance(one, str)]
        assert same(errors[0] if errors else expected, found)


def test_many_values_of_two_kinds_come_in_order():
    """Each stream is decoded by its own template, and those of no kind one by one."""
    items = [torch.arange(3.0) + n if n % 2 else {"a": n, "b": [n] * n} for n in range(30)]
    views = [memoryview(dumps(item)) for item in items]
    codec = PickleCodec(Policy())
    for _ in range(3):
        assert same(items, codec.column(views).values())


def test_an_empty_batch_is_the_error_of_default_collate():
    """There is nothing to collate."""
    with pytest.raises(IndexError):
        PickleCodec(Policy()).column([]).stack()


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_a_slice_are_those_of_the_samples_in_it(kind):
    """Whether the codec knew the kind before, learns it from the first slice, or from one pickle among others."""
    data = [memoryview(data) for data in streams(kind, "canonical", 9)]
    data.insert(4, memoryview(dumps("another kind")))
    expected = [loads(view) for view in data]
    codec = PickleCodec(Policy())
    for _ in range(3):
        column = codec.column(data)
        assert same(expected[2:6], column[2:6].values())
        assert same(expected[4:5], column[3:][1:2].values())
        assert same(expected, column.values())
        assert [] == column[7:7].values()


def test_padding_is_that_of_the_values():
    """Through templates, into the memory of the worker, and for values of no kind."""
    items = [{"x": torch.arange(n), "y": [np.ones((n, 2)), "text"]} for n in (2, 5, 3, 4)]
    codec = PickleCodec(Policy())
    for _ in range(3):
        column = codec.column([memoryview(dumps(item)) for item in items])
        assert same(pad_values(items), column.pad())
        assert same(pad_values(items[2:]), column[2:].pad())


def test_a_codec_recodes_to_what_it_encodes():
    """Conversion writes the canonical form, from any protocol."""
    codec = pickle.loads(pickle.dumps(PickleCodec(Policy())))
    for number in range(3):
        value = {"x": torch.arange(3) + number, "y": number}
        assert codec.encode(value) == codec.recode(pickle.dumps(value, 2))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_streams_come_to_the_same_with_and_without_templates(seed):
    """Values and messages; ``fuzz_pickles.py`` does it for as long as one likes."""
    rng = random.Random(seed)
    for _ in range(3):
        assert [] == [stream for stream, good in fuzz_pickles.fuzz(KINDS, WRITERS, same, rng, 60) if not good]
