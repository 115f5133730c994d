"""Rules that deal the names of a source to splits."""

import fractions
import pickle
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bionemo.webdatamodule import Executor, KeyEncoder, Sample, Writer, hookimpl
from bionemo.webdatamodule._engine.writing.conversion import Conversion, choose, resolve_subsets
from bionemo.webdatamodule._engine.writing.convert import convert
from bionemo.webdatamodule.errors import ConfigError, PluginError
from bionemo.webdatamodule.plugins import Plugins
from bionemo.webdatamodule.splits import Fold, Fraction, Hashed, name_hash
from bionemo.webdatamodule.testing import in_fresh_process

NAMES = [f"s{number}" for number in range(1000)]


class Source:
    """A source that lists itself."""

    def __init__(self, names=NAMES):
        self._names = names

    def names(self):
        """Return all names."""
        return self._names


def test_name_hash_is_the_same_everywhere():
    """The hash is a fixed function of name and seed, also under another hash seed."""
    assert 1632798639502069844 == name_hash("s1", 7)
    assert name_hash("s1", 7) == in_fresh_process(name_hash, "s1", 7)


def test_fractions_are_exact_and_keep_the_order_of_the_source():
    """A fraction has just so many names, mixed over the source, in its order."""
    train, val = Fraction(stop=0.8)(NAMES), Fraction(start=0.8)(NAMES)
    assert (800, 200) == (len(train), len(val))
    assert NAMES == sorted(train + val, key=NAMES.index)
    assert train == sorted(train, key=NAMES.index)
    assert train != NAMES[:800]


@given(st.lists(st.text(), unique=True, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_adjacent_parts_share_nothing_and_leave_nothing_out(names, cut, seed):
    """Fractions and hash intervals that meet at any point divide the names."""
    for rule in (Fraction, Hashed):
        parts = rule(stop=cut, seed=seed)(names), rule(start=cut, seed=seed)(names)
        assert sorted(names) == sorted(parts[0] + parts[1])


def test_hashed_does_not_move_names_when_others_come_and_go():
    """What a name's hash decides stays decided."""
    rule = Hashed(stop=0.5, seed=3)
    fewer = NAMES[::3]
    assert [name for name in rule(NAMES) if name in set(fewer)] == rule(fewer)
    assert 430 < len(rule(NAMES)) < 570


def test_folds_cover_every_name_once():
    """Over all folds every name is validated once and trained on in all others."""
    folds = [Fold(number=number, of=5)(NAMES) for number in range(5)]
    assert sorted(NAMES) == sorted(sum(folds, []))
    assert NAMES == sorted(folds[2] + Fold(number=2, of=5, rest=True)(NAMES), key=NAMES.index)


def test_another_seed_gives_another_division():
    """Seeds matter, equal seeds agree."""
    assert Fraction(stop=0.5, seed=1)(NAMES) == Fraction(stop=0.5, seed=1)(NAMES)
    assert Fraction(stop=0.5, seed=1)(NAMES) != Fraction(stop=0.5, seed=2)(NAMES)


def test_rules_pickle_and_print():
    """A rule travels to other processes and shows its options."""
    rule = Fold(number=1, of=5, rest=True)
    assert rule == pickle.loads(pickle.dumps(rule))
    assert "Fold(number=1, of=5, rest=True, seed=0)" == repr(rule)


def test_numbers_deal_the_source_in_the_order_of_splits():
    """Parts given as numbers do not overlap, whatever the order of the mapping."""
    parts = resolve_subsets({"test": 0.1, "train": 0.8, "val": 0.1}, Source())
    assert parts == resolve_subsets({"train": 0.8, "val": 0.1, "test": 0.1}, Source())
    assert [800, 100, 100] == [len(parts[split]) for split in ("train", "val", "test")]
    assert sorted(NAMES) == sorted(parts["train"] + parts["val"] + parts["test"])


def test_thirds_leave_nothing_out():
    """Rounding errors of the numbers' sum lose no sample."""
    parts = resolve_subsets(dict.fromkeys(("train", "val", "test"), 1 / 3), Source(NAMES[:100]))
    assert sorted(NAMES[:100]) == sorted(parts["train"] + parts["val"] + parts["test"])


def test_names_functions_and_rules_mix():
    """Names stay as they are, functions of the user are called with all names."""
    found = resolve_subsets({"train": ["a"], "val": lambda names: names[:2], "test": Hashed(stop=0)}, Source())
    assert {"train": ["a"], "val": ["s0", "s1"], "test": []} == found


def test_a_source_is_listed_only_if_a_rule_asks():
    """Given names need no source that lists itself; rules do."""
    assert {"train": ["a"]} == resolve_subsets({"train": ["a"]}, object())
    with pytest.raises(ConfigError, match="cannot list its samples"):
        resolve_subsets({"train": 1.0}, object())
    with pytest.raises(PluginError, match="must give a list of names"):
        resolve_subsets({"train": 1.0}, Source("abc"))


@pytest.mark.parametrize("parts", [{"train": 0.8, "val": 0.3}, {"train": 0.0}, {"train": -0.5}, {"train": 2}])
def test_numbers_that_are_no_parts_are_refused(parts):
    """Parts are positive and add up to at most 1."""
    with pytest.raises(ConfigError, match="add up to 1"):
        resolve_subsets(parts, Source())


@pytest.mark.parametrize("kind", [np.float32, np.float64, fractions.Fraction, Decimal])
def test_numbers_of_any_kind_are_parts(kind):
    """What is a real number is taken as one, also where it is not exact."""
    parts = resolve_subsets({"train": kind("0.8"), "val": kind("0.2")}, Source())
    assert [800, 200] == [len(parts[split]) for split in ("train", "val")]
    assert Hashed(stop=0.5)(NAMES) == Hashed(stop=kind("0.5"))(NAMES)
    assert "Fraction(start=0.0, stop=0.5, seed=0)" == repr(Fraction(stop=kind("0.5")))


def test_a_source_that_fails_to_list_itself_is_named():
    """[94] The error says which, and keeps the cause."""

    class Failing:
        def names(self):
            return 1 / 0

    with pytest.raises(PluginError, match=r"names\(\) of Failing fails with ZeroDivisionError") as caught:
        resolve_subsets({"train": 1.0}, Failing())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Fraction(start=0.5, stop=0.4),
        lambda: Fraction(start="0"),
        lambda: Fraction(stop=True),
        lambda: Fraction(stop=float("nan")),
        lambda: Fraction(seed=[1]),
        lambda: Hashed(stop=1.5),
        lambda: Hashed(start="0"),
        lambda: Hashed(seed=[1]),
        lambda: Hashed(seed=0.5),
        lambda: Fold(number=5, of=5),
        lambda: Fold(number="0", of=2),
        lambda: Fold(number=0, of=2.5),
        lambda: Fold(number=True, of=2),
        lambda: Fold(number=0, of=2, seed=None),
    ],
)
def test_rules_check_their_options(wrong):
    """Intervals lie between 0 and 1, folds exist."""
    with pytest.raises(ConfigError):
        wrong()


class Letters(Source):
    """A source of three samples."""

    def __init__(self):
        super().__init__(["a", "b", "c"])

    def __call__(self, names):
        """Yield the samples."""
        return (Sample(name, {"x": b"data"}) for name in names)


def faulty(**methods):
    """Return a source of which some methods are replaced."""
    return type("Faulty", (Letters,), methods)


def plugins_with(writer, encode):
    """Return plugins of which one has a writer and a key encoder."""

    class Plugin:
        @hookimpl
        def webdatamodule_writers(self):
            yield Writer(name="w", summary="s", factory=writer)

        @hookimpl
        def webdatamodule_key_encoders(self):
            yield KeyEncoder(name="enc", summary="s", factory=lambda: encode)

    plugins = Plugins()
    plugins.register(Plugin(), "mine", distribution="my-plugin", version="1.2")
    return plugins


PLUGIN = {"plugin": "mine", "distribution": "my-plugin 1.2"}


@pytest.mark.parametrize(
    ("writer", "encode", "said", "where"),
    [
        (faulty(names=lambda self: 1 / 0), str, r"names\(\) of Faulty fails with ZeroDivisionError", {}),
        (faulty(names=lambda self: {"a"}), str, r"names\(\) of Faulty must give a list of names", {}),
        (faulty(__call__=lambda self, names: 7), str, "the writer w fails with TypeError", {"writer": "w"}),
        (faulty(fingerprints=lambda self, names: 1 / 0), str, r"fingerprints\(\) .* w fails with", {"writer": "w"}),
        (faulty(fingerprints=lambda self, names: None), str, r"fingerprints\(\) .* w must give", {"writer": "w"}),
        (faulty(codecs={"x": "zip"}), str, "the writer w declares the codec 'zip'", {"writer": "w"}),
        (faulty(codecs=None), str, "codecs of the writer w must map", {"writer": "w"}),
        (Letters, lambda name: 1 / 0, "the key encoder enc fails at the name 'a'", {"key_encoder": "enc"}),
        (Letters, lambda name: None, "the key encoder enc makes None of the name 'a'", {"key_encoder": "enc"}),
    ],
)  # fmt: skip
def test_errors_name_the_plugin_that_can_be_disabled(writer, encode, said, where, tmp_path):
    """Plugin and distribution are those that are installed; the component is named beside them."""
    plugins = plugins_with(writer, encode)
    conversion = Conversion(
        writer=choose(Writer, "w", plugins), names={"train": 1.0}, directories={"train": str(tmp_path / "out")},
        prefix="p", n_shards=1, key_encoder=choose(KeyEncoder, "enc", plugins),
        executor=choose(Executor, "serial"),
    )  # fmt: skip
    with pytest.raises(PluginError, match=f"^{said}") as caught:
        convert(conversion)
    found = caught.value.where
    assert {**where, **PLUGIN} == {name: found[name] for name in found if name not in {"sample", "split"}}


def test_a_default_is_no_plugin_to_blame():
    """Nothing of it can be disabled with use; neither can an object that is given as it is."""
    assert {} == choose(KeyEncoder, "escaped").where == choose(Writer, Letters()).where
    assert PLUGIN == choose(Writer, "w", plugins_with(Letters, str)).where
