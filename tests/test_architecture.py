"""The import rules of the package, held by reading the code: nothing is imported here but the standard library."""

import ast
import functools
import graphlib
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "bionemo.webdatamodule"
SOURCE = ROOT / "src" / "bionemo" / "webdatamodule"
ROOMS = ("format", "storage", "writing", "reading", "sampling", "loading")
"""The rooms of the engine, the lowest first."""

MAY_IMPORT = {
    "format": (),
    "storage": ("format",),
    "writing": ("format", "storage"),
    "reading": ("format", "storage", "writing"),
    "sampling": (),
    "loading": ("format", "storage", "writing", "reading", "sampling"),
}
"""What each room may import beside the public files and the modules that lie in no room."""

MOST_MODULES = 13
"""Modules of a folder at most, beside ``__init__``."""


def modules_of(root, package):
    """Return the path of each module below a folder, by import name; templates of packages to be are none."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "templates" not in parts:
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules_of(SOURCE, PACKAGE)
PLUGINS = {
    name: path
    for folder in sorted(ROOT.glob("plugins/*/src/*"))
    if folder.is_dir()
    for name, path in modules_of(folder, folder.name).items()
}


@functools.cache
def imports(path):
    """Return the names of the modules that a module imports, at its top, in functions or for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in names if name in MODULES or name in PLUGINS}
            found |= inner | ({node.module} if inner != names else set())
    return frozenset(found)


def room(name):
    """Return the room of the engine that a module lies in; ``None`` for others."""
    parts = name.removeprefix(f"{PACKAGE}.").split(".")
    return parts[1] if parts[0] == "_engine" and len(parts) > 1 and parts[1] in ROOMS else None


def below(name, *folders):
    """Tell whether a module lies in one of some folders of the package."""
    return any(f"{name}.".startswith(f"{PACKAGE}.{folder}.") for folder in folders)


def is_private(name):
    """Tell whether a part of a module's name within this package begins with an underscore."""
    return f"{name}.".startswith(f"{PACKAGE}.") and any(part.startswith("_") for part in name.split("."))


def broken(modules, rule):
    """Return the imports that break a rule, as ``importer -> imported``."""
    found = {f"{name} -> {other}" for name, path in modules.items() for other in imports(path) if rule(name, other)}
    return sorted(found)


def test_the_engine_never_imports_builtins():
    """The engine knows plugins by their protocols, the defaults among them."""
    assert [] == broken(MODULES, lambda name, other: below(name, "_engine") and below(other, "builtins"))


def test_builtins_and_the_kit_import_public_modules_only():
    """Whatever a default does, a third party can do by the same imports."""
    assert [] == broken(MODULES, lambda name, other: below(name, "builtins", "testing") and is_private(other))


def test_plugins_import_public_modules_only():
    """The plugins of this repository use nothing of the core that is not public."""
    assert PLUGINS
    assert [] == broken(PLUGINS, lambda _, other: is_private(other))


def test_nothing_imports_the_command_line():
    """The commands stand on everything else, and nothing stands on them."""
    mains = {"__main__": MODULES[f"{PACKAGE}.__main__"]}
    others = {name: path for name, path in MODULES.items() if path not in mains.values()}

    assert [] == broken(others, lambda name, other: not below(name, "_cli") and below(other, "_cli"))


def test_rooms_of_the_engine_import_lower_rooms_only():
    """Bytes on disk know nothing of storage, storage nothing of conversions, and so on."""

    def rule(name, other):
        mine, its = room(name), room(other)
        return mine is not None and its is not None and its != mine and its not in MAY_IMPORT[mine]

    assert [] == broken(MODULES, rule)


def test_modules_of_no_room_import_no_room():
    """What lies in ``_engine`` itself is for all rooms, so it stands on none."""
    leaves = {name: path for name, path in MODULES.items() if below(name, "_engine") and room(name) is None}

    assert [] == broken(leaves, lambda _, other: room(other) is not None)


def test_no_modules_import_each_other_in_a_circle():
    """Every module can be read after what it imports."""
    known = MODULES | PLUGINS
    graph = {name: {other for other in imports(path) if other in known} - {name} for name, path in known.items()}
    circles = []
    while circle := circle_of(graph):
        circles.append(" -> ".join(reversed(circle)))
        graph[circle[1]].discard(circle[0])

    assert [] == circles


def circle_of(graph):
    """Return some modules, each imported by the next and the last the first again; ``None`` if there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("name", sorted({str(path.parent.relative_to(SOURCE)) for path in MODULES.values()}))
def test_no_folder_is_crowded(name):
    """A folder is read at a glance."""
    counted = Counter(path.parent for path in MODULES.values() if path.name not in ("__init__.py", "__main__.py"))
    most = 18 if name == "." else MOST_MODULES

    assert counted[SOURCE / name] <= most


@pytest.mark.parametrize("page", ["src/bionemo/webdatamodule/__init__.py", "docs/explanation/architecture.md"])
def test_the_maps_name_every_place(page):
    """Each public module and each folder is in the tables that say where to change what."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`{1,2}([\w/]+?)/?`{1,2}", text))
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    folders = {"builtins", "_cli", "testing", *(f"_engine/{room}" for room in ROOMS)}

    assert [] == sorted((modules | folders) - named)
