"""Weights within a data set: what part of an epoch each class has."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.weighted import Weighted
from bionemo.webdatamodule.errors import ConfigError, PlanError
from bionemo.webdatamodule.planning import EpochPlan, PlanRequest

CLASSES = [0] * 90 + [1] * 30 + [2] * 12
"""132 samples of three classes."""


def weighted(classes=CLASSES, *, size=8, seed=0, shuffle=True, tail="share", **options):
    """Return the plan of the stage for samples of these classes."""
    stage = Weighted(by="cls", **options)
    request = PlanRequest(seed=seed, shuffle=shuffle, global_batch_size=size, tail=tail)
    return stage.plan(np.array([stage.measure(name) for name in classes]), request)


def batches_of(plan, ranks, *, epoch=0, start=0):
    """Return the samples of each global batch."""
    steps = range(plan.n_batches(ranks, start=start, epoch=epoch))
    by_rank = [plan.shares(epoch, steps, rank, ranks, start=start) for rank in range(ranks)]
    return [np.concatenate(shares).tolist() for shares in zip(*by_rank, strict=True)]


def drawn(plan, epoch=0):
    """Return the samples of an epoch."""
    return list(itertools.chain(*batches_of(plan, 1, epoch=epoch)))


def counts_of(samples, classes=CLASSES):
    """Return how many samples of each class there are."""
    return dict(sorted(Counter(classes[sample] for sample in samples).items()))


def test_every_epoch_has_its_part_of_each_class():
    """Exactly; a class is taken to its end before anything of it comes again, also over several epochs."""
    plan = weighted(weights={0: 1, 1: 1, 2: 1})
    epochs = [drawn(plan, epoch) for epoch in range(3)]
    rare = [sample for epoch in epochs for sample in epoch if CLASSES[sample] == 2]

    assert isinstance(plan, EpochPlan)
    assert [{0: 44, 1: 44, 2: 44}] * 3 == list(map(counts_of, epochs))
    assert [drawn(weighted(), epoch) for epoch in range(3)] == epochs
    assert {11} == set(Counter(rare).values())
    assert 90 == len({sample for epoch in epochs for sample in epoch if CLASSES[sample] == 0})


def test_without_replacement_nothing_comes_twice_an_epoch():
    """An epoch is as long as the scarcest class allows, and takes others of the frequent ones each time."""
    plan = weighted(replacement=False)
    epochs = [drawn(plan, epoch) for epoch in range(4)]

    assert [{0: 12, 1: 12, 2: 12}] * 4 == list(map(counts_of, epochs))
    assert [36] * 4 == [len(set(epoch)) for epoch in epochs]
    assert len({sample for epoch in epochs for sample in epoch if CLASSES[sample] == 0}) > 24
    assert [drawn(weighted(replacement=False), 3)] == epochs[3:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("replacement", [True, False])
def test_any_boundary_goes_on_exactly_on_any_number_of_ranks(ranks, replacement):
    """The same batches on all ranks, and after every step the rest that was to come."""
    plan = weighted(weights={0: 1, 1: 2, 2: 1}, replacement=replacement)
    whole = batches_of(plan, ranks, epoch=2)

    assert batches_of(plan, 1, epoch=2) == whole
    for done in range(len(whole)):
        start = plan.consumed(done, ranks, epoch=2)
        assert whole[done:] == batches_of(plan, 3 - ranks % 3, epoch=2, start=start)


def test_names_of_classes_may_be_text_and_weights_may_leave_one_out():
    """As cell types are; the length of the name means nothing."""
    names = ["B", "T", "NK"]
    classes = [names[number] for number in CLASSES]
    plan = weighted(classes, weights={"B": 1, "T": 3, "NK": 0}, n_samples=40)

    assert {"B": 10, "T": 30} == counts_of(drawn(plan), classes)


def test_evaluation_takes_every_sample_once_in_order():
    """Weights decide what training sees."""
    assert list(range(132)) == drawn(weighted(shuffle=False), 3)


def test_classes_are_numbers_or_text():
    """Numbers of any kind are equal; anything else is an error with a remedy."""
    stage = Weighted(by="cls")

    assert {3} == {stage.measure(value) for value in (3, np.int16(3), torch.tensor(3))}
    assert stage.measure("T") != stage.measure("B")
    with pytest.raises(PlanError, match=r"whole number or text, not a float; give as by a function"):
        stage.measure(0.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": {0: 1, 1: 1}}, "the class 2 of sample 120 has no weight; weights takes 0"),
        ({"weights": {0: 0, 1: 0, 2: 0, 3: 1}}, "leaves out every class that there is"),
        ({"replacement": False, "n_samples": 60}, "an epoch of 60 samples needs more of a class than the 12"),
    ],
)
def test_impossible_epochs_are_refused_with_the_numbers(options, reason):
    """And with what to change."""
    with pytest.raises(PlanError, match=reason):
        weighted(**options)


def test_too_many_classes_are_refused():
    """Such as when the class is the number of the sample."""
    with pytest.raises(PlanError, match="5,000 classes, more than 4,096"):
        weighted(range(5000))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"by": 3}, "by is a suffix"),
        ({"weights": "equal"}, "weights is 'balanced'"),
        ({"weights": {"a": -1}}, "the weight -1"),
        ({"weights": {"a": 0}}, "leaves out every class"),
        ({"n_samples": -1}, "n_samples"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    """By the name of the option."""
    with pytest.raises(ConfigError, match=reason):
        Weighted(**{"by": "cls", **options})


def test_a_stream_has_no_classes():
    """In shards order the stage says what it needs."""
    with context.at(context.Context(order="shards")), pytest.raises(ConfigError, match="needs order='global'"):
        Weighted(by="cls")(iter([1]))


def test_an_epoch_without_replacement_cannot_be_filled():
    """The samples that fill its last batch come twice; whole batches need none."""
    with pytest.raises(PlanError, match="tail='fill' repeats some, since 6 samples fill no whole number of batches"):
        weighted([0] * 3 + [1] * 3, size=4, tail="fill", replacement=False)
    assert 6 == len(set(drawn(weighted([0] * 3 + [1] * 3, size=3, tail="fill", replacement=False))))
