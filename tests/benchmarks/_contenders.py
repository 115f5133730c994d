"""Who takes part: titles, environments and the child processes that do the work."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _peers import PEERS, InstallError, environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _data import Source

HERE = Path(__file__).parent
OWN = ("ours", "floor")


class ContenderError(Exception):
    """A contender failed, died or took too long."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a table.

    Attributes:
        title: What the table calls it.
        peer: Environment: a name in ``PEERS``, or "ours" and "floor" for the Python that runs the benchmark.
        variant: What the arm is asked to do.
        order: "in order" or "shuffled"; empty where it does not apply.
    """

    title: str
    peer: str
    variant: str
    order: str = ""

    @property
    def arm(self) -> str:
        """Module of ``_arms``."""
        return {"bionemo-webdatamodule": "bionemo_webdatamodule_1"}.get(self.peer, self.peer.replace("-", "_"))


class Child:
    """A contender's process in its own environment; answers one request at a time."""

    def __init__(self, python: Path, arm: str, scratch: Path, *, timeout: float) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / "log.txt"
        self.timeout = timeout
        environ = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
        if python != Path(sys.executable):
            environ.pop("PYTHONPATH", None)  # what leads to this package must not lead a peer to it
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, HERE / "_child.py", arm, scratch],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                text=True,
                start_new_session=True,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ContenderError: It failed (with what it said), died, or did not answer in time; it is ended then.
        """
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self.timeout)
            line = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line, ready = "", [process.stdout]
        if not line:
            self.end()
            what = f"died; see {self.log}" if ready else f"no answer within {self.timeout:.0f} s"
            raise ContenderError(what)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def end(self) -> None:
        """Close its input, which ends it; kill it where that does not help."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()


class Field:
    """All contenders of a benchmark, with one process for each environment."""

    def __init__(self, contenders: Sequence[Contender], cache: Path, *, timeout: float = 900) -> None:
        self.contenders = list(contenders)
        self.absent: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self._children: dict[str, Child] = {}
        self._cache, self._timeout = cache, timeout
        for contender in contenders:
            if contender.peer not in self._children and contender.peer not in self.absent:
                try:
                    self.versions[contender.peer] = self.child(contender).ask("hello")["versions"]
                except (InstallError, ContenderError) as error:
                    self.absent[contender.peer] = str(error)
        self.contenders = [one for one in contenders if one.peer not in self.absent]

    def child(self, contender: Contender) -> Child:
        """The process of a contender's environment, started again if it died."""
        peer = contender.peer
        child = self._children.get(peer)
        if child is None or not child.alive:
            python = Path(sys.executable) if peer in OWN else environment(PEERS[peer], self._cache)
            scratch = self._cache / "converted" / peer
            child = self._children[peer] = Child(python, contender.arm, scratch, timeout=self._timeout)
        return child

    def ask(self, contender: Contender, do: str, source: Source, **arguments: Any) -> dict[str, Any]:
        """Ask a contender about a data set."""
        return self.child(contender).ask(do, source=asdict(source), variant=contender.variant, **arguments)

    def close(self) -> None:
        """End all processes."""
        for child in self._children.values():
            child.end()


def choose(contenders: Iterable[Contender], peers: Sequence[str] | None) -> list[Contender]:
    """The contenders of the named peers, or all."""
    return [one for one in contenders if peers is None or one.peer in peers]
