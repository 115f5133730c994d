import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.checkpoints import checkpoint_every_step

from bionemo.webdatamodule import PickledDataWDS, testing
from bionemo.webdatamodule.testing import (
    ProcessError,
    imported_with,
    in_fresh_process,
    same,
)

BAD_PLUGIN = Path(__file__).parents[1] / "helpers" / "bad_plugin"

FAILURES = {
    ("writer", "tuples", "test_reads_what_is_there"): "it yields a tuple; yield bionemo.webdatamodule.Sample",
    ("writer", "pairs", "test_reads_what_is_there"): "the files of 'a' are a list; make them a mapping",
    ("writer", "text", "test_reads_what_is_there"): "the field 'txt' of 'a' is a str, not bytes; encode it",
    ("writer", "other-bytes", "test_reads_what_is_there"): "sample 'a' is {'txt': b'something else'",
    (
        "writer",
        "own-order",
        "test_reads_only_what_is_asked_for_and_in_that_order",
    ): "asked for ['d', 'c', 'b.1', 'a'] it yields ['a', 'b.1', 'c', 'd']; yield one sample for each name",
    ("writer", "everything", "test_reads_only_what_is_asked_for_and_in_that_order"): "yield one sample for each name",
    ("writer", "everything", "test_reads_nothing_for_no_names"): "without a name it yields 4 samples; yield only",
    ("writer", "once", "test_reads_again"): "a second call gives something else; open the source in each call",
    ("writer", "a-list", "test_reads_one_sample_at_a_time"): "calling it returns a list; make __call__ a generator",
    (
        "writer",
        "all-at-once",
        "test_reads_one_sample_at_a_time",
    ): "its first sample, there are 4 samples; read each sample",
    (
        "writer",
        "passes-over",
        "test_missing_sample_is_an_error",
    ): "'no such sample' is passed over and it yields 0 samples",
    ("writer", "key-error", "test_missing_sample_is_an_error"): "raises KeyError: 'no such sample'; raise FileNotFound",
    ("writer", "says-no-name", "test_missing_sample_is_an_error"): "does not name it: a file is missing; raise",
    (
        "writer",
        "too-early",
        "test_missing_sample_is_an_error",
    ): "it yields [] before the error, so the core would blame",
    ("writer", "upper-case", "test_suffixes_can_be_stored"): "the suffix 'TXT' of 'a' has upper case",
    ("writer", "slash", "test_suffixes_can_be_stored"): "the suffix 'text/plain' of 'a' has a slash",
    ("writer", "unlisted", "test_names_lists_the_source"): "the source has ['a', 'b.1', 'c', 'd']; list every sample",
    ("writer", "listed-once", "test_names_lists_the_source"): "names() returns a dict_keyiterator; return a list",
    ("writer", "unsorted", "test_names_lists_the_source"): "differ in order; sort what the system lists",
    ("writer", "one-mark", "test_fingerprints_are_stable"): "gives ['1'] for 4 names; return one string for each",
    ("writer", "mark-raises", "test_fingerprints_are_stable"): "fingerprints(names) raises InputError: there is no",
    ("writer", "mark-invents", "test_fingerprints_are_stable"): "return '' for a missing sample",
    ("writer", "mark-changes", "test_fingerprints_are_stable"): "every conversion would start again; use size and",
    (
        "writer",
        "mark-constant",
        "test_fingerprints_change_with_the_source",
    ): "'a' has the fingerprint '1' also after its source changed, so its old bytes would be kept; make it of size",
    ("writer", "open-file", "test_reads_the_same_after_pickling"): "keep no open files or caches in the reader",
    ("writer", "inner-function", "test_pickles"): "make it a frozen dataclass or another importable class",
    ("writer", "forgets", "test_reads_the_same_after_pickling"): "its copy by pickle reads something else; keep all",
    ("writer", "hash", "test_reads_the_same_in_another_process"): "let nothing depend on hash()",
    (
        "writer",
        "inner-function",
        "test_reads_the_same_in_another_process",
    ): "reading in a fresh process fails: it cannot",
    ("writer", "no-pickle", "test_bytes_survive_conversion"): "conversion raises InputError",
    ("writer", "positional", "test_options_are_spelled_out_keywords"): "takes 'option=0', which is not a keyword-only",
    ("writer", "any-option", "test_options_are_spelled_out_keywords"): "takes '**options', which is not a keyword-only",
    (
        "writer",
        "heavy",
        "test_importing_the_plugin_is_light",
    ): "importing heavy_plugin imports tqdm; import them inside",
    ("key encoder", "bytes", "test_keys_are_text"): "the key of 'a' is a bytes; return a string",
    (
        "key encoder",
        "refuses-ordinary-names",
        "test_keys_are_text",
    ): "encoding 'two words' raises ValueError: a name has a space; return a key for it; the core checks it",
    (
        "key encoder",
        "key-error",
        "test_keys_are_text",
    ): "raises KeyError: 'a\u0308'; return a key for it; the core checks it, or raise a ValueError whose message says",
    ("key encoder", "says-nothing", "test_keys_are_text"): "encoding 'dir/a' raises ValueError: ; return a key for it",
    ("key encoder", "dots", "test_webdataset_reads_the_keys_back"): "'a' gets the key '61.1', which has a dot",
    ("key encoder", "drops", "test_names_get_keys_of_their_own"): "'a.b' and 'a..b' both get the key '6162'; escape",
    ("key encoder", "counts", "test_encodes_the_same_always_and_everywhere"): "let the key depend on the name alone",
    ("key encoder", "hash", "test_encodes_the_same_always_and_everywhere"): "let the key depend on the name alone",
    ("stage", "wrong", "test_gives_what_is_expected"): "it makes [[2], [3], [4], [5], [6]] of the samples, not [[1]",
    ("stage", "collects", "test_takes_samples_only_as_it_needs_them"): "it took 100 samples and yielded none; yield as",
    ("stage", "ends-early", "test_takes_samples_only_as_it_needs_them"): "it ends before an endless input does",
    ("stage", "nothing", "test_does_the_same_every_time"): "calling it returns a NoneType; make __call__ a generator",
    (
        "stage",
        "a-list",
        "test_takes_samples_only_as_it_needs_them",
    ): "and ahead = None says that it takes all samples first",
    ("stage", "adds-one", "test_empty_input_gives_empty_output"): "without input it yields [[0]]; end when the input",
    ("stage", "changes-input", "test_does_not_change_its_input"): "it changes the samples that it gets; change a copy",
    ("stage", "remembers", "test_does_the_same_every_time"): "a second pass over the same samples gives something else",
    ("stage", "random", "test_does_the_same_every_time"): "two objects with the same options do different things; draw",
    ("stage", "stage-lambda", "test_pickles"): "make it a frozen dataclass or another importable class",
    ("stage", "stage-lambda", "test_works_in_a_spawned_worker"): "it fails in a spawned worker: it cannot be pickled",
    (
        "stage",
        "main-only",
        "test_works_in_a_spawned_worker",
    ): "let nothing depend on hash(), the order of sets, or what",
    ("stage", "other-columns", "test_columnar_form_gives_the_same"): "columns() gives [[[0]]], and the samples become",
    ("stage", "swallows", "test_errors_of_the_input_pass"): "it swallows an error of its input and yields 5 results",
    ("stage", "renames", "test_errors_of_the_input_pass"): "an error of the input becomes ValueError; let it pass",
    ("loader", "loses", "test_gives_every_item_once_and_in_order[workers=2]"): "it loses the items [7] and repeats []",
    ("loader", "keeps-back", "test_gives_every_item_once_and_in_order[workers=2]"): "it loses the items [21, 22]",
    (
        "loader",
        "reorders",
        "test_gives_every_item_once_and_in_order[workers=2]",
    ): "it passes on item 2 in the place of item 1; take an item of each worker in turn",
    (
        "loader",
        "one-epoch",
        "test_gives_every_item_once_and_in_order[workers=0]",
    ): "iterating epoch 1 from 0 on, it loses the items [0, 1, 2",
    (
        "loader",
        "left-over",
        "test_goes_on_in_the_middle[workers=1]",
    ): "iterating epoch 1 from 5 on, it passes on an item of epoch 0 from 0 on; iterate the dataset again each time",
    (
        "loader",
        "miscounts",
        "test_says_how_many_workers_it_has[workers=2]",
    ): "the dataset is iterated by 1 worker where num_workers says 2",
    (
        "loader",
        "batches",
        "test_gives_every_item_once_and_in_order[workers=0]",
    ): "an item arrives as [Item(",
    ("loader", "leaves-threads", "test_frees_its_workers[workers=0]"): "after close() of its iterator it leaves",
    ("loader", "keeps-silently", "test_keeps_its_workers"): "keeps_workers is true by default",
    ("loader", "ends-on-error", "test_errors_of_the_data_arrive[workers=1]"): "it swallows an error while reading",
    (
        "loader",
        "hides-cause",
        "test_errors_of_the_data_arrive[workers=0]",
    ): "becomes RuntimeError: loading failed; keep",
    ("executor", "no-context", "test_gives_a_standard_executor"): "make the factory return a context manager",
    ("executor", "no-executor", "test_gives_a_standard_executor"): "its context gives a _Wrapped; give a concurrent",
    (
        "executor",
        "own-futures",
        "test_gives_a_standard_executor",
    ): "submit() returns a int; return a concurrent.futures",
    ("executor", "no-results", "test_gives_a_standard_executor"): "a task that returns 42 gives None; set the result",
    ("executor", "mixes-up", "test_runs_more_tasks_than_it_has_workers"): "keep each task with its future",
    ("executor", "any-order", "test_map_keeps_the_order"): "map() of 0…9 doubled gives [18, 16",
    ("executor", "text-errors", "test_exceptions_pass"): "arrives as RuntimeError('this sample is bad",
    ("executor", "small-messages", "test_carries_large_values"): "8 MiB come back changed; set no limit",
    ("executor", "leaves-early", "test_leaving_waits_for_tasks"): "8 of 8 tasks are not done when its context is left",
    ("executor", "closed", "test_pickles"): "make it a frozen dataclass or another importable class",
    (
        "executor",
        "closed",
        "test_can_be_entered_again",
    ): "RuntimeError: cannot schedule new futures after shutdown; make",
    ("executor", "hides-errors", "test_leaving_by_an_error_lets_it_pass"): "its context swallows an error of the block",
    ("executor", "functions-only", "test_converts_to_the_same_bytes_as_serial"): "conversion by functions-only raises",
    **{
        (kind, "unknown", test): f"the {kind} 'unknown' cannot be used: no {kind} is named 'unknown'"
        for kind in ("writer", "key encoder", "stage", "loader", "executor")
        for test in ("test_pickles",)
    },
}
"""What each bad component's failure has to say, by kind, component and check."""

GOOD = [
    *((kind, "good") for kind in ("writer", "key encoder", "stage", "loader", "executor")),
    ("writer", "recodes"),
    ("key encoder", "refuses-odd-names"),
    ("stage", "an-iterable"),
    ("stage", "a-list-of-a-share"),
]
"""Components that pass all checks."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run the kit over an installed plugin; return the message of each check, empty where it passed."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "bad_plugin-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[bionemo.webdatamodule]\nbad = bad_plugin\nheavy = heavy_plugin\n")
    good = [f"Test {kind}: {component}" for kind, component in GOOD]
    bad = [f"Test {kind}: {component}::{check}" for kind, component, check in FAILURES]
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", site),
            *("--import-mode=importlib", f"--junit-xml={site / 'report.xml'}"),
            *(f"{BAD_PLUGIN / 'test_bad_plugin.py'}::{wanted}" for wanted in (*good, *bad)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(BAD_PLUGIN)]), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    found = {}
    for case in ET.parse(site / "report.xml").iter("testcase"):
        kind, _, component = case.get("classname").rpartition("Test ")[2].partition(": ")
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        found[kind, component, case.get("name")] = "" if problem is None else problem.get("message")
    return found


@pytest.mark.parametrize("case", FAILURES, ids=" ".join)
def test_bad_component_is_told_what_is_wrong(outcomes, case):
    """Each check fails for a component that breaks it, naming plugin, component, fault and remedy."""
    kind, component, _ = case
    plugin = "heavy" if component == "heavy" else "bad"
    who = f"plugin '{plugin}' of the distribution bad-plugin 1.2, {kind} '{component}': "

    assert FAILURES[case] in outcomes[case]
    assert component == "unknown" or who in outcomes[case]


@pytest.mark.parametrize(("kind", "component"), GOOD)
def test_good_component_passes_every_check(outcomes, kind, component):
    """A good component of the same plugin fails nothing, also where it uses what its protocol allows."""
    checks = {
        name: message
        for (its_kind, its_name, name), message in outcomes.items()
        if (its_kind, its_name) == (kind, component)
    }

    assert checks
    assert dict.fromkeys(checks, "") == checks


def test_every_check_is_broken_by_some_component(outcomes):
    """No check of the kit is there that nothing fails."""
    checks = {(kind, name.partition("[")[0]) for kind, component, name in outcomes if component == "good"}
    common = {"test_options_are_spelled_out_keywords", "test_pickles", "test_importing_the_plugin_is_light"}

    tried = {(kind, name.partition("[")[0]) for kind, _, name in FAILURES}

    assert [] == sorted((kind, name) for kind, name in checks - tried if kind == "writer" or name not in common)


class Counter:
    """A resumable source of ``n`` numbers an epoch, right unless told to go wrong."""

    def __init__(self, n=5, *, flaw=None):
        self.n, self.flaw = n, flaw
        self.epoch, self.given = 0, 0

    def __iter__(self):
        while self.given < self.n:
            self.given += 1
            yield torch.tensor([self.epoch, self.given])
        self.epoch, self.given = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state):
        self.epoch = 0 if self.flaw == "forgets the epoch" else state["epoch"]
        self.given = state["given"] + (self.flaw == "skips" and state["given"] == 3)


def test_checkpoint_every_step_tries_every_state():
    """A right source passes, over the ends of epochs, and every state of it was tried."""
    assert 6 == checkpoint_every_step(Counter)
    assert 16 == checkpoint_every_step(lambda: Counter(5), epochs=3)


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        (
            "skips",
            r"resumed after step 3, batch 3 is tensor\(\[0, 5\]\); without the interruption it is tensor\(\[0, 4\]\)",
        ),
        ("forgets the epoch", r"resumed after step 6, batch 6 is tensor\(\[0, 2\]\)"),
    ],
)
def test_checkpoint_every_step_finds_what_goes_wrong(flaw, message):
    """The failure says after which step, which batch, and what it should have been."""
    with pytest.raises(AssertionError, match=message):
        checkpoint_every_step(lambda: Counter(flaw=flaw), epochs=2)


def test_checkpoint_every_step_wants_batches_and_missing_ones_show():
    """An empty source shows nothing, and a source that ends too early is told apart from one that goes on."""

    class Short(Counter):
        def load_state_dict(self, state):
            self.n = 4

    with pytest.raises(ValueError, match="an epoch without batches"):
        checkpoint_every_step(lambda: Counter(0))
    with pytest.raises(AssertionError, match="resumed after step 0, batch 4 is"):
        checkpoint_every_step(Short)


def test_checkpoint_every_step_tells_when_a_step_ran():
    """A source that counts steps rather than batches handed out learns of each."""

    class Steps(Counter):
        ran = 0

        def __iter__(self):
            yield from range(self.ran, self.n)

        def state_dict(self):
            return self.ran

        def load_state_dict(self, state):
            self.ran = state

    def stepped(source):
        source.ran += 1

    assert 6 == checkpoint_every_step(Steps, stepped=stepped)
    with pytest.raises(AssertionError, match="resumed after step 1, batch 1 is 0; without the interruption it is 1"):
        checkpoint_every_step(Steps)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_our_loader_resumes_after_every_step(tmp_path, num_workers):
    """The loader of a data module passes: exact resume from every step of two epochs, with and without workers."""
    (tmp_path / "pickles").mkdir()
    names = [str(number) for number in range(23)]
    for name in names:
        (tmp_path / "pickles" / f"{name}.pyd").write_bytes(pickle.dumps(torch.full((2,), float(name))))

    def make():
        workers = {"train": {"num_workers": num_workers}}
        data = PickledDataWDS(
            str(tmp_path / "pickles"), "pyd", {"train": names}, f"{tmp_path}/shards-", 4, kwargs_wld=workers
        )
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()

    assert 13 == checkpoint_every_step(make, epochs=2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(value=VALUES)
def test_same_values_are_the_same(value):
    """Any value is the same as a copy of it, NaN too."""
    assert same(value, copy.deepcopy(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ((1,), [1]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], [1, 1]),
        (np.float32(1), np.float64(1)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2, np.int32), np.zeros(2, np.int64)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([0.0]), torch.tensor([float("nan")])),
        (Counter(), Counter(6)),
    ],
    ids=repr,
)
def test_values_that_differ_are_not_the_same(one, other):
    """Types, dtypes, shapes and the order of keys count."""
    assert not same(one, other)


def test_arrays_and_objects_are_the_same_by_content():
    """NaN equals NaN in arrays and tensors, and objects without ``==`` compare by what they hold."""
    nan = float("nan")

    assert same(np.array([1.0, nan]), np.array([1.0, nan]))
    assert same(torch.tensor([1.0, nan]), torch.tensor([1.0, nan]))
    assert same(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert same(np.array(["a", None], dtype=object), np.array(["a", None], dtype=object))
    assert same(Counter(), Counter())


def test_fresh_process_shares_nothing_but_the_path():
    """A function runs elsewhere, with another hash seed; what it prints does not disturb."""
    assert os.getpid() != in_fresh_process(os.getpid)
    assert hash("a") != in_fresh_process(hash, "a")
    assert in_fresh_process(print, "noise") is None


def test_failure_in_a_fresh_process_tells_its_end():
    """The end of the traceback is the message."""
    with pytest.raises(ProcessError, match="ZeroDivisionError"):
        in_fresh_process(divmod, 1, 0)
    with pytest.raises(ProcessError, match="No module named 'no_such_module'"):
        imported_with("no_such_module")


def test_imports_are_seen_in_a_fresh_process():
    """Packages beyond the standard library are listed, whatever this process has imported."""
    assert "numpy" in imported_with("torch")
    assert [] == imported_with("json")


def test_fresh_process_imports_from_where_this_one_does(tmp_path, monkeypatch):
    """Not from the working directory, and in the order of this process's path, which may have changed as it ran."""
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("pickle", "json", "os", "textwrap"):
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('from the working directory')")
    (tmp_path / "there" / "only_there.py").write_text("import textwrap")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "there"), *filter(None, sys.path)])

    assert os.getpid() != in_fresh_process(os.getpid)
    assert sys.path == in_fresh_process(eval, "__import__('sys').path")
    assert ["only_there"] == imported_with("only_there")


def test_fresh_process_reads_an_empty_entry_of_the_path_as_the_working_directory(tmp_path, monkeypatch):
    """That is what an interactive session has in front."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *filter(None, sys.path)])

    assert [str(Path.cwd()), *sys.path[1:]] == in_fresh_process(eval, "__import__('sys').path")


def test_public_names_are_there():
    """Every name of ``__all__`` can be imported, and they are sorted."""
    assert sorted(testing.__all__) == testing.__all__
    assert all(getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018 - that it raises is the test
