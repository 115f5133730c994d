"""Loaders of third parties under a real Trainer: equal batches, equal steps, exact resume; and what is refused."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
from tests.helpers import twin_loaders
from tests.integration.test_resume import SaveAt, fit
from torch.utils.data import DataLoader

from bionemo.webdatamodule import Loader, Use, WebDataModule
from bionemo.webdatamodule.errors import ConfigError, UsageError
from bionemo.webdatamodule.plugins import Plugins, Registered
from bionemo.webdatamodule.testing import LoaderConformance
from bionemo.webdatamodule.testing.component import Subject

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*was in eval mode.*")

LOADERS = [
    Use("threads", num_workers=2),
    Use("threads", num_workers=3, ahead=1),
    Use("counted", num_workers=0),
    Use("counted", num_workers=2),
    Use("counted", num_workers=2, persistent=True),
]


@pytest.fixture(scope="module")
def plugins():
    """Return the default plugins and the twins."""
    return twin_loaders.plugins()


@pytest.fixture
def make(shards, plugins):
    """Return a function that makes a data module with some loader."""

    def make(loader="webloader", *, train=None, **kwargs):
        return WebDataModule(
            {"train": f"{shards}train", "val": f"{shards}val"},
            None,
            ["__key__", "x.pyd"],
            4,
            loader=loader,
            plugins=plugins,
            kwargs_wld={"train": train or {}},
            **kwargs,
        )

    return make


@pytest.mark.parametrize("loader", LOADERS, ids=repr)
@pytest.mark.parametrize("step", [3, 10, 14])
def test_a_loader_of_a_third_party_resumes_exactly(tmp_path, make, make_trainer, recorder, loader, step):
    """The batches are those of the default loader, and the rest after a checkpoint is the rest."""
    whole = fit(recorder, make_trainer(max_epochs=2), make())
    path = tmp_path / "some.ckpt"

    assert whole == fit(recorder, make_trainer(max_epochs=2, callbacks=[SaveAt(step, path)]), make(loader))
    assert whole[step:] == fit(recorder, make_trainer(max_epochs=2), make(loader), path)


@pytest.mark.parametrize(("twin", "workers"), [("threads", 2), ("counted", 2), ("counted", 0)])
def test_a_loader_of_a_third_party_gives_the_same_in_shards_order(make, make_trainer, recorder, twin, workers):
    """Samples are interleaved as those of the default loader's workers."""
    kwargs = {"kwargs_wds": {"train": {"shardshuffle": 4}}}
    expected = fit(recorder, make_trainer(max_epochs=2), make(train={"num_workers": workers}, **kwargs))

    assert expected == fit(recorder, make_trainer(max_epochs=2), make(twin, train={"num_workers": workers}, **kwargs))


class _Twins(LoaderConformance):
    @pytest.fixture
    def subject(self, options, plugins):
        """The twin, which no distribution installs."""
        registered = plugins.provider(Loader, self.name)
        assert isinstance(registered, Registered)
        return Subject(registered=registered, options=options)

    def test_importing_the_plugin_is_light(self):
        """Nothing to check: the twins are a module of the tests."""


class TestThreads(_Twins):
    """Threads of the main process."""

    name = "threads"


class TestCounted(_Twins):
    """The default loader, counted."""

    name = "counted"
    keeping: ClassVar = {"num_workers": 2, "persistent": True}


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A loader of two workers that alters the list of all items."""

    alter: object
    num_workers: ClassVar[int] = 2
    keeps_workers: ClassVar[bool] = False
    in_order: ClassVar[bool] = True

    def __call__(self, dataset):
        """Return the items, altered."""
        return _Altered(DataLoader(dataset, batch_size=None, num_workers=2), self.alter)


@dataclass(frozen=True)
class _Altered:
    items: object
    alter: object

    def __iter__(self):
        return iter(self.alter(list(self.items)))


def by_worker(items):
    """One worker after the other."""
    return sorted(items, key=lambda item: item.worker)


def twice(items):
    """Repeat the first two."""
    return [*items[:2], *items]


def without_the_second(items):
    """Lose one in the middle."""
    return [items[0], *items[2:]]


def without_the_last(items):
    """Keep some back."""
    return items[:-3]


GLOBAL = {
    by_worker: "passed on item 2 where item 1 is due, which is lost or comes later",
    twice: "passed on item 0 where item 2 is due, which was passed on before",
    without_the_second: "passed on item 2 where item 1 is due",
    without_the_last: "stopped after",
}
SHARDS = {
    twice: "passed on item 0 of worker 0 where item 1 is due",
    without_the_second: "passed on item 1 of worker 1 where item 0 is due",
    without_the_last: "stopped after",
}


@pytest.mark.parametrize(
    ("kwargs", "alter", "message"),
    [
        *(({}, alter, message) for alter, message in GLOBAL.items()),
        *(({"order": "shards"}, alter, message) for alter, message in SHARDS.items()),
    ],
)
def test_an_item_that_is_not_due_is_refused(make, make_trainer, recorder, kwargs, alter, message):
    """Lost, repeated and reordered items are named while the run goes on, with loader, split and rank."""
    data = make(Bad(alter=alter), pipeline_wds={"train": Use("map", function=tuple)}, **kwargs)
    with pytest.raises(UsageError, match=message) as caught:
        fit(recorder, make_trainer(max_epochs=1, limit_val_batches=0), data)

    assert "the loader Bad(alter=" in str(caught.value)
    assert ("train", 0) == (caught.value.where["split"], caught.value.where["rank"])


def test_torchs_loader_out_of_order_is_refused(make, make_trainer, recorder):
    """`in_order=False` of a torch loader that says nothing of it is noticed by the items' numbers."""

    def slow_first(samples):
        from bionemo.webdatamodule import context

        if context.worker().number == 0:
            import time

            time.sleep(0.2)
        return samples

    data = make(
        lambda dataset: DataLoader(dataset, batch_size=None, num_workers=2, in_order=False),
        pipeline_wds={"train": slow_first},
    )
    with pytest.raises(UsageError, match=r"passed on item \d+ where item \d+ is due"):
        fit(recorder, make_trainer(max_epochs=1, limit_val_batches=0), data)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda dataset: None, "returned None, not an iterable of items; return an object with __iter__"),
        (lambda dataset: [1, 2], "passed on 1; pass on the dataset's items as they are"),
        (list, "it iterates the dataset once"),
    ],
)
def test_what_is_no_loader_is_named(make, make_trainer, recorder, loader, message):
    """A function that returns something else is an error with its name."""
    with pytest.raises(UsageError, match=message):
        fit(recorder, make_trainer(max_epochs=2, limit_val_batches=0), make(loader))


def test_a_loader_with_half_of_the_attributes_is_refused(make):
    """What is not said cannot be guessed."""

    class Half:
        num_workers = 2

        def __call__(self, dataset):
            return dataset

    with pytest.raises(ConfigError, match="has num_workers and no keeps_workers or in_order; give it num_workers"):
        make(Half())


def test_a_loaders_own_options_go_to_it(shards):
    """`batch_size`, `collate_fn` and `drop_last` in kwargs_wld are the loader's where it takes them."""
    seen = []

    def factory(*, batch_size=None, collate_fn=None, drop_last=False):
        seen.append((batch_size, collate_fn, drop_last))
        return lambda dataset: dataset

    class Plugin:
        from bionemo.webdatamodule import hookimpl

        @hookimpl
        def webdatamodule_loaders(self):
            yield Loader(name="greedy", summary="takes options of batches", factory=factory)

    own = Plugins()
    own.register(Plugin(), "greedy")
    options = {"batch_size": 2, "collate_fn": list, "drop_last": True}
    data = WebDataModule(
        {"train": f"{shards}train"}, None, "x.pyd", 4, loader="greedy", plugins=own, kwargs_wld={"train": options}
    )
    data.setup("fit")

    assert [(2, list, True)] == seen
    assert [4, 4] == [len(batch) for batch in itertools.islice(data.train_dataloader(), 2)]
