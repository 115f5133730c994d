"""How much memory a large sample takes: twice its size while it is written, and while it is read."""

import json

import pytest
from tests.helpers import scripts

SCRIPT = """
import json, os, pickle, sys
import lightning, numpy as np, torch
from bionemo.webdatamodule import PickledDataWDS
import bionemo.webdatamodule.builtins.pickle.codec

base, kind, protocol = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = ["s0", "s1"]

def status(name):
    line, = (line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])

def measured(function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    start = status("VmRSS")
    function()
    return (status("VmHWM") - start) / size

if not (writer := os.fork()):  # so that what makes the files leaves no memory here
    for number, name in enumerate(names):
        array = np.full(12_500_000, number + 0.5)
        value = {"array": array, "tensor": torch.from_numpy(array), "dict": {"a": array, "n": torch.arange(3)}}[kind]
        with open(f"{base}/{name}.x.pyd", "wb") as file:
            pickle.dump(value, file, protocol=protocol)
    os._exit(0)
os.waitpid(writer, 0)
size = os.path.getsize(f"{base}/s0.x.pyd")
data = PickledDataWDS(base, "x.pyd", {"train": names}, f"{base}/", 1, n_tars_wds=1, executor="serial")
written = measured(data.prepare_data)
data.setup("fit")
sums = []

def read():
    for batch in data.train_dataloader():
        value = batch["a"] if kind == "dict" else batch
        sums.append(float(value.sum()))
        del batch, value

print(json.dumps([written, measured(read), sorted(sums)]))
"""


@pytest.mark.parametrize(("kind", "protocol"), [("array", 4), ("array", 5), ("tensor", 4), ("dict", 5)])
def test_a_large_sample_takes_little_more_than_twice_its_size(tmp_path, kind, protocol):
    """Samples of 100 MB, one after the other: at most 2.2 times that above what the process had before."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = scripts.run(tmp_path / "script.py", tmp_path, kind, protocol)
    assert 0 == done.returncode, done.stderr
    written, read, sums = json.loads(done.stdout.splitlines()[-1])

    assert [6_250_000.0, 18_750_000.0] == sums
    assert max(written, read) < 2.2
