"""A picture of a plan: where on disk an epoch reads, when pieces are wanted, and what a cluster fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule._engine.sampling.summary import fetched
from bionemo.webdatamodule.errors import ConfigError, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bionemo.webdatamodule._engine.sampling.plan import Plan

_POINTS = 6000
_STEPS = 200  # steps whose pieces are shown
_NODES = 64
_INK, _GRID, _BLUE, _ORANGE = "#222222", "#dddddd", "#2a6f97", "#d1672a"


def draw(plan: Plan, shards: Sequence[int], *, epoch: int = 0) -> Figure:
    """Draw an epoch of a plan.

    Args:
        plan: The plan.
        shards: Samples of each shard of all sources.
        epoch: The epoch.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a picture needs matplotlib; install it with `pip install 'bionemo-webdatamodule[plot]'`"
        ) from error
    figure = Figure(figsize=(11, 5.6), dpi=150, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.5, 1])
    _draw_reading(figure.add_subplot(grid[:, 0]), plan, shards, epoch)
    _draw_wanted(figure.add_subplot(grid[0, 1]), plan, epoch)
    _draw_fetched(figure.add_subplot(grid[1, 1]), plan)
    return figure


def _draw_reading(axes: Axes, plan: Plan, shards: Sequence[int], epoch: int) -> None:
    places = np.unique(np.linspace(0, plan.n_samples - 1, min(plan.n_samples, _POINTS)).astype(np.int64))
    ids = plan.order.ids(epoch, places)
    ends = np.cumsum(shards)
    odd = np.searchsorted(ends, ids, side="right") % 2 == 1
    for chosen, colour in ((~odd, _BLUE), (odd, _ORANGE)):
        axes.scatter(places[chosen], ids[chosen], s=2.2, c=colour, linewidths=0, alpha=0.75, rasterized=True)
    axes.set_xlim(0, plan.n_samples)
    axes.set_ylim(0, max(1, int(ends[-1])))
    how = "unshuffled" if not plan.shuffle else count(plan.lanes, "lane") if plan.lanes else "full shuffle"
    _label(
        axes, f"Epoch {epoch}: where it reads ({how})", "place in the epoch", "place on disk (colour: shard by shard)"
    )


def _draw_wanted(axes: Axes, plan: Plan, epoch: int) -> None:
    """Draw how many samples lie in the pieces fetched up to each of the first steps."""
    steps = min(_STEPS, plan.n_batches(1))
    wanted = np.zeros(steps)
    for piece in plan.pieces(epoch, range(steps), [0], 1):
        wanted[piece.batch] += piece.stop - piece.first
    axes.step(range(steps), np.cumsum(wanted), color=_BLUE, linewidth=1.4, where="post", label="wanted")
    used = np.minimum(np.arange(1, steps + 1) * plan.global_batch_size, plan.n_samples)
    axes.plot(range(steps), used, color=_ORANGE, linewidth=1.4, label="used")
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    axes.set_ylim(bottom=0)
    _label(axes, "What the first steps fetch", "step", "samples")


def _draw_fetched(axes: Axes, plan: Plan) -> None:
    """Draw what clusters of more and more nodes fetch."""
    nodes = [n for n in (2**power for power in range(_NODES.bit_length())) if _serves(plan, n)]
    axes.plot(nodes, [fetched(plan, n) for n in nodes], color=_BLUE, marker="o", markersize=3.5, linewidth=1.4)
    if len(nodes) > 2:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    _label(axes, "What a cluster fetches in an epoch", "nodes, each with a cache", "times the data")


def _serves(plan: Plan, nodes: int) -> bool:
    try:
        plan.check(nodes)
    except ConfigError:
        return False
    return True


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK, length=0)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", style="plain")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
