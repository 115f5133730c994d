"""How fast data are read: the figures behind ``webdatamodule bench``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import default_collate

from bionemo.webdatamodule._engine.codecs import Codecs
from bionemo.webdatamodule._engine.reading.fields import field_views, sound_views
from bionemo.webdatamodule._engine.reading.locate import Places
from bionemo.webdatamodule._engine.reading.reader import ShardReader
from bionemo.webdatamodule._engine.stages import chain
from bionemo.webdatamodule._engine.verdict import more_workers, slowest
from bionemo.webdatamodule.columns import stack_fields
from bionemo.webdatamodule.components import Loader, Use
from bionemo.webdatamodule.datamodule import WebDataModule
from bionemo.webdatamodule.errors import DecodeError, MissingFieldError, NoShardsError, count
from bionemo.webdatamodule.plugins import build, find, option_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
    from bionemo.webdatamodule.pickles import Policy

    Ids = NDArray[np.int64]


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
        loader: The loader of the figures by number of workers.

    Attributes:
        batch_size: Samples of a batch; no more than there are.
        bytes_per_sample: Mean size of the fields, from the first thousand samples in shuffled order.
        takes_workers: Whether the loader has the option ``num_workers``.
    """

    def __init__(
        self,
        found: ShardSet,
        suffixes: Sequence[str],
        stages: Sequence[Any],
        batch_size: int,
        seconds: float,
        policy: Policy,
        loader: Use,
    ) -> None:
        if not found.n_samples:
            raise NoShardsError(f"{found.directory} holds no sample, so there is nothing to measure")
        self._found = found
        self._suffixes = suffixes
        self._stages = stages
        self.batch_size = min(batch_size, found.n_samples)
        self._seconds = seconds
        self._policy = policy
        self._loader = loader
        component = find(Loader, loader.name)
        self._takes = option_names(component.factory)
        self.takes_workers = "num_workers" in self._takes
        made = build(component, loader.options)
        self._own_workers = int(getattr(made, "num_workers", 0))
        self._transported: Callable[[Any], Any] | None = getattr(made, "transported", None)
        self._reader = ShardReader([found], suffixes, codecs=Codecs(policy=policy), check="never")
        self._columns = [column for column, suffix in enumerate(suffixes) if suffix != "__key__"]
        self._places = Places([found], suffixes, split=None)
        self._order = np.random.default_rng(0).permutation(found.n_samples)
        sizes = [len(bytes_) for bytes_ in self._raw(self._order[:1000])]
        self.bytes_per_sample = sum(sizes) / min(1000, found.n_samples)
        self._stacks = self._can_batch()

    def workers(self, wanted: Sequence[int]) -> Sequence[int]:
        """Return the numbers of workers to measure: those wanted, or the loader's own where no option sets it."""
        return wanted if self.takes_workers else [self._own_workers]

    def notes(self) -> list[str]:
        """Return what is not measured because the loader does not have it, a line for each."""
        name = self._loader.name
        notes = []
        if not self.takes_workers:
            notes.append(
                f"the loader {name!r} has no option num_workers: it is measured as it is, "
                f"with {count(self._own_workers, 'worker')}"
            )
        if self._transported is None:
            notes.append(f"the loader {name!r} has no transported(): its transport is not measured")
        return notes

    def parts(self, step: Callable[[str], None]) -> Iterator[Rate | None]:
        """Measure what one process does with a batch, part by part, in shuffled order.

        Args:
            step: Called with a description of the next step.

        Yields:
            A figure for each of :data:`PARTS`, or ``None`` where there is nothing to measure.
        """
        first, transported = self._order[: self.batch_size], self._transported
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
            "transport": None if transported is None else (lambda _: transported(batch)),
        }
        for name in PARTS:
            step(name)
            function = work[name]
            yield None if function is None else self._rate(name, function)

    def pipeline(self, workers: int, step: Callable[[str], None]) -> Rate:
        """Measure a data module's loader as it is, the time until its first batch apart.

        Args:
            workers: Number of workers.
            step: Called with a description of the next step.
        """
        step(count(workers, "worker"))
        options = {"num_workers": workers, **({"persistent_workers": True} if workers else {})}
        module = WebDataModule(
            {"train": self._found.directory},
            None,
            self._suffixes,
            self.batch_size,
            self._found.prefix,
            pipeline_wds={"train": self._stages} if self._stages else None,
            pipeline_prebatch_wld=None if self._stacks else {"train": as_list},
            kwargs_wld={"train": {name: value for name, value in options.items() if name in self._takes}},
            loader=self._loader,
            pickles=self._policy.pickles,
            allow_pickle=self._policy.allow,
        )
        module.setup("fit")
        loader = module.train_dataloader()
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        began = time.perf_counter()
        next(batches)
        started = now = time.perf_counter()
        batches_seen = 0
        while now < started + self._seconds:
            next(batches)
            batches_seen += 1
            now = time.perf_counter()
        loader._iterator = None  # noqa: SLF001 - as Lightning ends persistent workers
        return self._as_rate(str(workers), (now - started) / batches_seen / self.batch_size, start=started - began)

    def _raw(self, ids: Ids) -> list[bytes]:
        places = self._places.locate(ids)
        try:
            return [bytes(view) for column in self._columns for view in field_views(places, column)]
        except MissingFieldError:
            self._reader.read(ids)  # which says of the first such sample where it is
            raise

    def _check(self, ids: Ids) -> None:
        places = self._places.locate(ids)
        for column in self._columns:
            sound_views(places, column)

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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a training run waits for.

    Attributes:
        waits_for: ``"store"``, ``"decoding"``, ``"stages"``, ``"transport"`` or ``"training"``.
        samples: Samples a second that come at most.
        share: The part of a sample's time that this takes, from 0 to 1; ``None`` for training.
        setting: The one setting to change.
    """

    waits_for: str
    samples: float
    share: float | None
    setting: str

    def __str__(self) -> str:
        """Return it as one line."""
        if self.share is None:
            return f"you wait for training, since the data come at {self.samples:,.0f} samples/s; keep {self.setting}"
        return (
            f"at {self.samples:,.0f} samples/s you wait for {self.waits_for}, {self.share:.0%} of a sample's time; "
            f"change {self.setting}"
        )


def verdict(
    parts: Sequence[Rate],
    pipelines: Sequence[Rate],
    *,
    cpus: int,
    training: float | None = None,
    takes_workers: bool = True,
) -> Verdict:
    """Say what a training run waits for, and the one setting to change.

    Workers share what is done in them, and the main process does the transport while they work.

    Args:
        parts: Figures of the parts, by name.
        pipelines: Figures of the whole, by number of workers.
        cpus: Processors that this process may use.
        training: Samples a second that the model takes; ``None`` where that is not known.
        takes_workers: Whether the loader has the option ``num_workers``, so that it can be the one to change.
    """
    best = max(pipelines, key=lambda rate: rate.samples)
    workers = int(best.name)
    if training is not None and training <= best.samples:
        setting = f"num_workers={workers}" if takes_workers else "the loader as it is"
        return Verdict(waits_for="training", samples=best.samples, share=None, setting=setting)
    cost = {part.name: part.microseconds for part in parts}
    direct = "direct" in cost and "stages" not in cost
    decoding = cost["direct"] if direct else cost["decode"] + cost.get("batch", 0.0)
    costs = {
        "store": cost["read"] + cost.get("check", 0.0),
        "decoding": max(0.0, decoding - cost["read"]),
        "stages": cost.get("stages", 0.0),
    }
    if workers:
        costs = {name: each / min(workers, cpus) for name, each in costs.items()}
        costs["transport"] = cost.get("transport", 0.0)
    busy = workers == max(int(rate.name) for rate in pipelines)  # the most that was tried is the fastest
    more = more_workers(workers, cpus) if busy and takes_workers else 0
    waits_for, share, setting = slowest(costs, more=more, checks=cost.get("check", 0.0) > cost["read"])
    return Verdict(waits_for=waits_for, samples=best.samples, share=share, setting=setting)


def as_list(samples: Iterator[Any]) -> Iterator[list[Any]]:
    """Make one batch of samples that do not fit into tensors together."""
    yield list(samples)
