"""Receipts: what was delivered in an epoch, over all ranks, logged and written by rank 0."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from bionemo.webdatamodule._engine.loading.resume import OurLoader
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.ranks import exchange, forget
from bionemo.webdatamodule._engine.sampling.tally import Tally, hash_of_all, total
from bionemo.webdatamodule.errors import count

_log = logging.getLogger("bionemo.webdatamodule")

WAIT = 30.0  # seconds that rank 0 waits for the others, which do the same at about the same time


class ReceiptCallback(pl.Callback):
    """Writes the receipt of each epoch, and keeps that of the epoch so far in checkpoints.

    Every ``Trainer`` gets one by the entry point ``lightning.pytorch.callbacks_factory``.
    """

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._saved: list[Mapping[str, Any]] = []
        self._fits = self._passes = 0  # which all ranks count alike

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Forget the checkpoint of an earlier run."""
        self._trainer = trainer if stage == "fit" else None
        self._saved = []

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks delivered of the epoch so far, with the place in it."""
        if self._trainer is None:
            return {}
        states = []
        for number, loader in our_loaders(self._trainer.fit_loop):
            epoch, samples = loader.cursor.epoch, loader.cursor.samples
            name = f"{self._fits}/checkpoint/{number}/{epoch}/{samples}"
            tally, missing = collect(name, loader, first=self._trainer.is_global_zero)
            if not missing:
                states.append({"loader": number, "epoch": epoch, "place": samples, "tally": tally.to_state()})
        return {"train": states} if states else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint says of its epoch."""
        self._saved = list(state_dict.get("train", ()))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Continue the tally of the checkpoint, where the loaders resume."""
        self._fits += 1
        saved = {(state["loader"], state["epoch"], state["place"]): state["tally"] for state in self._saved}
        self._saved = []
        for number, loader in our_loaders(trainer.fit_loop):
            cursor = loader.cursor
            state = saved.get((number, cursor.epoch, cursor.samples))
            if state is not None and cursor.samples:  # on one rank, since tallies of ranks are summed
                loader.progress.came_before(Tally() if loader.topology.rank else Tally.from_state(state))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Leave the receipt of a training epoch."""
        for number, loader in our_loaders(trainer.fit_loop):
            self._leave(trainer, f"{self._fits}/epoch/{number}/{loader.cursor.epoch}", number, loader)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Leave the receipt of a validation."""
        if not trainer.sanity_checking:
            self._evaluated(trainer, trainer._evaluation_loop)  # noqa: SLF001 - that of fit or of validate

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Leave the receipt of a test."""
        self._evaluated(trainer, trainer.test_loop)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Leave the receipt of a prediction."""
        self._evaluated(trainer, trainer.predict_loop)

    def _evaluated(self, trainer: pl.Trainer, loop: Any) -> None:
        self._passes += 1
        for number, loader in our_loaders(loop):
            self._leave(trainer, f"evaluation/{self._passes}/{number}", number, loader)

    def _leave(self, trainer: pl.Trainer, name: str, number: int, loader: OurLoader) -> None:
        tally, missing = collect(name, loader, first=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return
        epoch = loader.cursor.epoch if loader.split == "train" else trainer.current_epoch
        found = record(loader, tally, missing, epoch=epoch, number=number)
        decided("%s", in_words(found))
        if missing or tally.since:
            _log.warning("the receipt of %s, epoch %d, is not whole: %s", loader.split, epoch, _lacking(found))
        if loader.receipt is None:
            return
        try:
            Path(loader.receipt).parent.mkdir(parents=True, exist_ok=True)
            with open(loader.receipt, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
        except OSError as error:  # which is no reason to end a run
            _log.warning("the receipt of %s, epoch %d, was not written: %s", loader.split, epoch, error)


def collect(name: str, loader: OurLoader, *, first: bool) -> tuple[Tally, list[int]]:
    """Leave this rank's tally for rank 0; there, return the sum over all ranks.

    Args:
        name: What it is of, the same on all ranks and nothing else.
        loader: The loader.
        first: Whether this is the process that sums up.

    Returns:
        The sum, and the ranks that it lacks; elsewhere than on rank 0 the tally of this rank.
    """
    place, tally = loader.topology, loader.progress.tally
    if place.world_size == 1:
        return tally, []
    ranks = range(place.world_size)
    found = exchange(f"receipt/{name}", place.rank, ranks if first else (), tally.to_state(), wait=WAIT)
    if not first:
        return tally, []
    if found is None:
        return tally, [rank for rank in ranks if rank != place.rank]
    forget(f"receipt/{name}", list(found))
    return total(map(Tally.from_state, found.values())), [rank for rank in ranks if rank not in found]


def record(loader: OurLoader, tally: Tally, missing: list[int], *, epoch: int, number: int = 0) -> dict[str, Any]:
    """Return a line of the file: the same for any number of ranks."""
    n_samples = loader.reader.n_samples
    once = tally.samples == n_samples and tally.hash == hash_of_all(n_samples)
    found = {
        "split": loader.split,
        "epoch": epoch,
        "data": loader.reader.digest[:16],
        "samples": tally.samples,
        "hash": f"{tally.hash:016x}",
        "each_once": once,
        "skipped": dict(tally.skipped or {}),
        "skipped_keys": _keys(loader, tally.named),
    }
    more = {"loader": number, "since": tally.since, "missing_ranks": missing}
    return {**found, **{name: value for name, value in more.items() if value}}


def in_words(found: Mapping[str, Any]) -> str:
    """Return a record as a sentence."""
    once = ", each sample of the data once" if found["each_once"] else ""
    skipped = ""
    if found["skipped"]:
        reasons = ", ".join(f"{count} ({code})" for code, count in found["skipped"].items())
        skipped = f"; skipped {reasons}: {', '.join(found['skipped_keys'])}"
    return (
        f"receipt of {found['split']}, epoch {found['epoch']}: {count(found['samples'], 'sample')} delivered{once}; "
        f"hash {found['hash']}{skipped}"
    )


def _lacking(found: Mapping[str, Any]) -> str:
    if ranks := found.get("missing_ranks"):
        return f"rank {', '.join(map(str, ranks))} left no tally within {WAIT:g} s"
    return f"it begins behind {count(found['since'], 'sample')}, of which the checkpoint says nothing"


def _keys(loader: OurLoader, ids: tuple[int, ...]) -> list[str]:
    if not ids:
        return []
    try:
        return loader.reader.keys(np.array(ids, np.int64))
    except Exception:  # noqa: BLE001 - shards of skipped samples may be damaged anywhere
        return [f"sample {number}" for number in ids]


def our_loaders(loop: Any) -> Iterator[tuple[int, OurLoader]]:
    """Yield the loaders of this package, with their places among all of a loop."""
    combined = loop._combined_loader  # noqa: SLF001 - nothing public
    for number, loader in enumerate(() if combined is None else combined.flattened):
        if isinstance(loader, OurLoader):
            yield number, loader
