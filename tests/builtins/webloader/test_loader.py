"""Loaders with real worker processes: every item once and in order, every failure named, nothing left behind."""

import ast
import copyreg
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset

from bionemo.webdatamodule import context
from bionemo.webdatamodule.builtins.webloader import shared_blocks, sigint
from bionemo.webdatamodule.builtins.webloader.loader import DEFAULT_TIMEOUT
from bionemo.webdatamodule.builtins.webloader.plugin import WebLoader
from bionemo.webdatamodule.builtins.webloader.start_method import start_context
from bionemo.webdatamodule.builtins.webloader.status import StatusTable
from bionemo.webdatamodule.builtins.webloader.worker_errors import WorkerTraceback
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError, CorruptShardError, RefusedPickleError, WorkerError


class Numbers(IterableDataset):
    """Items 0 … n-1, dealt to the workers in turn, each made by a function of its number."""

    def __init__(self, n, make=None):
        self.where = {"split": "train", "rank": 3}
        self.n = n
        self.make = make or tensors

    def __iter__(self):
        worker = context.worker()
        for number in range(worker.number, self.n, max(1, worker.count)):
            yield self.make(number)


def tensors(number):
    """Return an item with something large and something small in it."""
    return [torch.full((20_000,), number), {"number": number}]


def item(number):
    """Return an item as a dataset makes it."""
    return Item(epoch=0, start=0, worker=0, number=number, values=[tensors(number)])


def numbers(items):
    """Return the numbers in items, from their tensors."""
    return [int(tensor[-1]) for tensor, _ in items]


def raise_at_five(number):
    """Fail as a reader does."""
    if number == 5:
        raise CorruptShardError("bytes are missing", shard="s-000002.tar") from KeyError("root")
    return tensors(number)


def die_at_five(number):
    """Die as the kernel's out-of-memory killer makes a worker die."""
    context.worker().note(f"reading s-00000{number}.tar")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return tensors(number)


def leave_at_five(number):
    """End the process without an exception."""
    if number == 5:
        os._exit(7)
    return tensors(number)


def hang_at_five(number):
    """Never come back."""
    context.worker().note(f"reading s-00000{number}.tar")
    while number == 5:
        time.sleep(1000)
    return tensors(number)


def loader(dataset, **options):
    """Return a loader as the data module makes it."""
    return WebLoader(**{"num_workers": 2, "timeout": 60, **options})(dataset)


def names(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def test_workers_are_forked_unless_the_user_says_otherwise(monkeypatch):
    """Also where Python's default is another; what was set for the whole process is kept."""
    assert "fork" == start_context(None).get_start_method()
    assert "spawn" == start_context("spawn").get_start_method()
    assert "spawn" == start_context(multiprocessing.get_context("spawn")).get_start_method()
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert "spawn" == start_context(None).get_start_method()
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "forkserver")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["forkserver", "fork"])  # Python 3.14
    assert "fork" == start_context(None).get_start_method()


def test_an_unknown_start_method_is_an_error():
    """The message lists those there are."""
    with pytest.raises(ConfigError, match=r"'sprawn' is no way to start workers here; there are fork, spawn"):
        start_context("sprawn")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    ("part", "path"),
    [
        (lambda n: n, r"dataset\.make "),
        ([len, {"a": threading.Lock()}], r"dataset\.make\[1\]\['a'\] "),
        ((n for n in ()), r"dataset\.make "),
        (sys.stdout, r"dataset\.make "),
    ],
    ids=["lambda", "lock", "generator", "file"],
)
def test_what_cannot_go_to_a_new_process_is_named_before_it_starts(method, part, path):
    """The error has the path to the part, the split and the remedy."""
    message = rf"started by {method} .* and {path}does not pickle.*multiprocessing_context='fork'"
    with pytest.raises(ConfigError, match=message) as caught:
        loader(Numbers(3, part), multiprocessing_context=method)
    assert "train" == caught.value.where["split"]


class Holder:
    """A part of a dataset, with attributes."""


def test_a_part_that_knows_its_whole_is_followed_once():
    """Back references are common in stages; what does not pickle is found all the same."""
    part = Holder()
    dataset = Numbers(3, part)
    part.owner, part.lock = dataset, threading.Lock()
    with pytest.raises(ConfigError, match=r"dataset\.make\.lock does not pickle"):
        loader(dataset, multiprocessing_context="spawn")


def test_a_dataset_that_pickles_passes_the_check_without_a_copy():
    """Random number generators, partial functions and tensors of any size pass."""
    dataset = Numbers(3, [random.Random(3), torch.zeros(1).expand(10**12), int])
    assert 2 == loader(dataset, multiprocessing_context="spawn").num_workers


def test_no_workers_means_the_dataset_itself():
    """Without workers items are what the dataset made, not copies."""
    made = item(1)
    assert [True, True] == [made is got for got in loader(Numbers(2, lambda _: made), num_workers=0)]


def test_pinning_without_workers_asks_for_an_accelerator(monkeypatch):
    """Tensors are pinned where there is an accelerator, and items are left alone elsewhere."""
    assert [0] == [int(got.values[0][0][0]) for got in loader(Numbers(1, item), num_workers=0, pin_memory=True)]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, _=None: tensor + 100)
    assert [100] == [int(got.values[0][0][0]) for got in loader(Numbers(1, item), num_workers=0, pin_memory=True)]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_items_arrive_once_and_in_order(n, num_workers):
    """Lambdas are welcome, since workers are forked."""
    assert list(range(n)) == numbers(loader(Numbers(n, lambda i: tensors(int(i))), num_workers=num_workers))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_items_arrive_from_workers_of_every_kind(method):
    """Two epochs of persistent workers that share nothing with the main process."""
    spawned = loader(Numbers(9), multiprocessing_context=method, persistent_workers=True)
    assert [list(range(9))] * 2 == [numbers(spawned), numbers(spawned)]
    spawned.close()


def test_persistent_workers_stay_and_survive_an_early_end():
    """The same processes serve later epochs, also after one that was left in the middle."""
    kept = loader(Numbers(30), persistent_workers=True)
    assert list(range(30)) == numbers(kept)
    pids = [worker.pid for worker in kept._iterator._workers]
    for _ in range(5):
        iteration = iter(kept)
        assert [0, 1, 2] == numbers(next(iteration) for _ in range(3))
    assert list(range(30)) == numbers(kept)
    assert pids == [worker.pid for worker in kept._iterator._workers]
    kept.close()


def test_two_loaders_and_two_iterations_of_one_do_not_meet():
    """Blocks, status tables and processes belong to one iteration each."""
    first, second = loader(Numbers(20)), loader(Numbers(20, lambda i: tensors(-i)))
    four = zip(first, second, first, second, strict=True)
    assert [(i, -i, i, -i) for i in range(20)] == [tuple(numbers(items)) for items in four]


def test_everything_may_be_kept():
    """All items of an epoch may be alive at once."""
    items = list(loader(Numbers(150)))
    assert list(range(150)) == numbers(items)


def test_a_view_outlives_its_loader():
    """Memory of a batch is valid after the loader and its workers are gone."""
    view = next(iter(loader(Numbers(5))))[0][10:20]
    gc.collect()
    assert [0] * 10 == view.tolist()


def test_an_error_crosses_whole():
    """Class, message, place, cause and the worker's traceback of an error of ours arrive."""
    items = iter(loader(Numbers(10, raise_at_five)))
    assert [0, 1, 2, 3, 4] == numbers(next(items) for _ in range(5))
    with pytest.raises(CorruptShardError) as caught:
        next(items)
    error = caught.value
    assert {"shard": "s-000002.tar", "worker": 1, "split": "train", "rank": 3} == error.where
    assert "bytes are missing" == error.message
    assert "'root'" == str(error.__cause__)
    assert isinstance(error.__cause__.__cause__, WorkerTraceback)
    assert "in raise_at_five" in error.__cause__.__cause__.text
    assert error.__cause__.__cause__.text.startswith("In worker 1, split train, rank 3:\nKeyError: 'root'")


class AwkwardError(Exception):
    """An exception that pickles and does not unpickle, as many do."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("by the user"), ValueError, "^by the user$"),
        (MemoryError(), MemoryError, "^$"),
        (RefusedPickleError("no", key="k"), RefusedPickleError, r"no \(worker=0, split=train, rank=3, key=k\)"),
        (AwkwardError(1, 2), WorkerError, "^AwkwardError: 1 and 2; the cause is shown above"),
        (StopIteration(), RuntimeError, "generator raised StopIteration"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_users_error_keeps_its_class_where_it_can(error, expected, message, monkeypatch):
    """So that code which catches it works with workers as without."""
    # tblib, which Dask installs, teaches pickle all exceptions that there are by then, this awkward one too.
    monkeypatch.delitem(copyreg.dispatch_table, AwkwardError, raising=False)

    def fail(_):
        raise error

    with pytest.raises(expected, match=message) as caught:
        list(loader(Numbers(4, fail)))
    assert expected is type(caught.value)
    causes = [caught.value.__cause__, getattr(caught.value.__cause__, "__cause__", None)]
    assert f"{type(error).__name__}" in "".join(map(str, causes))


def test_an_item_that_does_not_pickle_is_an_error_at_once():
    """Torch's own loader would print a traceback and wait for ever."""
    with pytest.raises(WorkerError, match="cannot be sent to the main process") as caught:
        list(loader(Numbers(4, lambda _: threading.Lock())))
    assert (0, "train") == (caught.value.where["worker"], caught.value.where["split"])


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_an_error_that_names_it_and_what_it_read(persistent):
    """The message has the signal, the likely reason, the remedy and the shard; a new iteration starts anew."""
    dying = loader(Numbers(10, die_at_five), persistent_workers=persistent)
    with pytest.raises(WorkerError) as caught:
        list(dying)
    message = str(caught.value)
    assert "killed by SIGKILL: most often the kernel or the container runs out of memory" in message
    assert "at last it was reading s-000005.tar for " in message
    assert (1, "train", 3) == tuple(caught.value.where[name] for name in ("worker", "split", "rank"))
    assert [] == multiprocessing.active_children()
    anew = iter(dying)
    assert [0] == numbers([next(anew)])
    dying.close()
    anew.close()


def test_a_worker_that_leaves_is_an_error_that_says_how():
    """Somebody called os._exit in a stage."""
    with pytest.raises(WorkerError, match=r"ended with exit code 7: something called os._exit"):
        list(loader(Numbers(10, leave_at_five)))


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from tests.builtins.webloader.test_loader import Numbers, loader
list(loader(Numbers(10), multiprocessing_context={context!r}))
"""


@pytest.mark.parametrize(("context", "source"), [("spawn", "file"), ("spawn", "stdin"), ("forkserver", "file")])
def test_a_worker_that_cannot_import_the_program_is_an_error_that_says_so(context, source, tmp_path):
    """The program has no guard, or no file; no stage is to blame."""
    program = PROGRAM.format(tests=str(Path(__file__).parents[3]), context=context)
    file = tmp_path / "train.py"
    file.write_text(program)
    run = subprocess.run(
        [sys.executable, file] if source == "file" else [sys.executable, "-"],
        check=False,
        input=program,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert 1 == run.returncode
    assert (
        "WorkerError: a worker process ended with exit code 1 before it began: its own error is in the log above; "
        "with spawn and forkserver a worker imports the main program again, so put what trains below "
        '`if __name__ == "__main__":` in a file, and the stages into a module; '
        "a program from stdin or a notebook cannot be imported (worker="
    ) in run.stderr


def test_a_program_with_a_guard_is_imported_by_its_workers(tmp_path):
    """What the message says helps."""
    program = PROGRAM.format(tests=str(Path(__file__).parents[3]), context="spawn")
    file = tmp_path / "train.py"
    file.write_text(program.replace("list(loader", 'if __name__ == "__main__": list(loader'))
    subprocess.run([sys.executable, file], check=True)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_hung_worker_is_an_error_with_its_stack(persistent):
    """After the timeout the message says who hangs, in what, and how to wait longer; nobody is left."""
    hanging = loader(Numbers(10, hang_at_five), timeout=1, persistent_workers=persistent)
    with pytest.raises(WorkerError, match="set a longer timeout in kwargs_wld") as caught:
        list(hanging)
    assert (1, "train", 3) == tuple(caught.value.where[name] for name in ("worker", "split", "rank"))
    assert "which was reading s-000005.tar for" in str(caught.value)
    assert "in hang_at_five" in str(caught.value.__cause__)
    assert "Worker 0 (pid " in str(caught.value.__cause__)
    assert [] == multiprocessing.active_children()


def test_hung_workers_are_noticed_by_default():
    """The default timeout ends before NCCL's own, which would name nobody."""
    assert DEFAULT_TIMEOUT == loader(Numbers(1), timeout=None).timeout
    assert 0 < DEFAULT_TIMEOUT < 600


def test_a_signal_of_the_scheduler_does_not_end_workers():
    """SIGUSR1, which Slurm sends to all processes before the time is up, only writes stacks."""

    def signalled(number):
        os.kill(os.getpid(), signal.SIGUSR1)
        return tensors(number)

    assert list(range(6)) == numbers(loader(Numbers(6, signalled)))


def test_a_users_worker_init_fn_is_called():
    """It gets the worker's number, in the worker."""
    seen = []

    def init(worker):
        seen.append((worker, os.getpid() != parent))

    parent = os.getpid()
    got = list(loader(Numbers(2, lambda _: seen), worker_init_fn=init))
    assert [[(0, True)], [(1, True)]] == got


def test_iterating_leaves_torchs_random_numbers_alone():
    """Torch's own loader would draw from them, so that a model's dropout depended on the loader."""
    torch.manual_seed(4)
    expected = torch.rand(3).tolist()
    torch.manual_seed(4)
    seeds = list(loader(Numbers(2, lambda _: torch.initial_seed())))
    assert expected == torch.rand(3).tolist()
    torch.manual_seed(4)
    assert seeds == list(loader(Numbers(2, lambda _: torch.initial_seed())))


def test_a_status_table_keeps_what_fits():
    """Text is cut at the record's end, and a worker that never wrote is silent."""
    notes = StatusTable(2)
    notes.write(0, "ä" * 2000, 5)
    assert ("ä" * 200, 5) == (notes.read(0).text[:200], notes.read(0).stacks_fd)
    assert ("", -1) == (notes.read(1).text, notes.read(1).stacks_fd)


def test_workers_know_who_they_are():
    """Number and count come from the context, in the worker; a note outside a worker does nothing."""
    context.worker().note("reading")
    assert (0, 0) == (context.worker().number, context.worker().count)
    assert [(0, 2), (1, 2)] == list(loader(Numbers(2, lambda _: (context.worker().number, context.worker().count))))


def test_nothing_is_left_over_after_many_epochs(tmp_path):
    """Fifty epochs, whole, broken off, persistent and failing, leave no descriptor, process, map or warning."""
    script = textwrap.dedent("""
        import gc, multiprocessing, os, sys
        from pathlib import Path
        sys.path.insert(0, os.environ["TESTS"])
        from tests.builtins.webloader.test_loader import Numbers, loader, numbers, raise_at_five
        from bionemo.webdatamodule.builtins.webloader import shared_blocks

        def state():
            gc.collect()
            maps = Path("/proc/self/maps").read_text().count("memfd")
            return len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children()), maps

        def epochs(count):
            for number in range(count):
                assert 12 == len(numbers(kept))
                next(iter(kept))
                if number % 3 == 0:
                    assert 12 == len(numbers(loader(Numbers(12))))
                elif number % 3 == 1:
                    broken_off = iter(loader(Numbers(12)))
                    next(broken_off)
                    broken_off.close()
                else:
                    try:
                        list(loader(Numbers(12, raise_at_five)))
                    except Exception as error:
                        assert "bytes are missing" in str(error)

        kept = loader(Numbers(12), persistent_workers=True)
        epochs(3)
        before = state()
        epochs(50)
        after = state()
        kept.close()
        print(before, after, state()[1])
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TESTS": str(Path(__file__).parents[3]), "TMPDIR": str(tmp_path)},
    )
    assert "" == run.stderr
    before, after, children = ast.literal_eval(run.stdout.replace(") ", "), "))
    assert before[:2] == after[:2]
    assert (2, 0) == (after[1], children)
    assert 2 * shared_blocks.BLOCKS_PER_WORKER >= after[2]
    assert [] == names(tmp_path)


def test_no_worker_outlives_a_killed_main_process():
    """When the main process is killed, its workers end by themselves and their memory with them."""
    script = textwrap.dedent("""
        import os, signal, sys
        sys.path.insert(0, os.environ["TESTS"])
        from tests.builtins.webloader.test_loader import Numbers, loader
        items = iter(loader(Numbers(10**6)))
        kept = [next(items) for _ in range(5)]
        print(*[worker.pid for worker in items._source._workers], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TESTS": str(Path(__file__).parents[3])},
    )
    assert -signal.SIGKILL == run.returncode
    pids = run.stdout.split()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [False, False] == [Path(f"/proc/{pid}").exists() for pid in pids]


def test_the_main_processs_maps_are_let_go_with_the_workers():
    """After an epoch nothing of the workers' memory stays mapped."""
    shared_blocks.release_idle()
    items = iter(loader(Numbers(10)))
    assert list(range(10)) == numbers(items)
    items.close()
    assert {} == shared_blocks._Here.idle


def test_an_interrupt_while_workers_start_comes_when_they_have():
    """Python ignores what is raised right after a fork, so a Ctrl-C there would be lost."""
    reached = []

    def start():
        with sigint.postponed():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert [True] == reached
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)


def frozen(number):
    """Return how many objects a worker's collector leaves alone."""
    return [number, gc.get_freeze_count()]


def test_workers_do_not_look_for_garbage_in_what_they_began_with():
    """All that was there when a worker started is frozen, in the worker alone."""
    before = gc.get_freeze_count()
    ((_, in_worker),) = list(WebLoader(num_workers=1)(Numbers(1, frozen)))
    assert in_worker > 100_000
    assert before == gc.get_freeze_count()


def test_workers_take_interrupts_as_ever():
    """A worker that was forked meanwhile does not go on waiting."""
    handlers = list(loader(Numbers(2, lambda _: signal.getsignal(signal.SIGINT) is signal.default_int_handler)))
    assert [True, True] == handlers


def test_a_loader_gets_to_a_spawned_process():
    """As torch's own does; before and after an iteration."""
    loader = WebLoader(num_workers=1, multiprocessing_context="spawn")(Numbers(3, item))
    assert [0, 1, 2] == [found.number for found in loader]
    spawning = multiprocessing.get_context("spawn")
    answers = spawning.SimpleQueue()
    process = spawning.Process(target=count_items, args=(loader, answers))
    process.start()
    process.join()

    assert 0 == process.exitcode
    assert [0, 1, 2] == answers.get()


def count_items(loader, answers):
    """Put the numbers of a loader's items into a queue."""
    answers.put([found.number for found in loader])


def draw(number):
    """Return an item with a random number."""
    return Item(epoch=0, start=0, worker=0, number=number, values=[torch.rand(1).item()])


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_other_numbers_in_each_iteration(persistent):
    """They follow torch's seed, and leave torch's own numbers alone."""

    def epochs():
        torch.manual_seed(3)
        loader = WebLoader(num_workers=1, persistent_workers=persistent)(Numbers(2, draw))
        found = [tuple(made.values[0] for made in loader) for _ in range(3)]
        loader.close()
        return found, torch.rand(1).item()

    (first, own), again = epochs(), epochs()
    torch.manual_seed(3)
    assert 3 == len(set(first))
    assert (first, own) == again
    assert own == torch.rand(1).item()
