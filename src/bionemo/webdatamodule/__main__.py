"""``python -m bionemo.webdatamodule`` is the ``webdatamodule`` command."""

from __future__ import annotations

import sys

from bionemo.webdatamodule._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
