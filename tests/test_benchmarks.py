"""The benchmarks' arithmetic and tables, and that our own contenders run, on tiny data and without any peer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def report():
    """The module that makes tables; the benchmarks are scripts, so their folder goes on the path."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import _report

        yield _report
    finally:
        sys.path.remove(str(BENCHMARKS))


def measurement(report, contender, turn, wall, *, phase="later", cpu=1.0):
    """A measurement of 100 samples."""
    return report.Measurement(
        kind="small", workers=0, contender=contender, phase=phase, turn=turn, wall=wall, cpu=cpu, samples=100
    )


def test_ratios_compare_within_a_round_only(report):
    """A slow minute of the machine, which both contenders shared, does not move their ratio."""
    walls = {"ours": [1.0, 10.0, 1.0], "other": [2.0, 20.0, 4.0]}
    results = report.Results(
        [measurement(report, name, turn, wall) for name, found in walls.items() for turn, wall in enumerate(found)], {}
    )
    ratio = results.ratio("small", 0, "later", "ours", "other")
    assert report.Summary(median=2.0, low=2.0, high=4.0, n=3) == ratio


def test_rounds_that_only_one_contender_finished_do_not_count(report):
    """A contender that failed half way is compared by what it did."""
    results = report.Results(
        [measurement(report, "ours", turn, 1.0) for turn in range(3)] + [measurement(report, "other", 1, 3.0)], {}
    )
    assert report.Summary(median=3.0, low=3.0, high=3.0, n=1) == results.ratio("small", 0, "later", "ours", "other")


def test_the_best_contender_has_the_highest_median(report):
    """One lucky run makes nobody the best."""
    walls = {"lucky": [0.1, 9.0, 9.0], "steady": [1.0, 1.0, 1.0]}
    results = report.Results(
        [measurement(report, name, turn, wall) for name, found in walls.items() for turn, wall in enumerate(found)], {}
    )
    assert results.best("small", 0, "later", walls) == "steady"
    assert results.best("small", 2, "later", walls) is None


def test_cpu_is_given_for_a_sample(report):
    """CPU seconds of a run become microseconds of a sample."""
    results = report.Results([measurement(report, "ours", 0, 1.0, cpu=0.05)], {})
    assert results.cpu_per_sample("small", 0, "ours", "later").median == pytest.approx(500.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1_234_567, "1,230,000"), (999.6, "1000"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.056, "0.06")],
)
def test_figures_have_three_digits(report, value, expected):
    """No table claims more than was measured."""
    assert expected == report.number(value)


def test_nothing_measured_shows_as_a_dash(report):
    """An empty cell is told from a zero."""
    assert report.NOTHING == report.cell(report.summarise([]))


def test_table_is_markdown(report):
    """Every row has as many columns as the header."""
    expected = "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert expected == report.table(("a", "b"), [("x", "1")])


def test_splice_renews_the_generated_part_only(report):
    """What people wrote around the markers stays."""
    page = report.splice("# Speed\n\nBefore.\n", "read", "old")
    page += "\nAfter.\n"
    renewed = report.splice(page, "read", "new")
    assert page.replace("old", "new") == renewed
    assert renewed == report.splice(renewed, "read", "new")


def test_splice_refuses_a_page_with_half_a_marker(report):
    """Rather than eating the rest of the page."""
    page = report.splice("", "read", "old").replace("<!-- read: end -->", "")
    with pytest.raises(ValueError, match="without"):
        report.splice(page, "read", "new")


@pytest.mark.parametrize(
    ("script", "contender", "more"),
    [("read.py", "this package, default", ("--workers", "0")), ("convert.py", "this package", ())],
)
def test_our_own_contenders_run_and_are_compared_with_the_floor(tmp_path, script, contender, more):
    """The script prepares tiny data, checks what arrives, measures, and writes its report."""
    found, page = tmp_path / "found.json", tmp_path / "page.md"
    options = ["--peers", "ours", "floor", "--datasets", "small", "--quick", "--json", found, "--markdown", page]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, "--cache", tmp_path / "cache", *options, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(found.read_text())
    assert [] == record["failures"]
    assert {} == record["absent"]
    assert contender in {one["contender"] for one in record["measurements"]}
    assert f"| {contender} |" in page.read_text()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("shards", ["--samples", "200", "--shards", "5", "--workers", "0"]),
        ("pipelines", ["--samples", "130", "--rows", "map", "--workers", "0"]),
    ],
)
def test_the_benchmarks_of_shards_and_pipelines_run(tmp_path, script, arguments):
    """They measure every contender and write each measurement."""
    record = tmp_path / "record.json"
    command = [sys.executable, BENCHMARKS / f"{script}.py", *arguments, "--repeat", "1", "--cache", tmp_path / "cache"]
    subprocess.run([*command, "--json", record], check=True, capture_output=True, timeout=300)
    runs = json.loads(record.read_text())["runs"]
    assert {"shards": [5], "pipelines": ["map"] * 3}[script] == [
        one["shards" if script == "shards" else "row"] for one in runs
    ]
