"""A process that holds the client of a process which may fork: many threads ask it, and it ends with them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent import futures
from typing import IO, Any

from bionemo_webdatamodule_obstore.server import packed, received

_PIPE_BYTES = 1 << 20  # what a user may have on Linux
_COMMAND = "import sys; sys.path[:] = {path!r}; from bionemo_webdatamodule_obstore.server import serve; serve()"


class Helper:
    """Calls methods of a ``Client`` in a process of its own. It is used by several threads."""

    def __init__(self) -> None:
        command = _COMMAND.format(path=list(map(str, sys.path)))  # Python would look into the working directory first
        self._process = subprocess.Popen(  # noqa: S603 - our own code in this interpreter
            [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _enlarge(self._process.stdout)
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._waiting: dict[int, tuple[futures.Future[Any], Sequence[memoryview]]] = {}
        self._number = 0
        threading.Thread(target=_receive, args=(self._process.stdout, self._waiting), daemon=True).start()
        weakref.finalize(self, _stop, self._process, self._pid)

    def is_alive(self) -> bool:
        """Return whether the process runs and is this process's own."""
        return self._pid == os.getpid() and self._process.poll() is None

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what a method returns, or raise what it raises."""
        return self._send((name, arguments), ()).result()

    def read(self, url: str, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
        """Read byte ranges of a file into memory."""
        self._send(("ranges", (url, list(ranges))), into).result()

    def _send(self, request: Any, into: Sequence[memoryview]) -> futures.Future[Any]:
        done: futures.Future[Any] = futures.Future()
        with self._sending:
            self._number += 1
            self._waiting[self._number] = done, into
            message = packed((self._number, request))
            assert self._process.stdin is not None  # noqa: S101 - it is a pipe
            try:
                self._process.stdin.write(message)
                self._process.stdin.flush()
            except OSError as error:
                del self._waiting[self._number]
                raise ConnectionError("the process that holds the store's client ended") from error
        return done


def _enlarge(pipe: Any) -> None:
    """Let more bytes pass at a time, where the system can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _receive(stream: IO[bytes], waiting: dict[int, tuple[futures.Future[Any], Sequence[memoryview]]]) -> None:
    """Take answers, and bytes straight into the memory that waits for them."""
    with contextlib.suppress(EOFError, OSError, ValueError):
        while True:
            number, found, error, lengths = received(stream)
            done, into = waiting.pop(number)
            for place, length in enumerate(lengths):
                memory = into[place] if length == len(into[place]) else memoryview(bytearray(length))
                while memory:
                    count = stream.readinto(memory)  # type: ignore[attr-defined]  # buffered readers have it
                    if not count:
                        raise EOFError
                    memory = memory[count:]
            if error is None:
                done.set_result(found)
            else:
                done.set_exception(error)
    for done, _ in list(waiting.values()):
        if not done.done():
            done.set_exception(ConnectionError("the process that holds the store's client ended"))
    waiting.clear()


def _stop(process: subprocess.Popen[bytes], pid: int) -> None:
    if pid == os.getpid():
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
