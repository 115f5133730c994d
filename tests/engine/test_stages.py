"""Chains of stages: which stage an exception is blamed on."""

import itertools
import re

import pytest
import webdataset as wds

from bionemo.webdatamodule import Stage, Use
from bionemo.webdatamodule._engine.stages import chain
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.plugins import resolve


def source(fails=False):
    """Yield two samples, and fail then."""
    yield from "ab"
    if fails:
        raise ValueError("source")


def passing(samples):
    """Pass samples on."""
    yield from samples


def failing(samples):
    """Fail at the second sample."""
    yield from itertools.islice(samples, 1)
    raise ValueError("stage")


def lazily(samples):
    """Fail in a function that C code calls."""
    return map(int, samples)


def eagerly(samples):
    """Take all samples before anything is asked for."""
    return list(samples)


def unchanged(samples):
    """Return the argument itself."""
    return samples


def blamed(stages, samples):
    """Return the name of the stage that the exception of a chain names, if it does."""
    with pytest.raises(ValueError, match=r".") as caught:
        list(chain(stages, samples, dict))
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) <= 1
    return re.search(r"stage=\S*?(\w+)[,)]", notes[0])[1] if notes else None


@pytest.mark.parametrize("before", [(), (passing,), (unchanged, passing), (passing, passing, unchanged)])
@pytest.mark.parametrize("after", [(), (passing,), (unchanged,), (eagerly, passing), (enumerate,)])
@pytest.mark.parametrize("stage", [failing, lazily])
def test_a_stage_is_blamed_wherever_it_stands(before, stage, after):
    """The innermost one on the way to the exception, whatever kind of iterator the others give."""
    assert stage.__name__ == blamed((*before, stage, *after), source())
    assert stage.__name__ == blamed((*before, stage, *after), list("ab"))


@pytest.mark.parametrize("stages", [(passing,), (eagerly,), (unchanged,), (passing, unchanged, eagerly), (enumerate,)])
def test_an_exception_of_the_source_is_blamed_on_no_stage(stages):
    """It is that of the data, or of the chain that comes before."""
    assert blamed(stages, source(fails=True)) is None
    assert blamed(stages, map(int, "a")) is None


def test_an_eager_stage_is_blamed_for_its_own_exception():
    """It fails when it is called, not when something is asked for."""

    def fails(samples):
        raise ValueError(next(samples))

    assert blamed((passing, fails), source()) == "fails"


def test_two_chains_blame_one_stage():
    """What a stage in a worker raised is not blamed on a stage behind the loader."""
    assert blamed((passing,), chain((passing, failing), source())) == "failing"


def first_letter(sample):
    """Take one sample, as a stage does not."""
    return sample[0]


@pytest.mark.parametrize("before", [(), (passing,)])
def test_a_function_of_one_sample_is_told_of_the_stage_for_it(before):
    """It fails on the iterator that a stage gets, or gives no iterable."""
    for samples in (["ab"], source()):
        with pytest.raises(TypeError, match="is not subscriptable") as caught:
            chain((*before, first_letter), samples)
        assert "a stage takes an iterator of samples; for a function of one sample give Use('map', function=...)" in (
            caught.value.__notes__
        )
    with pytest.raises(ConfigError, match=r"hash gives \d+, not an iterable of samples; for a function of one sample"):
        chain((*before, hash), ["ab"])
    assert ["a"] == list(chain((resolve(Stage, Use("map", function=first_letter)),), ["ab"]))


def test_an_error_behind_the_first_sample_gets_no_such_advice():
    """A stage that took samples knows what it takes."""

    def eager(samples):
        return [sample + 1 for sample in samples]

    for samples in (["ab"], source()):
        with pytest.raises(TypeError) as caught:
            chain((eager,), samples)
        assert 1 == len(caught.value.__notes__)


@pytest.mark.parametrize(
    "stage",
    [
        wds.map_dict(cls=hash),
        wds.to_tuple("cls"),
        wds.decode("pil"),
        Use("map", function=lambda sample: sample["cls"]),
        Use("map", function=lambda sample: sample.cls),
        lambda samples: (int(sample) for sample in samples),
    ],
    ids=["map_dict", "to_tuple", "decode", "item", "attribute", "value"],
)
def test_what_takes_a_tuple_for_something_else_is_told_what_samples_are(stage):
    """The stages of webdataset take dicts, and a function may want the value."""
    with pytest.raises((TypeError, AttributeError, AssertionError)) as caught:
        list(chain((resolve(Stage, stage),), [("1",), ("2",)]))
    assert (
        "'untuple' unpacks those of one field, and Use('named', names=[...]) makes dicts" in caught.value.__notes__[1]
    )


def test_an_assertion_of_the_users_is_no_question_of_tuples():
    """Only webdataset's own are known to be about that."""

    def careful(samples):
        for sample in samples:
            assert sample is None
            yield sample

    with pytest.raises(AssertionError) as caught:
        list(chain((careful,), ["a"]))
    assert 1 == len(caught.value.__notes__)
