"""``webdatamodule new-plugin``: a package that installs and passes the conformance kit at once, to start from."""

from __future__ import annotations

import argparse
import re
import string
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

from bionemo.webdatamodule.components import Codec, Component, Executor, KeyEncoder, Loader, Stage, Store, Writer
from bionemo.webdatamodule.errors import ConfigError
from bionemo.webdatamodule.plugins import DEFAULT_PLUGINS, default_plugins, kind_name

KINDS: Mapping[str, type[Component]] = {
    "writer": Writer,
    "codec": Codec,
    "stage": Stage,
    "planner": Stage,
    "loader": Loader,
    "key-encoder": KeyEncoder,
    "executor": Executor,
    "store": Store,
}
"""The kinds of components, as the command line spells them; each has a folder of templates."""

_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the component: lower-case letters, digits and dashes")
    parser.add_argument("--kind", choices=KINDS, required=True, help="kind of the component")
    parser.add_argument(
        "--directory", default=".", metavar="DIR", help="parent of the new folder webdatamodule-NAME (default: here)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    made = new_plugin(args.name, args.kind, args.directory)
    print(f"{made} is a plugin with the {kind_name(KINDS[args.kind])} {args.name!r}. Next:\n")
    print(f'  pip install -e "{made}[test]"\n  cd {made} && pytest')
    return 0


def new_plugin(name: str, kind: str, directory: str = ".") -> Path:
    """Write a plugin package.

    Args:
        name: Name of the component, of the plugin, and behind ``webdatamodule-`` of the distribution.
        kind: One of :data:`KINDS`.
        directory: Where the package's folder is made; it must exist.

    Returns:
        The new folder, ``{directory}/webdatamodule-{name}``.

    Raises:
        ConfigError: If the name cannot be used, there is no such directory, or the folder is there already.
    """
    _check_name(name, kind)
    package = f"webdatamodule_{name.replace('-', '_')}"
    top = Path(directory, f"webdatamodule-{name}")
    words = {
        "name": name,
        "package": package,
        "kind": kind_name(KINDS[kind]),
        "extension": _extension(name),
        "ROOT": f"{package.upper()}_ROOT",
        "versions": _versions(),
    }
    files = _render(kind, words)
    try:
        top.mkdir()
    except FileExistsError as error:
        raise ConfigError(f"{top} is there already; take another name or directory, or remove it") from error
    except OSError as error:
        raise ConfigError(f"{top} cannot be made: {error.strerror}; --directory is a directory that exists") from error
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text, encoding="utf-8")
    return top


def _check_name(name: str, kind: str) -> None:
    """Check that a plugin of this name can be written, and loads beside the defaults.

    Raises:
        ConfigError: If not.
    """
    if not _NAME.fullmatch(name) or "--" in name:
        raise ConfigError(
            f"the name {name!r} cannot be used; take lower-case letters, digits and single dashes, a letter first"
        )
    if default_plugins().provider(KINDS[kind], name):
        raise ConfigError(f"{name!r} is the name of a default {kind_name(KINDS[kind])}; take another")
    if name in DEFAULT_PLUGINS:
        raise ConfigError(f"{name!r} is the name of a default plugin; take another")
    if kind == "store" and len(name) == 1:
        raise ConfigError(f"the name {name!r} would be a URL scheme of one letter, which no URL has; take a longer one")
    taken = default_plugins().default_suffixes
    if kind == "codec" and _extension(name) in taken:
        raise ConfigError(
            f"the codec {name!r} would decode the suffix {_extension(name)!r}, which the default codec "
            f"{taken[_extension(name)]!r} decodes; take another name, such as 'my-{name}'"
        )


def _extension(name: str) -> str:
    """Return the suffix that a new codec of this name decodes."""
    return name.replace("-", "")


def _render(kind: str, words: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each file of a new package, by its path."""
    templates = resources.files("bionemo.webdatamodule._cli.new_plugin") / "templates"

    def fill(template: str, **more: str) -> str:
        text = templates.joinpath(*template.split("/")).read_text(encoding="utf-8")
        return string.Template(text).substitute(words, **more)

    package = words["package"]
    return {
        "pyproject.toml": fill("project.toml"),
        "README.md": fill("README.md", usage=fill(f"{kind}/usage.md").rstrip("\n")),
        "CHANGELOG.md": fill("CHANGELOG.md"),
        ".gitignore": fill("gitignore"),
        f"src/{package}/__init__.py": fill(f"{kind}/plugin.py"),
        f"src/{package}/py.typed": "",
        "tests/test_conformance.py": fill(f"{kind}/test_conformance.py"),
    }


def _versions() -> str:
    """Return the versions of this package that a plugin written today can rely on, as a requirement."""
    major, minor, *_ = metadata.version("bionemo-webdatamodule").split(".")
    return f">={major}.{minor},<{int(major) + 1}"
