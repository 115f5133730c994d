"""Batches filled up with zeros: the same whether values are joined or read straight into the batch."""

import pickle
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from bionemo.webdatamodule import PickledDataWDS, Split, Use, context
from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.columns import collate_values
from bionemo.webdatamodule.columns import pad_values as fill
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.pickles import Policy, dumps, loads

MAKERS = {
    "tensors": lambda n, size: torch.arange(n, n + size),
    "matrices": lambda n, size: torch.arange(3 * size).reshape(size, 3) + n,
    "bfloat16": lambda n, size: torch.full((size,), n, dtype=torch.bfloat16),
    "arrays": lambda n, size: np.arange(size) + n,
    "numbers": lambda n, _size: n,
    "records": lambda n, size: {"tokens": torch.arange(size), "embedding": torch.full((4,), n / 3), "label": n},
    "tuples": lambda n, size: (torch.arange(size), f"name {n}", [n, torch.tensor(n)], b"x" * size),
}


def same(one, other):
    """Whether two batches have the same structure, types and values."""
    if isinstance(one, torch.Tensor):
        return type(other) is torch.Tensor and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("encode", [pickle.dumps, dumps])
@pytest.mark.parametrize("kind", MAKERS)
@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_reading_into_the_batch_is_the_same_as_joining(kind, encode, sizes):
    """Also while the codec is still learning which lengths vary."""
    codec = PickleCodec(Policy())
    for _ in range(3):
        streams = [encode(MAKERS[kind](number, size)) for number, size in enumerate(sizes)]
        expected = fill(list(map(loads, streams)))
        assert same(expected, codec.column([memoryview(stream) for stream in streams]).pad())


def test_padding_is_zero_in_memory_that_was_used_before():
    """What an earlier batch left in the memory does not show."""
    codec = PickleCodec(Policy())
    views = [memoryview(dumps(torch.ones(size))) for size in (5, 3, 5, 1)]
    worker = context.Worker(empty=lambda shape, dtype: torch.full(shape, 7, dtype=dtype))
    for _ in range(3):
        with context.working(worker):
            batch = codec.column(views).pad()
    assert [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]] == batch.tolist()


def test_other_dimensions_have_to_agree():
    """The error is that of torch, as for any batch that does not fit together."""
    views = [memoryview(dumps(torch.ones(2, width))) for width in (3, 4)]
    with pytest.raises(RuntimeError, match="size"):
        PickleCodec(Policy()).column(views).pad()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_padded_batches_of_a_module_are_those_of_its_samples(tmp_path, workers):
    """``batch`` with ``collate="pad"`` gives the same batches when workers make them as when the user does."""
    names = [f"s{number:02d}" for number in range(20)]
    for number, name in enumerate(names):
        (tmp_path / f"{name}.pyd").write_bytes(pickle.dumps(MAKERS["records"](number, number * 7 % 11 + 1)))
    batches = []
    for stage in (Use("batch", collate="pad"), Use("batch", collate=fill)):
        module = PickledDataWDS(
            tmp_path,
            "pyd",
            {Split.train: names},
            tmp_path / "tars-",
            6,
            n_tars_wds=3,
            pipeline_prebatch_wld={Split.train: stage},
            kwargs_wld={Split.train: {"num_workers": workers}},
        )
        module.prepare_data()
        module.setup("fit")
        batches.append(list(module.train_dataloader()))
    assert len(batches[0]) == 4
    assert same(batches[1], batches[0])


@pytest.mark.parametrize("collate", ["default", "pad"])
@pytest.mark.parametrize("order", ["global", "shards"])
def test_masked_arrays_are_refused_until_a_stage_removes_the_masks(tmp_path, collate, order):
    """No batch drops a mask: the error names the field, and both of its remedies work."""

    def batch(stage=None):
        data = PickledDataWDS(
            tmp_path,
            ("x.pyd", "y.pyd"),
            {"test": ["a", "b"]},
            f"{tmp_path}/shards-",
            2,
            order=order,
            n_tars_wds=1,
            pipeline_wds=None if stage is None else {"test": stage},
            pipeline_prebatch_wld={"test": Use("batch", collate=collate)},
        )
        data.prepare_data()
        data.setup("test")
        return next(iter(data.test_dataloader()))

    masked = np.ma.masked_array([1.0, 2.0], mask=[False, True], fill_value=-1.0)
    for name in ("a", "b"):
        (tmp_path / f"{name}.x.pyd").write_bytes(pickle.dumps(1))
        (tmp_path / f"{name}.y.pyd").write_bytes(pickle.dumps({"m": masked}))

    with pytest.raises((TypeError, DecodeError), match=r"the values at sample\[1\]\['m'\] are masked.*array\.filled"):
        batch()
    assert [[1.0, -1.0]] * 2 == batch(lambda samples: (y["m"].filled() for _, y in samples)).tolist()
    values, masks = batch(lambda samples: ((y["m"].data, y["m"].mask) for _, y in samples))
    assert ([[1.0, 2.0]] * 2, [[False, True]] * 2) == (values.tolist(), masks.tolist())


@given(
    st.recursive(
        st.sampled_from([int, bool, float, str, bytes, "tensor", "array", "scalar"]),
        lambda inner: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
        ),
        max_leaves=6,
    ),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_values_are_joined_as_torch_joins_them(kind, n):
    """Whatever containers, numbers and text the samples are of."""
    samples = [made(kind, number) for number in range(n)]
    assert same(default_collate(samples), collate_values(samples))


@pytest.mark.parametrize("join", [collate_values, fill])
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: OrderedDict(counts=value)], ids=["alone", "within"]
)
def test_counters_are_joined_by_their_keys(join, wrap):
    """A key that a counter lacks counts 0 there, and nothing is added up."""
    found = join([wrap(Counter(a=1, b=10)), wrap(Counter(c=3, a=2))])
    found = found.get("counts", found)
    assert {"a": [1, 2], "b": [10, 0], "c": [0, 3]} == {key: counts.tolist() for key, counts in found.items()}


def made(kind, number):
    """Return the sample of a number, of a structure whose leaves are kinds of values."""
    if isinstance(kind, dict):
        return {name: made(inner, number) for name, inner in kind.items()}
    if isinstance(kind, list | tuple):
        return type(kind)(made(inner, number) for inner in kind)
    leaves = {
        int: number - 2**62,
        bool: number % 2 == 0,
        float: number / 3,
        str: f"s{number}",
        bytes: b"b" * number,
        "tensor": torch.arange(3) + number,
        "array": np.arange(3, dtype=np.int16) + number,
        "scalar": np.float32(number),
    }
    return leaves[kind]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([2**63, 1], (RuntimeError, ValueError)),
        ([[1], [1, 2]], RuntimeError),
        ([{"a": 1}, {"b": 1}], KeyError),
        ([torch.zeros(1), torch.zeros(2)], RuntimeError),
        ([None, None], TypeError),
    ],
)
def test_what_makes_no_batch_is_the_error_that_torch_raises(values, error):
    """Numbers beyond 64 bits, lengths and names that differ, shapes, and values that have no tensor."""
    with pytest.raises(error):
        default_collate(values)
    with pytest.raises(error):
        collate_values(values)


def test_masked_arrays_are_found_in_any_sample():
    """Also where the first sample has none."""
    plain, masked = np.ones(1), np.ma.masked_array([1.0], mask=[True])

    for join in (collate_values, fill):
        with pytest.raises(TypeError, match=r"^the values at sample\[0\]\['x'\] are masked"):
            join([({"x": plain}, 1), ({"x": masked}, 2)])
