"""The examples of the plugins' pages run: their READMEs, tutorials, and the page on clusters."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.helpers import pages

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "README.md").exists())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in an empty directory, and leave signals as they were: Ray handles SIGTERM from its start on."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_readme_examples_print_what_they_show(place, plugin):
    """The blocks of a README run from top to bottom, beside the files that the plugin brings."""
    for path in (ROOT / "plugins" / plugin).glob("examples/*.*"):
        shutil.copy(path, place)
    page = ROOT / "plugins" / plugin / "README.md"

    assert "python" in pages.run_page(f"plugins/{plugin}/README.md", page.read_text())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice; the data are few
@pytest.mark.filterwarnings("ignore:The number of training batches")  # for logging intervals, and there is no logger
def test_fasta_tutorial_trains_a_model(place):
    """From the file to a trained model, every block of docs/tutorial/fasta.md runs and prints what the page shows."""
    shutil.copy(ROOT / "plugins/fasta/examples/chloroplast.faa", place)

    assert 7 == len(pages.run_page("docs/tutorial/fasta.md", (ROOT / "docs/tutorial/fasta.md").read_text()))


@pytest.mark.parametrize(("page", "steps"), [("h5ad", 70), ("images", 60), ("graphs", 50)])
def test_tutorial_resumes_on_two_ranks(place, page, steps):
    """Files become shards, a run on two ranks is stopped and resumed, and ends with the weights of one that was not."""
    assert {"python", "bash"} == set(
        pages.run_page(f"docs/tutorial/{page}.md", (ROOT / f"docs/tutorial/{page}.md").read_text())
    )
    resumed = torch.load("checkpoints/last.ckpt", weights_only=False)
    shutil.rmtree("checkpoints")
    pages.run_script(["train.py", str(steps)])
    undisturbed = torch.load("checkpoints/last.ckpt", weights_only=False)

    assert steps == resumed["global_step"] == undisturbed["global_step"]
    assert undisturbed["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in undisturbed["state_dict"].items())


def test_page_on_clusters_converts_on_ray(place):
    """The blocks of docs/how-to/clusters.md up to those on Dask, which the core's own tests run."""
    head, _, _ = (ROOT / "docs/how-to/clusters.md").read_text().partition("## Dask")

    assert 2 == len(pages.run_page("docs/how-to/clusters.md", head))
