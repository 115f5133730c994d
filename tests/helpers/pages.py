"""What the examples of the documentation work on, and how a page of it is read and run."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch

from bionemo.webdatamodule import PickledDataWDS
from bionemo.webdatamodule._cli import main

ROOT = Path(__file__).parents[2]
_PART = re.compile(
    r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$|^<!-- (?P<word>setup|file): (?P<names>.+?) -->$",
    re.MULTILINE | re.DOTALL,
)
NAMES = [f"s{i:02d}" for i in range(40)]


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: As written behind the fence.
        text: What is in it.
        line: Where it begins.
        setup: What is to be there before, by name in :data:`SETUPS`.
        file: The file that it shows; ``None`` where it shows none.
        output: The ``text`` block right behind it.
    """

    language: str
    text: str
    line: int
    setup: tuple[str, ...]
    file: str | None
    output: str | None


def script(name: str) -> Any:
    """Return a module of the documentation's directory."""
    path = str(ROOT / "docs")
    sys.path.insert(0, path)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(path)


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of a page in their order."""
    setup: tuple[str, ...] = ()
    file = None
    parts = list(_PART.finditer(text))
    for part, following in itertools.zip_longest(parts, parts[1:]):
        if part["word"] == "file":
            file = part["names"]
        elif part["word"]:
            setup += tuple(part["names"].split())
        else:
            shown = following["text"] if following and following["language"] == "text" else None
            line = text.count("\n", 0, part.start("text")) + 1
            yield Block(language=part["language"], text=part["text"], line=line, setup=setup, file=file, output=shown)
            setup, file = (), None


def run_page(page: str, text: str) -> list[str]:
    """Run what can be run of a page, in the current directory, as a reader would; return the languages of what ran.

    Python blocks share a namespace. Of shell blocks the ``webdatamodule`` commands run, and ``python`` with a script,
    in a process of its own, where a block of the page is that script: ``<!-- file: train.py -->``.

    Raises:
        AssertionError: If something prints other than the page says, or a command does not end with 0.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran = []
    for block in blocks_of(text):
        for name in block.setup:
            SETUPS[name](namespace)
        if block.file:
            Path(block.file).write_text(block.text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python":
                code = compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True)
                exec(code, namespace)
            elif block.language == "bash":
                for program, *words in commands(block.text):
                    if program == "python":
                        run_script(words)
                    else:
                        assert 0 == main.main(words), f"{page}: {shlex.join(words)}"
            else:
                continue
        ran.append(block.language)
        if block.output is not None:
            found = printed.getvalue()
            assert block.output == found, f"{page}, line {block.line} prints\n{found}"
    return ran


def run_script(words: list[str]) -> None:
    """Run Python on a script in the current directory, and print what it prints.

    Raises:
        AssertionError: If it does not end with 0.
    """
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, timeout=300)
    assert 0 == done.returncode, f"python {shlex.join(words)} ends with {done.returncode}:\n{done.stdout}{done.stderr}"
    print(done.stdout, end="")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a shell block that runs, the demo left out."""
    for line in text.splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True) or [""]
            script = words[0] == "python" and words[1].endswith(".py") and Path(words[1]).exists()
            if script or (words[0] == "webdatamodule" and words[1:] != ["demo"]):
                yield words


class Model(L.LightningModule):
    """Learns one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        """Take a step."""
        return (self.weight - batch.float().mean()) ** 2

    def validation_step(self, batch, batch_idx):
        """Do nothing."""

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _pickles(namespace: dict[str, Any]) -> None:
    """Write 40 small tensors."""
    Path("pickles").mkdir()
    for i, name in enumerate(NAMES):
        Path(f"pickles/{name}.tensor.pyd").write_bytes(pickle.dumps(torch.full((3,), float(i))))
    namespace["names"] = list(NAMES)


def _shards(namespace: dict[str, Any]) -> None:
    """Write them to shards of three splits."""
    _pickles(namespace)
    splits = {"train": NAMES[:24], "val": NAMES[24:32], "test": NAMES[32:]}
    _convert("pickles", "tensor.pyd", splits, "shards-")


def _model(namespace: dict[str, Any]) -> None:
    namespace.update(Model=Model, model=Model())


def _sequences(namespace: dict[str, Any]) -> None:
    """Write sequences of 1 to 120 tokens to shards."""
    del namespace
    Path("sequences").mkdir()
    for i, name in enumerate(NAMES):
        Path(f"sequences/{name}.tokens.pyd").write_bytes(pickle.dumps(torch.arange(1 + 3 * i)))
    _convert("sequences", "tokens.pyd", {"train": NAMES}, "sequences-")


def _points(namespace: dict[str, Any]) -> None:
    """Write objects of a class of somebody's own to shards."""
    del namespace
    Path("geometry.py").write_text("class Point:\n    def __init__(self, x):\n        self.x = x\n")
    sys.path.insert(0, str(Path.cwd()))
    try:
        geometry = importlib.import_module("geometry")
    finally:
        sys.path.remove(str(Path.cwd()))
    Path("points").mkdir()
    for name in NAMES[:4]:
        Path(f"points/{name}.point.pyd").write_bytes(pickle.dumps(geometry.Point(1)))
    _convert("points", "point.pyd", {"train": NAMES[:4]}, "points-", allow_pickle=["geometry.Point"])


def _remote(namespace: dict[str, Any]) -> None:
    """Put shards into a file system in memory."""
    import fsspec

    _pickles(namespace)
    _convert("pickles", "tensor.pyd", {"train": NAMES[:24]}, "")
    memory = fsspec.filesystem("memory")
    for path in Path("train").iterdir():
        memory.pipe_file(f"/bucket/train/{path.name}", path.read_bytes())


def _text(namespace: dict[str, Any]) -> None:
    del namespace
    Path("corpus.txt").write_text("one\ntwo\nthree\nfour\n")


def _readme(namespace: dict[str, Any]) -> None:
    """Give what the README takes for granted: pickles, names, a model, a function."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    _pickles(namespace)
    _model(namespace)
    namespace.update(train_names=NAMES[:32], val_names=NAMES[32:], augment=torch.neg, ModelCheckpoint=ModelCheckpoint)


def _convert(directory: str, suffix: str, splits: Mapping[str, list[str]], prefix: str, **kwargs: Any) -> None:
    PickledDataWDS(directory, suffix, splits, prefix, 8, n_tars_wds=2, executor="serial", **kwargs).prepare_data()


SETUPS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "model": _model,
    "pickles": _pickles,
    "points": _points,
    "readme": _readme,
    "remote": _remote,
    "sequences": _sequences,
    "shards": _shards,
    "text": _text,
}
"""What examples work on, by the names that pages give in ``<!-- setup: … -->``."""
