"""Uploads of finished shards into a place without data, while the next shards are made."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from concurrent import futures

from bionemo.webdatamodule._engine.format.manifest import journal_path, manifest_path
from bionemo.webdatamodule._engine.storage.remote.target import RemoteTarget
from bionemo.webdatamodule._engine.storage.target import Target
from bionemo.webdatamodule._engine.writing.publish import Check, clear, staged_files
from bionemo.webdatamodule.errors import ConversionError, RemoteError


class EarlyUploads:
    """Uploads of one split.

    A journal that lists nothing is put before the first shard. So readers refuse the place, and after a conversion
    that was killed the next one removes what is there.

    Args:
        target: Where shards go.
        names: For the inputs of each shard its name.
        check: Raises where this process may no longer change the target.
    """

    def __init__(self, target: RemoteTarget, names: Mapping[str, str], check: Check) -> None:
        self._target = target
        self._names = names
        self._check = check
        self._journal = json.dumps({"begun": uuid.uuid4().hex}).encode()
        self._pool = futures.ThreadPoolExecutor(target.at_once)
        self._running: list[futures.Future[list[str]]] = []

    def put(self, inputs: str) -> None:
        """Upload a staged shard in the background."""
        with contextlib.suppress(RuntimeError):  # the conversion has failed already
            self._running.append(self._pool.submit(self._put, inputs))

    def finish(self) -> set[str]:
        """Wait for the uploads, and return the names of the files that are in place.

        Raises:
            ConversionError: If another machine began to convert into the same place.
            RemoteError: If an upload failed.
        """
        names = {name for future in self._running for name in future.result()}
        self._check_journal()
        return names

    def begin(self) -> None:
        """Put the journal."""
        self._target.directory.put(self._journal, journal_path("", self._target.prefix))

    def close(self, *, failed: bool) -> None:
        """End the uploads, and remove everything where the conversion failed."""
        self._pool.shutdown(cancel_futures=failed)
        if failed:
            with contextlib.suppress(RemoteError):  # the next conversion does it
                if self._is_ours():
                    clear(self._target, check=self._check)

    def _put(self, inputs: str) -> list[str]:
        self._check_journal()
        self._check()
        files = staged_files(self._target, inputs, self._names[inputs])
        for path, name in files:  # the index first: it says that the shard is a conversion's
            self._target.put(path, name)
        return [name for _, name in files]

    def _is_ours(self) -> bool:
        return self._target.read(journal_path("", self._target.prefix)) == self._journal

    def _check_journal(self) -> None:
        if not self._is_ours():
            raise ConversionError(f"another machine is converting into {self._target}; let one do it and run it again")


@contextlib.contextmanager
def early_uploads(target: Target, names: Mapping[str, str], check: Check) -> Iterator[EarlyUploads | None]:
    """Upload shards while others are made, where no reader or conversion has anything at the target yet.

    Args:
        target: Where shards go.
        names: See :class:`EarlyUploads`.
        check: See :class:`EarlyUploads`.

    Yields:
        The uploads, or ``None`` where shards are put into place when all are made.
    """
    if not isinstance(target, RemoteTarget) or target.read(manifest_path("", target.prefix)) or target.sizes():
        yield None
        return
    uploads = EarlyUploads(target, names, check)
    failed = True
    try:
        uploads.begin()
        yield uploads
        failed = False
    finally:
        uploads.close(failed=failed)
