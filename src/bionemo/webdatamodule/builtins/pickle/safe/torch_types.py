"""What pickles may name of torch, and the checking constructor behind each name.

A pickled tensor holds its memory as bytes of a second format: ``torch.storage._load_from_bytes(b)``, which in
torch is ``torch.load(weights_only=False)``, so allowing it by name allows everything.
Here those bytes are read by :func:`load_storage`, which knows the one shape that torch writes for a storage,
and every view of a storage is checked against its size.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from bionemo.webdatamodule.builtins.pickle.safe.numpy_types import check_shape
from bionemo.webdatamodule.builtins.pickle.safe.opcodes import run
from bionemo.webdatamodule.builtins.pickle.safe.tokens import Fresh, as_bytes, expect, is_size, table
from bionemo.webdatamodule.builtins.pickle.safe.unpickler import Unpickler
from bionemo.webdatamodule.errors import RefusedPickleError

if TYPE_CHECKING:
    from bionemo.webdatamodule.builtins.pickle.safe.budget import Budget

# torch.serialization._legacy_save: these numbers and the system information come before the storage
MAGIC: Final = 0x1950A86A20F9469CFC6C
VERSION: Final = 1001

_QUANTIZED: Final = frozenset((torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4))
_DTYPES: Final[dict[str, torch.dtype]] = {
    name: dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)
}
_STORAGES: Final[dict[str, torch.dtype]] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt2x4Storage": torch.quint2x4,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt8Storage": torch.quint8,
    "ShortStorage": torch.int16,
}


@dataclass(frozen=True, eq=False)
class StorageType:
    """A class of storages that the inner pickle named; its dtype is ``None`` for an UntypedStorage."""

    dtype: torch.dtype | None

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 1 if self.dtype is None else self.dtype.itemsize

    def show(self, memory: torch.UntypedStorage) -> torch.storage.TypedStorage | torch.UntypedStorage:
        """Return memory as a storage of this class."""
        if self.dtype is None:
            return memory
        return torch.storage.TypedStorage(wrap_storage=memory, dtype=self.dtype, _internal=True)


@dataclass(frozen=True, eq=False)
class _Promise:
    """A storage that a persistent id announced; its bytes come later."""

    kind: StorageType
    key: str
    numel: int


def find_storage(module: str, name: str) -> StorageType:
    """Return what a name inside the bytes of a storage stands for; nothing else may be named there."""
    if name == "UntypedStorage" and module in ("torch", "torch.storage"):
        return StorageType(None)
    if module == "torch" and name in _STORAGES:
        return StorageType(_STORAGES[name])
    raise RefusedPickleError(f"the storage of a pickled tensor names {module}.{name}, which is not a storage")


def _promise(saved: Any) -> _Promise:
    expect(type(saved) is tuple and len(saved) == 6 and type(saved[0]) is str, "an unknown persistent id")
    word, kind, key, location, numel, view = saved
    expect(word == "storage" and type(location) is str, "an unknown persistent id")
    expect(type(kind) is StorageType and type(key) is str and view is None, "a storage of an unknown form")
    expect(is_size(numel), "a storage without a size")
    return _Promise(kind, key, numel)


def load_storage(budget: Budget, data: Any) -> torch.storage.TypedStorage | torch.UntypedStorage:
    """Read a storage as ``TypedStorage.__reduce__`` writes it (``torch.serialization._legacy_save``).

    Five pickles (magic number, version, system information, the storage as a persistent id, the list of storage
    keys), then the number of elements as int64 and the elements, all little-endian.
    The storage lies on the CPU, whatever device it was saved from.

    Args:
        budget: That of the pickle around it.
        data: The five pickles and the elements.
    """
    data = as_bytes(data)
    expect(type(data) in (bytes, memoryview), "a storage without data")
    view = memoryview(data)
    unpickler = Unpickler(view, find_storage, budget=budget)
    position = 0
    parts = []
    for part in range(5):
        unpickler.persistent = _promise if part == 3 else None
        value, position = run(unpickler, position)
        parts.append(value)
    magic, version, system, promise, keys = parts
    expect(type(magic) is type(version) is int, "a storage that torch did not write")
    expect(magic == MAGIC and version == VERSION, "a storage that torch did not write")
    expect(type(system) is dict and system.get("little_endian") is True, "a storage of another byte order")
    expect(type(promise) is _Promise and type(keys) is list and len(keys) == 1, "a storage of an unknown form")
    expect(type(keys[0]) is str and keys[0] == promise.key, "a storage of an unknown form")
    numel = promise.numel
    size = numel * promise.kind.itemsize
    expect(len(view) == position + 8 + size, "a storage whose size contradicts its data")
    expect(int.from_bytes(view[position : position + 8], "little") == numel, "a storage of two sizes")
    memory = torch.empty(size, dtype=torch.uint8)
    memory.numpy()[:] = np.frombuffer(view[position + 8 :], np.uint8)
    kind: StorageType = promise.kind
    return kind.show(memory.untyped_storage())


def _check_view(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Check that a view stays within the elements that are there; the budget is charged for strides of 0."""
    check_shape(size)
    expect(type(stride) is tuple and len(stride) == len(size), "a tensor without strides")
    expect(all(map(is_size, stride)), "a tensor with invalid strides")
    expect(is_size(offset), "a tensor without an offset")
    last = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    inside = offset <= numel if 0 in size else offset + last < numel
    expect(inside, "a tensor that reaches beyond its storage")


def _rebuild(storage: Any, dtype: Any, view: tuple[Any, Any, Any], flags: tuple[Any, Any, Any]) -> torch.Tensor:
    requires_grad, hooks, metadata = flags
    expect(isinstance(dtype, torch.dtype) and dtype not in _QUANTIZED, "a tensor of an unknown dtype")
    expect(type(requires_grad) is bool, "a tensor without requires_grad")
    expect(hooks is None or (type(hooks) is OrderedDict and not hooks), "a tensor with hooks")
    _check_view(storage.nbytes() // dtype.itemsize, *view)
    tensor = torch.empty((0,), dtype=dtype).set_(storage, *view)
    tensor.requires_grad = requires_grad
    if metadata:  # the lazy conj and neg bits
        expect(type(metadata) is dict and set(metadata) <= {"conj", "neg"}, "a tensor with unknown metadata")
        expect(all(type(bit) is bool for bit in metadata.values()), "a tensor with unknown metadata")
        expect(dtype.is_complex or not metadata.get("conj"), "a real tensor to conjugate")
        torch._utils.set_tensor_metadata(tensor, metadata)  # noqa: SLF001  # as torch's own rebuild
    tensor._backward_hooks = hooks  # noqa: SLF001  # as torch's own rebuild
    return tensor


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> torch.Tensor:
    expect(type(storage) is torch.storage.TypedStorage, "a tensor without a storage")
    view, flags = (offset, size, stride), (requires_grad, hooks, metadata)
    return _rebuild(storage._untyped_storage, storage.dtype, view, flags)  # noqa: SLF001  # untyped() warns


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> torch.Tensor:  # fmt: skip
    expect(type(storage) is torch.UntypedStorage, "a tensor without a storage")
    return _rebuild(storage, dtype, (offset, size, stride), (requires_grad, hooks, metadata))


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> torch.nn.Parameter:
    expect(type(data) is torch.Tensor and type(requires_grad) is bool, "a parameter without a tensor")
    expect(type(hooks) is OrderedDict and not hooks, "a parameter with hooks")
    return torch.nn.Parameter(data, requires_grad)


def _rebuild_from_numpy(data: Any, dtype: Any, device: Any, requires_grad: Any) -> torch.Tensor:
    # how torch spells tensors of some devices, which come to the CPU here
    expect(type(data) is np.ndarray and isinstance(dtype, torch.dtype), "a tensor without an array")
    return _rebuild_from_cpu(torch.from_numpy(data.copy()), dtype, device, requires_grad)


def _rebuild_from_cpu(data: Any, dtype: Any, device: Any, requires_grad: Any) -> torch.Tensor:
    expect(type(data) is torch.Tensor and isinstance(dtype, torch.dtype), "a tensor without data")
    expect(type(device) is str and type(requires_grad) is bool, "a tensor without a device")
    expect(dtype not in _QUANTIZED, "a tensor of an unknown dtype")
    made: torch.Tensor = data.detach().to(dtype)
    made.requires_grad = requires_grad
    return made


def _size(sizes: Any) -> torch.Size:
    check_shape(sizes)
    return torch.Size(sizes)


def _device(kind: Any, *index: Any) -> torch.device:
    expect(type(kind) is str and all(map(is_size, index)), "an unknown device")
    return torch.device(kind, *index)


# -- the form that this package writes, see canonical.py


def _from_numpy(array: Any) -> Fresh:
    # An array that numpy rebuilt owns its memory and may free it for a second state. One that numpy.ndarray
    # made over a bytearray never does.
    expect(type(array) is np.ndarray and not array.flags.owndata, "a tensor not made of a canonical array")
    return Fresh(torch.from_numpy(array), _grad_state)


def _view_copy(tensor: Any, dtype: Any) -> Fresh:
    expect(type(tensor) is torch.Tensor and isinstance(dtype, torch.dtype), "a view of something other than a tensor")
    expect(dtype not in _QUANTIZED and not tensor.requires_grad, "a view of an unknown dtype")
    return Fresh(tensor.view(dtype), _grad_state)


def _as_strided(tensor: Any, size: Any, stride: Any, offset: Any) -> Fresh:
    expect(type(tensor) is torch.Tensor and not tensor.requires_grad, "a view of something other than a tensor")
    expect(tensor.is_contiguous() and tensor.storage_offset() == 0, "a view of a view")
    _check_view(tensor.numel(), offset, size, stride)
    return Fresh(torch.as_strided(tensor, size, stride, offset), _grad_state)


def _grad_state(tensor: torch.Tensor, state: Any) -> None:
    # (requires_grad, unused, hooks), see torch.Tensor.__setstate__
    expect(type(state) is tuple and len(state) == 3 and type(state[0]) is bool, "a tensor with a bad state")
    expect(state[1:] == (None, None), "a tensor with hooks")
    tensor.requires_grad = state[0]


TABLE: Final[dict[tuple[str, str], Any]] = {
    **table(
        (
            ("torch.Size", _size),
            ("torch.as_strided", _as_strided),
            ("torch.device", _device),
            ("torch.from_numpy", _from_numpy),
            ("torch.view_copy", _view_copy),
            ("torch._utils._rebuild_device_tensor_from_cpu_tensor", _rebuild_from_cpu),
            ("torch._utils._rebuild_device_tensor_from_numpy", _rebuild_from_numpy),
            ("torch._utils._rebuild_parameter", _rebuild_parameter),
            ("torch._utils._rebuild_tensor_v2", _rebuild_tensor_v2),
            ("torch._utils._rebuild_tensor_v3", _rebuild_tensor_v3),
        )
    ),
    **table([("torch.storage._load_from_bytes", load_storage)], charged=True),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}
"""``(module, name)`` as pickles spell it, to a token or to a dtype."""
