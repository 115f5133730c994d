"""A third party's ``batch_by_size``, written against the public files alone."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule.columns import pad_values
from bionemo.webdatamodule.planning import ListedPlan, permutation


@dataclass(frozen=True, kw_only=True)
class TwinBySize:
    """Samples of like size, the largest first, in batches of at most ``max_total`` after padding."""

    size: Any
    max_total: int
    width: float = 0.1
    collate: Any = pad_values

    def __call__(self, samples):
        """Make one batch of a planned share."""
        assert context.current().order == "global"
        return map(self.collate, filter(None, [list(samples)]))

    def plan(self, sizes, request):
        """Return the plan of all epochs."""
        order = np.argsort(-sizes, kind="stable")
        buckets, edges = [0], [0]
        while buckets[-1] < len(sizes):
            largest = int(sizes[order[buckets[-1]]])
            held = max(1, self.max_total // largest)
            near = int((sizes[order[buckets[-1] :]] >= np.ceil(largest / (1 + self.width))).sum())
            count = -(-near // held)
            taken = min(count * held, len(sizes) - buckets[-1])
            edges += (buckets[-1] + np.cumsum([len(part) for part in np.array_split(np.arange(taken), count)])).tolist()
            buckets.append(buckets[-1] + taken)
        lists = TwinLists(order=order, buckets=buckets, edges=edges, seed=request.seed, shuffle=request.shuffle)
        return ListedPlan(batches=lists, n_samples=len(sizes), seed=request.seed, digest="0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class TwinLists:
    """The batches of an epoch."""

    order: Any
    buckets: Any
    edges: Any
    seed: int
    shuffle: bool

    def __call__(self, epoch):
        """Shuffle the samples of each bucket, then the batches."""
        runs = []
        for bucket, (low, high) in enumerate(itertools.pairwise(self.buckets)):
            shuffled = permutation(high - low, "sized", self.seed, epoch, bucket)(np.arange(high - low))
            runs += self.order[low:high][shuffled if self.shuffle else slice(None)].tolist()
        cut = [runs[first:stop] for first, stop in itertools.pairwise(self.edges)]
        if self.shuffle:
            cut = [cut[number] for number in permutation(len(cut), "sized", self.seed, epoch, -1)(np.arange(len(cut)))]
        return np.array(list(itertools.chain(*cut))), np.cumsum([0, *map(len, cut)])
