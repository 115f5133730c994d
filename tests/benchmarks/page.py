"""Measure everything and write the page of benchmarks, for a quiet machine.

    python tests/benchmarks/page.py [options of read.py and convert.py]

It takes about two hours for the default rounds of all libraries; ``--quick`` shows in minutes whether those two run,
and leaves ``shards.py`` and ``pipelines.py`` out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/reference/benchmarks.md"


def main(arguments: list[str]) -> int:
    """Run one script after the other, since two at a time would disturb each other."""
    for script in ("read.py", "convert.py"):
        subprocess.run([sys.executable, str(HERE / script), "--markdown", str(PAGE), *arguments], check=True)
    for script in () if "--quick" in arguments else ("shards.py", "pipelines.py"):
        subprocess.run([sys.executable, str(HERE / script), "--markdown", str(PAGE)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
