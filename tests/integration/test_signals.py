"""Signals to a whole training run: it ends by itself and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "train.py"


@pytest.mark.parametrize(
    ("signum", "codes"),
    [
        # Lightning 2.6 ends with 0 after SIGTERM, later versions with 143; Ctrl-C ends with an error
        (signal.SIGTERM, {0, 143, -signal.SIGTERM}),
        (signal.SIGINT, {1, 130}),
        (signal.SIGKILL, {-signal.SIGKILL}),
    ],
)
def test_a_run_that_is_stopped_leaves_no_process(tmp_path, shards, processes_of, signum, codes):
    """[78] The trainer and the workers of both loaders are gone, however the trainer ended."""
    notes = tmp_path / "run.rank0"
    config = {
        "shards": shards,
        "out": f"{tmp_path}/run",
        "checkpoints": f"{tmp_path}/c",
        "workers": 2,
        "epochs": 10_000,
    }
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(config)],
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not notes.exists() or len(processes_of(run.pid)) < 2:  # workers live for an epoch
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signum)

    assert run.wait(timeout=60) in codes
    deadline = time.monotonic() + 30
    while processes_of(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
