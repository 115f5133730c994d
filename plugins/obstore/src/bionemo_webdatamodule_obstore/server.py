"""What a helper process runs: it answers many requests at once, and imports as little as it can."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import sys
import threading
from collections.abc import Sequence
from concurrent import futures
from typing import IO, Any

from bionemo_webdatamodule_obstore.client import Client

_LENGTH = struct.Struct("<q")  # what each message begins with: its bytes
_THREADS = 64


def serve() -> None:
    """Answer requests on standard input until it is closed."""
    client, sending = Client(), threading.Lock()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr

    def answer(number: int, name: str, arguments: Any) -> None:
        found: Any = None
        error: BaseException | None = None
        blocks: Sequence[memoryview] = ()
        try:
            found = getattr(client, name)(*arguments)
            if name == "ranges":
                found, blocks = None, found
        except BaseException as raised:  # noqa: BLE001 - the caller gets it; obstore's panics are no Exception
            error = raised if _pickles(raised) else OSError(f"{type(raised).__name__}: {raised}")
        head = packed((number, found, error, [len(block) for block in blocks]))
        with sending:
            answers.write(head)
            for block in blocks:
                answers.write(block)
            answers.flush()

    with futures.ThreadPoolExecutor(_THREADS) as pool, contextlib.suppress(EOFError, OSError):
        while True:
            number, (name, arguments) = received(requests)
            pool.submit(answer, number, name, arguments)
    os._exit(0)


def packed(value: Any) -> bytes:
    """Return a value as a message."""
    data = pickle.dumps(value)
    return _LENGTH.pack(len(data)) + data


def received(stream: IO[bytes]) -> Any:
    """Return the value of the next message of a stream.

    Raises:
        EOFError: If the stream ends before.
    """
    return pickle.loads(_exactly(stream, _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _pickles(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever it is, it cannot be sent
        return False
    return True
