"""One virtual environment for each peer, made on first use and kept in a cache directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A published library that the benchmarks compare with.

    Attributes:
        name: Name and version of the distribution.
        version: Its version.
        extra: What it needs and does not declare.
        probe: Statement that works where the installation does.
    """

    name: str
    version: str
    probe: str
    extra: tuple[str, ...] = ()

    @property
    def requirements(self) -> list[str]:
        """Arguments for pip."""
        return [f"{self.name}=={self.version}", *self.extra]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="bionemo-webdatamodule",
            version="1.0.0",
            probe="import bionemo.webdatamodule.datamodule",
            extra=("lightning",),
        ),
        Peer(name="webdataset", version="1.0.2", probe="import webdataset"),
        Peer(name="litdata", version="0.2.76", probe="import litdata"),
        Peer(name="mosaicml-streaming", version="0.13.0", probe="import streaming"),
        Peer(name="megatron-energon", version="7.4.1", probe="import megatron.energon"),
    )
}


class InstallError(Exception):
    """A peer could not be installed; the message ends with what pip or Python said last."""


def default_cache() -> Path:
    """Directory of the user's cache that environments and data go to."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bionemo-webdatamodule" / "benchmarks"


def environment(peer: Peer, cache: Path) -> Path:
    """The Python of a peer's environment, which is made unless an earlier call finished making it.

    All peers get the same torch. Where a peer's other dependencies do not work with it (a torchvision built for
    another torch), the peer gets the torch that pip picks; the report names everybody's version.

    Raises:
        InstallError: Neither way gave an environment in which the peer can be imported.
    """
    home = cache / "environments" / f"{peer.name}-{peer.version}"
    python = home / "bin" / "python"
    receipt = home / "ready.json"
    if receipt.exists():
        return python
    for requirements in ([TORCH, *peer.requirements], peer.requirements):
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        installed = _run([python, "-m", "pip", "install", "--quiet", *requirements])
        probed = _run([python, "-c", peer.probe])
        if installed is None and probed is None:
            receipt.write_text(json.dumps({"requirements": requirements}))
            return python
        print(f"{peer.name}: {' '.join(requirements)} does not work: {installed or probed}", file=sys.stderr)
    raise InstallError(f"{peer.name}=={peer.version}: {installed or probed}")


def _run(command: list[str | Path]) -> str | None:
    """Run a command; the last line it said if it failed, else None."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"
