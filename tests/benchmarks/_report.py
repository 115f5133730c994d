"""From measurements to medians, ratios, Markdown tables and the generated part of a page."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


NOTHING = "\u2013"  # an en dash, as in ranges
TIMES = "\u00d7"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run of one contender.

    Attributes:
        kind: Kind of sample.
        workers: Number of loader workers (0 for conversions, whose processes are the contender's business).
        contender: Title of the contender.
        phase: "first" or "later" epoch, the "rest" of the first one from its second batch on, or "convert".
        turn: Number of the round in which all contenders took their turn.
        wall: Seconds on the wall.
        cpu: CPU seconds of all its processes.
        samples: Number of samples.
    """

    kind: str
    workers: int
    contender: str
    phase: str
    turn: int
    wall: float
    cpu: float
    samples: int

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.wall


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median and range of repeated figures."""

    median: float
    low: float
    high: float
    n: int


def summarise(figures: Iterable[float]) -> Summary | None:
    """Median, lowest and highest; None of nothing."""
    known = sorted(figures)
    if not known:
        return None
    return Summary(median=statistics.median(known), low=known[0], high=known[-1], n=len(known))


@dataclass(frozen=True)
class Results:
    """All measurements of a benchmark, and what could not be measured.

    Attributes:
        measurements: What was measured.
        failures: Reason by (kind, workers, contender).
    """

    measurements: Sequence[Measurement]
    failures: Mapping[tuple[str, int, str], str]

    def rates(self, kind: str, workers: int, contender: str, phase: str) -> dict[int, float]:
        """Samples a second by round."""
        return {one.turn: one.rate for one in self._select(kind, workers, contender, phase)}

    def cpu_per_sample(self, kind: str, workers: int, contender: str, phase: str) -> Summary | None:
        """CPU microseconds of all processes for one sample."""
        return summarise(1e6 * one.cpu / one.samples for one in self._select(kind, workers, contender, phase))

    def ratio(self, kind: str, workers: int, phase: str, ours: str, other: str) -> Summary | None:
        """How many times as fast one contender is as another: compared only within a round."""
        mine, theirs = (self.rates(kind, workers, name, phase) for name in (ours, other))
        return summarise(mine[turn] / theirs[turn] for turn in mine if turn in theirs)

    def best(self, kind: str, workers: int, phase: str, contenders: Iterable[str]) -> str | None:
        """The contender with the highest median rate."""
        medians = {}
        for name in contenders:
            summary = summarise(self.rates(kind, workers, name, phase).values())
            if summary is not None:
                medians[name] = summary.median
        return max(medians, key=medians.__getitem__, default=None)

    def _select(self, kind: str, workers: int, contender: str, phase: str) -> list[Measurement]:
        wanted = (kind, workers, contender, phase)
        return [one for one in self.measurements if (one.kind, one.workers, one.contender, one.phase) == wanted]


def number(value: float) -> str:
    """A figure with three significant digits at most after the thousands are grouped."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(summary: Summary | None, *, sign: str = "") -> str:
    """Median and range for a table."""
    if summary is None:
        return NOTHING
    return f"{number(summary.median)}{sign} ({number(summary.low)}{NOTHING}{number(summary.high)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *rows))


def splice(page: str, name: str, block: str) -> str:
    """Put a generated block between its markers in a page, or at the page's end if it has none yet."""
    begin, end = f"<!-- {name}: begin (generated) -->", f"<!-- {name}: end -->"
    generated = f"{begin}\n\n{block.strip()}\n\n{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n{generated}\n".lstrip()
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"the page has {begin} without {end}")
    return f"{head}{generated}{tail}"


def write_page(path: Path, name: str, block: str) -> None:
    """Renew the generated block of a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(splice(path.read_text() if path.exists() else "", name, block))


def provenance(versions: Mapping[str, Mapping[str, str]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Where, when and with what the figures were taken."""
    return {
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "versions": {name: dict(found) for name, found in versions.items()},
        "options": dict(options),
    }


def provenance_text(facts: Mapping[str, Any]) -> str:
    """Provenance as a list in Markdown."""
    libraries: dict[str, set[str]] = {}
    for found in facts["versions"].values():
        for name, version in found.items():
            libraries.setdefault(name, set()).add(version)
    listed = ", ".join(f"{name} {' and '.join(sorted(known))}" for name, known in sorted(libraries.items()))
    machine = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['machine']}"
    return "\n".join(
        (
            f"- Machine: {machine}; load {facts['load']:.1f} at the end.",
            f"- Date and commit: {facts['date']}, `{facts['commit']}`.",
            f"- Versions: {listed}.",
        )
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
