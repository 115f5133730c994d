from __future__ import annotations

from pathlib import Path

from bionemo.webdatamodule.testing import run_examples

ROOT = Path(__file__).parents[1]


def test_readme_does_what_it_says(tmp_path):
    """The example runs, on a cluster of its own, and prints what it shows."""
    assert 1 == run_examples(ROOT / "README.md", tmp_path)


def test_the_page_on_clusters_does_what_it_says_of_ray(tmp_path):
    """The core's tests run its blocks on Dask and MPI."""
    page = (ROOT.parents[1] / "docs" / "how-to" / "clusters.md").read_text(encoding="utf-8")
    head, _, _ = page.partition("## Dask")
    (tmp_path / "page.md").write_text(head)

    assert 2 == run_examples(tmp_path / "page.md", tmp_path)
