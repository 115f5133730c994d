"""Templates of pickles that make objects of classes that the user allowed."""

import functools
import pickle
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tests.helpers import fuzz_pickles
from tests.helpers.sameness import same
from torch.utils.data import default_collate
from torch_geometric.data import HeteroData

from bionemo.webdatamodule.builtins.pickle.codec import PickleCodec
from bionemo.webdatamodule.errors import DecodeError
from bionemo.webdatamodule.pickles import Policy, dumps, loads, recode

made = []  # in which order objects were made and got their states


class Store:
    """A part of a graph, which knows the whole, as those of torch_geometric do."""

    def __new__(cls, *_args, **_values):
        """Note it."""
        made.append(cls.__name__)
        return super().__new__(cls)

    def __setstate__(self, state):
        """Refuse what no store holds."""
        made.append(sorted(state))
        if state["number"] == 255:
            raise ValueError("no such number")
        vars(self).update(state)

    def __eq__(self, other):
        """Compare values, and who is whose parent."""
        return same(facts(self), facts(other))

    __hash__ = None


def facts(value, inside=()):
    """What an object holds; an object that holds itself is the number of steps up to it."""
    for steps, one in enumerate(inside):
        if one is value:
            return f"{steps} up"
    inside = (value, *inside)
    if isinstance(value, Store):
        return type(value).__name__, facts(vars(value), inside)
    if type(value) in (list, tuple):
        return [type(value), *(facts(part, inside) for part in value)]
    return {name: facts(part, inside) for name, part in value.items()} if type(value) is dict else value


class Graph(Store):
    """An object with a cycle."""

    def __init__(self, number, **values):
        self.number = number
        self.stores = {}
        for name, value in values.items():
            store = self.stores["to", name] = Store()
            vars(store).update(value=value, number=number, parent=self, key=("to", name))


class Pair(NamedTuple):
    """Made of its arguments."""

    first: object
    second: object


class Slots:
    """Without a dict."""

    __slots__ = ("a", "b")

    def __eq__(self, other):
        """Compare both."""
        return same(*([getattr(one, name, None) for name in ("a", "b")] for one in (self, other)))

    __hash__ = None


class Bag(list):
    """A list of its own, which the pickle fills."""


def graph(rng):
    """A graph, with sizes of its own."""
    nodes, array = torch.rand(rng.randint(1, 60), 4), np.arange(rng.randint(1, 9))
    return Graph(rng.randint(0, 9), nodes=nodes, array=array, name="x" * rng.randint(0, 9))


def slots(rng):
    """An object with slots."""
    made = Slots()
    made.a, made.b = rng.random(), torch.rand(3)
    return made


def hetero(rng):
    """A graph of torch_geometric."""
    found, nodes = HeteroData(), rng.randint(2, 60)
    found["a"].x, found["b"].x = torch.rand(nodes, 4), torch.rand(5, 3)
    found["a", "to", "b"].edge_index = torch.randint(0, nodes, (2, 3 * nodes))
    found.label = rng.randint(0, 300)
    return found


OBJECTS = {
    "graph": graph,
    "graphs among others": lambda rng: {"graph": graph(rng), "x": torch.rand(3), "y": [graph(rng)], "class": Graph},
    "pair": lambda rng: Pair(torch.rand(2), rng.randint(0, 400)),
    "slots": slots,
}
ALLOWED = Policy(allow=[f"{__name__}.*"])
GRAPHS = Policy(allow=["torch_geometric.*"])
WRITERS = {"canonical": dumps, "protocol 2": functools.partial(pickle.dumps, protocol=2), "protocol 5": pickle.dumps}


def streams(make, write, count, seed=0):
    """Pickles of one kind."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    return [write(make(rng)) for _ in range(count)]


def views(data):
    """Views of pickles."""
    return list(map(memoryview, data))


@pytest.mark.parametrize("writer", ["canonical", "protocol 5"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_made_by_templates(kind, writer, monkeypatch):
    """After a few samples the interpreter is not asked any more, and the values are those it gave."""
    codec = PickleCodec(ALLOWED)
    for data in streams(OBJECTS[kind], WRITERS[writer], 100):
        assert same(loads(data, policy=ALLOWED), codec.decode(memoryview(data)))
    data = streams(OBJECTS[kind], WRITERS[writer], 30, seed=1)
    expected = [loads(one, policy=ALLOWED) for one in data]
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.codec.loads", None)
    assert same(expected, codec.column(views(data)).values())


def test_graphs_of_torch_geometric_are_made_by_templates(monkeypatch):
    """With what each store knows of the graph, and as other pickles."""
    codec = PickleCodec(GRAPHS)
    codec.column(views(streams(hetero, dumps, 100))).values()
    data = streams(hetero, dumps, 30, seed=1)
    expected = [loads(one, policy=GRAPHS) for one in data]
    monkeypatch.setattr("bionemo.webdatamodule.builtins.pickle.codec.loads", None)
    found = codec.column(views(data)).values()
    assert list(map(dumps, expected)) == list(map(dumps, found))
    assert all(store._parent() is one for one in found for store in one.stores)


def test_classes_are_called_in_the_order_of_the_pickle():
    """Sample by sample, each with its states, as loads does it."""
    data = streams(OBJECTS["graphs among others"], dumps, 3)
    codec = PickleCodec(ALLOWED)
    codec.column(views(data)).values()
    made.clear()
    for one in data:
        loads(one, policy=ALLOWED)
    expected = made[:]
    made.clear()
    codec.column(views(data)).values()
    assert expected == made
    assert expected


def test_an_error_of_a_class_is_the_error_of_loads():
    """One sample among others that its class refuses."""
    good, bad = (dumps(Graph(number, x=torch.ones(2))) for number in (3, 255))
    codec = PickleCodec(ALLOWED)
    codec.column(views([good] * 3)).values()
    with pytest.raises(DecodeError, match="no such number"):
        codec.column(views([good, bad, good])).values()


@pytest.mark.parametrize(
    "value",
    [Bag([1, 2]), Pair("name", "name"), Pair(Pair(1, 2), 3), [Pair(1, 2)] * 2],
    ids=["filled by the pickle", "argument used twice", "object as argument", "list of one object"],
)
def test_what_a_template_may_not_repeat_is_read_by_loads_or_equal(value):
    """What it costs depends on more than its bytes, or the class decides what is done to its objects."""
    codec = PickleCodec(ALLOWED)
    data = dumps(value)
    for _ in range(3):
        found = codec.decode(memoryview(data))
        assert same(value, found)
        assert dumps(loads(data, policy=ALLOWED)) == dumps(found)


@pytest.mark.parametrize("value", [Bag([1, 2]), Pair("name", "name"), Pair(Pair(1, 2), 3)])
def test_no_template_where_a_class_or_a_memo_decides(value):
    """``loads`` charges such arguments as often as they come, and appends to such objects."""
    codec = PickleCodec(ALLOWED)
    codec.decode(memoryview(dumps(value)))
    assert [] == codec.templates


def test_a_class_that_cannot_be_pickled_has_no_template():
    """No template can be compared with the value that it was made of."""

    def refuse(self):
        raise RuntimeError("not again")

    data = dumps(Graph(1, x=torch.ones(2)))
    codec = PickleCodec(ALLOWED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "__reduce_ex__", lambda self, protocol: refuse(self), raising=False)
        assert Graph(1, x=torch.ones(2)) == codec.decode(memoryview(data))
    assert [] == codec.templates


def test_batches_with_objects_are_those_of_the_values():
    """``default_collate`` says that it has no batches of them; next to them tensors are not joined by templates."""
    data = views(streams(OBJECTS["graphs among others"], dumps, 4))
    codec = PickleCodec(ALLOWED)
    codec.column(data).values()
    with pytest.raises(TypeError) as found:
        codec.column(data).stack()
    with pytest.raises(TypeError) as expected:
        default_collate([loads(one, policy=ALLOWED) for one in data])
    assert str(expected.value).partition(" object at")[0] == str(found.value).partition(" object at")[0]


def test_recoding_runs_the_class_every_time():
    """What a class makes of its state may be more than a copy."""
    codec = PickleCodec(ALLOWED)
    for number in range(4):
        data = pickle.dumps(Graph(number, x=torch.rand(2)))
        made.clear()
        assert recode(data, policy=ALLOWED) == codec.recode(data)
        assert made.count("Graph") == 2


@pytest.mark.parametrize("seed", range(4))
def test_mutated_objects_come_to_the_same_with_and_without_templates(seed):
    """Values and messages; ``fuzz_pickles.py`` does it for as long as one likes."""
    rng = random.Random(seed)
    for _ in range(3):
        found = fuzz_pickles.fuzz(OBJECTS, WRITERS, same, rng, 60, ALLOWED)
        assert [] == [stream for stream, good in found if not good]
