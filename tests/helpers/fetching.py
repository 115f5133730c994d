"""Waiting for what is fetched in the background."""

import threading


def wait_for_background():
    """Wait until nothing is fetched ahead any more; each thread may start another before it ends."""
    while threads := [thread for thread in threading.enumerate() if thread.name == "webdatamodule-fetch"]:
        for thread in threads:
            thread.join()
