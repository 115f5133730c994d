"""The kit finds what is wrong with a planner."""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bionemo.webdatamodule import Stage
from bionemo.webdatamodule.planning import ListedPlan
from bionemo.webdatamodule.plugins import Registered
from bionemo.webdatamodule.testing import NonconformingError, PlannerConformance, Subject


@dataclass(frozen=True)
class Lists:
    """Batches of ten, in an order that a flaw spoils."""

    n: int
    seed: int
    shuffle: bool
    flaw: str

    def __call__(self, epoch):
        entropy = None if self.flaw == "chance" else (self.seed, epoch if self.shuffle else 0)
        ids = np.arange(self.n) if self.flaw == "no shuffle" else np.random.default_rng(entropy).permutation(self.n)
        if self.flaw == "loses":
            ids = np.append(ids[:-1], ids[0])
        return ids, np.arange(0, self.n + 10, 10)


class Skips(ListedPlan):
    """A plan that goes on a step too late."""

    def consumed(self, batches, world_size, *, start=0, epoch=0):
        return super().consumed(min(batches + 1, self.n_batches(world_size)), world_size, start=start, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Right unless it has a flaw."""

    size: Any = "x"
    flaw: str = ""

    def plan(self, sizes, request):
        kind = Skips if self.flaw == "skips" else ListedPlan
        shuffle = request.shuffle or self.flaw == "always shuffles"
        seed = request.seed
        lists = Lists(n=len(sizes), seed=seed, shuffle=shuffle, flaw=self.flaw)
        return None if self.flaw == "none" else kind(batches=lists, n_samples=len(sizes), seed=seed, digest="d")

    def __call__(self, samples):
        batch = list(samples)
        return iter([batch[:1], batch[1:]] if self.flaw == "two batches" else [batch] if batch else [])


def run(planner):
    """Run the kit over a planner; return the message of each check that fails, by its name."""
    component = Stage(name="mine", summary="a planner", factory=lambda: planner)
    subject = Subject(registered=Registered(component=component, plugin="mine"), options={})
    suite = PlannerConformance()
    sizes = [1] * 200
    make = PlannerConformance.plan.__wrapped__ if hasattr(PlannerConformance.plan, "__wrapped__") else None
    given = {"subject": subject, "sizes": sizes, "samples": [1, 2, 3], "expected": [1, 2, 3]}
    given["plan"] = make(suite, subject, sizes)
    failures = {}
    for name, check in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_") and name in vars(PlannerConformance):
            try:
                check(**{wanted: given[wanted] for wanted in inspect.signature(check).parameters})
            except NonconformingError as error:
                failures[name] = str(error)
    return failures


def test_a_right_planner_passes():
    """No check fails."""
    assert {} == run(Planner())


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
            "1 ranks take 200 samples, 199 of them different, of 200",
        ),
        (Planner(flaw="skips"), "test_goes_on_in_the_middle", "after 1 of 20 steps of 1 ranks it continues with other"),
        (Planner(flaw="chance"), "test_plans_the_same_again", "a second plan is another one; draw chance from request"),
        (Planner(flaw="no shuffle"), "test_shuffles_for_training_only", "another epoch has the same batches; shuffle"),
        (Planner(flaw="always shuffles"), "test_shuffles_for_training_only", "evaluation has another order in another"),
    ],
    ids=lambda value: getattr(value, "flaw", None),
)
def test_a_planner_is_told_what_is_wrong(planner, check, message):
    """Each check fails for a planner that breaks it, and says what and what to do."""
    assert f"plugin 'mine', stage 'mine': {message}" in run(planner)[check]
