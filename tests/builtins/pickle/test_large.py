"""Large pickles: read through views and written in pieces, with the same values and bytes as ever."""

import io
import pickle

import numpy as np
import pytest
import torch
from tests.helpers.sameness import same

from bionemo.webdatamodule.builtins.pickle.safe import opcodes, unpickler
from bionemo.webdatamodule.builtins.pickle.write import canonical
from bionemo.webdatamodule.errors import DecodeError, RefusedPickleError
from bionemo.webdatamodule.pickles import dumps, loads

N = 1 << 18  # elements of 8 bytes, so 2 MiB
ARRAY = np.arange(N)
BYTES = bytes(range(256)) * (1 << 13)
TENSOR = torch.arange(N, dtype=torch.float64)
WHOLE = torch.arange(2.0 * N)

VALUES = {
    "array": ARRAY,
    "two arrays": [ARRAY, ARRAY + 1, "x"],
    "one array twice": [ARRAY, ARRAY],
    "in a dict": {"a": ARRAY, "b": {"c": ARRAY.reshape(2, -1)}},
    "other shapes and types": [ARRAY.astype(">f4"), ARRAY.astype("<M8[s]"), ARRAY.reshape(4, -1).T],
    "fortran": np.asfortranarray(ARRAY.reshape(4, -1)),
    "records": ARRAY.view([("a", "i4"), ("b", "i4")]),
    "masked": np.ma.masked_array(ARRAY, ARRAY % 2 == 0),
    "bytes": BYTES,
    "bytes beside an array": [BYTES, ARRAY, BYTES],
    "bytes as a key": {BYTES: 1},
    "bytearray": bytearray(BYTES),
    "text": "é" * (1 << 20),
    "tensor": TENSOR,
    "tensors that share": [WHOLE[:N], WHOLE[N // 2 :]],
    "bfloat16": torch.arange(4 * N).to(torch.bfloat16),
    "with a set": [ARRAY, {"b", "a"}],
    "objects": np.array([ARRAY, "x"], dtype=object),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", VALUES)
def test_large_values_come_back(kind, protocol):
    """As pickle reads them, arrays writable, from any protocol, and from the canonical form."""
    data = pickle.dumps(VALUES[kind], protocol=protocol)
    value, found = pickle.loads(data), loads(data)
    assert same(value, found)
    assert same(value, loads(dumps(found)))
    assert same(value, pickle.loads(dumps(value)))
    if type(found) is np.ndarray:
        assert found.flags.writeable


class Whole(io.BytesIO):
    """A stream that copies."""

    @property
    def pieces(self):
        """All of it."""
        return [self.getvalue()]


@pytest.mark.parametrize("kind", VALUES)
def test_pieces_are_the_canonical_pickle(kind, monkeypatch):
    """Byte for byte what the pickler writes by itself."""
    found = b"".join(canonical.pieces(VALUES[kind]))
    monkeypatch.setattr(canonical, "_Stream", Whole)

    assert found == dumps(VALUES[kind])


def test_pieces_share_the_memory_of_arrays():
    """Large ones are views."""
    views = [piece for piece in canonical.pieces([ARRAY, TENSOR, 1]) if isinstance(piece, memoryview)]

    assert [True, True] == [
        np.shares_memory(np.frombuffer(view), memory) for view, memory in zip(views, (ARRAY, TENSOR), strict=True)
    ]


def test_no_value_holds_a_view():
    """Where a view would be part of the value, or its constructor wants bytes, the pickle is read again with copies."""
    for value in (BYTES, [BYTES], {"a": (BYTES, ARRAY)}, {BYTES: 0}):
        data = bytearray(pickle.dumps(value))
        found = loads(data)
        data[:] = bytes(len(data))  # nothing may show what was read
        assert same(value, found)


def test_views_are_charged_as_bytes():
    """A view that is made a tensor again and again asks for as much memory as the bytes would."""
    reduced = b"\x80\x04\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93\x94"
    dtype = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02i1\x89\x88\x87R\x94"
    operand = b"\x8e" + len(BYTES).to_bytes(8, "little") + BYTES + b"\x94"
    shape = b"J" + len(BYTES).to_bytes(4, "little") + b"\x85\x94"
    call = b"h\x00(h\x02h\x01h\x03\x8c\x01CtR"
    stream = reduced + dtype + operand + shape + b"000" + b"(" + call * 200 + b"l."
    with pytest.raises((RefusedPickleError, DecodeError), match="asks for more than"):
        loads(stream)


def test_errors_are_those_of_small_pickles():
    """What is wrong is said once, as without views."""
    data = pickle.dumps([ARRAY, print])
    with pytest.raises(RefusedPickleError, match="allow_pickle"):
        loads(data)
    with pytest.raises(DecodeError, match="ends in the middle"):
        loads(pickle.dumps(ARRAY)[:-9])
    lending = unpickler.Unpickler(memoryview(pickle.dumps([BYTES])), lambda *_: None, lends=True)
    value, _ = opcodes.run(lending)
    assert lending.lost()
    del value
    assert not lending.lost()
