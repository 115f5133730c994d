"""Values that cross from one process to another: equal, writable, shared where they were, and nothing left over."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bionemo.webdatamodule.builtins.webloader import out_of_band, shared_blocks
from bionemo.webdatamodule.builtins.webloader.transport import Block, empty, pack, pack_all, release_idle
from bionemo.webdatamodule.errors import UsageError, WorkerError

LARGE = 50_000  # elements: enough for a block of its own

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.uint16,
]


def sent(value, block=None, **options):
    """Return what the main process would unpack."""
    return pickle.loads(pickle.dumps(pack(value, block, **options))).unpack()


def used_blocks():
    """Return how many of this process's blocks cannot be used again."""
    pool = shared_blocks._pool()
    return sum(not slot.free for slot in pool._slots)


def names(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def equal(expected, actual):
    """Tell whether two values are the same in type, kind and content."""
    if type(expected) is not type(actual):
        return False
    if isinstance(expected, torch.Tensor):
        same_kind = expected.dtype == actual.dtype and expected.shape == actual.shape
        expected_bytes = expected.detach().contiguous().flatten().view(torch.uint8)
        return same_kind and expected_bytes.equal(actual.detach().contiguous().flatten().view(torch.uint8))
    if isinstance(expected, np.ndarray):
        return (expected.dtype, expected.shape) == (actual.dtype, actual.shape) and bool((expected == actual).all())
    if isinstance(expected, dict):
        return list(expected) == list(actual) and all(equal(v, actual[k]) for k, v in expected.items())
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(actual) and all(map(equal, expected, actual))
    return bool(expected == actual)


@pytest.mark.parametrize("count", [1, LARGE], ids=["in the pickle", "in a block"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_arrive_equal(dtype, count):
    """Type, shape and bytes of a tensor are kept."""
    tensor = torch.arange(count * 16, dtype=torch.uint8).view(dtype) if dtype is not torch.bool else None
    tensor = torch.arange(count) % 2 == 0 if tensor is None else tensor
    assert equal([tensor, tensor.reshape(1, -1)], sent([tensor, tensor.reshape(1, -1)]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.empty(0),
        torch.empty(0, 4, 2),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(LARGE).reshape(100, -1).t(),
        torch.arange(LARGE)[7:LARGE:3],
        torch.ones(1).expand(6, 5),
        torch.ones(4, requires_grad=True),
        torch.arange(LARGE * 1.0, requires_grad=True),
        torch.nn.Parameter(torch.arange(LARGE * 1.0)),
        torch.arange(8.0).to(torch.complex64).conj(),
    ],
    ids=lambda tensor: f"{type(tensor).__name__}{tuple(tensor.shape)}",
)
def test_tensors_of_every_shape_and_kind_arrive_equal(tensor):
    """Strides, gradients' flag, subclasses and lazy flags are kept."""
    arrived = sent(tensor)
    expected = (type(tensor), tensor.shape, tensor.stride(), tensor.requires_grad, tensor.is_conj())
    assert expected == (type(arrived), arrived.shape, arrived.stride(), arrived.requires_grad, arrived.is_conj())
    assert tensor.tolist() == arrived.tolist()


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_arrive_and_are_let_go(layout):
    """Sparse tensors cross, and torch's list of those to validate does not hold their block."""
    sparse = getattr(torch.eye(3000), layout)()
    arrived = sent(sparse)
    assert sparse.to_dense().equal(arrived.to_dense())
    del arrived
    assert 0 == used_blocks()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([bytes(40_000), bytearray(b"abc"), 2 + 3j, slice(1, 2)])
    | st.builds(
        lambda dtype, shape, start: torch.arange(start, start + int(np.prod(shape))).reshape(shape).to(dtype),
        st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bfloat16, torch.bool]),
        st.lists(st.integers(0, 4), max_size=3),
        st.integers(0, 9),
    )
    | st.builds(
        lambda dtype, count: np.arange(count).astype(dtype),
        st.sampled_from(["f4", "i8", "u1", "M8[s]", "S3", "U2", "O"]),
        st.sampled_from([0, 1, 7, 3000]),
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(value=VALUES, bytes_apart=st.booleans())
def test_nested_values_arrive_equal(value, bytes_apart):
    """Any nesting of containers, scalars, tensors and arrays crosses, large or small."""
    assert equal(value, sent(value, bytes_apart=bytes_apart))
    assert 0 == used_blocks()


def test_bytes_objects_are_left_out_of_the_pickles_after_a_large_one():
    """They arrive equal, and one object in two places is one again; small ones stay in the pickle."""
    long, short = os.urandom(100_000), b"short"
    value = [long, short, {"again": long, "other": [os.urandom(512), np.arange(LARGE)]}]
    packed = list(pack_all(iter([value] * 3)))
    assert [0, 100_512, 100_512] == [each.n_apart for each in packed]
    assert packed[0].n_pickled > 100_000
    assert packed[1].n_pickled < 1000
    for each in packed:
        arrived = pickle.loads(pickle.dumps(each)).unpack()
        assert equal(value, arrived)
        assert arrived[2]["again"] is arrived[0]


def test_large_pickles_of_small_objects_try_that_once(monkeypatch):
    """The pickle module would ask for each of them."""
    asked = []
    monkeypatch.setattr(
        out_of_band.BytesPickler, "persistent_id", lambda self, obj: asked.append(type(obj) is list) or None
    )
    numbers = list(range(100_000))
    assert [0] * 4 == [packed.n_apart for packed in pack_all(iter([numbers] * 4))]
    assert 1 == sum(asked)


def test_tensors_that_share_memory_still_do():
    """A view and its base are one memory on the other side too, and so is one object in two places."""
    base = torch.arange(LARGE)
    arrived, view, again, array, same_array = sent([base, base[10:20].view(2, 5), base, *[np.arange(LARGE)] * 2])
    view[0, 0] = -1
    assert -1 == arrived[10]
    assert again is arrived
    assert array is same_array


def test_tensors_of_one_value_that_shared_nothing_do_not_share_a_storage():
    """Saving one arrived sample does not save the whole chunk."""
    first, second = sent([torch.zeros(LARGE), torch.zeros(10)])
    assert (LARGE * 4, 40) == (first.untyped_storage().nbytes(), second.untyped_storage().nbytes())


def test_of_a_large_storage_only_the_stretch_in_use_is_sent():
    """A few rows of a large tensor do not drag the rest along."""
    rows = torch.arange(1_000_000.0).reshape(1000, 1000)[500:502]
    packed = pack(list(rows))
    assert 2 * 4000 == packed._parts[0, 1]
    assert list(map(torch.Tensor.tolist, rows)) == list(map(torch.Tensor.tolist, packed.unpack()))


def test_what_arrives_is_aligned_and_writable():
    """Tensors and arrays are views of the block, at multiples of 64 bytes, and may be changed in place."""
    tensor, array = sent([torch.zeros(LARGE), np.zeros(LARGE + 1)])
    tensor += 1
    array += 1
    assert (0, 0) == (tensor.data_ptr() % 64, array.ctypes.data % 64)
    assert (LARGE, LARGE + 1) == (tensor.sum(), array.sum())


def test_a_read_only_array_stays_read_only():
    """The flag that a user set crosses with the array."""
    array = np.arange(LARGE)
    array.flags.writeable = False
    assert not sent(array).flags.writeable


def test_a_block_lives_as_long_as_anything_made_of_it():
    """A view of a view, a numpy view of a tensor, or a tensor of an array keeps the block from being used again."""
    value = [torch.arange(LARGE), np.arange(LARGE)]
    kept = [
        sent(value)[0][5:].view(-1)[:3],
        sent(value)[0].numpy()[4:][:2],
        torch.from_numpy(sent(value)[1][3:])[:2],
        memoryview(sent(value)[1])[7:9],
    ]
    for _ in range(20):
        sent([torch.zeros(LARGE), np.zeros(LARGE)])
    assert [[5, 6, 7], [4, 5], [3, 4], [7, 8]] == [view.tolist() for view in kept]
    assert 4 == used_blocks()
    del kept
    assert 0 == used_blocks()


def test_blocks_are_used_again():
    """A worker whose data are let go at once works with one block for ever."""
    sent(torch.zeros(LARGE))
    tokens = {slot._token for slot in shared_blocks._pool()._slots}
    for size in range(1, 200):
        assert size == sent(torch.ones(LARGE))[:size].sum()
    assert tokens == {slot._token for slot in shared_blocks._pool()._slots}


def test_blocks_grow():
    """A chunk larger than those before fits, and the smaller ones before stay what they were."""
    small = sent(torch.full((LARGE,), 1))
    assert [n * 1000 for n in range(1, 60)] == [sent(torch.ones(n * 1000)).sum().item() for n in range(1, 60)]
    assert LARGE == small.sum()


def test_the_user_may_keep_everything():
    """Many chunks may be held at once: all are right, few stay with the worker, and none keeps a descriptor."""
    before = len(names("/proc/self/fd"))
    kept = [sent(torch.full((LARGE,), number)) for number in range(300)]
    assert list(range(300)) == [int(tensor[-1]) for tensor in kept]
    assert shared_blocks.BLOCKS_PER_WORKER >= len(shared_blocks._pool()._slots)
    assert before + shared_blocks.BLOCKS_PER_WORKER >= len(names("/proc/self/fd"))
    assert shared_blocks.MOST_MAPS == shared_blocks._Here.held
    kept.clear()
    release_idle()
    assert (0, {}) == (shared_blocks._Here.held, shared_blocks._Here.idle)
    assert LARGE == sent(torch.ones(LARGE)).sum()


def test_beyond_so_many_maps_data_are_copied(monkeypatch):
    """The number of memory maps is bounded, whatever the user keeps."""
    monkeypatch.setattr(shared_blocks, "MOST_MAPS", 3)
    kept = [sent(torch.full((LARGE,), number)) for number in range(6)]
    assert 3 == shared_blocks._Here.held
    assert [0, 1, 2, 3, 4, 5] == [int(tensor[-1]) for tensor in kept]


def test_a_chunk_that_is_dropped_unread_frees_its_block():
    """An early end of an iteration leaves chunks unread on either side."""
    packed = pack(torch.zeros(LARGE))
    del packed
    assert 0 == used_blocks()
    packed = pickle.loads(pickle.dumps(pack(torch.zeros(LARGE))))
    assert 1 == used_blocks()
    del packed
    assert 0 == used_blocks()


def test_nothing_waits_for_the_garbage_collector():
    """Packing and unpacking make no reference cycles, so memory is free at once."""
    gc.collect()
    gc.disable()
    try:
        sent([torch.zeros(LARGE), np.zeros(LARGE), {"a": torch.nn.Parameter(torch.zeros(LARGE))}])
        assert 0 == used_blocks()
        assert 0 == gc.collect()
    finally:
        gc.enable()


def test_a_value_made_in_its_block_is_not_copied():
    """Tensors of Block.empty are in the block already; the worker's and the main process's are one memory."""
    block = Block()
    inside = block.empty((8, LARGE), torch.float32)
    inside.fill_(1)
    arrived, outside = sent([inside[2:4], torch.full((5,), 7)], block)
    inside[3, 0] = 9
    assert (9, 35) == (arrived[1, 0], outside.sum())


def test_a_block_is_not_used_again_while_the_worker_looks_at_it():
    """A stage that keeps a tensor which was decoded into a block does not see it change."""
    block = Block(LARGE * 8)
    kept = block.empty((LARGE,), torch.int64).fill_(1)
    assert LARGE == sent(kept, block).sum()
    del block
    for _ in range(10):
        sent(torch.zeros(LARGE, dtype=torch.int64))
    assert LARGE == kept.sum()


def test_empty_gives_room_in_the_block_of_the_value_being_made():
    """In pack_all, empty() needs no argument to find the block, and outside it is torch's."""

    def values():
        for number in range(20):
            yield [empty((3, LARGE), torch.float32).fill_(number), empty((), torch.int64).fill_(number)]

    chunks = [pickle.loads(pickle.dumps(packed)) for packed in pack_all(values())]
    assert [True] * 20 == [chunk._memory.nbytes >= 12 * LARGE for chunk in chunks]
    assert [[n, n] for n in range(20)] == [[int(a[2, -1]), int(b)] for a, b in (c.unpack() for c in chunks)]
    assert (2, 3) == empty((2, 3), torch.float32).shape


def test_a_tensor_of_an_earlier_block_is_copied_into_the_next():
    """A stage may yield later what was decoded earlier."""

    def values():
        before = empty((LARGE,), torch.int64).fill_(-1)
        for number in range(12):
            now = empty((LARGE,), torch.int64).fill_(number)
            yield before
            before = now

    assert [-1, *range(11)] == [int(pickle.loads(pickle.dumps(p)).unpack()[-1]) for p in pack_all(values())]


@pytest.mark.parametrize("reason", ["no memfd", "no room", "no proc"])
def test_without_shared_memory_data_go_through_the_pipe(monkeypatch, reason):
    """Where blocks cannot be had, everything still crosses."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_blocks._Here, "pool", None)
    if reason == "no memfd":
        monkeypatch.delattr(os, "memfd_create")
    elif reason == "no room":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    else:
        monkeypatch.setattr(shared_blocks, "_sees_descriptors", lambda _: False)
    block = Block()
    value = [block.empty((LARGE,), torch.float32).fill_(2), np.arange(LARGE), b"x" * LARGE]
    assert equal(value, sent(value, block))
    arrived = sent(value)
    arrived[0][0] = 1
    assert arrived[1].flags.writeable


def test_a_block_that_cannot_grow_is_left_alone(monkeypatch):
    """Memory that runs out in the middle of a chunk costs speed, not data."""
    block = Block(LARGE)
    first = block.empty((LARGE,), torch.uint8).fill_(5)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    second = block.empty((LARGE, 10), torch.float32).fill_(6)
    assert equal([first, second], sent([first, second], block))


@pytest.mark.parametrize("value", [lambda: 0, threading.Lock(), (n for n in "ab")], ids=["lambda", "lock", "generator"])
def test_what_does_not_pickle_is_an_error_that_says_so(value):
    """Unlike torch's queue, which prints a traceback and waits for ever."""
    with pytest.raises(WorkerError, match=r"cannot be sent to the main process.*num_workers=0"):
        pack([1, value])


def test_a_tensor_in_a_graph_is_an_error_that_says_so():
    """Gradients cannot flow through a process boundary, and torch refuses them too."""
    with pytest.raises(WorkerError, match=r"gradient graph.*detach"):
        pack(torch.ones(3, requires_grad=True) * 2)


def test_a_value_is_unpacked_and_sent_once():
    """Using a packed value twice is an error, not two owners of one memory."""
    packed = pack(torch.ones(LARGE))
    message = pickle.dumps(packed)
    received = pickle.loads(message)
    with pytest.raises(WorkerError, match="came twice"):
        pickle.loads(message)
    received.unpack()
    with pytest.raises(UsageError, match="unpacked twice"):
        received.unpack()
    with pytest.raises(UsageError, match="cannot be sent again"):
        pickle.dumps(received)


def test_pinning_reaches_every_tensor_and_keeps_sharing(monkeypatch):
    """pin_memory copies storages, so that tensors inside any object are pinned, and frees the block."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.nbytes)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    base = torch.arange(LARGE)
    value = [base, base[5:7], {"a": {torch.nn.Parameter(torch.ones(3))}}, np.arange(LARGE), "text"]
    packed = pickle.loads(pickle.dumps(pack(value)))
    pinned_value = packed.pin_memory().unpack()
    pinned_value[1][0] = -5
    assert [LARGE * 8, 12] == pinned
    assert -5 == pinned_value[0][5]
    assert {torch.nn.Parameter} == {type(parameter) for parameter in pinned_value[2]["a"]}


def child_sends(connection, numbers):
    """Send chunks from another process."""
    torch.set_num_threads(1)  # as in a loader's workers: threads do not survive a fork
    for number in numbers:
        connection.send(pack([torch.full((LARGE,), number), {"n": number}]))
    connection.recv()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_chunks_cross_processes_however_they_started(method):
    """The main process maps the blocks of a child, however it was started."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=child_sends, args=(theirs, range(30)), daemon=True)
    child.start()
    try:
        arrived = [ours.recv().unpack() for _ in range(30)]
        assert list(range(30)) == [int(tensor[-1]) for tensor, _ in arrived]
        assert [{"n": number} for number in range(30)] == [record for _, record in arrived]
        child.kill()
        child.join()
        assert sum(range(30)) == sum(int(tensor[0]) for tensor, _ in arrived)  # they outlive their worker
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()
        theirs.close()


def test_a_worker_that_died_before_its_chunk_was_read_is_an_error():
    """The kernel took the memory back with the worker; the error says so."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=child_sends, args=(theirs, [1]), daemon=True)
    child.start()
    assert ours.poll(30)
    child.kill()
    child.join()
    with pytest.raises(WorkerError, match="was gone before its last data were read"):
        ours.recv()
    child.close()
    ours.close()
    theirs.close()


def test_a_forked_child_does_not_free_what_its_parent_holds():
    """Views that a child inherits and drops say nothing about the parent's."""
    held = [sent(torch.full((LARGE,), 3))]
    pid = os.fork()
    if pid == 0:
        held.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    for _ in range(10):
        sent(torch.zeros(LARGE))
    assert 3 * LARGE == held[0].sum()


def test_a_forked_child_counts_its_own_blocks(monkeypatch):
    """What the parent holds when it forks is no reason for the child to copy everything."""
    monkeypatch.setattr(shared_blocks, "MOST_MAPS", 2)
    held = [sent(torch.full((LARGE,), number)) for number in range(2)]
    assert 2 == shared_blocks._Here.held
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = shared_blocks._here().held
        os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert [0, 1] == [int(tensor[0]) for tensor in held]


def test_nothing_is_left_over_when_all_processes_are_killed(tmp_path):
    """Blocks have no name, so the kernel frees them, whatever dies when."""
    script = textwrap.dedent("""
        import os, pickle, torch, time
        from bionemo.webdatamodule.builtins.webloader.transport import pack
        kept = [pickle.loads(pickle.dumps(pack(torch.zeros(50_000)))).unpack() for _ in range(5)]
        sent = pickle.dumps(pack(torch.zeros(50_000)))
        print("ready", flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:
        assert b"ready\n" == process.stdout.readline()
        process.kill()
    assert [] == names(tmp_path)
    assert [] == [name for name in names("/dev/shm") if "webdatamodule" in name]


def test_thousands_of_chunks_need_no_descriptors():
    """Under a limit of a few descriptors more than are open, 500 chunks may be kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, names("/proc/self/fd"))) + 24
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        kept = [sent(torch.full((LARGE,), number)) for number in range(500)]
        assert list(range(500)) == [int(tensor[0]) for tensor in kept]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_rebuilding_functions_are_no_way_in():
    """A program of the transport read by a plain unpickler says what it is."""
    with pytest.raises(UsageError, match=r"Packed\.unpack only"):
        pickle.loads(pack(torch.ones(2))._program)
    with pytest.raises(UsageError, match=r"Packed\.unpack only"):
        out_of_band._storage(0)
