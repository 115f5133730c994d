"""What is logged: under one name, decisions once and trouble everywhere, and nothing before somebody asks."""

import ast
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bionemo.webdatamodule
from bionemo.webdatamodule import PickledDataWDS, WebDataModule, context
from bionemo.webdatamodule._engine import log
from bionemo.webdatamodule._engine.reading.reader import ShardReader, ShardSet

NAME = "bionemo.webdatamodule"
SOURCE = Path(bionemo.webdatamodule.__file__).parent
LAUNCHERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """Tests are rank 0 unless they say otherwise."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return the prefix of a directory of 16 samples in 2 shards."""
    directory = tmp_path_factory.mktemp("logging")
    names = [f"s{number:02d}" for number in range(16)]
    for name in names:
        (directory / f"{name}.x.pyd").write_bytes(pickle.dumps(torch.tensor([1.0])))
    PickledDataWDS(
        str(directory), "x.pyd", {"train": names}, f"{directory}/", 4, n_tars_wds=2, executor="serial"
    ).prepare_data()
    return f"{directory}/"


@pytest.fixture
def said(caplog):
    """Return a function that returns what was logged so far, as pairs of level and message."""
    caplog.set_level(logging.DEBUG, logger=NAME)
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records if record.name == NAME]


def modules():
    """Return the modules of the package, without those that are templates of other packages."""
    return [path for path in sorted(SOURCE.rglob("*.py")) if "templates" not in path.relative_to(SOURCE).parts]


def calls(path):
    """Yield the calls in a module: what is called as text, and its arguments."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.args


def test_there_is_one_logger():
    """Every logger that the package makes has the package's name, and the root logger is left alone."""
    for path in modules():
        if path.name == "demo.py":  # which makes Lightning quiet
            continue
        for name, arguments in calls(path):
            if name.endswith("getLogger"):
                assert [NAME] == [ast.literal_eval(argument) for argument in arguments], path
            beginning, _, method = name.partition(".")
            assert beginning != "logging" or method == "getLogger", f"{path} calls {name}"


def test_only_commands_print():
    """Everything else logs, warns or raises."""
    printing = {str(path.relative_to(SOURCE)) for path in modules() for name, _ in calls(path) if name == "print"}
    assert [] == sorted(name for name in printing if not name.startswith("_cli/"))


def test_information_that_is_no_decision_is_not_logged_as_one():
    """At the level INFO there are decisions, told by rank 0, and nothing else."""
    direct = [
        str(path.relative_to(SOURCE)) for path in modules() for name, _ in calls(path) if name.lower() == "_log.info"
    ]
    assert [] == direct


def test_importing_changes_no_logging():
    """No handler, no level and no filter is set, and nothing is logged: that is up to the program."""
    program = f"""
import importlib, logging, pathlib
for path in sorted(pathlib.Path({str(SOURCE)!r}).rglob("*.py")):
    parts = path.relative_to({str(SOURCE)!r}).with_suffix("").parts
    if "templates" in parts[1:] or parts[-1] in ("__main__",) or "testing" in parts:
        continue
    importlib.import_module(".".join(["bionemo.webdatamodule", *(p for p in parts if p != "__init__")]))
logger = logging.getLogger("bionemo.webdatamodule")
assert not logger.handlers and not logger.filters and logger.propagate and logger.level == logging.NOTSET
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "" == done.stderr
    assert 0 == done.returncode


def test_each_decision_is_one_line(shards, said):
    """Order and workers: a line each, with what and why."""
    module = WebDataModule({"train": f"{shards}train"}, None, "x.pyd", 4, kwargs_wld={"train": {"num_workers": 1}})
    module.setup("fit")
    module.train_dataloader()
    assert [
        ("INFO", "train: 16 samples in 2 shards, order='global' since kwargs_wds names no shard argument"),
        ("INFO", "train: 1 worker, started by fork"),
    ] == said()


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_other_ranks_tell_decisions_to_those_who_debug(shards, said, monkeypatch, variable):
    """They decide the same, so that a thousand ranks do not say it a thousand times."""
    monkeypatch.setenv(variable, "3")
    WebDataModule({"train": f"{shards}train"}, None, "x.pyd", 4).setup("fit")
    assert ["DEBUG"] == [level for level, _ in said()]


def test_warnings_come_from_every_rank(shards, tmp_path, said, monkeypatch):
    """Trouble is told by whoever has it."""
    monkeypatch.setenv("RANK", "3")
    directory = tmp_path / "train"
    directory.mkdir()
    for path in Path(f"{shards}train").glob("wdshards-*.tar"):  # without manifest, so that damage shows when reading
        data = bytearray(path.read_bytes())
        data[512:520] = b"\xff" * 8
        (directory / path.name).write_bytes(data)
    reader = ShardReader([ShardSet.open(directory, "wdshards")], ["x.pyd"], on_error="skip")
    assert 14 == len(reader.read(torch.arange(16).numpy()))
    warnings = [message for level, message in said() if level == "WARNING"]
    assert 2 == len(warnings)
    assert all("left out a sample" in message for message in warnings)


def test_the_rank_of_torch_comes_first(monkeypatch):
    """Where processes are connected, their number there decides."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not log.is_first()


def test_only_the_first_worker_tells():
    """All workers of a loader see the same."""
    with context.working(context.Worker(number=1, count=2)):
        assert not log.is_first()
    with context.working(context.Worker(number=0, count=2)):
        assert log.is_first()


def test_a_line_is_said_to_come_from_who_decided(caplog):
    """Not from the function that logs it."""
    caplog.set_level(logging.INFO, logger=NAME)
    log.decided("%d of %d", 1, 2)
    (record,) = caplog.records
    assert ("test_log.py", "1 of 2") == (record.filename, record.getMessage())
