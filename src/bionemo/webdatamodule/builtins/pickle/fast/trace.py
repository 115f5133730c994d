"""Trace a pickle: follow it with positions in the stream instead of values, and write down what it does.

This covers the opcodes and constructors that one-kind samples are made of: dicts, lists, tuples, numbers, text,
bytes, plain numpy arrays and scalars, contiguous tensors, and objects of classes that the user allowed.
:func:`trace` returns None for anything else, and for any use of the stream's bytes that is more than "copy them
to there": such pickles are decoded by :func:`~bionemo.webdatamodule.pickles.loads` every time.

Only streams that ``loads`` has accepted are traced, so this is not where anything is made safe; it decides what may
be different in the next stream and still be the same program.
"""

from __future__ import annotations

import io
import itertools
import math
import pickletools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from bionemo.webdatamodule.builtins.pickle.fast.program import (
    Again,
    Block,
    Const,
    Items,
    Leaf,
    Made,
    Mapping,
    Node,
    Program,
    Region,
    Scalar,
    parts,
)
from bionemo.webdatamodule.builtins.pickle.safe.names import finder, known
from bionemo.webdatamodule.builtins.pickle.safe.tokens import Global, UnknownNameError
from bionemo.webdatamodule.errors import DecodeError

if TYPE_CHECKING:
    import torch


class NotTraceableError(Exception):
    """The stream does something that a template cannot repeat."""


@dataclass(eq=False)
class _Storage:
    """Memory of torch that no tensor shows yet."""

    kind: Any
    data: Leaf
    numel: Leaf
    keys: list[Leaf]


@dataclass(eq=False)
class _Name:
    """A constructor that the safe codec knows."""

    name: str


@dataclass(eq=False)
class _Allowed(Const):
    """What the user allowed; as a value it is itself."""

    token: Global


@dataclass(eq=False)
class _Unbuilt:
    """A dtype, which may take a state, an array before its state, or torch's empty hooks."""

    name: str
    value: Any = None
    build: Any = None


def trace(data: bytes, *, allowed: tuple[str, ...] = ()) -> Program | None:
    """Trace a pickle that was accepted, or return None where a template could not stand in for it.

    Args:
        data: The whole stream.
        allowed: Names that the user allowed.
    """
    tracer = _Tracer(data, allowed)
    try:
        root, stop = tracer.run(io.BytesIO(data), 0)
        if stop != len(data) or any(leaf.shared for leaf in tracer.sole):
            return None
        if not all(isinstance(part, (Leaf, Const, Scalar, Block)) for part in parts(root)):
            return None
    except (
        NotTraceableError,
        UnknownNameError,
        DecodeError,
        RecursionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):
        return None
    return Program(root, tracer.regions, tracer.users)


_MOST_STEPS: Final = 10_000
"""Opcodes of a program: templates of larger ones, such as long lists of numbers, save no time."""

_SHORT: Final = 6
"""Parts of a tuple that the memo may hand out again: so few that no program unfolds to more than a value may have."""

_COUNTED: Final = {
    "SHORT_BINBYTES": ("bytes", 1),
    "BINBYTES": ("bytes", 4),
    "BINBYTES8": ("bytes", 8),
    "BYTEARRAY8": ("bytearray", 8),
    "SHORT_BINUNICODE": ("text", 1),
    "BINUNICODE": ("text", 4),
    "BINUNICODE8": ("text", 8),
}
_NUMBERS: Final = {  # kind, and the bytes between the opcode and the number
    "BININT1": ("unsigned", 0),
    "BININT2": ("unsigned", 0),
    "BININT": ("int", 0),
    "LONG1": ("int", 1),
    "BINFLOAT": ("float", 0),
}


class _Tracer:
    """Follows opcodes with nodes on the stack instead of values."""

    def __init__(self, data: bytes, allowed: tuple[str, ...]) -> None:
        self.data = data
        self.find_name = finder(allowed)
        self.users = False  # code of the user's runs
        self.regions: list[Region] = []
        self.sole: list[Leaf] = []  # memory that belongs to one part of the value only
        self.nested = False  # inside the bytes of a torch storage

    def run(self, stream: io.BytesIO, offset: int) -> tuple[Node, int]:
        """Trace the next pickle of a stream that begins at ``offset``; returns its value and where it ends."""
        stack: list[Node] = []
        marks: list[list[Node]] = []
        memo: dict[int, Node] = {}
        steps = _steps(stream, offset)
        stops = [position for _, _, position in steps[1:]] + [stream.tell() + offset]
        for (name, arg, position), stop in zip(steps, stops, strict=True):
            if name in _COUNTED:
                kind, width = _COUNTED[name]
                leaf = Leaf(kind, arg, position + 1 + width, stop, (position + 1, width))
                if kind == "bytearray":
                    self.sole.append(leaf)
                stack.append(leaf)
            elif name in _NUMBERS:
                kind, skip = _NUMBERS[name]
                stack.append(Leaf(kind, arg, position + 1 + skip, stop))
            elif name in ("NEWTRUE", "NEWFALSE"):
                stack.append(Leaf("bool", name == "NEWTRUE", position, stop))
            elif name == "FRAME":
                self.regions.append((position + 1, 8, stop, stop + arg))
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                _collect(name, stack, items)
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(_recalled(memo[arg]))
            elif name not in ("PROTO", "STOP"):
                self.step(name, arg, stack)
        (root,) = stack
        return root, stream.tell() + offset

    def step(self, name: str, arg: Any, stack: list[Node]) -> None:
        """Follow an opcode that works on the top of the stack."""
        if name in ("EMPTY_TUPLE", "EMPTY_LIST"):
            stack.append(Items(tuple if name == "EMPTY_TUPLE" else list))
        elif name == "EMPTY_DICT":
            stack.append(Mapping())
        elif name == "NONE":
            stack.append(Const(None))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [Items(tuple, stack[-size:])]
        elif name == "APPEND":
            item = stack.pop()
            _collect("APPENDS", stack, [item])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _collect("SETITEMS", stack, [key, value])
        elif name == "BINPERSID" and self.nested:
            pass  # what it names stays on the stack
        else:
            self.use_name(name, arg, stack)

    def use_name(self, name: str, arg: Any, stack: list[Node]) -> None:
        """Follow an opcode that looks up a name, or makes or changes an object."""
        if name == "GLOBAL":
            stack.append(self.find(*arg.split(" ")))
        elif name == "STACK_GLOBAL":
            last, module = _known(stack.pop()), _known(stack.pop())
            stack.append(self.find(module, last))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            if isinstance(function, _Allowed):
                stack.append(self.make(function.token.call, args))
            else:
                stack.append(self.call(_the(_Name, function).name, _the(Items, args).items))
        elif name == "NEWOBJ":
            args, cls = stack.pop(), _the(_Allowed, stack.pop())
            stack.append(self.make(cls.token.new, args))
        elif name == "BUILD" and isinstance(stack[-2], Made):
            state = stack.pop()
            stack[-1].states.append(state)
        elif name == "BUILD":
            state, unbuilt = stack.pop(), _the(_Unbuilt, stack.pop())
            stack.append(self.build(unbuilt, _the(Items, state)))
        else:
            raise NotTraceableError(name)

    def find(self, module: str, name: str) -> Node:
        """Return a token for a constructor, or a constant."""
        if self.nested:
            from bionemo.webdatamodule.builtins.pickle.safe.torch_types import find_storage

            return Const(find_storage(module, name))
        found = self.find_name(module, name)
        if not isinstance(found, Global):
            return Const(found)
        return _Allowed(found.real, found) if found.allowed else _Name(found.name)

    def make(self, maker: Any, args: Node) -> Made:
        """Follow the call of what the user allowed, with arguments whose cost is bounded by their bytes."""
        self.users = True
        for arg in _the(Items, args).items:
            if isinstance(arg, Leaf):
                self.sole.append(arg)
            elif isinstance(arg, (Made, Again)) or (isinstance(arg, Const) and isinstance(arg.value, tuple)):
                raise NotTraceableError("an argument of any size")
        return Made(maker, args)

    def call(self, name: str, args: list[Node]) -> Node:
        """Follow the call of a constructor."""
        module, _, last = name.rpartition(".")
        if name == "numpy.dtype":
            fresh = known("numpy", "dtype").call(*map(_known, args))
            return _Unbuilt("dtype", fresh.value, fresh.build)
        if name == "numpy.ndarray":
            shape, spec, data = args
            return self.block(shape, known("numpy", "dtype").call(_known(spec)).value, data)
        if name == "collections.OrderedDict" and not args:
            return _Unbuilt("hooks")
        if module in ("numpy.core.numeric", "numpy._core.numeric") and last == "_frombuffer":
            data, dtype, shape, order = args
            if _known(order) != "C":
                raise NotTraceableError("another order")
            return self.block(shape, _the(_Unbuilt, dtype).value, data)
        if last == "_reconstruct":
            _the(_Name, args[0])  # not a class that the user allowed
            return _Unbuilt("array")
        if last == "scalar":
            dtype, data = args
            self.sole.append(_the(Leaf, data))
            return Scalar(_the(_Unbuilt, dtype).value, data)
        if module.startswith("torch"):
            return self.call_torch(last, args)
        raise NotTraceableError(name)

    def build(self, unbuilt: _Unbuilt, state: Items) -> Node:
        """Follow the state of a dtype or an array."""
        if unbuilt.name == "array":
            version, shape, dtype, fortran, data = state.items
            if _known(version) != 1 or _known(fortran):
                raise NotTraceableError("another order")
            if not dtype.value.isnative:
                raise NotTraceableError("numpy swaps these bytes")
            return self.block(shape, dtype.value, data)
        unbuilt.build(unbuilt.value, _known(state))
        return unbuilt

    def block(self, shape: Node, dtype: np.dtype[Any], data: Node) -> Block:
        """Return an array that shows all of its data, in C order."""
        sizes = [_integer(size) for size in _the(Items, shape).items]
        total = math.prod(size.value for size in sizes) * dtype.itemsize
        if dtype.hasobject or not 0 < total == data.stop - data.start:
            raise NotTraceableError("an array of nothing, or of objects")
        self.sole += (*sizes, data)
        return Block(sizes, data, dtype)

    def call_torch(self, name: str, args: list[Node]) -> Node:
        """Follow the call of a constructor of torch."""
        import torch

        if name == "from_numpy":
            array = _the(Block, args[0])
            return replace(array, tensor=torch.from_numpy(np.empty(0, array.dtype)).dtype)
        if name == "view_copy":
            tensor, dtype = _the(Block, args[0]), _known(args[1])
            if tensor.tensor is None or tensor.tensor.itemsize != dtype.itemsize:
                raise NotTraceableError("a view of another size")
            return replace(tensor, tensor=dtype, dtype=None)
        if name == "_load_from_bytes":
            return self.storage(_the(Leaf, args[0]))
        if name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            storage, offset, size, stride, requires_grad, hooks, *more = args
            storage = _the(_Storage, storage)
            dtype = _known(more[0]) if more else storage.kind.dtype
            if len(more) != (name[-1] == "3") or _known(offset) != 0 or _known(requires_grad):
                raise NotTraceableError("more than a view of everything")
            block = _view(storage, dtype, _the(Items, size), _the(Items, stride), _the(_Unbuilt, hooks))
            self.sole += (*block.shape, *block.strides, *block.numels, *block.keys, block.data)
            return block
        raise NotTraceableError(name)

    def storage(self, blob: Leaf) -> _Storage:
        """Follow the pickles inside the bytes of a storage, see ``tensors.load_storage``."""
        self.sole.append(blob)
        self.nested = True
        stream = io.BytesIO(self.data[blob.start : blob.stop])
        values = []
        for _ in range(5):
            value, stop = self.run(stream, blob.start)
            values.append(value)
        self.nested = False
        _, kind, key, _, numel, _ = values[3].items
        (again,) = values[4].items
        if not (key.value == again.value and key.value.isascii() and key.value.isdigit()):
            raise NotTraceableError("a storage without an address")
        if blob.count is None:
            raise NotTraceableError("a storage without a count")
        self.regions.append((*blob.count, blob.start, blob.stop))
        kind = _known(kind)
        unit = 1 if kind.dtype is None else kind.dtype.itemsize
        data = Leaf("bytes", None, stop + 8, blob.stop, (stop, 8), unit)
        return _Storage(kind, data, _integer(numel), [key, again])


def _steps(stream: io.BytesIO, offset: int) -> list[tuple[str, Any, int]]:
    """Return the opcodes of the next pickle of a stream: name, argument and position."""
    steps = [
        (opcode.name, arg, (position or 0) + offset)
        for opcode, arg, position in itertools.islice(pickletools.genops(stream), _MOST_STEPS)
    ]
    if steps[-1][0] != "STOP":
        raise NotTraceableError("a large program")
    return steps


def _view(storage: _Storage, dtype: torch.dtype, size: Items, stride: Items, hooks: _Unbuilt) -> Block:
    sizes, strides = [_integer(part) for part in size.items], [_integer(part) for part in stride.items]
    shape = [part.value for part in sizes]
    contiguous = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    total = math.prod(shape) * dtype.itemsize
    if hooks.name != "hooks" or [part.value for part in strides] != contiguous:
        raise NotTraceableError("a tensor of another layout")
    if not 0 < total == storage.data.stop - storage.data.start:
        raise NotTraceableError("a tensor of nothing, or of a part of its storage")
    return Block(sizes, storage.data, None, dtype, strides[:-1], [storage.numel], storage.keys)


def _collect(name: str, stack: list[Node], items: list[Node]) -> None:
    if name == "TUPLE":
        stack.append(Items(tuple, items))
    elif name == "APPENDS":
        target = _the(Items, stack[-1])
        if target.kind is not list:
            raise NotTraceableError("a tuple does not grow")
        target.items.extend(items)
    else:
        mapping = _the(Mapping, stack[-1]).items
        for key, value in zip(map(_known, items[::2]), items[1::2], strict=True):
            if key in mapping:
                raise NotTraceableError("a key comes twice")
            mapping[key] = value


def _recalled(node: Node) -> Node:
    if isinstance(node, Leaf):
        node.shared = True
    elif isinstance(node, Made):
        return Again(node)
    elif isinstance(node, Items) and node.kind is tuple and 0 < len(node.items) <= _SHORT:
        for part in node.items:
            _the(Leaf, part).shared = True
        return Const(_known(node))
    elif not (isinstance(node, (Const, _Name)) or (isinstance(node, _Unbuilt) and node.name == "dtype")):
        raise NotTraceableError("two parts of the value are one object")
    return node


def _known(node: Node) -> Any:
    """Return the value of a part that has to be the same in every stream of the program."""
    if isinstance(node, Items):
        if node.known is None:
            node.known = node.kind(map(_known, node.items))
        return node.known
    if isinstance(node, (Leaf, Const)):
        return node.value
    raise NotTraceableError(f"{type(node).__name__} is not a constant")


def _integer(node: Node) -> Leaf:
    leaf = _the(Leaf, node)
    if leaf.kind not in ("int", "unsigned"):
        raise NotTraceableError("no integer")
    return leaf


_T = TypeVar("_T")


def _the(kind: type[_T], node: Node) -> _T:
    if not isinstance(node, kind):
        raise NotTraceableError(f"{type(node).__name__}, not {kind.__name__}")
    return node
