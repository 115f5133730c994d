"""Default stages: what they yield, in which order, in which place of a run."""

import collections
import itertools
import pickle

import numpy as np
import pytest
import torch

from bionemo.webdatamodule import Stage, Use, context
from bionemo.webdatamodule._engine.stages import chain, resolve_stages
from bionemo.webdatamodule.context import Context
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.plugins import Plugins, resolve


def stage(name, **options):
    """Return a default stage by name."""
    return resolve(Stage, Use(name, **options))


def run(samples, *stages, **place):
    """Run samples through stages at a place of a run."""
    with context.at(Context(**place)):
        return list(chain(stages, samples))


def double(x):
    """Return twice the value."""
    return 2 * x


def test_untuple_takes_the_only_value_out():
    """1-tuples become their values; anything else is an error that shows it."""
    assert [1, 2] == run([(1,), (2,)], stage("untuple"))
    with pytest.raises(ConfigError, match=r"untuple takes samples of one suffix, got tuple \(1, 2\)"):
        run([(1, 2)], stage("untuple"))


def test_shuffle_is_the_identity_in_global_order():
    """The plan has shuffled already, so nothing is buffered."""
    assert [0, 1, 2, 3] == run(range(4), stage("shuffle", size=4), order="global")


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_shuffle_loses_nothing_and_repeats(size):
    """A buffer of any size yields every sample once, in the same order at the same place."""
    first = run(range(100), stage("shuffle", size=size), seed=1)

    assert first == run(range(100), stage("shuffle", size=size), seed=1)
    assert list(range(100)) == sorted(first)
    assert (first == list(range(100))) == (size == 1)


def test_shuffle_differs_between_epochs_ranks_workers_passes_and_seeds():
    """No two places of a run share an order."""
    places = [{}, {"seed": 1}, {"epoch": 1}, {"rank": 1}, {"worker": 0}, {"worker": 1}, {"first": 1}]
    orders = [tuple(run(range(50), stage("shuffle", size=50), **place)) for place in places]

    assert len(places) == len(set(orders))


def test_shuffle_with_a_full_buffer_is_uniform():
    """Every sample is equally likely to come first, within what chance allows."""
    firsts = collections.Counter(run(range(5), stage("shuffle", size=5), epoch=e)[0] for e in range(2000))

    assert [0, 1, 2, 3, 4] == sorted(firsts)
    assert max(firsts.values()) - min(firsts.values()) < 120


def test_shuffle_starts_early_if_asked():
    """With `initial` the first sample is passed on before the buffer is full."""
    taken = []
    source = (taken.append(i) or i for i in range(100))
    with context.at(Context()):
        next(chain([stage("shuffle", size=50, initial=3)], source))

    assert [0, 1, 2, 3] == taken


def test_batch_collates_as_torch_does():
    """Batches are torch's default collation, with the last one smaller."""
    samples = [{"x": torch.tensor([i]), "n": i} for i in range(5)]
    batches = run(samples, stage("batch", size=2))

    assert [[0, 1], [2, 3], [4]] == [batch["n"].tolist() for batch in batches]
    assert [[[0], [1]], [[2], [3]], [[4]]] == [batch["x"].tolist() for batch in batches]


def test_batch_takes_its_size_from_the_place():
    """Without a size, shards order gives this rank's part of a global batch, and global order the whole share."""
    assert [[0, 1, 2], [3]] == run(range(4), stage("batch", collate="list"), batch_size=3)
    assert [[0, 1, 2, 3]] == run(range(4), stage("batch", collate="list"), order="global")


def test_batch_can_leave_out_a_part_and_collate_otherwise():
    """`partial=False` drops a smaller last batch, and `collate` may be any function."""
    assert [3] == run(range(5), stage("batch", size=3, partial=False, collate=len))


def test_other_stages_do_what_webdatasets_do():
    """The stages that webdataset users reach for."""
    assert [0, 2, 4] == run(range(3), stage("map", function=double))
    assert [0, 2] == run(range(3), stage("select", predicate=lambda x: x != 1))
    assert [(2, 5)] == run([(1, 5)], stage("map_tuple", functions=[double, None]))
    assert [{"x": 1, "y": 2}] == run([(1, 2)], stage("named", names=["x", "y"]))
    assert [1, 2, 3] == run([[1, 2], [3]], stage("unbatch"))


def test_functions_may_be_given_by_import_path():
    """Configuration files name functions by their path."""
    assert [3, 0] == run(["abc", ""], stage("map", function="builtins.len"))
    with pytest.raises(ConfigError, match=r"function is a function or its import path; 'no.such.thing' is neither"):
        stage("map", function="no.such.thing")


@pytest.mark.parametrize(
    ("sample", "bad"),
    [((1, 2, 3), Use("map_tuple", functions=[None])), ((1, 2, 3), Use("named", names=["a"]))],
)
def test_tuples_of_another_length_are_refused(sample, bad):
    """A stage for tuples says how many values it expected."""
    with pytest.raises(ConfigError, match="for 3 values"):
        run([sample], resolve(Stage, bad))


@pytest.mark.parametrize("names", [["x", "x"], "ab", [], ["x", 1]])
def test_the_names_of_values_are_different_texts(names):
    """Otherwise a value would be lost, or text be taken letter by letter."""
    with pytest.raises(ConfigError, match=r"names is a list of different names, such as \['image', 'label'\], not"):
        stage("named", names=names)


def test_every_default_stage_pickles():
    """Workers that are spawned get the stages as pickles."""
    options = {
        "shuffle": {"size": 2},
        "map": {"function": double},
        "map_tuple": {"functions": [double]},
        "select": {"predicate": double},
        "named": {"names": ["a"]},
        "batch_by_size": {"size": len, "max_total": 9},
        "pack": {"size": len, "max_total": 9},
        "weighted": {"by": "cls"},
    }
    stages = [
        resolve(Stage, Use(r.component.name, **options.get(r.component.name, {})))
        for r in Plugins().registered
        if r.kind == "stage"
    ]

    assert [repr(one) for one in stages] == [repr(pickle.loads(pickle.dumps(one))) for one in stages]


def test_a_pipeline_is_a_stage_or_several_of_any_form():
    """Names, Use, mappings, callables and webdataset's stage classes mix freely, also as a generator."""
    from webdataset.filters import detshuffle
    from webdataset.filters import shuffle as wds_shuffle

    forms = (
        form
        for form in [
            "untuple",
            {"name": "map", "options": {"function": double}},
            detshuffle(2),
            wds_shuffle(2, seed=1),
            lambda samples: itertools.islice(samples, 2),
        ]
    )
    stages = resolve_stages("pipeline_wds", forms)

    assert 2 == len(run([(1,), (2,), (3,)], *stages))
    assert 1 == len(resolve_stages("pipeline_wds", "untuple"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"pipeline_wds\[train\] is a stage or a list of stages, not int"),
        ([3], r"pipeline_wds\[train\] holds 3, which is not a stage"),
        (["untupel"], "did you mean 'untuple'"),
    ],
)
def test_what_is_no_stage_is_named(given, message):
    """The message names the argument, the split and the culprit."""
    with pytest.raises((ConfigError, LookupError), match=message):
        resolve_stages("pipeline_wds[train]", given)


def test_the_place_of_a_run_ends_with_its_block():
    """Places nest, and an exception does not leave one behind."""
    with context.at(Context(epoch=1)):
        with pytest.raises(KeyError), context.at(Context(epoch=2)):
            raise KeyError
        assert 1 == context.current().epoch
    assert 0 == context.current().epoch


def test_random_numbers_depend_on_the_place_alone():
    """The same place gives the same numbers; in global order rank and worker do not matter."""
    place = Context(order="global", seed=1, epoch=2, first=3)
    numbers = place.rng("x").random()

    assert numbers == Context(order="global", seed=1, epoch=2, first=3, rank=5, worker=1).rng("x").random()
    assert numbers != Context(order="global", seed=1, epoch=2, first=4).rng("x").random()
    assert 0.07087704077866552 == Context().rng("pinned").random()


def test_padding_fills_up_to_the_longest():
    """`collate="pad"` collates tensors and arrays of different lengths, wherever they lie in a sample."""
    samples = [{"tokens": torch.arange(n), "label": n, "pair": (torch.tensor(n), np.ones((n, 2)))} for n in (1, 3)]
    [batch] = run(samples, stage("batch", size=2, collate="pad"))

    assert [[0, 0, 0], [0, 1, 2]] == batch["tokens"].tolist()
    assert [1, 3] == batch["label"].tolist() == batch["pair"][0].tolist()
    assert (2, 3, 2) == tuple(batch["pair"][1].shape)


def test_batches_by_size_of_a_stream_keep_the_limit():
    """In shards order samples of like size are joined; none is lost and no batch is too large."""
    samples = [{"x": torch.zeros(1 + (7 * i) % 13)} for i in range(60)]
    batches = run(samples, stage("batch_by_size", size="x", max_total=30, window=20))

    assert 60 == sum(len(batch["x"]) for batch in batches)
    assert all(batch["x"].numel() <= 30 for batch in batches)
