from pathlib import Path

from bionemo.webdatamodule.testing import run_examples


def test_readme_does_what_it_says(tmp_path):
    """The example of the README runs and prints what it shows."""
    assert run_examples(Path(__file__).parents[1] / "README.md", tmp_path) == 1
