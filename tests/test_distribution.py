"""What is built for release holds what it should, and only that."""

import re
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import bionemo.webdatamodule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT, *(path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml")))]


@pytest.fixture(params=PROJECTS, ids=lambda project: project.name)
def project(request):
    """Return the directory of the core or of a plugin."""
    return request.param


@pytest.fixture
def wheel(project, tmp_path):
    """Build a project's wheel, and return its path."""
    return Path(next(WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["standard"])))


def names_in(wheel):
    """Return the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def settings(project):
    """Return a project's `[project]` table."""
    return tomllib.loads((project / "pyproject.toml").read_text())["project"]


def test_wheels_hold_the_package_and_nothing_else(project, wheel):
    """Every file of `src` is in it, and neither tests nor caches are."""
    source = {path.relative_to(project / "src").as_posix() for path in (project / "src").rglob("*") if path.is_file()}
    kept = {name for name in source if not re.search(r"__pycache__|\.egg-info|_cache/", name)}
    packaged = [name for name in names_in(wheel) if ".dist-info/" not in name]

    assert sorted(kept) == sorted(packaged)
    assert not [name for name in packaged if re.search(r"(^|/)tests/", name)]
    assert any(name.endswith("/py.typed") for name in packaged)


def test_wheels_say_what_they_are(project, wheel):
    """Name, version, licence and Python come from the project's settings, and plugins have their entry point."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(files["METADATA"]).decode())
        entry_points = archive.read(files["entry_points.txt"]).decode()

    assert settings(project)["name"] == metadata["Name"]
    assert settings(project)["version"] == metadata["Version"]
    assert "Apache-2.0" == metadata["License-Expression"]
    assert ">=3.10" == metadata["Requires-Python"]
    if project == ROOT:
        assert "webdatamodule = bionemo.webdatamodule._cli.main:main" in entry_points
        assert "licenses/LICENSE" in files
    else:
        assert "[bionemo.webdatamodule]" in entry_points


def test_the_cores_wheel_holds_data_and_templates(tmp_path):
    """What is not a Python is there too: the demo's cells, and the files of a new plugin. `bionemo` is a namespace."""
    names = names_in(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))

    assert "bionemo/webdatamodule/data/pbmc68k_reduced.npz" in names
    assert "bionemo/webdatamodule/_cli/new_plugin/templates/project.toml" in names
    assert "bionemo/__init__.py" not in names


def test_a_wheel_can_be_built_from_the_source_distribution(tmp_path):
    """The source distribution is complete, and holds no caches."""
    import tarfile

    built = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(built) as archive:
        inside = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    [unpacked] = [path for path in tmp_path.iterdir() if path.is_dir()]
    wheel = next(WheelBuilder(str(unpacked)).build(directory=str(tmp_path / "wheel"), versions=["standard"]))
    direct = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "direct"), versions=["standard"]))

    assert not [name for name in inside if "__pycache__" in name]
    assert sorted(names_in(direct)) == sorted(names_in(wheel))


def test_the_version_stands_in_one_place():
    """The package reads it from its metadata, and what else names it says the same."""
    version = settings(ROOT)["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert version == bionemo.webdatamodule.__version__
    assert version == citation["version"]
    assert f"\n## {version}" in changelog
    assert not [path for path in (ROOT / "src").rglob("*.py") if f'"{version}"' in path.read_text()]


def test_the_workflow_is_ci_run_on_every_python():
    """Each version that the package supports runs `.ci/run`, and nothing but it."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["run"]

    assert [f"3.{minor}" for minor in range(10, 15)] == job["strategy"]["matrix"]["python"]
    assert [".ci/run"] == [step["run"] for step in job["steps"] if "run" in step]
