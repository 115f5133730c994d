"""Runs scripts in new processes, forked from one that has imported Lightning, since importing it takes seconds."""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

PRELOADED = ["lightning.pytorch", "bionemo.webdatamodule.datamodule"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a script, as of :func:`subprocess.run`; the texts of several ranks follow each other."""

    returncode: int
    stdout: str
    stderr: str


def start(script, *arguments, directory=None, environment=None, output=os.devnull):
    """Start a script in a process and session of its own, and return the process.

    Args:
        script: Path of the script.
        arguments: Its arguments.
        directory: Its working directory; by default this one.
        environment: Variables on top of this process's.
        output: Where its standard output goes; its standard error goes to the same name with ``.err``.
    """
    environment = {**os.environ, **(environment or {})}
    process = _context.Process(
        target=_run,
        args=([str(script), *map(str, arguments)], str(directory or Path.cwd()), environment, str(output)),
    )
    process.start()
    return process


def run(script, *arguments, ranks=1, timeout=300, **more):
    """Run a script to its end, and return what came of it.

    Args:
        script: Path of the script.
        arguments: Its arguments.
        ranks: Processes, which find their places in the variables that Lightning reads.
        timeout: Seconds after which it is killed and the test fails.
        more: Other arguments of :func:`start`.
    """
    with tempfile.TemporaryDirectory() as directory:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        places = [shared | {"LOCAL_RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]
        processes = [
            start(script, *arguments, environment=place, output=Path(directory, str(rank)), **more)
            for rank, place in enumerate(places)
        ]
        try:
            for process in processes:
                process.join(timeout)
            assert not any(process.is_alive() for process in processes), f"{script} did not end in {timeout} s"
        finally:
            for process in processes:
                process.kill()
                process.join()
        texts = ["".join(Path(directory, f"{rank}{end}").read_text() for rank in range(ranks)) for end in ("", ".err")]
    codes = [process.exitcode for process in processes]
    return Done(returncode=next(filter(None, codes), 0), stdout=texts[0], stderr=texts[1])


def _run(words, directory, environment, output):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    for number, path in ((1, output), (2, output if output == os.devnull else f"{output}.err")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method(None, force=True)  # the default again, not that of this process
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
