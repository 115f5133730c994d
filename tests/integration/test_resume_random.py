"""Resume after interruptions anywhere, under options of the Trainer drawn at random, is the undisturbed run."""

import os

import pytest
from tests.helpers.interrupted import compare, draw

CASES = int(os.environ.get("WEBDATAMODULE_RESUME_CASES", "200"))
"""How many are drawn; a thousand take minutes."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*was in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*max_epochs.*was not set.*", "ignore:.*Trainer was signaled to stop.*"),
    pytest.mark.filterwarnings("ignore:.*dataloader_iter.*"),
]


@pytest.mark.parametrize("seed", range(CASES))
def test_an_interrupted_run_is_the_undisturbed_one(tmp_path, shards, seed):
    """Keys, batch indices, validations and optimizer steps are the same over up to three legs."""
    case = draw(seed)
    expected, events = compare(shards, case, tmp_path)

    assert expected == events, case
