"""The kit finds what is wrong with a planner, and takes those that are right."""

import hashlib
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from bionemo.webdatamodule import Stage
from bionemo.webdatamodule.planning import ListedPlan, grouped_plan
from bionemo.webdatamodule.plugins import Registered
from bionemo.webdatamodule.testing import NonconformingError, PlannerConformance, Subject


@dataclass(frozen=True)
class Lists:
    """Batches of as many samples, in an order that a flaw spoils."""

    n: int
    by: int
    seed: int
    shuffle: bool
    flaw: str

    def __call__(self, epoch):
        entropy = None if self.flaw == "chance" else (self.seed, epoch if self.shuffle else 0)
        ids = np.arange(self.n) if self.flaw == "no shuffle" else np.random.default_rng(entropy).permutation(self.n)
        if self.flaw == "loses":
            ids = np.append(ids[:-1], ids[0])
        return ids, np.arange(0, self.n + self.by, self.by)


class Skips(ListedPlan):
    """A plan that goes on a step too late."""

    def consumed(self, batches, world_size, *, start=0, epoch=0):
        return super().consumed(min(batches + 1, self.n_batches(world_size)), world_size, start=start, epoch=epoch)


class Miscounts(ListedPlan):
    """A plan that does not compare what it says with what it lists."""

    def check(self, world_size):
        """Find nothing."""


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Right unless it has a flaw."""

    size: Any = "x"
    by: int = 10
    flaw: str = ""
    forgets: str = ""

    def plan(self, sizes, request):
        kind = {"skips": Skips, "n_samples": Miscounts}.get(self.flaw, ListedPlan)
        shuffle = request.shuffle or self.flaw == "always shuffles"
        seed = request.seed
        lists = Lists(n=len(sizes), by=self.by, seed=seed, shuffle=shuffle, flaw=self.flaw)
        decided = {"shuffle": shuffle, "by": self.by}
        digest = str({name: value for name, value in decided.items() if name != self.forgets})
        n_samples = len(sizes) - (self.flaw == "n_samples")
        return None if self.flaw == "none" else kind(batches=lists, n_samples=n_samples, seed=seed, digest=digest)

    def __call__(self, samples):
        batch = list(samples)
        return iter([batch[:1], batch[1:]] if self.flaw == "two batches" else [batch] if batch else [])


@dataclass(frozen=True, kw_only=True)
class Halves(Planner):
    """Three long samples for each short one, as ``grouped_plan`` draws them."""

    beyond: int = 0

    def plan(self, sizes, request):
        long = sizes > np.median(sizes)
        groups = [np.flatnonzero(~long), np.flatnonzero(long) + self.beyond]
        return grouped_plan(groups, [1, 3], request, n_samples=len(sizes))


@dataclass(frozen=True)
class SameLists:
    """The same batches in every epoch."""

    order: Any = field(repr=False)

    def __call__(self, epoch):
        return self.order, np.arange(0, len(self.order) + 10, 10)


@dataclass(frozen=True, kw_only=True)
class Curriculum(Planner):
    """The short samples first, in every epoch."""

    def plan(self, sizes, request):
        order = np.argsort(sizes, kind="stable")
        digest = "d" if self.forgets == "sizes" else hashlib.sha256(order.tobytes()).hexdigest()[:16]
        return ListedPlan(batches=SameLists(order), n_samples=len(sizes), seed=request.seed, digest=digest)


class Repeating(PlannerConformance):
    """The suite of a planner that repeats samples."""

    repeats = True


class Steady(PlannerConformance):
    """The suite of a planner that does not shuffle."""

    shuffles = False


def run(planner, suite=PlannerConformance, **other_options):
    """Run the kit over a planner; return the message of each check that fails, by its name."""
    component = Stage(name="mine", summary="a planner", factory=lambda **options: replace(planner, **options))
    subject = Subject(registered=Registered(component=component, plugin="mine"), options={})
    suite = suite()
    sizes = [1 + 7 * number % 23 for number in range(200)]
    make = PlannerConformance.plan.__wrapped__ if hasattr(PlannerConformance.plan, "__wrapped__") else None
    given = {"subject": subject, "sizes": sizes, "samples": [1, 2, 3], "expected": [1, 2, 3]}
    given |= {"plan": make(suite, subject, sizes), "other_options": other_options}
    failures = {}
    for name, check in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_") and name in vars(PlannerConformance):
            try:
                check(**{wanted: given[wanted] for wanted in inspect.signature(check).parameters})
            except NonconformingError as error:
                failures[name] = str(error)
    return failures


@pytest.mark.parametrize(
    ("planner", "suite"),
    [(Planner(), PlannerConformance), (Halves(), Repeating), (Curriculum(), Steady)],
    ids=["listed", "grouped", "curriculum"],
)
def test_a_right_planner_passes(planner, suite):
    """No check fails, whether samples come once or repeat, and whether epochs differ or not."""
    assert {} == run(planner, suite)


def test_other_options_that_the_digest_names_pass():
    """A planner whose digest names its option may be given other ones."""
    assert {} == run(Planner(), by=20)


@pytest.mark.parametrize(
    ("planner", "check", "message"),
    [
        (Planner(size=None), "test_says_what_the_size_of_a_sample_is", "its size is None; give it an attribute 'size'"),
        (
            Planner(flaw="two batches"),
            "test_makes_one_batch_of_a_share",
            "it makes 2 batches of a share, and 2 of none",
        ),
        (Planner(flaw="none"), "test_goes_on_in_the_middle", "plan() returns a NoneType; return an EpochPlan"),
        (
            Planner(flaw="loses"),
            "test_ranks_take_equal_steps_and_every_sample_once",
            "the shares of 1 rank hold 200 samples, 199 of them different, of 200",
        ),
        (Planner(flaw="skips"), "test_goes_on_in_the_middle", "after 1 of 20 steps of 1 rank it continues with other"),
        (
            Planner(flaw="n_samples"),
            "test_ranks_take_equal_steps_and_every_sample_once",
            "the shares of 1 rank hold 200 samples, and its n_samples is 199; let n_samples of the plan be the samples",
        ),
        (Planner(flaw="chance"), "test_plans_the_same_again", "a second plan is another one; draw chance from request"),
        (Planner(flaw="no shuffle"), "test_shuffles_for_training_only", "another epoch has the same batches; shuffle"),
        (Planner(flaw="always shuffles"), "test_shuffles_for_training_only", "evaluation has another order in another"),
    ],
    ids=lambda value: getattr(value, "flaw", None),
)
def test_a_wrong_planner_gets_a_remedy(planner, check, message):
    """Each check fails for a planner that breaks it, and says what and what to do."""
    assert f"plugin 'mine', stage 'mine': {message}" in run(planner)[check]


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (
            Halves(),
            (
                "the shares of 1 rank hold 200 samples, 146 of them different, of 200; plan each sample once an epoch; "
                "ListedPlan divides batches among ranks. A planner that repeats samples on purpose has repeats = True "
                "in the test class, and says so in the docstring"
            ),
        ),
        (
            Curriculum(),
            (
                "another epoch has the same batches; shuffle where request.shuffle is true. A planner whose order is "
                "decided by the sizes alone has shuffles = False in the test class, and says so in the docstring"
            ),
        ),
    ],
    ids=["repeats", "same epochs"],
)
def test_a_planner_learns_how_to_opt_out(planner, message):
    """What a planner may do on purpose fails without its attribute, and the message names it."""
    assert [f"plugin 'mine', stage 'mine': {message}"] == [*run(planner).values()]


def test_a_planner_that_repeats_samples_plans_those_that_there_are():
    """Numbers beyond the samples are found although samples need not come once."""
    message = "the shares of 1 rank hold the samples 0 to 208 of 200; plan numbers of the samples whose sizes it gets"

    found = run(Halves(beyond=9), Repeating)

    assert found == {
        "test_ranks_take_equal_steps_and_every_sample_once": f"plugin 'mine', stage 'mine': {message}",
    }


@pytest.mark.parametrize(
    ("planner", "suite", "other_options", "message"),
    [
        (Curriculum(forgets="sizes"), Steady, {}, "with other sizes it plans other batches under the same digest 'd'"),
        (
            Planner(forgets="shuffle"),
            PlannerConformance,
            {},
            "with shuffle=False it plans other batches under the same digest \"{'by': 10}\"",
        ),
        (
            Planner(forgets="by"),
            PlannerConformance,
            {"by": 20},
            "with other options it plans other batches under the same digest \"{'shuffle': True}\"",
        ),
    ],
    ids=["sizes", "shuffle", "options"],
)
def test_a_digest_that_other_batches_share_is_found(planner, suite, other_options, message):
    """Sizes, shuffling and options decide the batches, so a digest that leaves one out fails."""
    found = run(planner, suite, **other_options)

    assert found == {
        "test_other_batches_have_another_digest": f"plugin 'mine', stage 'mine': {message}, so a checkpoint would "
        "resume in other batches; make the digest a hash of the options, request.shuffle, and the sizes or what is "
        "made of them"
    }
