"""Running the examples of a Markdown file, so that what it says stays true."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A Python block of a Markdown file.

    Attributes:
        code: The code.
        output: What it has to print: the ``text`` block right behind it; ``None`` where there is none.
        line: Line of the file on which the code begins.
    """

    code: str
    output: str | None
    line: int


def examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Yield the Python blocks of a Markdown file in their order."""
    text = Path(path).read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block["language"] == "python":
            shown = following["text"] if following and following["language"] == "text" else None
            yield Example(code=block["text"], output=shown, line=text.count("\n", 0, block.start("text")) + 1)


def run_examples(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> int:
    """Run the Python blocks of a Markdown file one after the other, in one namespace, as a reader would.

    Args:
        path: The Markdown file.
        directory: Where to run them; relative paths in the examples lie there.

    Returns:
        How many blocks ran.

    Raises:
        AssertionError: If a block prints something else than the file says, or there is none.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    count = 0
    before = Path.cwd()
    os.chdir(directory)
    try:
        for example in examples(before / path):
            printed = io.StringIO()
            code = compile("\n" * (example.line - 1) + example.code, str(path), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            if example.output is not None and printed.getvalue() != example.output:
                raise AssertionError(
                    f"{path}, line {example.line}, prints\n{printed.getvalue()}\nand not\n{example.output}"
                )
            count += 1
    finally:
        os.chdir(before)
    if not count:
        raise AssertionError(f"{path} has no Python example")
    return count
