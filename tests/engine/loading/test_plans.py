"""Planners that fail or give something else than a plan are named, with their split."""

import pickle

import numpy as np
import pytest
from tests.helpers.convert import convert

from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule.builtins.executors import Serial
from bionemo.webdatamodule.components import Sample
from bionemo.webdatamodule.errors import ConfigError, PlanError, PluginError
from bionemo.webdatamodule.planning import ListedPlan

EDGES = (0, 4, 8, 12)


class Listed:
    """A planner of the batches that it is given."""

    size = "n.cls"

    def __init__(self, ids=range(12), edges=EDGES):
        self.ids, self.edges = np.array(ids), np.array(edges)

    def __repr__(self):
        return "Listed()"

    def batches(self, epoch):
        """Return all that it was given."""
        return self.ids, self.edges

    def plan(self, sizes, request):
        """Return the plan."""
        return ListedPlan(batches=self.batches, n_samples=len(sizes), seed=request.seed, digest="d")

    def __call__(self, samples):
        """Yield the batch of a share."""
        return iter([list(samples)])


class NoPlan(Listed):
    """One whose plan is none."""

    def plan(self, sizes, request):
        """Return nothing."""


class Failing(Listed):
    """One that fails."""

    def plan(self, sizes, request):
        """Raise an error."""
        raise ValueError("no such plan")


class Refusing(Listed):
    """One that finds no plan."""

    def plan(self, sizes, request):
        """Raise an error."""
        raise PlanError("the sizes are odd; make them even")


class FailingLater(Listed):
    """One whose list of batches fails."""

    def batches(self, epoch):
        """Raise an error."""
        raise KeyError("epoch")


class Unfinished(Listed):
    """One whose plan gives too few shares."""

    def plan(self, sizes, request):
        """Return a plan whose method is replaced."""
        made = super().plan(sizes, request)
        object.__setattr__(made, "shares", few)
        return made


def few(*args, **options):
    """Return no share."""
    return []


def measuring(function):
    """Return a planner that measures by a function."""

    class Measuring(Listed):
        def measure(self, value):
            return function(value)

    Measuring.measure.__qualname__ = "Measuring.measure"
    return Measuring()


def sized(size):
    """Return a planner with a size."""
    made = Listed()
    made.size = size
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a directory of twelve numbers, of which the first is 0."""
    directory = tmp_path_factory.mktemp("plans")
    names = [f"s{number:02d}" for number in range(12)]
    convert(
        reader=lambda names: (Sample(name, {"n.cls": b"%d" % int(name[1:]), "m.cls": b"-3"}) for name in names),
        names={"train": names}, directories={"train": str(directory)}, prefix="wdshards", key_encoder=str,
        executor=Serial(), n_shards=1,
    )  # fmt: skip
    return str(directory)


def epoch(directory, planner, **loader):
    """Return the batches of an epoch."""
    data = WebDataModule(
        {"train": directory}, None, "n.cls", 1, pipeline_prebatch_wld={"train": planner}, kwargs_wld={"train": loader}
    )
    data.setup("fit")
    return list(data.train_dataloader())


PLACE = r"\(split=train, stage=Listed\(\)"
AT = r"\(split=train, stage=Listed\(\), key=s00\) \[plan\]$"


@pytest.mark.parametrize(
    ("planner", "kind", "message"),
    [
        (Failing(), PluginError, rf"^plan\(…\) fails with ValueError: no such plan; correct the planner {PLACE}\)"),
        (NoPlan(), PluginError, rf"^plan\(…\) gives None, which is no EpochPlan; return one, .*ListedPlan {PLACE}\)"),
        (Refusing(), PlanError, rf"^the sizes are odd; make them even {PLACE}\) \[plan\]$"),
        (
            FailingLater(),
            PluginError,
            rf"^check\(…\) of the plan fails with KeyError: 'epoch'; correct the planner {PLACE}\)",
        ),
    ],
)
def test_a_planner_without_a_plan_is_named_with_its_split(directory, planner, kind, message):
    """The error says what is wrong, whether the planner raises it, gives it, or its plan fails at setup."""
    with pytest.raises(kind, match=message):
        epoch(directory, planner)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (Listed(np.arange(12) + 3), "has the samples 3 to 14, and there are 12, numbered from 0; correct the planner"),
        (Listed(np.arange(12) - 12), "has the samples -12 to -1, and there are 12, numbered from 0"),
        (Listed(np.arange(12) + 0.5), "numbers samples by values of the type float64, which must be whole numbers"),
        (Listed(edges=(0, 4, 4, 8, 12)), "has a batch without a sample, and every rank must take a sample at each"),
        (Unfinished(), "gives 0 shares for "),
    ],
)
def test_a_plan_of_what_is_not_there_names_the_planner(directory, planner, message, workers):
    """Numbers of samples are checked before they are read, in whichever process that is."""
    with pytest.raises(PluginError, match=rf"^the plan {message}.*split=train, .*stage=Listed\(\)"):
        epoch(directory, planner, num_workers=workers)


def test_lists_of_numbers_are_a_plan(directory):
    """A plan may give Python's lists, and repeat samples."""
    assert [[0] * 4] * 3 == epoch(directory, Listed([0] * 12))
    planner = Listed()
    planner.ids, planner.edges = list(range(12)), list(EDGES)
    assert [list(range(4)), list(range(4, 8)), list(range(8, 12))] == epoch(directory, planner)


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (measuring(lambda value: -1.7), r"Measuring.measure gives -1.7 as the size of a sample; it must be a whole"),
        (measuring(lambda value: -1), r"Measuring.measure gives -1 as the size of a sample"),
        (measuring(lambda value: 1 << 63), r"Measuring.measure gives 9223372036854775808 as .* from 0 to 2\*\*63 - 1"),
        (measuring(lambda value: {}[value]), r"Measuring.measure for the size of a sample fails with KeyError: 0; .*"),
        (sized(lambda value: 1 // value), r"<lambda> for the size of a sample fails with ZeroDivisionError: .*where="),
        (sized("m.cls"), r"^the field 'm.cls' gives -3 as the size of a sample; it must be a whole number from 0 to"),
    ],
)
def test_a_sample_without_a_size_names_what_should_give_it(directory, planner, message):
    """A planner's measure is checked as its function is, and both as a field; split, planner and key are named."""
    with pytest.raises(PlanError, match=f"{message}.*{AT}"):
        epoch(directory, planner)


@pytest.mark.parametrize("size", [None, 3, ""])
def test_a_planner_without_a_size_is_refused(directory, size):
    """The constructor says what a size is."""
    with pytest.raises(ConfigError) as caught:
        epoch(directory, sized(size))
    assert f"the size of Listed() is {size!r}; it must be a suffix, or a function of a sample (split=train)" in str(
        caught.value
    )


def test_the_errors_of_planners_pickle(directory):
    """They come from worker processes, too."""
    with pytest.raises(PluginError) as caught:
        epoch(directory, Failing())
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value)))
    assert isinstance(caught.value.__cause__, ValueError)
