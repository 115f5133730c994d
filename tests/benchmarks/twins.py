"""Do third parties' components cost more than the defaults: CPU time of epochs, twin ÷ default.

    python tests/benchmarks/twins.py [--rounds 15] [--samples 50000]

Both read the same shards without workers, in turns within one process, and the median ratio of all rounds is printed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers import twins

from bionemo.webdatamodule import Sample, SourceDataWDS, Use, WebDataModule
from bionemo.webdatamodule.pickles import dumps
from bionemo.webdatamodule.plugins import Plugins


@dataclass(frozen=True)
class Reader:
    """Samples of an array, and a pickle of a tensor."""

    count: int

    def names(self) -> Sequence[str]:
        """Return the names."""
        return [str(number) for number in range(self.count)]

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples."""
        for name in names:
            stream = io.BytesIO()
            np.save(stream, np.full(64, int(name), np.float32))
            yield Sample(name, {"x.npy": stream.getvalue(), "y.pyd": dumps(torch.full((64,), float(name)))})


def loader(directory: str, suffix: str, plugins: Plugins, **options: Any) -> Any:
    """Return a loader of one suffix in batches of 64."""
    module = WebDataModule({"train": directory}, None, suffix, 64, plugins=plugins, **options)
    module.setup("fit")
    return module.train_dataloader()


def seconds(batches: Any) -> float:
    """Return the CPU time of an epoch."""
    began = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - began


def main() -> None:
    """Print a ratio for each twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=50_000)
    args = parser.parse_args()
    plugins = Plugins()
    plugins.register(twins, "twins")
    stages = {
        "pipeline_wds": {"train": "twin_untuple"},
        "pipeline_prebatch_wld": {"train": Use("twin_batch")},
    }
    with tempfile.TemporaryDirectory() as directory:
        SourceDataWDS(Reader(args.samples), {"train": 1.0}, f"{directory}/", ["y.pyd"], 64, n_tars_wds=8).prepare_data()
        shards = f"{directory}/train"
        pairs = {
            "stages": (loader(shards, "y.pyd", plugins), loader(shards, "y.pyd", plugins, **stages)),
            "codec": (loader(shards, "x.npy", plugins), loader(shards, "x.npy", plugins, codecs={"x.npy": "twin_npy"})),
        }
        for name, (default, twin) in pairs.items():
            seconds(default), seconds(twin)  # the first epoch compares checksums
            rounds = [(seconds(default), seconds(twin)) for _ in range(args.rounds)]
            ratio = statistics.median(mine / theirs for theirs, mine in rounds)
            rate = args.samples / statistics.median(theirs for theirs, _ in rounds)
            print(f"{name}: twin ÷ default = {ratio:.3f} of CPU time; the default reads {rate:,.0f} samples a second")


if __name__ == "__main__":
    main()
