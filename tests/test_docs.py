"""The documentation holds: its examples run, its links lead somewhere, and nothing public is left out."""

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import lightning as L
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from tests.helpers import pages

import bionemo.webdatamodule
from bionemo.webdatamodule import errors, hookspecs, testing
from bionemo.webdatamodule._cli.main import COMMANDS
from bionemo.webdatamodule.plugins import DISABLED, HOOKS, Plugins, default_plugins

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
MARKDOWN = [*(path.name for path in sorted(ROOT.glob("*.md"))), *DOCS]
READMES = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("plugins/*/README.md"))]
ELSEWHERE = {
    "docs/tutorial/fasta.md": "tests/plugins/test_pages.py",
    "docs/tutorial/graphs.md": "tests/plugins/test_pages.py",
    "docs/tutorial/h5ad.md": "tests/plugins/test_pages.py",
    "docs/tutorial/images.md": "tests/plugins/test_pages.py",
    "docs/how-to/clusters.md": "tests/integration/test_dask.py",
}
"""Pages whose examples need a plugin or a cluster, and the tests that run them."""

ADVICE = [  # which Lightning and torch give for data as small as those of the examples
    "ignore:.*does not have many workers.*",
    "ignore:.*was in eval mode.*",
    "ignore:The number of training batches.*",
    "ignore:Checkpoint directory .* exists and is not empty.*",
    "ignore::DeprecationWarning",  # Lightning's CLI uses parts of jsonargparse that are deprecated
]


@functools.cache
def text_of(page):
    """Return a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def has(page, *languages):
    """Tell whether a page has blocks in a language."""
    return any(block.language in languages for block in pages.blocks_of((ROOT / page).read_text()))


RUN = [page for page in ["README.md", *DOCS] if has(page, "python") and page not in ELSEWHERE]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in an empty directory, with nobody's words on the command line, and with small Trainers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that what an example sets goes away
    monkeypatch.setattr(MemoryFileSystem, "store", {})  # which all of a process share
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    real = L.Trainer.__init__
    small = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}

    @functools.wraps(real)
    def init(self, *args, **kwargs):
        real(self, *args, **{**kwargs, **small, **quiet})

    monkeypatch.setattr(L.Trainer, "__init__", init)
    return tmp_path


@pytest.mark.parametrize("page", RUN)
@pytest.mark.filterwarnings(*ADVICE)
def test_examples_do_what_the_page_says(place, page):
    """Python and commands run from top to bottom and print what is shown; a Trainer runs on one CPU."""
    assert "python" in pages.run_page(page, text_of(page))


@pytest.mark.parametrize("page", [*MARKDOWN, *READMES])
def test_examples_import_public_modules_only(page):
    """What a page shows can be done with names that stay."""
    private = re.compile(r"^\s*(?:from|import) bionemo\.webdatamodule\.(?:\w+\.)*_", re.MULTILINE)
    assert [] == [block.text for block in pages.blocks_of(text_of(page)) if private.search(block.text)]


@pytest.mark.parametrize("page", ELSEWHERE)
def test_other_examples_are_run_by_other_tests(page):
    """A page that this module does not run is run by a test that names it."""
    assert Path(page).stem in (ROOT / ELSEWHERE[page]).read_text()


@pytest.mark.parametrize("page", [page for page in [*MARKDOWN, *READMES] if has(page, "toml", "yaml")])
def test_configuration_can_be_read(page):
    """TOML and YAML are well-formed."""
    for block in pages.blocks_of(text_of(page)):
        if block.language == "toml":
            assert tomllib.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)


@pytest.mark.parametrize("hook", HOOKS)
def test_examples_of_hooks_are_plugins(hook):
    """The example in a hook's docstring is a plugin that registers a component of that kind."""
    [example] = [
        block.text for block in pages.blocks_of(text_of("docs/plugins/hooks.md")) if f"def {hook}(" in block.text
    ]
    namespace = {"__name__": "example"}
    exec(compile(example, hook, "exec", dont_inherit=True), namespace)
    plugins = Plugins()
    plugins.register(SimpleNamespace(**{hook: namespace[hook]}), "example")

    assert [HOOKS[hook]] == [type(found.component) for found in plugins.registered if found.plugin == "example"]


def test_examples_of_hooks_pass_the_kit(install, tmp_path):
    """Each example, and that of the page on writing plugins, is a plugin that the conformance kit accepts."""
    examples = [block for block in pages.blocks_of(text_of("docs/plugins/hooks.md")) if block.language == "python"]
    first = next(pages.blocks_of(text_of("docs/plugins/writing.md")))
    for number, block in enumerate([*examples, first]):
        install(f"example-{number}", block.text, name=f"example-{number}")
    kit = ROOT / "tests" / "helpers" / "kit_of_examples.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull),
            *("--rootdir", tmp_path, "--basetemp", tmp_path / "kit", "--import-mode=importlib", kit),
        ],
        env={**os.environ, DISABLED: "example"},  # which has a writer of the same name
        capture_output=True,
        text=True,
        check=False,
    )

    assert len(HOOKS) == len(examples)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_every_hook_has_its_section():
    """The hooks of the code and those of the page are the same."""
    hooks = sorted(name for name in vars(hookspecs) if name.startswith("webdatamodule_"))

    assert hooks == sorted(re.findall(r"^## `(\w+)`$", text_of("docs/plugins/hooks.md"), re.MULTILINE))


def test_every_error_has_its_section():
    """Each code is the anchor of one section, and each class says in its docstring what it means."""
    classes = list(pages.script("generated").error_classes())
    page = text_of("docs/reference/errors.md")

    assert [found.code for found in classes] == re.findall(r"^## \w+ `\[([\w-]+)\]`$", page, re.MULTILINE)
    assert len(classes) == len({found.code for found in classes})
    assert {name for name, found in vars(errors).items() if inspect.isclass(found) and hasattr(found, "code")} == {
        found.__name__ for found in classes
    }
    assert all(found.__name__ in errors.__doc__ and found.__doc__ for found in classes)


def test_every_command_and_component_has_its_section():
    """What can be named on the command line and in a pipeline is in the reference."""
    commands = text_of("docs/reference/commands.md")
    components = text_of("docs/reference/stages.md") + text_of("docs/reference/codecs.md")

    assert list(COMMANDS) == re.findall(r"^## webdatamodule ([\w-]+)$", commands, re.MULTILINE)
    assert sorted(found.component.name for found in default_plugins().registered) == sorted(
        re.findall(r"^### `([\w-]+)`", components, re.MULTILINE)
    )


@pytest.mark.parametrize("package", [bionemo.webdatamodule, testing], ids=lambda package: package.__name__)
def test_every_public_name_is_documented(package):
    """What can be imported from the package stands in the reference, sorted in `__all__`."""
    everything = "\n".join(map(text_of, DOCS))
    documented = re.findall(
        rf"^<!-- generated: api {re.escape(package.__name__)}\.(\w+)(?: [^\n]*)?-->$", everything, re.MULTILINE
    )

    assert sorted(package.__all__) == package.__all__
    assert package.__all__ == sorted(documented)
    assert all(getattr(package, name) for name in package.__all__)


@pytest.mark.parametrize("page", [*MARKDOWN, *READMES])
def test_links_lead_somewhere(page):
    """Relative links lead to files of the repository, and to headings that are there."""
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", without_code(text_of(page))):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (ROOT / page).parent / path if path else ROOT / page

        assert found.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(text_of(found.resolve().relative_to(ROOT))), f"{page} links to {target}"


def test_generated_parts_are_up_to_date():
    """What `python docs/generated.py` would write is what is checked in."""
    stale = [path.name for path, text in pages.script("generated").pages() if path.read_text(encoding="utf-8") != text]

    assert [] == stale


def test_diagrams_are_drawn_from_their_text():
    """Every box of every diagram is in its SVG, which is well-formed; no page needs a script for one."""
    for page in DOCS:
        for block in pages.blocks_of(text_of(page)):
            assert block.language != "mermaid"
            if block.language == "diagram":
                drawn = ET.fromstring(pages.script("diagrams").svg(block.text))
                boxes = sum(1 for part in drawn if part.tag.endswith("rect"))
                assert boxes == block.text.count(">") + len(block.text.splitlines())


def without_code(text):
    """Return a page without its blocks and spans of code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(text):
    """Return what can stand behind the `#` of a link to a page."""
    given = re.findall(r'<a id="([\w-]+)"></a>', text)
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {*given, *(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", found).strip().lower()) for found in headings)}


def test_every_page_is_in_the_navigation():
    """The list of pages in mkdocs.yml is complete."""
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "docs" / "mkdocs.yml").read_text(), re.MULTILINE)

    assert sorted(DOCS) == sorted(f"docs/{page}" for page in listed)


def test_the_two_commands_of_the_readme_are_run_as_they_stand():
    """`.ci/run` runs the words of the README, in that order."""
    commands = [block.text.strip() for block in pages.blocks_of(text_of("README.md")) if block.language == "bash"]
    script = (ROOT / ".ci" / "run").read_text()

    assert 2 == len(commands)
    assert all(command in script or command.replace("&& ", '&& (cd "$demo" && ') in script for command in commands)
