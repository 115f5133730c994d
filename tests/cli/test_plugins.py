"""`webdatamodule plugins`: what is installed, what is wrong with it, and the options of a component."""

import json
import os
import subprocess
import sys

import pytest

from bionemo.webdatamodule import plugins
from bionemo.webdatamodule._cli.main import main
from bionemo.webdatamodule._cli.plugins.check import requirement_problem

STAGE = """
from bionemo.webdatamodule import Stage, hookimpl

@hookimpl
def webdatamodule_stages():
    yield Stage(name="{name}", summary="a test stage", factory=lambda: iter{more})
"""


def problems(capsys):
    """Return the problems that the check finds about the plugins under test."""
    code = main(["plugins", "--check", "--json"])
    found = [problem for problem in json.loads(capsys.readouterr().out)["problems"] if "acme" in problem]
    assert bool(found) <= bool(code)
    return found


def test_components_are_listed_with_where_they_come_from(install, capsys):
    """Kind, name, summary, plugin, distribution and version; what was left out comes with its reason."""
    install("acme-good", STAGE.format(name="acme-stage", more=""), name="acme-good")
    install("acme-broken", "import pyarrow_not_there", name="acme-broken")

    assert 0 == main(["plugins", "--json"])
    shown = json.loads(capsys.readouterr().out)

    assert [
        {
            "kind": "stage",
            "name": "acme-stage",
            "summary": "a test stage",
            "plugin": "acme-good",
            "distribution": "acme-good",
            "version": "1.0",
            "overridden": False,
        }
    ] == [row for row in shown["components"] if row["plugin"] == "acme-good"]
    [left] = [left for left in shown["left_out"] if left["plugin"] == "acme-broken"]

    assert left["reason"].startswith("ModuleNotFoundError: No module named 'pyarrow_not_there' (at ")
    assert left["remedy"].startswith("install what it needs, or disable it with WEBDATAMODULE_DISABLED_PLUGINS=acme")


def test_an_overridden_default_is_shown(install, capsys):
    """The listing says which default is overridden, and by which plugin of which distribution."""
    install("acme-good", STAGE.format(name="shuffle", more=", override=True"))

    assert 0 == main(["plugins"])
    assert (
        "the default stage 'shuffle' is overridden by the plugin 'acme' of the distribution acme-good 1.0\n"
        in capsys.readouterr().out
    )


def test_the_check_says_what_was_left_out_and_the_remedy_works(install, capsys, monkeypatch):
    """A broken plugin is a problem; disabling it as the message says is none."""
    install("acme-broken", "import pyarrow_not_there")
    [problem] = problems(capsys)
    variable, _, name = problem.rpartition(" ")[2].partition("=")
    monkeypatch.setenv(variable, name)

    assert problem.startswith("plugin 'acme' of the distribution acme-broken 1.0 is left out: ModuleNotFoundError: ")
    assert [] == problems(capsys)


def test_the_check_finds_one_name_of_two_plugins(install, capsys, monkeypatch):
    """Two components of one kind and name are found before anybody asks for them."""
    install("acme-one", STAGE.format(name="same", more=""), name="acme-1")
    install("acme-two", STAGE.format(name="same", more=""), name="acme-2")
    [problem] = problems(capsys)

    assert (
        "the stage 'same' is registered by the plugin 'acme-1' of the distribution acme-one 1.0 and by the plugin "
        "'acme-2' of the distribution acme-two 1.0; disable all but one, for example with "
        "WEBDATAMODULE_DISABLED_PLUGINS=acme-2"
    ) == problem
    monkeypatch.setenv(plugins.DISABLED, "acme-2")

    assert [] == problems(capsys)


CODEC = """
from bionemo.webdatamodule import Codec, hookimpl

@hookimpl
def webdatamodule_codecs():
    yield Codec(name="{name}", summary="codes", suffixes=("{suffix}",), factory=dict{more})
"""


def test_the_check_finds_one_suffix_of_two_codecs(install, capsys, monkeypatch):
    """Two codecs of one suffix are found before a data module reads such a field; an override is no problem."""
    install("acme-one", CODEC.format(name="one", suffix="abc", more=""), name="acme-1")
    install("acme-two", CODEC.format(name="two", suffix="ABC", more=""), name="acme-2")
    install("acme-three", CODEC.format(name="three", suffix="npy", more=", override=True"), name="acme-3")
    [problem] = problems(capsys)

    assert (
        "several codecs decode the suffix 'abc': 'one' of the plugin 'acme-1' of the distribution acme-one 1.0 and "
        "'two' of the plugin 'acme-2' of the distribution acme-two 1.0; choose one, for example with "
        "codecs={'abc': 'one'}, or disable one, for example with WEBDATAMODULE_DISABLED_PLUGINS=acme-2"
    ) == problem
    monkeypatch.setenv(plugins.DISABLED, "acme-2")

    assert [] == problems(capsys)


@pytest.mark.parametrize("group", ["bionemo.webdatamodules", "bionemo-webdatamodule", "bionemo.webdatamodul"])
def test_the_check_finds_a_group_that_is_nearly_right(install, capsys, group):
    """An entry point in a misspelt group is never read, so nothing else would say so."""
    install("acme-typo", STAGE.format(name="acme", more=""), group=group)
    [problem] = problems(capsys)

    assert problem.startswith(
        f"the distribution acme-typo 1.0 has the entry point 'acme' in the group {group!r}, which"
    )
    assert "rename the group to 'bionemo.webdatamodule' in its pyproject.toml" in problem


@pytest.mark.parametrize("group", ["console_scripts", "pytest11", "bionemo.other", "fsspec.specs"])
def test_other_groups_are_no_problem(install, capsys, group):
    """Groups of other projects are theirs."""
    install("acme-other", STAGE.format(name="acme", more=""), group=group)

    assert [] == problems(capsys)


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("no-such-distribution>=2", "no-such-distribution>=2, which is not installed; run `pip install 'no-such-dis"),
        ("pluggy>=99", "pluggy>=99, and pluggy "),
        ("pluggy (<1)", "pluggy (<1), and pluggy "),
        ("pluggy>=1.0,<2", None),
        ("pluggy~=1.0", None),
        ("pluggy==1.*", None),
        ("pluggy[testing]!=0.1", None),
        ("no-such-distribution; extra == 'test'", None),
        ("pluggy", None),
    ],
)
def test_requirements_are_compared_with_what_is_installed(requirement, problem):
    """By the numbers of the version; requirements of extras and other markers pass."""
    found = requirement_problem(requirement)

    assert (found or "").startswith(problem) if problem else found is None


def test_the_check_finds_what_a_plugin_requires(install, capsys):
    """Requires-Dist of the plugin's distribution is compared with this environment."""
    install("acme-needy", STAGE.format(name="acme", more=""), requires=["acme-missing>=3", "pluggy>=1"])

    [problem] = problems(capsys)

    assert problem.startswith("the distribution acme-needy 1.0 requires acme-missing>=3, which is not installed; run")


def test_the_check_finds_an_old_installation(install, capsys):
    """A distribution whose module is gone, as after the rename of an editable install, is to be uninstalled."""
    install("acme-old", None, module="plugin_of_acme_before")
    [problem] = problems(capsys)

    assert "names the module plugin_of_acme_before, which is not there" in problem
    assert problem.endswith("install it again, or run `pip uninstall acme-old`")


def test_the_check_finds_a_plugin_that_is_installed_twice(install, capsys):
    """Two distributions of one module are one too many."""
    install("acme-new", STAGE.format(name="acme", more=""), name="acme", module="plugin_of_acme")
    install("acme-old", None, name="acme-old", module="plugin_of_acme")
    [problem] = problems(capsys)

    assert (
        "plugin 'acme-old' of the distribution acme-old 1.0 is left out: the plugin 'acme' is the same mod" in problem
    )
    assert problem.endswith("perhaps under an old name; run `pip uninstall acme-old`")


def test_the_check_finds_names_that_disable_nothing(capsys, monkeypatch):
    """A typo in the environment variable would otherwise go unnoticed."""
    monkeypatch.setenv(plugins.DISABLED, "stage, acme-x")
    assert 1 == main(["plugins", "--check", "--json"])
    first, second = (p for p in json.loads(capsys.readouterr().out)["problems"] if p.startswith(plugins.DISABLED))

    assert f"{plugins.DISABLED} names 'stage', and no plugin has that name; did you mean 'stages'?" == first
    assert second.startswith(f"{plugins.DISABLED} names 'acme-x', and no plugin has that name; ")


def test_a_component_is_shown_with_its_options(capsys):
    """Each option has its type, its default, and the first sentence of its documentation."""
    assert 0 == main(["plugins", "shuffle"])
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].startswith("stage shuffle: ")
    assert ["  plugin        stages", "  size: int"] == [line for line in lines if "stages" in line or " size:" in line]
    assert "  initial: int | None = None" in lines


def test_a_name_that_nobody_has_is_an_error_with_the_names_there_are(capsys):
    """A plugin's name shows all its components; another name is refused."""
    assert 0 == main(["plugins", "keys", "--json"])
    assert ["dashes", "escaped"] == [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert 2 == main(["plugins", "nothing"])
    assert "no component and no plugin is named 'nothing'; components are batch, " in capsys.readouterr().err


LOUD = """
import os
print("loud plugin")
os.write(1, b"loud descriptor\\n")
"""


def test_a_plugin_that_prints_does_not_disturb_the_json(install):
    """What a plugin prints when it is imported goes to standard error, by print() and by the descriptor."""
    install("acme-loud", LOUD + STAGE.format(name="acme", more=""))
    done = subprocess.run(
        [sys.executable, "-m", "bionemo.webdatamodule", "plugins", "--json"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )

    assert ["acme"] == [row["name"] for row in json.loads(done.stdout)["components"] if row["plugin"] == "acme"]
    assert {"loud plugin", "loud descriptor"} <= set(done.stderr.splitlines())
