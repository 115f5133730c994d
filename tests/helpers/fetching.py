"""Waiting for what is fetched in the background."""

from bionemo.webdatamodule._engine.storage.remote.retry import _background


def wait_for_background():
    """Wait until nothing is fetched ahead any more; each thread may start another before it ends."""
    while running := list(_background):
        for ended in running:
            ended.wait()
