"""A file layer that fails, dies or forgets at a chosen operation, to test that data survive it.

The conversion changes the disk only through :mod:`bionemo.webdatamodule._engine.storage.filesystem`.
While a :class:`Faults` is entered, it stands between that module and the disk::

    plain = Faults()
    with plain:
        convert(...)
    for number in range(len(plain.operations)):
        with Faults(at=number, kind="kill"):
            convert(...)
        # Look at the directory: it holds the old data, the new data, or is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from unittest import mock

from bionemo.webdatamodule._engine.storage import filesystem, lock

Kind = Literal["error", "full", "kill", "torn", "power"]
"""What happens at the chosen operation.

``error``: it fails with an input/output error, and nothing else does.
``full``: it fails for want of space, and so does all that needs more space from then on.
``kill``: the process dies before it.
``torn``: the process dies in the middle of it, which leaves half of a write.
``power``: the machine dies before it: what was not synced, bytes and names, is gone.
"""

_OPERATIONS = (
    "make_directory",
    "create",
    "write",
    "sync",
    "close",
    "replace",
    "make_link",
    "touch",
    "remove",
    "remove_empty_directory",
    "sync_directory",
)
_GROWING = frozenset({"make_directory", "create", "write", "make_link"})


_F = TypeVar("_F", bound="Faults")


class KilledError(BaseException):
    """What a process that dies looks like from inside; nothing that it does afterwards reaches the disk."""


class Faults:
    """Counts the operations on the disk and lets one of them go wrong, as a context manager.

    A :class:`KilledError` is swallowed at the end of the ``with`` block, other errors are not.

    Args:
        at: Number of the operation, from 0; ``None`` for none.
        kind: See :data:`Kind`.

    Attributes:
        operations: Name and first argument of each operation so far.
    """

    def __init__(self, *, at: int | None = None, kind: Kind = "kill") -> None:
        self.operations: list[tuple[str, object]] = []
        self._at = at
        self._kind = kind
        self._dead = False
        self._full = False
        self._patches = contextlib.ExitStack()
        self._memory: _Memory | None = None
        self._real = {name: getattr(filesystem, name) for name in _OPERATIONS}
        self._real["sync"] = self._real["sync_directory"] = lambda _: None  # this machine does not really die

    def __enter__(self: _F) -> _F:
        for name in _OPERATIONS:
            self._patches.enter_context(mock.patch.object(filesystem, name, self._wrapped(name)))
        # A process that died here would leave a lease whose owner is gone; so must one that only seems to die.
        identity = {**lock._identity(), "started": "never"}
        self._patches.enter_context(mock.patch.object(lock, "_identity", return_value=identity))
        if self._kind == "power":
            shadows = self._patches.enter_context(tempfile.TemporaryDirectory())
            self._memory = _Memory(shadows, self._real)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._memory is not None:
            self._memory.end(forget=self._dead)
        self._patches.close()
        return isinstance(error, KilledError)

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def operation(*args: Any) -> Any:
            if self._dead:
                if name == "close":
                    self._real[name](*args)
                raise KilledError
            number = len(self.operations)
            self.operations.append((name, args[0]))
            if number == self._at:
                self._strike(name, args)
            if self._full and name in _GROWING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[-1])[:200])
            do = self._real[name] if self._memory is None else getattr(self._memory, name, self._real[name])
            return do(*args)

        return operation

    def _strike(self, name: str, args: tuple[Any, ...]) -> None:
        if self._kind == "full":
            self._full = True
        elif self._kind == "error":
            if name == "close":
                self._real[name](*args)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
        else:
            self._dead = True
            if name == "write" and self._kind == "torn":
                self._real[name](args[0], args[1][: len(args[1]) // 2])
            if name == "close":
                self._real[name](*args)
            raise KilledError


class _Memory:
    """Knows what was synced, and can take the disk back to it."""

    def __init__(self, shadows: str, real: dict[str, Callable[..., Any]]) -> None:
        self._shadows = Path(shadows)
        self._real = real
        self._duplicates: dict[int, int] = {}  # descriptor -> one of ours for the same file
        self._synced: dict[int, int] = {}  # our descriptor -> bytes that were synced
        self._undo: list[tuple[str, Callable[[], None]]] = []  # directory, what takes its change back

    def create(self, path: str) -> int:
        self._note(path, lambda: self._real["remove"](path))
        descriptor: int = self._real["create"](path)
        duplicate = os.dup(descriptor)
        self._duplicates[descriptor] = duplicate
        self._synced[duplicate] = 0
        return descriptor

    def sync(self, descriptor: int) -> None:
        duplicate = self._duplicates[descriptor]
        self._synced[duplicate] = os.fstat(duplicate).st_size

    def replace(self, source: str, target: str) -> None:
        shadow, rename = self._shadow(target), self._real["replace"]
        rename(source, target)

        def back() -> None:
            rename(target, source)
            if shadow is not None:
                rename(shadow, target)

        self._note(target, back)

    def remove(self, path: str) -> None:
        shadow = self._shadow(path)
        self._real["remove"](path)
        if shadow is not None:
            self._note(path, lambda: self._real["replace"](shadow, path))

    def make_directory(self, path: str, mode: int) -> None:
        self._real["make_directory"](path, mode)
        self._note(path, lambda: shutil.rmtree(path))

    def make_link(self, text: str, path: str) -> bool:
        made: bool = self._real["make_link"](text, path)
        if made:
            self._note(path, lambda: self._real["remove"](path))
        return made

    def sync_directory(self, path: str) -> None:
        self._undo = [(directory, undo) for directory, undo in self._undo if directory != os.path.realpath(path)]

    def end(self, *, forget: bool) -> None:
        """Let go of all files, and if asked to, take the disk back to what was synced before."""
        for duplicate, size in self._synced.items():
            if forget:
                os.ftruncate(duplicate, size)
            os.close(duplicate)
        for _, undo in reversed(self._undo if forget else []):
            with contextlib.suppress(FileNotFoundError):
                undo()

    def _note(self, path: str, undo: Callable[[], None]) -> None:
        self._undo.append((os.path.realpath(Path(path).parent), undo))

    def _shadow(self, path: str) -> str | None:
        shadow = str(self._shadows / str(len(list(self._shadows.iterdir()))))
        try:
            os.link(path, shadow, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return shadow
