"""What all tests share."""

import signal
import sys
import textwrap

import pytest
from tests.helpers import scripts  # noqa: F401 - whose modules all servers of forked processes import

from bionemo.webdatamodule import hookspecs, plugins


def pytest_configure():
    """Take Ctrl-C as usual where the tests are a background job of a shell, which makes its jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Run the quick tests first, and those with processes of their own last."""
    items.sort(key=lambda item: "integration" in item.path.parts)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Tests neither see nor fill the user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a made-up distribution with a plugin on the path, and returns the module's name."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv(plugins.STRICT, raising=False)
    monkeypatch.delenv(plugins.DISABLED, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")  # for processes of their own

    def install(distribution, code, *, name="acme", module=None, group=hookspecs.NAME, requires=()):
        module = module or f"plugin_of_{distribution.replace('-', '_')}"
        if code is not None:
            (site / f"{module}.py").write_text(textwrap.dedent(code))
        metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (metadata / "METADATA").write_text("\n".join(lines) + "\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        plugins.installed_plugins.cache_clear()
        return module

    yield install
    plugins.installed_plugins.cache_clear()
    for module in [name for name in sys.modules if name.startswith("plugin_of_")]:
        del sys.modules[module]
