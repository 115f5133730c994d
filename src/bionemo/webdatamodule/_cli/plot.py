"""A picture of a shuffle: where on disk an epoch reads, and what the window of shards buys and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule._engine.sampling.permutation import key
from bionemo.webdatamodule._engine.sampling.windows import BlockPermutation, mixing
from bionemo.webdatamodule.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bionemo.webdatamodule._engine.sampling.plan import Plan

_POINTS = 6000
_SCALED = 40_000  # samples of the small copy on which mixing is measured
_INK, _GRID, _BLUE, _ORANGE = "#222222", "#dddddd", "#2a6f97", "#d1672a"


def window_mixing(shards: Sequence[int], window: int) -> float:
    """Return how well windows of so many shards mix (:func:`~.blocks.mixing`), measured on a small copy.

    Args:
        shards: Samples of each shard.
        window: Shards that are shuffled together; 0 for all.
    """
    small, window = _scaled(shards, window or len(shards))
    order = BlockPermutation(small, window, key("mixing"))
    return min(1.0, mixing(order(np.arange(order.n))))


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
    windows = _windows(len(shards))
    now = min(plan.block or len(shards), len(shards)) if plan.shuffle else 0
    _draw_windows(
        figure.add_subplot(grid[0, 1]),
        [(window, window_mixing(shards, window)) for window in windows],
        now,
        title="What a larger window buys: mixing",
        label="1 = full shuffle",
    )
    _draw_windows(
        figure.add_subplot(grid[1, 1]),
        [(window, _touched(shards, window, plan.global_batch_size)) for window in windows],
        now,
        title="What it costs: shards read from at a time",
        label="shards in a global batch",
    )
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
    how = "unshuffled" if not plan.shuffle else f"windows of {plan.block} shards" if plan.block else "full shuffle"
    _label(
        axes, f"Epoch {epoch}: where it reads ({how})", "place in the epoch", "place on disk (colour: shard by shard)"
    )


def _draw_windows(axes: Axes, points: list[tuple[int, float]], now: int, *, title: str, label: str) -> None:
    axes.plot(*zip(*points, strict=True), color=_BLUE, marker="o", markersize=3.5, linewidth=1.4)
    if now:
        axes.axvline(now, color=_ORANGE, linewidth=1.4, label=f"this plan: {now}")
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    if len(points) > 2:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    _label(axes, title, "shards shuffled together", label)


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


def _windows(shards: int) -> list[int]:
    powers = [2**power for power in range(math.floor(math.log2(shards)) + 1)] if shards else [1]
    return sorted({*powers, max(1, shards)})


def _touched(shards: Sequence[int], window: int, batch: int) -> float:
    """Return about how many shards a global batch reads from: the expected number of a draw from the window."""
    window = min(window, len(shards))
    size = max(1.0, window * sum(shards) / len(shards))
    return window * -math.expm1(min(batch, size) * math.log1p(-1 / window)) if window > 1 else 1.0


def _scaled(shards: Sequence[int], window: int) -> tuple[list[int], int]:
    """Return shards and a window in the same proportions, but so few samples that measuring is quick."""
    every = max(1, len(shards) // (_SCALED // 20))
    some = shards[::every]
    factor = min(1.0, _SCALED / max(1, sum(some)))
    return [max(1, round(count * factor)) for count in some], max(1, round(window / every))
