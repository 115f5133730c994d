"""What the garbage collector sees while an epoch runs, in processes where no other epoch does."""

import pytest
from tests.helpers.scripts import run

_CYCLE = """
import gc, weakref, webdataset
from bionemo.webdatamodule import WebDataModule
from bionemo.webdatamodule._engine.collector import frozen

class Cycle:
    def __init__(self):
        self.own = self
"""

_NESTED = """
first, second = frozen(), frozen()
with first:
    before = gc.get_freeze_count()
    second.__enter__()
during = gc.get_freeze_count()
second.__exit__(None, None, None)
print(before >= during > 1000, gc.get_freeze_count())
"""

_OF_OTHERS = """
gc.freeze()
before = gc.get_freeze_count()
with frozen():
    made = Cycle()
print(before - gc.get_freeze_count() < 100)
"""

_EPOCHS = """
with webdataset.TarWriter("wdshards-000000.tar") as writer:
    for number in range(40):
        writer.write({"__key__": f"s{number}", "pyd": number})
module = WebDataModule({"train": "."}, None, "pyd", 4)
module.setup("fit")
loader = module.train_dataloader()
for steps in (3, 100):
    dropped = Cycle()
    seen = weakref.ref(dropped)
    batches = iter(loader)
    for _ in zip(range(steps), batches):
        dropped = None
    gc.collect()
    print(seen() is None)
    del batches
    gc.collect()
    print(seen() is None, gc.get_freeze_count())
"""


@pytest.mark.parametrize(
    ("steps", "said"),
    [(_NESTED, "True 0\n"), (_OF_OTHERS, "True\n"), (_EPOCHS, "False\nTrue 0\nTrue\nTrue 0\n")],
    ids=["of two blocks the later end counts", "what others froze stays", "an epoch gives back what it hid"],
)
def test_what_was_there_is_frozen_for_an_epoch(tmp_path, steps, said):
    """Objects are frozen until the last block or epoch that began with them ends, also when that is early."""
    script = tmp_path / "script.py"
    script.write_text(_CYCLE + steps)

    done = run(script, directory=tmp_path)

    assert (done.returncode, done.stdout) == (0, said), done.stderr
