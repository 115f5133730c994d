"""The sections on the use of the data: plan, verification, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bionemo.webdatamodule._cli.report.facts import Facts
from bionemo.webdatamodule._cli.report.markup import Content, Markup, element, join
from bionemo.webdatamodule._cli.report.tables import findings, table
from bionemo.webdatamodule._engine import humanize
from bionemo.webdatamodule.errors import count

_PROBLEMS = 50
_RANKS = 32


def plan(facts: Facts) -> Markup:
    """Return who would read what in the run that was asked about; nothing where none was."""
    made, topology = facts.plan, facts.topology
    if made is None or topology is None:
        return Markup()
    text = (
        f"{count(topology.ranks, 'rank')} with {count(topology.workers, 'worker')} each, "
        f"in global batches of {count(topology.global_batch_size, 'sample')}."
    )
    found = [*((line, "bad") for line in made["problems"]), *((line, "note") for line in made["notes"])]
    if "ranks" not in made:
        return join(element("p", text), findings(found))
    ranks = [
        (row["rank"], made["steps"], row["samples"], row["share"], row["last_share"]) for row in made["ranks"][:_RANKS]
    ]
    more = f"; the first {_RANKS} of {count(len(made['ranks']), 'rank')}" if len(made["ranks"]) > _RANKS else ""
    workers = [(row["worker"], row["batches"]) for row in made["workers"]]
    last = ", ".join(f"{n:,}" for n in made["last_batches"])
    return join(
        element(
            "p",
            f"{text} An epoch has {count(made['steps'], 'step')}; the last global batches have {last} samples.",
        ),
        table(
            f"What each rank reads in an epoch, in global order{more}",
            ("rank", "batches", "samples", "in a batch", "in the last"),
            ranks,
            numbers=range(5),
            class_="compact",
        ),
        table("What each worker of a rank reads", ("worker", "batches"), workers, numbers=range(2), class_="compact")
        if topology.workers
        else "",
        findings(found),
    )


def verification(facts: Facts) -> Markup:
    """Return whether the bytes are what the manifest says, and all that is wrong."""
    report = facts.verification
    if report is None:
        text = f"The shards were not compared with a manifest: {facts.unverified}."
    elif report.problems:
        text = "The shards were compared with the hashes in the manifest, and differ from what was written."
    else:
        text = (
            f"The SHA-256 hashes of {count(report.shards, 'shard')} and of their indexes, "
            f"over {humanize.size(report.bytes)}, are those in the manifest."
        )
    reasons = [f"{each.suffix}: {r}" for each in (facts.survey.fields if facts.survey else ()) for r in each.reasons]
    problems = [*facts.problems, *reasons]
    shown = [*((line, "bad") for line in problems[:_PROBLEMS])]
    if len(problems) > _PROBLEMS:
        shown.append((f"and {len(problems) - _PROBLEMS} more", "bad"))
    shown += [(line, "note") for line in (report.notes if report else ())[:_PROBLEMS]]
    return join(element("p", text), findings(shown))


def provenance(facts: Facts) -> Markup:
    """Return who wrote the data, of what, with what, and their digest."""
    manifest = facts.manifest
    rows: list[tuple[Content, ...]] = [("directory", element("code", facts.directory)), ("prefix", facts.prefix)]
    if manifest is None:
        rows.append(("written by", "another tool; there is no manifest"))
    else:
        rows += [
            ("writer", _component(manifest.writer)),
            *((f"option {name}", element("code", _plain(value))) for name, value in _options(manifest.writer).items()),
            ("key encoder", _component(manifest.key_encoder)),
            ("written with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
            ("manifest format", manifest.format),
        ]
    rows.append(("digest", element("code", facts.digest, class_="hash")))
    return table("Where the data come from", None, rows, class_="facts")


def _component(entry: Mapping[str, Any]) -> str:
    source = " ".join(str(entry[name]) for name in ("distribution", "version") if entry.get(name))
    return str(entry.get("name", "unknown")) + (f" of {source}" if source else "")


def _options(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    options = entry.get("options")
    return options if isinstance(options, Mapping) else {}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
