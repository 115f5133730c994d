"""Where a run stands in its epochs: what a checkpoint stores, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bionemo.webdatamodule.errors import ResumeError
from bionemo.webdatamodule.planning import EpochPlan

VERSION = 1
"""Version of the state that this package writes."""

STREAMED = "shards"
"""The order of a cursor in shards order, which no plan has."""


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place in the epochs of a plan, counted in samples, so that it means the same for any number of ranks.

    Attributes:
        version: Version of this record.
        epoch: Number of the epoch, from 0.
        samples: Samples of the epoch that all ranks together have used.
        n_samples: Samples of an epoch.
        seed: The seed of the order.
        global_batch_size: Samples of a global batch when the state was made; another one may resume from it.
            0 where batches have no fixed number of samples.
        digest: ``"{data}/{order}"``: what identifies the data, and the settings that their order depends on.
    """

    version: int = VERSION
    epoch: int = 0
    samples: int = 0
    n_samples: int
    seed: int
    global_batch_size: int
    digest: str

    @classmethod
    def of(cls, plan: EpochPlan, data: str, *, epoch: int = 0, samples: int = 0) -> Cursor:
        """Return the cursor of a place in a plan.

        Args:
            plan: The plan.
            data: Digest of the data.
            epoch: Number of the epoch.
            samples: Samples of it that are consumed, as the plan's ``consumed`` returns it.
        """
        return cls(
            epoch=epoch,
            samples=samples,
            n_samples=plan.n_samples,
            seed=plan.seed,
            global_batch_size=plan.global_batch_size,
            digest=f"{data}/{plan.digest}",
        )

    @property
    def order(self) -> str:
        """What identifies the order: the digest of the plan."""
        return self.digest.partition("/")[2]

    def to_state(self) -> dict[str, int | str]:
        """Return plain integers and strings, which JSON and ``torch.load(weights_only=True)`` take."""
        return {name: value if isinstance(value, str) else int(value) for name, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, expected: Cursor | None = None) -> Cursor:
        """Return the cursor that :meth:`to_state` wrote.

        Args:
            state: What it wrote.
            expected: Any cursor of the run that resumes from it; see :meth:`check`.

        Raises:
            ResumeError: If it is of a newer version, not such a state, or does not fit the run.
        """
        if not isinstance(state, Mapping):
            raise ResumeError(f"a loader's state is a mapping, not {type(state).__name__}")
        version = state.get("version")
        if type(version) is int and version > VERSION:
            raise ResumeError(
                f"the checkpoint's loader state is of version {version}, and this package reads up to {VERSION}; "
                "upgrade bionemo-webdatamodule to resume"
            )
        values = {}
        for attribute in fields(cls):
            name, kind = attribute.name, str if attribute.type == "str" else int
            if name not in state:
                raise ResumeError(f"the checkpoint's loader state has no {name!r}: it is damaged or of another loader")
            if type(state[name]) is not kind:
                raise ResumeError(f"{name!r} of the checkpoint's loader state is no {kind.__name__}: {state[name]!r}")
            values[name] = state[name]
        cursor = cls(**values)
        if cursor.version < 1 or cursor.epoch < 0 or not 0 <= cursor.samples <= cursor.n_samples:
            raise ResumeError(f"the checkpoint's loader state stands nowhere in an epoch: {dict(state)}")
        if expected is not None:
            cursor.check(expected)
        return cursor

    def check(self, now: Cursor) -> None:
        """Check that a run may resume from this cursor.

        Args:
            now: Any cursor of the run that wants to.

        Raises:
            ResumeError: If data, seed, length of the epoch or order differ: a resume would repeat or lose samples.
                Another global batch size is not an error.
        """
        (data, _, order), (data_now, _, order_now) = self.digest.partition("/"), now.digest.partition("/")
        if data != data_now:
            raise ResumeError(
                f"the checkpoint was made with other data (digest {data[:12]}…, now {data_now[:12]}…); "
                "give the same shards, or leave out the rest of the epoch with resume='next_epoch'"
            )
        if (order == STREAMED) != (order_now == STREAMED):
            then, given = ("shards" if one == STREAMED else "global" for one in (order, order_now))
            raise ResumeError(
                f"the checkpoint was made with order={then!r}, and this run has order={given!r}; set order={then!r} to "
                "resume, or leave out the rest of the epoch with resume='next_epoch'"
            )
        if order == STREAMED and self.global_batch_size != now.global_batch_size:
            raise ResumeError(
                "in shards order a run cannot resume with another global batch size: the checkpoint was made with "
                f"{self.global_batch_size}, and this run has {now.global_batch_size}; set it to "
                f"{self.global_batch_size} to resume, or leave out the rest of the epoch with resume='next_epoch'"
            )
        for what in ("seed", "n_samples"):
            then, given = getattr(self, what), getattr(now, what)
            if then != given:
                raise ResumeError(
                    f"the checkpoint was made with {what}={then}, and this run has {given}; set {what}={then} to resume"
                )
        if order != order_now:
            raise ResumeError(
                "the checkpoint was made with the samples in another order: the sources' samples or weights, "
                "shuffle_shards or the sizes of the batches were set differently; set them as they were"
            )
