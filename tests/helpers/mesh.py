"""Four processes of a mesh of 2 by 2 for the test of data ranks; one process imports all, and the others are forked.

Each process writes ``{directory}/{process}.json``: what it got in each scenario.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule.errors import PeerMismatchError

PROCESSES = 4


class Model(L.LightningModule):
    """Learns one number, sharded over the data-parallel ranks as FSDP2 does, and notes the keys."""

    def __init__(self, seen):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.seen = seen

    def configure_model(self):
        """Shard the model."""
        fully_shard(self.line, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch):
        """Take a step."""
        keys, values = batch
        self.seen.append(list(keys))
        return self.line(values).square().mean()

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def data(shards, **options):
    """Return a data module over the training shards, of keys and values."""
    return WebDataModule({"train": f"{shards}train"}, None, ["__key__", "x.pyd"], 8, **options)


def read(shards, **options):
    """Return the keys of an epoch's batches, or the message of the error."""
    module = data(shards, **options)
    module.setup("fit")
    try:
        return [list(keys) for keys, _ in module.train_dataloader()]
    except PeerMismatchError as error:
        return error.message


def trained(shards, directory):
    """Return the keys that FSDP2 with tensor parallelism gets under Lightning; leave the receipt."""
    seen = []
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=PROCESSES,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Model(seen), datamodule=data(shards, receipt=f"{directory}/receipt.jsonl"))
    return seen


def main(process, shards, directory):
    """Run all scenarios in one of the processes."""
    os.environ.update(RANK=str(process), LOCAL_RANK=str(process))
    warnings.simplefilter("ignore")
    found = {"fsdp2": trained(shards, directory)}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    hybrid = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("dp_replicate", "dp_shard", "cp"))
    found["mesh"] = read(shards, data_ranks=mesh)
    found["hybrid"] = read(shards, data_ranks=lambda: hybrid)
    found["pair"] = read(shards, data_ranks=lambda: (process % 2, 2))
    found["alone"] = read(shards)
    found["other seed"] = read(shards, data_ranks=mesh, seed=int(process == 3))
    found["own random numbers"] = read(shards, data_ranks=mesh, pipeline_wds={"train": Noise(process)})
    found["no ranks"] = read(shards, data_ranks=lambda: (int(process == 3), 2))
    Path(directory, f"{process}.json").write_text(json.dumps(found))
    torch.distributed.barrier()  # the first process serves the store


class Noise:
    """A stage whose random numbers differ from process to process."""

    def __init__(self, process):
        self.process = process

    def __call__(self, samples):
        """Add noise."""
        return ((key, value + self.process) for key, value in samples)


if __name__ == "__main__":
    shards, directory, port = json.loads(sys.argv[1])
    os.environ.update(
        WORLD_SIZE=str(PROCESSES),
        LOCAL_WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    torch.multiprocessing.start_processes(main, (shards, directory), PROCESSES, start_method="fork")
