# ruff: noqa: INP001 - scripts of the documentation are not a package
"""What mkdocs does beyond its own: pages from outside this directory, and diagrams as SVG."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from diagrams import expand  # mkdocs looks beside this file
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def outside() -> dict[str, str]:
    """Return the site's page of each Markdown file that lies elsewhere in the repository, by its path there."""
    pages = {path.relative_to(ROOT).as_posix(): f"plugins/{path.parent.name}.md" for path in _readmes()}
    return pages | {f"{name}.md": f"project/{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the pages from this very directory, which mkdocs has no setting for, and list those from elsewhere."""
    config.docs_dir = str(HERE)
    pages = list(outside().values())
    assert config.nav is not None  # noqa: S101 - mkdocs.yml has one
    plugins = next(section["Plugins"] for section in config.nav if isinstance(section, dict) and "Plugins" in section)
    plugins += [page for page in pages if page.startswith("plugins/")]
    config.nav.append({"Project": [page for page in pages if page.startswith("project/")]})
    config.watch += [str(ROOT / path) for path in outside()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    for path, page in outside().items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Draw the diagrams, and turn links of the repository into links of the site."""
    sources = {site: path for path, site in outside().items()}
    here = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(here, target))
        site = outside().get(path) or ("index.md" if path == "README.md" else path.removeprefix("docs/"))
        if not site.endswith(".md") or (not path.startswith("docs/") and path not in {*outside(), "README.md"}):
            return match["text"]  # a file of the repository that is not a page
        found = posixpath.relpath(site, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match['text']}]({found}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, expand(markdown))


def _readmes() -> list[Path]:
    return sorted(ROOT.glob("plugins/*/README.md"))
