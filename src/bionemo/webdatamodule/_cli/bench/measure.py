"""How fast data are read: the figures behind ``webdatamodule bench``."""

from __future__ import annotations

import itertools
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import default_collate

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.fields import check_fields, field_views
from bionemo.webdatamodule._engine.reading.locate import Places
from bionemo.webdatamodule._engine.reading.reader import SampleReader
from bionemo.webdatamodule._engine.stages import chain
from bionemo.webdatamodule.builtins.webloader.transport import pack
from bionemo.webdatamodule.columns import stack_fields
from bionemo.webdatamodule.datamodule import WebDataModule
from bionemo.webdatamodule.errors import DecodeError, MissingFieldError, NoShardsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
    from bionemo.webdatamodule.pickles import Policy

    Ids = NDArray[np.int64]

DEAR = 0.4  # share of all parts' time from which a part is worth a word
SLOW_READ = 1000.0  # megabytes a second; memory and good disks do better
SLOW_DECODE = 30.0  # microseconds a sample; plain tensors and arrays stay well below


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast something is.

    Attributes:
        name: The part, or the number of workers.
        samples: Samples a second.
        megabytes: Millions of bytes of fields a second.
        microseconds: For a sample.
        start: Seconds until the first batch, for a whole pipeline.
    """

    name: str
    samples: float
    megabytes: float
    microseconds: float
    start: float = 0.0


PARTS = ("read", "check", "decode", "stages", "batch", "direct", "transport")
"""Parts in the order of a sample's way; ``direct`` is read, decode and batch at once, as without stages."""


class Bench:
    """Measures one shard set.

    Args:
        found: The shards.
        suffixes: The fields to read.
        stages: Stages of ``pipeline_wds``; none for the default pipeline.
        batch_size: Samples of a batch, at most.
        seconds: Time for each figure.
        policy: What pickles may do.

    Attributes:
        batch_size: Samples of a batch; no more than there are.
        bytes_per_sample: Mean size of the fields, from the first thousand samples in shuffled order.
    """

    def __init__(
        self,
        found: ShardSet,
        suffixes: Sequence[str],
        stages: Sequence[Any],
        batch_size: int,
        seconds: float,
        policy: Policy,
    ) -> None:
        if not found.n_samples:
            raise NoShardsError(f"{found.directory} holds no sample, so there is nothing to measure")
        self._found = found
        self._suffixes = suffixes
        self._stages = stages
        self.batch_size = min(batch_size, found.n_samples)
        self._seconds = seconds
        self._policy = policy
        self._reader = SampleReader([found], suffixes, codecs=Codecs(policy=policy), check="never")
        self._columns = [column for column, suffix in enumerate(suffixes) if suffix != "__key__"]
        self._places = Places([found], suffixes, split=None)
        self._order = np.random.default_rng(0).permutation(found.n_samples)
        sizes = [len(bytes_) for bytes_ in self._raw(self._order[:1000])]
        self.bytes_per_sample = sum(sizes) / min(1000, found.n_samples)
        self._stacks = self._can_batch()

    def parts(self, step: Callable[[str], None]) -> Iterator[Rate | None]:
        """Measure what one process does with a batch, part by part, in shuffled order.

        Args:
            step: Told what comes next.

        Yields:
            A figure for each of :data:`PARTS`, or ``None`` where there is nothing to measure.
        """
        first = self._order[: self.batch_size]
        samples = self._reader.read(first)
        batch = self._batch(first) if self._stacks else samples
        # Fields are read, compared with their checksums and decoded from the samples' own places;
        # the other parts work on one batch again and again, which is in the caches.
        work: dict[str, Callable[[Ids], Any] | None] = {
            "read": self._raw,
            "check": None if self._found.manifest is None else self._check,  # foreign shards have no checksums
            "decode": self._reader.read,
            "stages": (lambda _: list(chain(self._stages, iter(samples)))) if self._stages else None,
            "batch": (lambda _: default_collate(samples)) if self._stacks else None,
            "direct": self._batch if self._stacks else None,
            "transport": lambda _: pickle.loads(pickle.dumps(pack(batch))).unpack(),
        }
        for name in PARTS:
            step(name)
            function = work[name]
            yield None if function is None else self._rate(name, function)

    def pipeline(self, workers: int, step: Callable[[str], None]) -> Rate:
        """Measure a data module's loader as it is, the time until its first batch apart.

        Args:
            workers: Number of workers.
            step: Told what comes next.
        """
        step(f"{workers} workers")
        options = {"num_workers": workers, **({"persistent_workers": True} if workers else {})}
        module = WebDataModule(
            {"train": self._found.directory},
            None,
            self._suffixes,
            self.batch_size,
            self._found.prefix,
            pipeline_wds={"train": self._stages} if self._stages else None,
            pipeline_prebatch_wld=None if self._stacks else {"train": as_list},
            kwargs_wld={"train": options},
            pickles=self._policy.pickles,
            allow_pickle=self._policy.allow,
        )
        module.setup("fit")
        loader = module.train_dataloader()
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        began = time.perf_counter()
        next(batches)
        started = now = time.perf_counter()
        count = 0
        while now < started + self._seconds:
            next(batches)
            count += 1
            now = time.perf_counter()
        if workers:
            loader._iterator._shutdown_workers()  # noqa: SLF001 - as Lightning ends persistent workers
            loader._iterator = None  # noqa: SLF001 - the same
        return self._as_rate(str(workers), (now - started) / count / self.batch_size, start=started - began)

    def _raw(self, ids: Ids) -> list[bytes]:
        places = self._places.locate(ids)
        try:
            return [bytes(view) for column in self._columns for view in field_views(places, column)]
        except MissingFieldError:
            self._reader.read(ids)  # which says of the first such sample where it is
            raise

    def _check(self, ids: Ids) -> None:
        for place in self._places.locate(ids):
            check_fields(place, self._columns)

    def _batch(self, ids: Ids) -> Any:
        return next(self._reader.columns([ids], lambda _, fields: stack_fields(fields)))

    def _can_batch(self) -> bool:
        try:
            self._batch(self._order[: self.batch_size])
        except DecodeError:  # if it is not their shapes, reading one by one says so
            return False
        return True

    def _rate(self, name: str, function: Callable[[Ids], Any]) -> Rate:
        """Call a function with batch after batch of numbers for the time given, and take the median."""
        starts = itertools.cycle(range(0, len(self._order) - self.batch_size + 1, self.batch_size))
        times: list[float] = []
        end = time.perf_counter() + self._seconds
        while not times or time.perf_counter() < end:
            ids = self._order[(start := next(starts)) : start + self.batch_size]
            began = time.perf_counter()
            function(ids)
            times.append(time.perf_counter() - began)
        return self._as_rate(name, statistics.median(times) / self.batch_size)

    def _as_rate(self, name: str, seconds: float, start: float = 0.0) -> Rate:
        return Rate(
            name=name,
            samples=1 / seconds,
            megabytes=self.bytes_per_sample / seconds / 1e6,
            microseconds=1e6 * seconds,
            start=start,
        )


def advice(parts: Sequence[Rate], pipelines: Sequence[Rate], *, cpus: int) -> list[str]:
    """Say what the figures mean for a training run.

    Args:
        parts: Figures of the parts, by name.
        pipelines: Figures of the whole, by number of workers.
        cpus: Processors that this process may use.
    """
    words = []
    best = max(pipelines, key=lambda rate: rate.samples)
    alone = next((rate for rate in pipelines if rate.name == "0"), None)
    words.append(f"num_workers={best.name} is the fastest of these, with {best.samples:,.0f} samples a second")
    if alone is not None and best is alone and len(pipelines) > 1:
        words.append("workers gain nothing here, as reading costs less than sending; they pay once stages are dear")
    if any(int(rate.name) > cpus for rate in pipelines):
        words.append(f"there are {cpus} processors; more workers than that only take turns")
    cost = {part.name: part.microseconds for part in parts}
    decode = cost["decode"] - cost["read"]
    whole = cost["decode"] + cost.get("stages", 0.0) + cost.get("batch", 0.0)
    if cost["read"] > DEAR * whole and next(part.megabytes for part in parts if part.name == "read") < SLOW_READ:
        words.append("reading takes most of the time; keep the shards on a local disk, or in memory if they fit")
    elif decode > max(SLOW_DECODE, DEAR * whole):
        words.append("decoding takes most of the time; fields are decoded fastest if they hold plain tensors or arrays")
    elif cost.get("stages", 0.0) > DEAR * whole:
        words.append("your stages take most of the time; do in them only what changes from epoch to epoch")
    elif cost.get("direct", 0.0) and cost["direct"] < DEAR * whole and "stages" in cost:
        words.append("without stages fields would be read straight into batches, at a fraction of the time")
    words.append("a model that needs fewer samples a second is not held up by its data; DataWaitMonitor tells in a run")
    return words


def as_list(samples: Iterator[Any]) -> Iterator[list[Any]]:
    """Make one batch of samples that do not fit into tensors together."""
    yield list(samples)
