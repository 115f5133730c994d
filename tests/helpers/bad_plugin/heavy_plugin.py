"""A plugin that imports at once what only its work needs."""

import tqdm
from bad_plugin import Good

from bionemo.webdatamodule import Writer, hookimpl


@hookimpl
def webdatamodule_writers():
    """Register a writer that uses the package."""
    yield Writer(name="heavy", summary=f"a writer for {tqdm.__name__}", factory=Good)
