import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bionemo.webdatamodule._cli import main
from bionemo.webdatamodule._cli.new_plugin.command import KINDS, new_plugin
from bionemo.webdatamodule.errors import ConfigError

ROOT = Path(__file__).parents[2]
RUN_PAGES = """
import os, sys, tempfile
from pathlib import Path
from tests.helpers import pages
for page in sys.argv[1:]:
    os.chdir(tempfile.mkdtemp(dir=Path(page).parent))
    assert "python" in pages.run_page(page, Path(page).read_text())
"""


def pretend_to_install(folder, site):
    """Make the metadata that installing a package would, for its name and entry points."""
    project = (folder / "pyproject.toml").read_text()
    distribution = re.search(r'^name = "(.+)"$', project, re.MULTILINE)[1]
    entry = re.search(r'^\[project\.entry-points\."(.+)"\]\n"(.+)" = "(.+)"$', project, re.MULTILINE)
    metadata = site / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new plugin of every kind."""
    top = tmp_path_factory.mktemp("plugins")
    made = [new_plugin(f"my-{kind}2", kind, str(top)) for kind in KINDS]
    for folder in made:
        pretend_to_install(folder, top / "site")
    return made


def run_with(folders, *words):
    """Run Python with these plugins installed."""
    path = [folders[0].parent / "site", *(folder / "src" for folder in folders), ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment,
        cwd=folders[0].parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_new_plugins_of_every_kind_pass_the_kit(folders):
    """What the command writes passes the conformance kit."""
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", folders[0] / "pyproject.toml")
    done = run_with(folders, *words, "--rootdir", folders[0].parent, *(folder / "tests" for folder in folders))

    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(r"\d+ passed in", done.stdout)
    assert "skipped" not in done.stdout


def test_pages_of_new_plugins_do_what_they_say(folders):
    """The example of each README runs and prints what it shows."""
    done = run_with(folders, "-c", RUN_PAGES, *(folder / "README.md" for folder in folders))

    assert 0 == done.returncode, done.stdout + done.stderr


def test_a_new_plugin_is_a_whole_package(tmp_path):
    """Names line up, and no placeholder is left."""
    folder = new_plugin("two-words", "key-encoder", str(tmp_path))

    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    assert tmp_path / "webdatamodule-two-words" == folder
    assert [
        ".gitignore",
        "CHANGELOG.md",
        "README.md",
        "pyproject.toml",
        "src/webdatamodule_two_words/__init__.py",
        "src/webdatamodule_two_words/py.typed",
        "tests/test_conformance.py",
    ] == files
    assert '"two-words" = "webdatamodule_two_words"' in (folder / "pyproject.toml").read_text()
    assert 'name="two-words"' in (folder / "src" / "webdatamodule_two_words" / "__init__.py").read_text()
    assert [] == [path for path in files if "$" in (folder / path).read_text()]


def test_command_says_what_to_do_next(tmp_path, capsys):
    """The command prints the two commands that come next."""
    assert 0 == main.main(["new-plugin", "mine", "--kind", "stage", "--directory", str(tmp_path)])

    folder = tmp_path / "webdatamodule-mine"
    expected = (
        f"{folder} is a plugin with the stage 'mine'. Next:\n\n"
        f'  pip install -e "{folder}[test]"\n  cd {folder} && pytest\n'
    )
    assert expected == capsys.readouterr().out


@pytest.mark.parametrize("name", ["codecs", "stages", "batching"])
def test_the_name_of_a_default_plugin_is_refused(tmp_path, name):
    """The entry point of such a plugin would be left out."""
    with pytest.raises(ConfigError, match=f"'{name}' is the name of a default plugin; take another"):
        new_plugin(name, "codec", str(tmp_path))
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "suffix", "codec"),
    [("txt", "txt", "text"), ("cls", "cls", "integer"), ("pyd", "pyd", "pickle"), ("p-kl", "pkl", "pickle")],
)
def test_a_codec_whose_suffix_a_default_decodes_is_refused(tmp_path, name, suffix, codec):
    """The new plugin would be left out for its suffix, so nothing is written; other kinds may have that name."""
    with pytest.raises(ConfigError) as caught:
        new_plugin(name, "codec", str(tmp_path))

    assert caught.value.message == (
        f"the codec {name!r} would decode the suffix {suffix!r}, which the default codec {codec!r} decodes; take "
        f"another name, such as 'my-{name}'"
    )
    assert [] == list(tmp_path.iterdir())
    assert new_plugin(name, "stage", str(tmp_path)).is_dir()


def test_a_store_of_one_letter_is_refused(tmp_path):
    """Its scheme would never match a URL, so nothing is written; other kinds may have that name."""
    with pytest.raises(ConfigError) as caught:
        new_plugin("x", "store", str(tmp_path))

    assert (
        caught.value.message == "the name 'x' would be a URL scheme of one letter, which no URL has; take a longer one"
    )
    assert [] == list(tmp_path.iterdir())
    assert new_plugin("x", "codec", str(tmp_path)).is_dir()


def test_command_shows_errors_in_a_line(tmp_path, capsys):
    """A refusal is one line, and the exit code says so."""
    arguments = ["new-plugin", "pickles", "--kind", "writer", "--directory", str(tmp_path)]

    assert 2 == main.main(arguments)
    assert "'pickles' is the name of a default writer; take another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["", "Mine", "my_plugin", "1st", "-x", "x-", "a--b", "a.b", "a/b", "../x", "é", "a b", "a\n", "$name"]
)
def test_names_that_make_no_package_are_refused(tmp_path, name):
    """A name must do as a component, a distribution and, with underscores, a module."""
    with pytest.raises(ConfigError, match="cannot be used; take lower-case letters"):
        new_plugin(name, "writer", str(tmp_path))
    assert [] == list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    """A folder of that name stays as it is, whatever it holds."""
    folder = new_plugin("mine", "writer", str(tmp_path))
    (folder / "README.md").write_text("my words")

    with pytest.raises(ConfigError, match="is there already; take another name or directory, or remove it"):
        new_plugin("mine", "stage", str(tmp_path))
    assert "my words" == (folder / "README.md").read_text()


def test_missing_directory_is_an_error(tmp_path):
    """The directory for the new folder has to be there."""
    with pytest.raises(ConfigError, match="--directory is a directory that exists"):
        new_plugin("mine", "writer", str(tmp_path / "none"))
    assert not Path(tmp_path, "none").exists()
