"""Every combination of the default stages gives the same sequence as plain Python, whoever reads."""

import itertools
import pickle

import pytest

from bionemo.webdatamodule import PickledDataWDS, Use, WebDataModule

N_SAMPLES = 43
BATCH_SIZE = 6


def plus_one(value):
    """Change a sample."""
    return value + 1


def is_liked(value):
    """Keep most samples."""
    return value % 7


def together(samples):
    """Make one batch of a share: a plain list."""
    yield list(samples)


def pair_sum(sample):
    """Make a number of a named sample."""
    return sample["one"] * 1000 + sample["other"]


AFTER = {
    "map": (Use("map", function=plus_one), lambda samples: [value + 1 for value in samples]),
    "select": (Use("select", predicate=is_liked), lambda samples: [value for value in samples if value % 7]),
    "batch, unbatch": (
        [Use("batch", size=4), "unbatch", Use("map", function=int)],
        lambda samples: samples,
    ),
    "shuffle": (Use("shuffle", size=5), lambda samples: samples),  # the plan has shuffled already
}
COMBINATIONS = [
    chosen for count in range(len(AFTER) + 1) for chosen in itertools.combinations(AFTER, count)
]  # in this order


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Shards of numbers, each in two fields."""
    directory = tmp_path_factory.mktemp("numbers")
    names = [f"s{number:02d}" for number in range(N_SAMPLES)]
    for number, name in enumerate(names):
        (directory / f"{name}.one.pyd").write_bytes(pickle.dumps(number))
        (directory / f"{name}.other.pyd").write_bytes(pickle.dumps(number * 2))
    PickledDataWDS(
        directory,
        ["one.pyd", "other.pyd"],
        {"train": names},
        f"{directory}/",
        BATCH_SIZE,
        n_tars_wds=5,
        executor="serial",
    ).prepare_data()
    return f"{directory}/train"


def read(directory, suffixes, stages, **options):
    """Return the batches of two epochs."""
    data = WebDataModule(
        {"train": directory},
        None,
        suffixes,
        BATCH_SIZE,
        seed=3,
        pipeline_wds={"train": stages},
        pipeline_prebatch_wld={"train": together},
        kwargs_wld={"train": options},
    )
    data.setup("fit")
    loader = data.train_dataloader()
    return [list(loader) for _ in range(2)], loader


def expected(loader, chosen):
    """Return the batches of two epochs, worked out from the plan in plain Python."""
    epochs = []
    for epoch in range(2):
        shares = [share.tolist() for share in loader.plan.shares(epoch, range(len(loader)), 0, 1)]
        for name in chosen:
            shares = [AFTER[name][1](samples) for samples in shares]
        epochs.append(shares)
    return epochs


def stages_of(chosen):
    """Return the stages of a combination, untuple first."""
    stages = ["untuple"]
    for name in chosen:
        stage = AFTER[name][0]
        stages += stage if isinstance(stage, list) else [stage]
    return stages


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("chosen", COMBINATIONS, ids=" + ".join)
def test_every_combination_of_stages_gives_what_plain_python_gives(numbers, chosen, workers):
    """The exact sequence, for no worker, one and two, forked."""
    found, loader = read(numbers, "one.pyd", stages_of(chosen), num_workers=workers)
    assert expected(loader, chosen) == found


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_other_kinds_give_what_plain_python_gives(numbers, method):
    """The longest combination, in workers that got everything as a pickle."""
    chosen = tuple(AFTER)
    options = {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": True}
    found, loader = read(numbers, "one.pyd", stages_of(chosen), **options)
    assert expected(loader, chosen) == found


@pytest.mark.parametrize("workers", [0, 2])
def test_stages_of_several_fields_give_what_plain_python_gives(numbers, workers):
    """map_tuple and named on tuples of two fields."""
    stages = [
        Use("map_tuple", functions=[None, plus_one]),
        Use("named", names=["one", "other"]),
        Use("map", function=pair_sum),
    ]
    found, loader = read(numbers, ["one.pyd", "other.pyd"], stages, num_workers=workers)
    plain = [[[i * 1000 + i * 2 + 1 for i in batch] for batch in epoch] for epoch in expected(loader, ())]
    assert plain == found
