"""The page that a report is: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib import metadata, resources
from string import Template

from bionemo.webdatamodule._cli.report import about_data, about_use
from bionemo.webdatamodule._cli.report.facts import Facts
from bionemo.webdatamodule._cli.report.markup import Markup, element, join
from bionemo.webdatamodule._cli.report.tables import findings
from bionemo.webdatamodule._engine import humanize
from bionemo.webdatamodule.errors import count

_PROBLEMS = 5  # that are listed at the top; all of them are under Verification


def page(facts: Facts, made: datetime) -> str:
    """Return the page.

    Args:
        facts: What it says.
        made: When it was made.
    """
    sections = [
        ("shards", "Shards", about_data.shards),
        ("fields", "Fields", about_data.fields),
        ("contents", "Contents", about_data.contents),
        ("labels", "Labels", about_data.labels),
        ("plan", "Plan", about_use.plan),
        ("verification", "Verification", about_use.verification),
        ("provenance", "Provenance", about_use.provenance),
    ]
    built = [(anchor, title, body) for anchor, title, make in sections if (body := make(facts))]
    about = resources.files(__package__)
    return Template(about.joinpath("report.html").read_text("utf-8")).substitute(
        title=join(f"{_name(facts)}: data set report"),
        style=about.joinpath("report.css").read_text("utf-8"),
        header=_header(facts, [(anchor, title) for anchor, title, _ in built]),
        main=join(_section(anchor, title, body) for anchor, title, body in built),
        footer=element(
            "footer",
            "Made by ",
            element("code", "webdatamodule report"),
            f" {metadata.version('bionemo-webdatamodule')} on ",
            element("time", f"{made:%Y-%m-%d at %H:%M} UTC", datetime=made.isoformat(timespec="seconds")),
            ".",
        ),
    )


def _header(facts: Facts, anchors: Iterable[tuple[str, str]]) -> Markup:
    survey = facts.survey
    tiles = {
        "Samples": f"{facts.n_samples:,}",
        "Shards": f"{len(facts.shards):,}",
        "Size": humanize.size(facts.n_bytes),
        "Per sample": humanize.size(facts.n_bytes / max(1, facts.n_samples)),
        "Fields": f"{len(survey.fields):,}" if survey else "unknown",
    }
    return element(
        "header",
        element("p", "Data set report", class_="eyebrow"),
        element("h1", _name(facts)),
        element("p", element("code", facts.directory), class_="quiet where"),
        element("p", _state(facts), class_=f"state {_colour(facts)}"),
        findings([(problem, "bad") for problem in facts.problems[:_PROBLEMS]]),
        element("dl", (element("div", element("dt", k), element("dd", v)) for k, v in tiles.items()), class_="tiles"),
        element(
            "nav",
            element("ul", (element("li", element("a", title, href=f"#{anchor}")) for anchor, title in anchors)),
            aria_label="Sections",
        ),
    )


def _name(facts: Facts) -> str:
    return facts.directory.rstrip("/").rpartition("/")[2] or facts.directory


def _state(facts: Facts) -> str:
    if facts.problems:
        return f"{count(len(facts.problems), 'problem')} found"
    return "Verified: every byte is as it was written" if facts.verification else "Not verified"


def _colour(facts: Facts) -> str:
    return "bad" if facts.problems else "good" if facts.verification else "note"


def _section(anchor: str, title: str, body: Markup) -> Markup:
    return element("section", element("h2", title, id=anchor), body, aria_labelledby=anchor)
