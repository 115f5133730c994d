"""Memory of batches is used again, and never while anybody can see it."""

import gc

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bionemo.webdatamodule.builtins.webloader.buffer_pool import KEPT, LEAST, Recycler

SHAPE = (64, 25_600)


def test_memory_is_used_again_when_its_tensor_is_gone():
    """The usual loop, which lets go of a batch before the next, uses the same pages all the time."""
    recycler = Recycler()
    addresses = {recycler.empty(SHAPE, torch.float32).data_ptr() for _ in range(5)}
    assert len(addresses) == 1


def test_memory_is_not_used_again_while_a_view_of_it_lives():
    """Views, rows, arrays and other dtypes of a batch keep it, whatever happened to the batch itself."""
    recycler = Recycler()
    kept = []
    for number, view in enumerate((lambda t: t[3], lambda t: t.numpy(), lambda t: t.view(torch.int32), iter)):
        batch = recycler.empty(SHAPE, torch.float32).fill_(number)
        kept.append(view(batch))
        del batch
    fresh = [recycler.empty(SHAPE, torch.float32).fill_(9) for _ in range(6)]
    row, array, integers, rows = kept
    assert torch.equal(row, torch.zeros(SHAPE[1]))
    assert (array == 1).all()
    assert torch.equal(integers.view(torch.float32), torch.full(SHAPE, 2.0))
    assert torch.equal(next(rows), torch.full(SHAPE[1:], 3.0))
    assert len(fresh) == 6


def test_only_a_little_memory_waits():
    """Letting go of many batches at once gives most of their memory back to the system."""
    recycler = Recycler()
    batches = [recycler.empty(SHAPE, torch.float32) for _ in range(8)]
    del batches
    gc.collect()
    assert len(recycler._idle) == KEPT


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * LEAST), st.booleans()), max_size=20))
def test_tensors_never_share_memory(requests):
    """Whatever sizes are asked for and kept: each tensor keeps what was written into it."""
    recycler = Recycler()
    kept = []
    for number, (nbytes, keep) in enumerate(requests):
        tensor = recycler.empty((nbytes,), torch.uint8).fill_(number)
        if keep:
            kept.append((number, tensor))
    for number, tensor in kept:
        assert bool((tensor == number).all())


def test_the_tensor_is_like_any_other():
    """Its memory is aligned as torch's own, and it can be written to and stored."""
    batch = Recycler().empty((1024, 512), torch.float64)
    assert batch.data_ptr() % 64 == 0
    assert (batch.shape, batch.dtype, batch.is_contiguous()) == ((1024, 512), torch.float64, True)
    assert torch.equal(batch.fill_(2).mul_(2).clone(), torch.full((1024, 512), 4.0, dtype=torch.float64))
