"""Remote shards are trained on in pieces and lanes: exact resume, on other ranks and with another batch size."""

import contextlib
import itertools
import json
import os

import fsspec
import pytest
from lightning.pytorch import Callback

from bionemo.webdatamodule import WebDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


class SaveAt(Callback):
    """Saves a checkpoint after some step."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Save where asked."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def make_remote(shards, tmp_path):
    """Return a function that makes a data module over a URL."""
    remote = fsspec.filesystem("memory")
    for split in ("train", "val"):
        remote.put(f"{shards}{split}", f"memory://lanes/{split}", recursive=True)

    def make_remote(size=4):
        directories = {split: f"memory://lanes/{split}" for split in ("train", "val")}
        cached = {split: {"cache_dir": tmp_path / "cache"} for split in directories}
        return WebDataModule(directories, None, ["__key__", "x.pyd"], size, kwargs_wds=cached)

    yield make_remote
    remote.rm("memory://lanes", recursive=True)


def keys_of(loader):
    """Return the keys of each batch."""
    return [list(keys) for keys, _ in loader]


def test_a_trainer_goes_on_exactly_in_its_lanes(tmp_path, make_remote, make_trainer, recorder):
    """Two epochs of all samples, and the rest after the fifth step is the same."""
    whole, again = recorder(), recorder()
    path = tmp_path / "five.ckpt"
    make_trainer(max_epochs=2, callbacks=[SaveAt(5, path)]).fit(whole, datamodule=make_remote())
    make_trainer(max_epochs=2).fit(again, datamodule=make_remote(), ckpt_path=path)
    epochs = [sorted(key for epoch, _, keys in whole.trained if epoch == number for key in keys) for number in (0, 1)]

    assert [[f"train{i:02d}" for i in range(37)]] * 2 == epochs
    assert whole.trained[5:] == again.trained


def test_a_run_keeps_its_lanes_with_another_batch_size_and_other_ranks(make_remote, monkeypatch):
    """Lanes follow from the batch size; a run that goes on with another one takes what was left, once."""
    data = make_remote(8)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    seen = [key for _ in range(2) for key in next(batches)[0]]
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        rest = make_remote(6)
        rest.setup("fit")
        resumed = rest.train_dataloader()
        before = resumed.plan.lanes
        resumed.load_state_dict(loader.state_dict())
        seen += [key for keys in keys_of(resumed) for key in keys]
        assert (loader.plan.lanes, 6) == (resumed.plan.lanes, resumed.plan.global_batch_size)
        assert before != resumed.plan.lanes

    assert [f"train{i:02d}" for i in range(37)] == sorted(seen)


def read_ranks(url, root, world, state=None, steps=None):
    """Read in one forked process for each rank, with a cache of its own; return global batches and a rank's state."""
    children = []
    for rank in range(world):
        child, answer = os.fork(), root / f"{rank}-of-{world}-{steps}.json"
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
                cached = {"train": {"cache_dir": root / f"cache-{world}-{rank}-{steps}"}}
                data = WebDataModule({"train": url}, None, ["__key__", "x.pyd"], 6, kwargs_wds=cached)
                data.setup("fit")
                loader = data.train_dataloader()
                if state is not None:
                    loader.load_state_dict(state)
                batches = [list(keys) for keys, _ in itertools.islice(loader, steps)]
                answer.write_text(json.dumps([batches, loader.state_dict()]))
                code = 0
            os._exit(code)
        children.append((child, answer))
    assert [0] * world == [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    found = [json.loads(answer.read_text()) for _, answer in children]
    by_step = zip(*[batches for batches, _ in found], strict=True)
    return [list(itertools.chain(*shares)) for shares in by_step], found[0][1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # as workers of loaders are
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_another_number_of_nodes_goes_on_exactly(shards, tmp_path, before, after):
    """Processes with caches of their own: the global batches after a resume are those of a run that never stopped."""
    url = f"file://{shards}train"
    whole, _ = read_ranks(url, tmp_path, before)
    first, state = read_ranks(url, tmp_path, before, steps=2)
    rest, _ = read_ranks(url, tmp_path, after, state=state)

    assert whole == first + rest
    assert [f"train{i:02d}" for i in range(37)] == sorted(itertools.chain(*whole))
