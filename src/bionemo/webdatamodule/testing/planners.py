"""What every planner has to do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from bionemo.webdatamodule import context
from bionemo.webdatamodule.components import Stage
from bionemo.webdatamodule.errors import count
from bionemo.webdatamodule.planning import EpochPlan, PlanRequest
from bionemo.webdatamodule.testing.compare import same
from bionemo.webdatamodule.testing.component import ComponentConformance, Subject

_WORLDS = (1, 2, 3)


class PlannerConformance(ComponentConformance):
    """Checks of a planner, a stage with ``plan(sizes, request)``.

    Override the fixture ``samples``, and ``options`` where the planner needs any. Where an option decides the batches,
    let the fixture ``other_options`` give another value of it: the digest of the plan has to be another one too, so
    that no checkpoint resumes in other batches.

    Attributes:
        repeats: An epoch may take a sample several times, and leave others out, as ``weighted`` and
            :func:`~bionemo.webdatamodule.planning.grouped_plan` do. Without this claim every sample must come once.
        shuffles: Epochs and seeds have batches of their own in training. A planner that decides the order from the
            sizes alone, such as a curriculum, sets it to false.
    """

    kind: ClassVar[type[Stage]] = Stage
    repeats: ClassVar[bool] = False
    shuffles: ClassVar[bool] = True

    @pytest.fixture
    def samples(self) -> Sequence[Any]:
        """The samples of a share as the stage gets them; override it."""
        raise NotImplementedError("override the fixture 'samples' of the test class")

    @pytest.fixture
    def expected(self) -> Any:
        """The batch that the planner makes of the samples; override it to have that checked too."""
        return None

    @pytest.fixture
    def sizes(self) -> Sequence[int]:
        """The sizes of all samples; override it where the planner refuses some of these."""
        return [1 + 7 * number % 23 for number in range(200)]

    @pytest.fixture
    def other_options(self) -> Mapping[str, Any]:
        """Options with which the planner makes other batches; override it where an option decides them."""
        return {}

    @pytest.fixture
    def plan(self, subject: Subject, sizes: Sequence[int]) -> Callable[..., EpochPlan]:
        """Make the plan of a new planner, for training unless ``shuffle`` is false."""

        def make(
            *,
            shuffle: bool = True,
            seed: int = 1,
            sizes: Sequence[int] = sizes,
            options: Mapping[str, Any] = subject.options,
        ) -> EpochPlan:
            request = PlanRequest(seed=seed, shuffle=shuffle, global_batch_size=16)
            planner = replace(subject, options=options).make()
            with subject.trying("plan(sizes, request)", "return an EpochPlan for sizes as the fixture 'sizes' gives"):
                made = planner.plan(np.array(sizes, dtype=np.int64), request)
            if not isinstance(made, EpochPlan):
                subject.wrong(f"plan() returns a {type(made).__name__}", "return an EpochPlan, such as a ListedPlan")
            return made

        return make

    def test_says_what_the_size_of_a_sample_is(self, subject: Subject) -> None:
        """``size`` is a suffix, or a function of a sample."""
        size = getattr(subject.make(), "size", None)
        if not callable(size) and not (isinstance(size, str) and size):
            subject.wrong(f"its size is {size!r}", "give it an attribute 'size': a suffix, or a function of a sample")

    def test_makes_one_batch_of_a_share(self, subject: Subject, samples: Sequence[Any], expected: Any) -> None:
        """Called with the samples of a planned share, it makes their batch; without samples it makes none."""
        with (
            context.at(context.Context(order="global")),
            subject.trying("running over a share", "make it take what the fixture 'samples' gives"),
        ):
            batches = list(subject.make()(iter(samples)))
            none = list(subject.make()(iter(())))
        if len(batches) != 1 or none:
            subject.wrong(
                f"it makes {count(len(batches), 'batch', 'batches')} of a share, and {len(none)} of none",
                "make one batch of all samples",
            )
        if expected is not None and not same(batches[0], expected):
            subject.wrong(f"it makes {batches[0]!r:.200} of the samples, not {expected!r:.200}", "compare the two")

    def test_ranks_take_equal_steps_and_every_sample_once(
        self, subject: Subject, plan: Callable[..., EpochPlan], sizes: Sequence[int]
    ) -> None:
        """Whatever the number of ranks: as many steps for each, a sample at each, all samples in an epoch.

        A planner that repeats samples takes as many in an epoch as its plan says.
        """
        made = plan()
        for world in _WORLDS:
            for epoch in (0, 1):
                batches = _batches(subject, made, epoch, world)
                if not all(len(share) for step in batches for share in step):
                    subject.wrong(f"a rank of {world} gets no sample at a step", "divide batches until each has one")
                taken = np.sort(np.concatenate([np.concatenate(step) for step in batches]))
                if not self.repeats and taken.tolist() != list(range(len(sizes))):
                    subject.wrong(
                        f"the shares of {count(world, 'rank')} hold {count(len(taken), 'sample')}, "
                        f"{len(np.unique(taken))} of them different, of {len(sizes)}",
                        "plan each sample once an epoch; ListedPlan divides batches among ranks. A planner that "
                        "repeats samples on purpose has repeats = True in the test class, and says so in the docstring",
                    )
                if taken[0] < 0 or taken[-1] >= len(sizes):
                    subject.wrong(
                        f"the shares of {count(world, 'rank')} hold the samples {taken[0]} to {taken[-1]} of "
                        f"{len(sizes)}",
                        "plan numbers of the samples whose sizes it gets",
                    )
                if len(taken) != made.n_samples:
                    subject.wrong(
                        f"the shares of {count(world, 'rank')} hold {count(len(taken), 'sample')}, and its n_samples "
                        f"is {made.n_samples}",
                        "let n_samples of the plan be the samples of an epoch",
                    )

    def test_goes_on_in_the_middle(self, subject: Subject, plan: Callable[..., EpochPlan]) -> None:
        """Planning on from any step gives the batches that were to come."""
        made = plan()
        for world in _WORLDS:
            whole = _batches(subject, made, 1, world)
            for done in (1, len(whole) // 2, len(whole) - 1):
                start = made.consumed(done, world, epoch=1)
                if not _equal(_batches(subject, made, 1, world, start), whole[done:]):
                    subject.wrong(
                        f"after {done} of {count(len(whole), 'step')} of {count(world, 'rank')} it "
                        "continues with other batches",
                        "let shares() depend on epoch and start alone",
                    )

    def test_plans_the_same_again(self, subject: Subject, plan: Callable[..., EpochPlan]) -> None:
        """A plan depends on sizes, options and request alone, also after it was pickled."""
        whole = _batches(subject, plan(), 3, 2)
        with subject.trying("pickling its plan", "make the plan of importable classes"):
            again = pickle.loads(pickle.dumps(plan()))
        if not _equal(_batches(subject, again, 3, 2), whole) or plan().digest != again.digest:
            subject.wrong("a second plan is another one", "draw chance from request.seed and the epoch alone")

    def test_other_batches_have_another_digest(
        self,
        subject: Subject,
        plan: Callable[..., EpochPlan],
        sizes: Sequence[int],
        other_options: Mapping[str, Any],
    ) -> None:
        """What decides the batches is in the digest of the plan, or a checkpoint resumes in other batches."""
        made = plan()
        others = {
            "other sizes": plan(sizes=sizes[::-1]),
            "shuffle=False": plan(shuffle=False),
            "other options": plan(options={**subject.options, **other_options}),
        }
        for what, other in others.items():
            if made.digest != other.digest:
                continue
            if not _equal(_batches(subject, made, 1, 1), _batches(subject, other, 1, 1)):
                subject.wrong(
                    f"with {what} it plans other batches under the same digest {made.digest!r}, so a checkpoint would "
                    "resume in other batches",
                    "make the digest a hash of the options, request.shuffle, and the sizes or what is made of them",
                )

    def test_shuffles_for_training_only(self, subject: Subject, plan: Callable[..., EpochPlan]) -> None:
        """In training every epoch and seed has an order of its own; in evaluation all epochs have the same."""
        if self.shuffles:
            first = _batches(subject, plan(), 0, 1)
            for other, what in (
                (_batches(subject, plan(), 1, 1), "epoch"),
                (_batches(subject, plan(seed=2), 0, 1), "seed"),
            ):
                if _equal(first, other):
                    subject.wrong(
                        f"another {what} has the same batches",
                        "shuffle where request.shuffle is true. A planner whose order is decided by the sizes alone "
                        "has shuffles = False in the test class, and says so in the docstring",
                    )
        still = plan(shuffle=False)
        if not _equal(_batches(subject, still, 0, 1), _batches(subject, still, 1, 1)):
            subject.wrong(
                "evaluation has another order in another epoch", "do not shuffle where request.shuffle is false"
            )


def _batches(subject: Subject, plan: EpochPlan, epoch: int, world: int, start: int = 0) -> list[list[Any]]:
    """Return what each rank takes at each step."""
    with subject.trying(
        f"planning for {count(world, 'rank')}", "serve any number of ranks up to the number of batches"
    ):
        plan.check(world)
        steps = range(plan.n_batches(world, start=start, epoch=epoch))
        shares = [plan.shares(epoch, steps, rank, world, start=start) for rank in range(world)]
    return [list(step) for step in zip(*shares, strict=True)]


def _equal(one: list[list[Any]], other: list[list[Any]]) -> bool:
    return [[list(share) for share in step] for step in one] == [[list(share) for share in step] for step in other]
