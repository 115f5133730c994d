"""Pickles that attack their reader, and a program that reads them all with little memory.

No test module: ``test_pickles.py`` runs ``python hostile.py CANARY`` once, in a process of its
own, and looks at what it prints. Every gadget writes the file CANARY where its code runs.
"""

import io
import json
import pickle
import resource
import struct
import sys
import zipfile
from pathlib import Path

P = b"\x80\x04"


def text(value):
    """Text as protocol 4 writes it."""
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw if len(raw) < 256 else b"X" + struct.pack("<I", len(raw)) + raw


def name(module, attribute):
    """A name as protocol 4 writes it."""
    return text(module) + text(attribute) + b"\x93"


def value(item):
    """Any plain value, without the opcodes around it."""
    return pickle.dumps(item, 3)[2:-1]


def call(module, attribute, *args):
    """The call of a name with plain arguments."""
    return P + name(module, attribute) + value(args) + b"R."


def raw_call(function, *args):
    """The call of anything with arguments that are opcodes."""
    return function + b"(" + b"".join(args) + b"tR"


def gadgets(canary):
    """Streams that run code in a trusting reader, or that come near it; all of them are to be refused by name."""
    command = f"touch {canary}"
    code = f"open({canary!r}, 'w').close()"
    system = P + name("os", "system") + value((command,)) + b"R."
    legacy = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(part, legacy, 2)
    legacy.write(system)
    legacy.write(pickle.dumps([], 2))
    token = name("collections", "Counter")
    new = name("uuid", "UUID") + b")\x81"
    return {
        "os.system": system,
        "os.system, protocol 0": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "os.system, protocol 0, unicode": b"cos\nsystem\n(V" + command.encode() + b"\ntR.",
        "posix.system": call("posix", "system", command),
        "nt.system": call("nt", "system", command),
        "subprocess.Popen": call("subprocess", "Popen", ["touch", canary]),
        "subprocess.check_output": call("subprocess", "check_output", ["touch", canary]),
        "pty.spawn": call("pty", "spawn", ["touch", canary]),
        "builtins.eval": call("builtins", "eval", code),
        "builtins.exec": call("builtins", "exec", code),
        "builtins.eval as Python 2": b"\x80\x02c__builtin__\neval\n" + value((code,)) + b"R.",
        "builtins.compile": call("builtins", "compile", code, "x", "exec"),
        "builtins.__import__": call("builtins", "__import__", "os"),
        "builtins.getattr": P
        + raw_call(name("builtins", "getattr"), name("collections", "Counter"), value("update"))
        + b".",
        "builtins.open": call("builtins", "open", canary, "w"),
        "builtins.map": P + raw_call(name("builtins", "map"), name("os", "system"), value([command])) + b".",
        "builtins.apply": call("__builtin__", "apply", command),
        "builtins.type": call("builtins", "type", "X", (), {}),
        "builtins.object, new": P + name("builtins", "object") + b")\x81.",
        "functools.partial": P + raw_call(name("functools", "partial"), name("os", "system"), value(command)) + b")R.",
        "functools.reduce": P + raw_call(name("functools", "reduce"), name("os", "system"), value([command])) + b".",
        "operator.methodcaller": call("operator", "methodcaller", "system", command),
        "operator.attrgetter": call("operator", "attrgetter", "system"),
        "importlib and marshal": call("importlib", "import_module", "antigravity"),
        "marshal.loads": call("marshal", "loads", b"c\0"),
        "types.FunctionType": call("types", "FunctionType", None, {}),
        "runpy.run_path": call("runpy", "run_path", canary),
        "timeit.timeit": call("timeit", "timeit", code),
        "cProfile.run": call("cProfile", "run", code),
        "pydoc.pipepager": call("pydoc", "pipepager", "x", command),
        "codecs.open": call("codecs", "open", canary, "w"),
        "codecs.decode": call("codecs", "decode", b"x", "rot13"),
        "io.FileIO": call("io", "FileIO", canary, "w"),
        "shutil.rmtree": call("shutil", "rmtree", canary),
        "pathlib.Path, which can write": call("pathlib", "PosixPath", canary),
        "pickle.loads": call("pickle", "loads", system),
        "_pickle.loads": call("_pickle", "loads", system),
        "dotted in an allowed module": P + name("builtins", "bytearray.fromhex") + value(("00",)) + b"R.",
        "dotted to a module": P + name("pathlib", "os.system") + value((command,)) + b"R.",
        "dotted to globals": P + name("collections", "Counter.update.__globals__") + b".",
        "INST": b"(V" + command.encode() + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"o.",
        "EXT1": P + b"\x82\x01" + value((command,)) + b"R.",
        "EXT2": P + b"\x83\x01\x00" + value((command,)) + b"R.",
        "EXT4": P + b"\x84\x01\x00\x00\x00" + value((command,)) + b"R.",
        "PERSID": b"P" + canary.encode() + b"\n.",
        "BINPERSID": P + text(canary) + b"Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "BUILD on a token": P + token + value({"__call__": 1}) + b"b.",
        "BUILD on a token, slots": P + token + b"}" + value({"call": command}) + b"\x86b.",
        "BUILD on a list": P + b"]" + value({"a": 1}) + b"b.",
        "BUILD on a dict": P + b"}" + value({"__class__": 1}) + b"b.",
        "BUILD on an OrderedDict": P + name("collections", "OrderedDict") + b")R" + value({"__reduce__": 1}) + b"b.",
        "BUILD twice": P + new + value({"int": 1}) + b"b" + value({"int": 2}) + b"b.",
        "APPEND to a token": P + token + b"K\x01a.",
        "APPEND to bytes": P + b"C\x01xK\x01a.",
        "SETITEM of a token": P + token + b"K\x01K\x02s.",
        "SETITEM of a list": P + b"](K\x01K\x02u.",
        "ADDITEMS to a dict": P + b"}(K\x01\x90.",
        "REDUCE of a value": P + text("os") + b")R.",
        "REDUCE of a list": P + b"])R.",
        "REDUCE of a result": P + name("collections", "deque") + b")R)R.",
        "REDUCE of a class without constructor": P + name("builtins", "object") + b")R.",
        "NEWOBJ of a function": P + name("os", "system") + value((command,)) + b"\x81.",
        "NEWOBJ of a token": P + token + b")\x81.",
        "NEWOBJ_EX": P + name("subprocess", "Popen") + value((["touch", canary],)) + b"}\x92.",
        "NEWOBJ_EX of a token": P + name("uuid", "UUID") + b")" + value({"int": 1}) + b"\x92.",
        "copyreg._reconstructor": P
        + raw_call(name("copyreg", "_reconstructor"), name("subprocess", "Popen"), name("builtins", "object"), b"N")
        + b".",
        "copyreg._reconstructor of a token": P
        + raw_call(name("copyreg", "_reconstructor"), token, name("builtins", "object"), b"N")
        + b".",
        "copyreg.__newobj__": P + raw_call(name("copyreg", "__newobj__"), token) + b".",
        "copyreg.__newobj_ex__": P + raw_call(name("copyreg", "__newobj_ex__"), token, b")}") + b".",
        "copyreg.add_extension": call("copyreg", "add_extension", "os", "system", 2),
        "defaultdict of a function": P + raw_call(name("collections", "defaultdict"), token) + b".",
        "defaultdict of os.system": P + raw_call(name("collections", "defaultdict"), name("os", "system")) + b".",
        "a class as a value": P + name("builtins", "int") + b".",
        "a class in a list": P + b"]" + token + b"a.",
        "a class from the memo": P + token + b"\x94" + b")R" + b"0h\x00.",
        "a property of a module": P + name("numpy", "os") + b".",
        "torch.load": call("torch", "load", canary),
        "torch.serialization.load": call("torch.serialization", "load", canary),
        "torch.hub.load": call("torch.hub", "load", canary),
        "torch.ops.load_library": P + name("torch", "ops.load_library") + value((canary,)) + b"R.",
        "torch.jit.load": call("torch.jit", "load", canary),
        "torch._load_from_bytes, legacy": call("torch.storage", "_load_from_bytes", legacy.getvalue()),
        "torch._load_from_bytes, a pickle": call("torch.storage", "_load_from_bytes", system),
        "torch._load_from_bytes, protocol 0": b"ctorch.storage\n_load_from_bytes\n"
        + value((legacy.getvalue(),))
        + b"R.",
        "torch._rebuild_from_type_v2": call("torch._tensor", "_rebuild_from_type_v2", 1, 2, (), {}),
        "torch._rebuild_sparse_tensor": call("torch._utils", "_rebuild_sparse_tensor", 1, ()),
        "torch._rebuild_qtensor": call("torch._utils", "_rebuild_qtensor"),
        "torch._VariableFunctions": P + name("torch._C", "_VariableFunctions.from_file") + b".",
        "torch.from_file": call("torch", "from_file", canary),
        "torch.Tensor": P + name("torch", "Tensor") + b")R.",
        "numpy.load": call("numpy", "load", canary),
        "numpy.fromfile": call("numpy", "fromfile", canary),
        "numpy.memmap": call("numpy", "memmap", canary, "uint8", "w+", 0, (1,)),
        "numpy.vectorize": call("numpy", "vectorize", 1),
        "numpy runstring": call("numpy.testing._private.utils", "runstring", code, {}),
        "numpy subclass": P
        + raw_call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "memmap"), value((0,)), value(b"b"))
        + b".",
        "numpy._reconstruct of a token": P
        + raw_call(name("numpy._core.multiarray", "_reconstruct"), token, value((0,)), value(b"b"))
        + b".",
    }


def nested(canary):
    """Streams whose code is inside bytes that are not legacy storage at all."""
    system = P + name("os", "system") + value((f"touch {canary}",)) + b"R."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", system)
        made.writestr("archive/version", "3")
    return {
        "torch._load_from_bytes, zip": call("torch.storage", "_load_from_bytes", archive.getvalue()),
        "torch._load_from_bytes, nothing": call("torch.storage", "_load_from_bytes", b""),
        "torch._load_from_bytes, no bytes": call("torch.storage", "_load_from_bytes", 7),
    }


def dtype(spec, *state):
    """A numpy dtype with a state."""
    return name("numpy", "dtype") + value((spec, False, True)) + b"R" + value(state) + b"b"


FLOAT = dtype("f4", 3, "<", None, None, None, -1, -1, 0)
OBJECT = dtype("O8", 3, "|", None, None, None, -1, -1, 63)


def empty_array(core="numpy._core"):
    """An array before its state."""
    return raw_call(name(f"{core}.multiarray", "_reconstruct"), name("numpy", "ndarray"), value((0,)), value(b"b"))


def state(shape, kind, data, *, version=1, fortran=False):
    """The state of an array."""
    return b"(" + value(version) + value(shape) + kind + value(fortran) + data + b"t"


def array(shape, kind, data):
    """An array with a state."""
    return empty_array() + state(shape, kind, data) + b"b"


def frombuffer(data, kind, shape, order="C", *axes):
    """An array of protocol 5."""
    return raw_call(name("numpy._core.numeric", "_frombuffer"), data, kind, *map(value, (shape, order, *axes)))


def storage(
    kind="FloatStorage", numel=4, data=bytes(16), *, key=b"1", again=b"1", location=b"cpu", view=None,
    more=None, **system
):  # fmt: skip
    """The bytes of a legacy storage."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}, **system, **(more or {})}
    persistent = (
        b"(" + value("storage") + b"ctorch\n" + kind.encode() + b"\n" + value(key.decode())
        + value(location.decode() if isinstance(location, bytes) else location) + value(numel) + value(view) + b"tQ"
    )  # fmt: skip
    return b"".join(
        (
            *(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)),
            b"\x80\x02" + persistent + b".",
            pickle.dumps([again.decode()], 2),
            struct.pack("<q", numel) if type(numel) is int and -(2**63) <= numel < 2**63 else bytes(8),
            data,
        )
    )


def tensor(blob, offset, size, stride, requires_grad=False, hooks=b"", metadata=None):
    """A tensor over the bytes of a storage."""
    hooks = hooks or name("collections", "OrderedDict") + b")R"
    memory = raw_call(name("torch.storage", "_load_from_bytes"), value(blob) if type(blob) is bytes else blob)
    args = [memory, *map(value, (offset, size, stride, requires_grad)), hooks]
    if metadata is not None:
        args.append(value(metadata))
    return raw_call(name("torch._utils", "_rebuild_tensor_v2"), *args)


def canonical(shape=(4,), spec="<f4", data=None):
    """An array as this package writes it."""
    data = bytearray(16) if data is None else data
    return raw_call(
        name("numpy", "ndarray"), value(shape), value(spec), pickle.dumps(data, 5)[11 if len(data) else 2 : -1]
    )


def states():
    """Streams of known names with arguments that would break the memory behind them."""
    fields = (3, "|", None, ("a",), {"a": (0, 1)}, 4, 1, 16)
    from_numpy = lambda made: raw_call(name("torch", "from_numpy"), made)  # noqa: E731
    streams = {
        "objects out of bytes": array((1,), OBJECT, value(b"A" * 8)),
        "objects without the flag": array((1,), dtype("O8", 3, "|", None, None, None, -1, -1, 0), value(b"A" * 8)),
        "objects out of a buffer": frombuffer(value(b"A" * 8), OBJECT, (1,)),
        "objects by ndarray": canonical((1,), "O", bytearray(8)),
        "an object out of bytes": raw_call(name("numpy._core.multiarray", "scalar"), OBJECT, value(b"A" * 8)),
        "more objects than listed": array((2,), OBJECT, value([1])),
        "structured, offset 2**30": array(
            (1,), dtype("V4", 3, "|", None, ("a",), {"a": ("f4", 2**30)}, 4, 1, 16), value(bytes(4))
        ),
        "structured, offset 4096": array(
            (1,), dtype("V4", 3, "|", None, ("a",), {"a": ("f4", 4096)}, 4, 1, 16), value(bytes(4))
        ),
        "structured out of a float": array((1,), dtype("f4", *fields), value(bytes(4))),
        "sub-array": array((1,), dtype("V8", 3, "|", ("f4", (2**30,)), None, None, 8, 1, 0), value(bytes(8))),
        "dtype by a list": name("numpy", "dtype") + value(([("a", "f4")], False, True)) + b"R",
        "dtype by a dict": name("numpy", "dtype")
        + value(({"names": ["a"], "formats": ["f4"], "offsets": [9]}, 0, 1))
        + b"R",
        "dtype, aligned": name("numpy", "dtype") + value(("f4", True, True)) + b"R",
        "dtype, short state": dtype("f4", 3, "<"),
        "dtype, byte order": dtype("f4", 3, "X", None, None, None, -1, -1, 0),
        "dtype, no byte order": dtype("f4", 3, "", None, None, None, -1, -1, 0),
        "dtype, size": dtype("f4", 3, "<", None, None, None, 1 << 40, -1, 0),
        "dtype, text of another size": dtype("U3", 3, "<", None, None, None, 1 << 30, 4, 8),
        "dtype, flags": dtype("f4", 3, "<", None, None, None, -1, -1, 63),
        "dtype, unit": dtype("M8", 4, "<", None, None, None, -1, -1, 0, (None, (b"xx", 1, 1, 1))),
        "dtype, no unit": dtype("M8", 4, "<", None, None, None, -1, -1, 0, (None, None)),
        "dtype, unit of nothing": dtype("M8", 4, "<", None, None, None, -1, -1, 0, (None, (b"s", 0, 0, 0))),
        "dtype, two states": FLOAT + value((3, ">", None, None, None, -1, -1, 0)) + b"b",
        "array, too little data": array((1000,), FLOAT, value(bytes(4))),
        "array, too much data": array((1,), FLOAT, value(bytes(8))),
        "array, negative size": array((-1, -1), FLOAT, value(bytes(4))),
        "array, size that overflows": array((2**62, 4), FLOAT, value(b"")),
        "array, empty and absurd": array((0, 2**40), FLOAT, value(b"")),
        "array, sizes of no integers": array((1.0,), FLOAT, value(bytes(4))),
        "array, sizes of bools": array((True,), FLOAT, value(bytes(4))),
        "array, many dimensions": array((1,) * 70, FLOAT, value(bytes(4))),
        "array, version": empty_array() + state((1,), FLOAT, value(bytes(4)), version=0) + b"b",
        "array, dtype of text": empty_array() + state((1,), value("f4"), value(bytes(4))) + b"b",
        "array, two states": array((1,), FLOAT, value(bytes(4))) + state((1,), FLOAT, value(bytes(4))) + b"b",
        "array, freed below a tensor": from_numpy(array((4,), FLOAT, value(bytes(16))))
        + state((1,), FLOAT, value(bytes(4)))
        + b"b",
        "buffer, another size": frombuffer(value(bytes(8)), FLOAT, (3,)),
        "buffer, axes": frombuffer(value(bytes(8)), FLOAT, (2,), "K", (5,)),
        "buffer, order": frombuffer(value(bytes(8)), FLOAT, (2,), "Z"),
        "number, too short": raw_call(name("numpy._core.multiarray", "scalar"), FLOAT, value(b"A")),
        "canonical, more than there is": canonical((5,)),
        "canonical, shared bytes": canonical((4,), "<f4", b"x" * 16),
        "canonical, a dtype object": raw_call(name("numpy", "ndarray"), value((4,)), FLOAT, value(bytes(16))),
        "canonical, strides": raw_call(name("numpy", "ndarray"), *map(value, ((4,), "<f4", b"", 0, (4,)))),
        "tensor of a fresh array": from_numpy(empty_array()),
        "tensor of a list": from_numpy(value([1])),
        "tensor, offset beyond": tensor(storage(), 4, (1,), (1,)),
        "tensor, negative offset": tensor(storage(), -1, (1,), (1,)),
        "tensor, too long": tensor(storage(), 0, (5,), (1,)),
        "tensor, stride beyond": tensor(storage(), 0, (2,), (4,)),
        "tensor, negative stride": tensor(storage(), 3, (2,), (-1,)),
        "tensor, stride 0": tensor(storage(), 0, (2**40,), (0,)),
        "tensor, negative size": tensor(storage(), 0, (-1,), (1,)),
        "tensor, without strides": tensor(storage(), 0, (1,), ()),
        "tensor, sizes of no integers": tensor(storage(), 0, (1.0,), (1,)),
        "tensor, hooks": tensor(storage(), 0, (1,), (1,), False, value([1])),
        "tensor, metadata": tensor(storage(), 0, (1,), (1,), metadata={"x": True}),
        "tensor, conjugate of a float": tensor(storage(), 0, (1,), (1,), metadata={"conj": True}),
        "tensor, gradient of an integer": tensor(storage("IntStorage"), 0, (1,), (1,), True),
        "tensor, quantized": tensor(storage("QInt8Storage", 16), 0, (1,), (1,)),
        "tensor of bytes": raw_call(
            name("torch._utils", "_rebuild_tensor_v2"), *map(value, (b"x", 0, (1,), (1,), False, None))
        ),
        "storage, shorter than it says": tensor(storage(numel=5), 0, (5,), (1,)),
        "storage, of 2**40": tensor(storage(numel=2**40), 0, (1,), (1,)),
        "storage, negative": tensor(storage(numel=-1), 0, (1,), (1,)),
        "storage, two sizes": tensor(storage()[:-24] + struct.pack("<q", 3) + bytes(16), 0, (1,), (1,)),
        "storage, other key": tensor(storage(again=b"2"), 0, (1,), (1,)),
        "storage, on a device that is not text": tensor(storage(location=3), 0, (1,), (1,)),
        "storage, a view": tensor(storage(view=("1", 0, 4)), 0, (1,), (1,)),
        "storage, big-endian": tensor(storage(little_endian=False), 0, (1,), (1,)),
        "storage, cut": tensor(storage()[:100], 0, (1,), (1,)),
        "strided, beyond": raw_call(name("torch", "as_strided"), from_numpy(canonical()), *map(value, ((2,), (4,), 0))),
        "strided, 2**40": raw_call(
            name("torch", "as_strided"), from_numpy(canonical()), *map(value, ((2**40,), (0,), 0))
        ),
        "view, no dtype": raw_call(name("torch", "view_copy"), from_numpy(canonical()), value(3)),
        "view, quantized": raw_call(name("torch", "view_copy"), from_numpy(canonical()), name("torch", "qint32")),
        "gradient of an integer": from_numpy(canonical((4,), "<i4")) + value((True, None, None)) + b"b",
        "gradient hooks": from_numpy(canonical()) + value((True, None, {"a": 1})) + b"b",
        "parameter of a list": raw_call(
            name("torch._utils", "_rebuild_parameter"),
            value([1]),
            value(True),
            name("collections", "OrderedDict") + b")R",
        ),
        "datetime of hour 255": name("datetime", "datetime")
        + value((b"\x07\xe4\x01\x01\xff\x00\x00\x00\x00\x00",))
        + b"R",
        "datetime of day 0": name("datetime", "datetime")
        + value((b"\x07\xe4\x01\x00\x00\x00\x00\x00\x00\x00",))
        + b"R",
        "date of month 200": name("datetime", "date") + value((b"\x07\xe4\xc8\x01",)) + b"R",
        "UUID of text": name("uuid", "UUID") + b")\x81" + value({"int": "x"}) + b"b",
        "UUID out of bounds": name("uuid", "UUID") + b")\x81" + value({"int": 2**128}) + b"b",
        "array.array of text": raw_call(
            name("array", "_array_reconstructor"), name("array", "array"), *map(value, ("u", 18, b"\xff" * 4))
        ),
        "array.array of another machine": raw_call(
            name("array", "_array_reconstructor"), name("array", "array"), *map(value, ("d", 17, bytes(8)))
        ),
        "path of a number": name("pathlib", "PurePosixPath") + value((1,)) + b"R",
    }
    return {title: P + stream + b"." for title, stream in streams.items()}


def bombs():
    """Small streams that stand for much memory, endless time or a deep stack."""
    deep = 20_000
    segfault = 200_000  # of tuples in one another: hashing them overflows the stack of C
    levels = b")\x94" + b"".join(b"0h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(60))
    lists = b"]\x94" + b"".join(b"0](h" + bytes([n]) + b"h" + bytes([n]) + b"e\x94" for n in range(60))
    many = value(list(range(20_000)))
    blob = pickle.dumps(bytes(200_000), 3)[2:-1]
    endless = name("builtins", "range") + value((0, 10**12, 1)) + b"R"
    large = value(storage(numel=25_000, data=bytes(100_000)))
    whole = [value(part) for part in (0, (25_000,), (1,), False, None)]
    streams = {
        "bytearray(2**40)": name("builtins", "bytearray") + value((2**40,)) + b"R",
        "bytes(2**40)": name("builtins", "bytes") + value((2**40,)) + b"R",
        "set(range)": raw_call(name("builtins", "set"), endless),
        "frozenset(range)": raw_call(name("builtins", "frozenset"), endless),
        "deque(range)": raw_call(name("collections", "deque"), endless),
        "Counter(range)": raw_call(name("collections", "Counter"), endless),
        "array.array(range)": raw_call(name("array", "array"), value("d"), endless),
        "Decimal of 400 MB": name("decimal", "Decimal") + value(("1E999999999",)) + b"R",
        "Decimal, shifted": name("decimal", "Decimal") + value(("0.1E-999999999",)) + b"R",
        "Fraction of a Decimal's exponent": name("fractions", "Fraction") + value(("1e999999999",)) + b"R",
        "LONG_BINPUT 2**31": b"Nr\xff\xff\xff\x7f" + b"j\xfe\xff\xff\x7f",
        "PUT 10**18": b"Np1000000000000000000\ng5\n",
        "BINBYTES8 of 2**40": b"\x8e" + struct.pack("<Q", 2**40) + b"x",
        "BINBYTES of 2**32": b"B\xff\xff\xff\xffx",
        "BYTEARRAY8 of 2**40": b"\x96" + struct.pack("<Q", 2**40) + b"x",
        "BINUNICODE8 of 2**63": b"\x8d" + struct.pack("<Q", 2**63) + b"x",
        "LONG4 of 2**31": b"\x8b\xff\xff\xff\x7fx",
        "FRAME of 2**62": b"\x95" + struct.pack("<Q", 2**62) + b"N",
        "dtype of 4 GB text": array((1,), dtype("U999999999", 3, "<", None, None, None, 3999999996, 4, 8), value(b"")),
        "lists, deep": b"]" * deep + b"a" * (deep - 1),
        "tuples, deep": b")" + b"\x85" * deep,
        "dicts, deep": b"}" + b"K\x01}" * deep + b"s" * deep,
        "a key, deep": b"})" + b"\x85" * segfault + b"Ns",
        "a key in a set, deep": b"\x8f()" + b"\x85" * deep + b"\x90",
        "a key in a frozenset, deep": b"()" + b"\x85" * deep + b"\x91",
        "a key, doubled 60 times": b"}" + levels + b"Ns",
        "tuples, doubled 60 times": levels,
        "lists, doubled 60 times": lists,
        "a list in itself": b"]\x94h\x00a",
        "a dict in itself": b"}\x94K\x01h\x00s",
        "an array of objects in itself": empty_array()
        + b"p77\n"
        + state((1,), OBJECT, b"]g77\na")
        + b"b",
        "one list, many sets": b"(" + many + b"p77\n0" + name("builtins", "set") + b"p78\n0"
        + (b"g78\ng77\n\x85R" * 2000) + b"t",
        "one bytes, many bytearrays": b"(" + blob + b"p77\n0" + name("builtins", "bytearray") + b"p78\n0"
        + (b"g78\ng77\n\x85R" * 5000) + b"t",
        "one text, many bytes": b"(" + value("x" * 100_000) + b"p77\n0" + name("_codecs", "encode") + b"p78\n0"
        + (b"g78\n(g77\n" + text("latin1") + b"tR") * 5000 + b"t",
        "one storage, many tensors": b"(" + raw_call(name("torch.storage", "_load_from_bytes"), large) + b"p77\n0"
        + raw_call(name("torch._utils", "_rebuild_tensor_v2"), b"g77\n", *whole) * 2000 + b"t",
        "one bytes, many arrays": b"(" + blob + b"p77\n0" + b"".join(
            array((50_000,), FLOAT, b"g77\n") for _ in range(1000)
        ) + b"t",
    }  # fmt: skip
    return {title: P + stream + b"." for title, stream in streams.items()}


PRIME = (1 << 61) - 1
"""Integers that differ by a multiple of it have the same hash."""


def equal_hashes(made, behind=b"N", count=8_000):
    """Keys of equal hash: what comes of ``number * PRIME``, each followed by a value."""
    return b"(" + b"".join(made(number * PRIME + 1) + behind for number in range(1, count))


def put(number):
    """Keep the top of the stack in the memo and take it away."""
    return b"q" + bytes([number]) + b"0"


def work():
    """Small streams that ask for much time."""
    large, other = value((1 << 65_000) - 1), value((1 << 64_000) - 3)
    huge = value((1 << 2_000_000) - 1)
    long = value("x" * 200_000)
    made = b"(" + b"g1\ng2\nR0" * 30_000 + b"t"  # call what the memo has under 1 with the arguments under 2
    fraction, decimal, set_, uuid = (
        name(module, kind)
        for module, kind in (
            ("fractions", "Fraction"), ("decimal", "Decimal"), ("builtins", "set"), ("uuid", "UUID"),
        )
    )  # fmt: skip
    versions = value({str(number): {"version": 1} for number in range(9000)})

    def sets(number):
        """Frozensets in frozensets, each twice."""
        here = b"h" + bytes([number])
        return b"(N\x91" + put(number) + (b"(" + here + b"(" + here + b"K\x01\x91\x91" + put(number)) * 50

    streams = {
        "a large tuple, a key again and again": value(tuple(range(9990))) + put(1) + b"}(" + b"h\x01N" * 20_000 + b"u",
        "one by one": value(tuple(range(9990))) + put(1) + b"}" + b"h\x01Ns" * 20_000,
        "a large integer, a key again and again": large + put(1) + b"}(" + b"h\x01N" * 200_000 + b"u",
        "a huge integer as a key": b"}" + huge + b"Ns",
        "long equal texts, keys again and again": long + put(1) + long + put(2)
        + b"}h\x01Ns(" + b"h\x02N" * 80_000 + b"u",
        "integers of equal hash": b"}" + equal_hashes(value) + b"u",
        "negative ones": b"}" + equal_hashes(lambda number: value(-number)) + b"u",
        "one by one, of equal hash": b"}" + equal_hashes(value, b"Ns")[1:],
        "in a dict of protocol 0": equal_hashes(value) + b"d",
        "in a set": b"\x8f" + equal_hashes(value, b"") + b"\x90",
        "in a frozenset": equal_hashes(value, b"") + b"\x91",
        "in set()": raw_call(set_, b"]" + equal_hashes(value, b"") + b"e"),
        "in an OrderedDict": name("collections", "OrderedDict") + b")R" + equal_hashes(value) + b"u",
        "in a Counter, copied": name("collections", "Counter") + put(1)
        + b"}" + equal_hashes(value, count=1500) + b"u\x85" + put(2) + made,
        "tuples of equal hash": b"}" + equal_hashes(lambda number: value((number,))) + b"u",
        "fractions of equal hash": fraction + put(1)
        + b"}" + equal_hashes(lambda number: b"h\x01" + value((number, 1)) + b"R") + b"u",
        "UUIDs of equal hash": uuid + put(1)
        + b"}" + equal_hashes(lambda number: b"h\x01)\x81" + value({"int": number}) + b"b") + b"u",
        "integers as large as a Decimal": b"}(" + decimal + value(("1" + "0" * 9999,)) + b"RN"
        + b"".join(value(pow(10, 9999, PRIME) + number * PRIME) + b"N" for number in range(1, 5000)) + b"u",
        "frozensets in frozensets, compared": sets(1) + sets(2) + b"(h\x01h\x02\x91",
        "a Fraction of huge integers": raw_call(fraction, huge, huge),
        "a Fraction of large integers, again and again": fraction + put(1) + large + other + b"\x86" + put(2) + made,
        "a Fraction of a long text": raw_call(fraction, value("1" * 100_000)),
        "a Decimal, again and again": decimal + put(1) + value(("9" * 9999,)) + put(2) + made,
        "a range of huge integers": raw_call(name("builtins", "range"), value(0), huge, value(3)),
        "a timedelta of huge integers": raw_call(name("datetime", "timedelta"), value(0), value(0), huge),
        "a path, again and again": name("pathlib", "PurePosixPath") + put(1)
        + value(("a/" * 50_000,)) + put(2) + made,
        "versions of modules, again and again": b"}" + text("_metadata") + versions + b"s" + put(1)
        + name("collections", "OrderedDict") + put(2) + b"(" + b"h\x02)Rh\x01b" * 5_000 + b"t",
        "axes of huge integers": raw_call(
            name("numpy._core.numeric", "_frombuffer"), value(bytes(4)), FLOAT, value((1,)), value("K"),
            b"(" + huge + b"t",
        ),
        "a shape of huge integers": raw_call(name("torch", "Size"), b"(" + huge * 8 + b"t"),
        "storages around keys of equal hash": name("torch.storage", "_load_from_bytes") + put(1)
        + value((storage(numel=0, data=b"", more={number * PRIME: 0 for number in range(1500)}),)) + put(2) + made,
    }  # fmt: skip
    return {title: P + stream + b"." for title, stream in streams.items()}


def containers():
    """Streams of containers, of which each takes a byte or a few."""
    many = 200_000
    streams = {
        "empty sets": b"(" + b"\x8f" * many + b"t",
        "empty frozensets": b"(" + b"(\x91" * (2 * many) + b"t",
        "empty deques": name("collections", "deque") + put(1) + b"(" + b"h\x01)R" * (many // 2) + b"t",
        "marks": b"(" * many,
        "memos of nothing": b"N" + b"\x94" * many + b"N",
    }
    return {title: P + stream + b"." for title, stream in streams.items()}


def torch_zip(pickled, storages=(), **members):
    """A file of torch.save around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for title, data in {"data.pkl": pickled, **members, **{f"data/{key}": raw for key, raw in storages}}.items():
            made.writestr(f"archive/{title}", data)
    return stream.getvalue()


def torch_old(pickled, storages=(), *, keys=None, counts=None, behind=b"", little_endian=True, version=1001):
    """The older form of such a file; its storages are floats."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    head = (pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, version, system))
    keys = [key for key, _ in storages] if keys is None else keys
    raw = (struct.pack("<q", len(data) // 4 if counts is None else counts) + data for _, data in storages)
    return b"".join((*head, pickled, pickle.dumps(keys, 2), *raw, behind))


def held(kind="FloatStorage", key="0", location="cpu", numel=4, *view):
    """A storage by its persistent id."""
    kind = name(*kind) if isinstance(kind, tuple) else b"ctorch\n" + kind.encode() + b"\n"
    return b"(" + text("storage") + kind + b"".join(map(value, (key, location, numel, *view))) + b"tQ"


def shown(storage, shape=(4,), stride=(1,), offset=0):
    """A tensor over a storage."""
    hooks = name("collections", "OrderedDict") + b")R"
    return raw_call(
        name("torch._utils", "_rebuild_tensor_v2"), storage, *map(value, (offset, shape, stride, False)), hooks
    )


def torch_files():
    """Files of torch.save that claim what they do not hold."""
    four = [("0", bytes(16))]
    small = shown(held())
    expanded = shown(held(), (10**13,), (0,))
    doubled = b"]\x94" + small + b"a" + b"".join(b"0](h" + bytes([n]) + b"h" + bytes([n]) + b"e\x94" for n in range(30))
    bytearrays = {n: name("builtins", "bytearray") + value((n,)) + b"R" for n in (4 * 10**9, 10**15)}
    pickles = {
        **{f"bytearray({n})": made for n, made in bytearrays.items()},
        "bytearray, protocol 2": b"c__builtin__\nbytearray\n" + value((4 * 10**9,)) + b"R",
        "expanded": expanded,
        "expanded, in a list": b"]" + expanded + b"a",
        "expanded, in a set": b"\x8f(" + expanded + b"\x90",
        "expanded, a key": b"}" + expanded + b"Ns",
        "expanded, an attribute": raw_call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch", "Tensor"),
            b")",
            b"}" + text("x") + expanded + b"s",
        ),
        "a view beyond": shown(held(), (5,)),
        "a view beyond, by its offset": shown(held(), (4,), (1,), 1),
        "one storage, many tensors": b"(" + small + shown(held(), (4, 4000), (0, 0)) * 2000 + b"t",
        "a list in itself": b"]\x94h\x00a",
        "a list with a tensor, doubled 30 times": doubled,
        "a storage of 10**15": held(numel=10**15),
        "a storage of more than there is": held(numel=5),
        "a storage of doubles over floats": held("DoubleStorage"),
        "a storage of a negative size": held(numel=-1),
        "a storage of half a size": held(numel=1.5),
        "a storage of no class": b"(" + text("storage") + b"N" + value("0") + value("cpu") + value(4) + b"tQ",
        "a storage by a number": held(key=0),
        "a storage that is a view": held("FloatStorage", "0", "cpu", 4, ("0", 0, 4)),
        "a storage of one id and another": b"(" + held(numel=1) + held(numel=5) + b"t",
        "a module": b"(" + text("module") + value(("x", "y")) + b"tQ",
        "an id of text": text("0") + b"Q",
        "an id of nothing": b")Q",
        "a class of storages that is none": held(("torch", "SystemStorage")),
    }  # fmt: skip
    both = {
        f"{title}, {form}": made(P + stream + b".", four)
        for title, stream in pickles.items()
        for form, made in (("zip", torch_zip), ("old", torch_old))
    }
    plain = P + small + b"."
    packed, overlapping, beyond = io.BytesIO(), io.BytesIO(), torch_zip(plain, four)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", P + shown(held(numel=25 << 20)) + b".", zipfile.ZIP_STORED)
        made.writestr("archive/data/0", bytes(100 << 20))
    many = b"(" + b"".join(held(key=str(number), numel=25_000) for number in range(2000)) + b"t"
    with zipfile.ZipFile(overlapping, "w") as made:
        made.writestr("archive/data.pkl", P + many + b".")
        made.writestr("archive/data/0", bytes(100_000))
        for number in range(1, 2000):
            made.filelist.append(zipfile.ZipInfo(f"archive/data/{number}"))
            for part in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(made.filelist[-1], part, getattr(made.filelist[1], part))
    return both | {
        "compressed": packed.getvalue(),
        "members in one place": overlapping.getvalue(),
        "a member that ends behind the file": beyond.replace(struct.pack("<LL", 16, 16), b"\0\0\0\x40" * 2),
        "a member that is not a member": beyond[:100] + beyond[100:].replace(b"PK\x03\x04", b"PK\x03\x05"),
        "a storage that is not there": torch_zip(plain),
        "no pickle": torch_zip(plain).replace(b"data.pkl", b"data.plk"),
        "something behind the pickle": torch_zip(plain + b"x", four),
        "another byte order": torch_zip(plain, four, byteorder=b"big"),
        "no archive": b"PK\x03\x04",
        "a storage without a size of its own": torch_old(plain, four, counts=5),
        "a storage that is not announced": torch_old(P + b"N.", four),
        "a storage without data": torch_old(plain, four, keys=[]),
        "a storage, twice": torch_old(plain, four, keys=["0", "0"]),
        "keys of numbers": torch_old(plain, four, keys=[0]),
        "keys of no list": torch_old(plain, four, keys="0"),
        "something behind the storages": torch_old(plain, four, behind=b"x"),
        "another byte order, old": torch_old(plain, four, little_endian=False),
        "another version": torch_old(plain, four, version=1002),
        "a storage, cut": torch_old(plain, four)[:-1],
    }  # fmt: skip


def outcome(function, *args):
    """What a call ended in: the class of its error, or VALUE."""
    try:
        function(*args)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is to be seen
        return type(error).__name__
    return "VALUE"


def main(canary):
    """Read every stream in every way and print what came of it, one JSON line each."""
    import copyreg

    import torch  # noqa: F401  # not out of the memory that is allowed below

    from bionemo.webdatamodule.builtins.codecs import TorchCodec, TorchOrPickleCodec
    from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
    from bionemo.webdatamodule.builtins.pickle.fast.trace import trace
    from bionemo.webdatamodule.pickles import Policy, loads

    copyreg.add_extension("os", "system", 1)
    loads(P + tensor(storage(), 0, (4,), (1,)) + b".")
    pickles = PickleCodec(Policy())
    codecs = [TorchCodec(policy=Policy()), TorchOrPickleCodec(policy=Policy())]
    for make in (torch_zip, torch_old):  # what they reject, they reject for its claims
        for torch_codec in codecs:
            torch_codec.decode(memoryview(make(P + shown(held()) + b".", [("0", bytes(16))])))
    for _ in range(3):  # with a template for the form that many attacks vary
        pickles.decode(memoryview(P + tensor(storage(), 0, (4,), (1,)) + b"."))
        pickles.decode(memoryview(P + array((1,), FLOAT, value(bytes(4))) + b"."))
        pickles.decode(memoryview(P + raw_call(name("torch", "from_numpy"), canonical()) + b"."))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (400 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for group, streams in (
        ("gadgets", gadgets(canary)),
        ("nested", nested(canary)),
        ("states", states()),
        ("bombs", bombs()),
        ("work", work()),
        ("containers", containers()),
        ("torch", torch_files()),
    ):
        for title, stream in streams.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found = [outcome(loads, stream)]
            tried = codecs
            if group in ("work", "containers"):  # which take a while
                tried = codecs[1:]
            else:
                found.append(outcome(PickleCodec(Policy()).column([memoryview(stream)] * 2).stack))
                found.append(outcome(pickles.decode, memoryview(stream)))
            files = {"torch": [stream], "work": [torch_zip(stream)], "containers": [torch_old(stream)]}.get(
                group, [torch_zip(stream), torch_old(stream)]
            )
            found_in_torch = [outcome(each.decode, memoryview(file)) for each in tried for file in files]
            traced = outcome(trace, stream)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            line = {
                "group": group,
                "title": title,
                "found": found,
                "torch": found_in_torch,
                "traced": traced,
                "grown": grown,
                "ran": Path(canary).exists(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
