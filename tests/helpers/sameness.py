"""Values of every kind that the safe codec builds, and what it means that two of them are the same."""

import array
import datetime as dt
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst


def same(one, other):
    """Say whether two values are equal to the bit, with the same types, dtypes, shapes and order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        facts = [(t.dtype, t.shape, t.requires_grad, t.device, t.layout) for t in (one, other)]
        return facts[0] == facts[1] and raw(one) == raw(other)
    if isinstance(one, (np.ndarray, np.generic)):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return same(one.tolist(), other.tolist()) if one.dtype.hasobject else one.tobytes() == other.tobytes()
    if isinstance(one, array.array):
        return one.typecode == other.typecode and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, complex):
        return same([one.real, one.imag], [other.real, other.imag])
    if isinstance(one, (list, tuple, deque)):
        return (
            len(one) == len(other)
            and all(map(same, one, other))
            and getattr(one, "maxlen", 0) == getattr(other, "maxlen", 0)
        )
    if isinstance(one, dict):
        factories = [getattr(d, "default_factory", None) for d in (one, other)]
        return (
            same(list(one), list(other))
            and same(list(one.values()), list(other.values()))
            and factories[0] is factories[1]
        )
    return repr(one) == repr(other) if isinstance(one, Decimal) else one == other


def raw(tensor):
    """The bytes of a tensor's elements."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)  # torch calls one element with a stride of 2 contiguous
    flat.copy_(tensor.detach().reshape(-1))
    return bytes(flat.view(torch.uint8).tolist())


TORCH_DTYPES = [
    torch.bfloat16, torch.bool, torch.complex64, torch.complex128, torch.float16, torch.float32, torch.float64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


any_dtype = st.sampled_from(TORCH_DTYPES)


@st.composite
def tensors(draw, dtypes=any_dtype):
    """Tensors of every dtype, also empty, 0-d, transposed, sliced, expanded, and with requires_grad."""
    dtype, shape = draw(dtypes), draw(shapes)
    size = int(np.prod(shape)) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    tensor = torch.frombuffer(data, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    form = draw(st.sampled_from(["plain", "transposed", "sliced", "expanded"]))
    if form == "transposed" and tensor.ndim:
        tensor = tensor.permute(*reversed(range(tensor.ndim)))
    elif form == "sliced" and tensor.ndim:
        tensor = tensor[::2]
    elif form == "expanded":
        tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    floating = dtype.is_floating_point and dtype.itemsize > 1
    if floating and draw(st.booleans()):
        tensor = tensor.detach().requires_grad_()
    return tensor


arrays = npst.arrays(
    st.one_of(
        npst.boolean_dtypes(),
        npst.integer_dtypes(),
        npst.unsigned_integer_dtypes(),
        npst.floating_dtypes(),
        npst.complex_number_dtypes(),
        npst.datetime64_dtypes(),
        npst.timedelta64_dtypes(),
        npst.byte_string_dtypes(min_len=1),
        npst.unicode_string_dtypes(min_len=1),
    ),
    shapes,
)

hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=300),
    st.binary(max_size=300),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.just(dt.timezone(dt.timedelta(hours=2), "x"))),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.sampled_from(["a/b", "/", ""]).map(pathlib.PurePosixPath),
    st.sampled_from(["a\\b", "c:/x"]).map(pathlib.PureWindowsPath),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.frozensets(st.integers(), max_size=3),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
)

leaves = st.one_of(
    hashables,
    st.floats(),
    st.complex_numbers(),
    st.binary(max_size=50).map(bytearray),
    st.sets(st.integers(), max_size=4),
    st.lists(st.integers(-(2**40), 2**40), max_size=30),
    st.lists(st.floats(), max_size=30).map(lambda items: array.array("d", items)),
    st.builds(slice, st.none() | st.integers(), st.integers()),
    st.just(Ellipsis),
    st.sampled_from(
        [torch.float32, torch.bfloat16, torch.Size([2, 3]), torch.device("cpu"), np.dtype("f4"), np.dtype(">i8")]
    ),
    arrays,
    arrays.filter(lambda made: made.size > 0).map(lambda made: made.reshape(-1)[0]),
    st.lists(hashables, max_size=3).map(lambda items: np.array([*items, None], dtype=object)[:-1]),
    tensors(),
    tensors(st.just(torch.float32)).map(lambda made: torch.nn.Parameter(made.detach())),
)

values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(lambda made: defaultdict(list, made)),
        st.lists(inner, max_size=3).map(lambda items: deque(items, 5)),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=3).map(Counter),
    ),
    max_leaves=8,
)
