"""A result file as a picture: what an explanation costs over the plain forward pass, and what it costs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison.contenders import AGAIN, BF16, INT8, OURS, PEERS, PLAIN
from comparison.tables import find, of_kind
from finercam_rt.files import atomic_write

_PEER_COLORS = ("#b8b8b8", "#e0a030", "#c0503a", "#7a9a3a", "#7d5ba6", "#b89ad0")
_OWN_COLORS = {INT8: "#7fb3d9", BF16: "#1b6ca8"}
_CELL_COLORS = ("#0b3c5d", "#1b6ca8", "#5fa4d3", "#a04b1a", "#d9822b", "#efb366")


def draw(document: dict[str, Any], picture: Path) -> None:
    """Ratios to the plain forward with their intervals above, multiples of our time below; written in one step.

    Raises:
        ValueError: the file has no times.
    """
    timings = of_kind(document, "timing")
    if not timings:
        raise ValueError("there are no times to draw; run.py says which jobs failed.")
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    names = list(dict.fromkeys(record["case"]["name"] for record in timings))
    _draw_own(above, timings, names)
    _draw_peers(below, timings, names)
    for axis in (above, below):
        axis.set_xticks(np.arange(len(names)), names, fontsize=8)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, ncols=8, columnspacing=1.2, frameon=False, loc="lower left", bbox_to_anchor=(0, 0.99))
    with atomic_write(picture) as stream:
        figure.savefig(stream, format="png", dpi=130)


def _draw_own(axis: Axes, timings: list[dict[str, Any]], names: list[str]) -> None:
    cells = sorted({(r["threads"], r["batch"]) for r in timings if r["group"] == "engine"})
    for k, cell in enumerate(cells):
        threads, batch = cell
        color = _CELL_COLORS[k % len(_CELL_COLORS)]
        label = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        places = np.arange(len(names)) + (k - (len(cells) - 1) / 2) * 0.11
        _points(axis, places, [find(timings, name, OURS, PLAIN, *cell) for name in names], color, label, "o")
        again = "plain forward / itself" if k == 0 else None
        _points(axis, places, [find(timings, name, AGAIN, PLAIN, *cell) for name in names], "#c8c8c8", again, "_")
    goals = {record["case"]["name"]: record["case"]["goal"] for record in timings}
    for place, name in enumerate(names):
        axis.plot([place - 0.4, place + 0.4], [goals[name]] * 2, color="#3a8a3a", linewidth=1, linestyle="--")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylabel("time / plain forward", fontsize=8)
    axis.set_title("An explanation against its plain forward pass; dashed: the goal", fontsize=9, loc="left", pad=26)


def _points(
    axis: Axes, places: Any, ratios: list[dict[str, Any] | None], color: str, label: str | None, marker: str
) -> None:
    for place, found in zip(places, ratios, strict=True):
        if found is not None:
            # the mean over processes may lie outside of the interval's quantiles by a rounding
            errors = [[max(found["ratio"] - found["low"], 0)], [max(found["high"] - found["ratio"], 0)]]
            axis.errorbar(place, found["ratio"], errors, color=color, marker=marker, markersize=4, linewidth=1)
    if label:
        axis.plot([], [], color=color, marker=marker, markersize=4, linewidth=1, label=label)


def _draw_peers(axis: Axes, timings: list[dict[str, Any]], names: list[str]) -> None:
    series = [(name, (name, OURS), color) for name, color in _OWN_COLORS.items()]
    series += [(name, (name, OURS), color) for name, color in zip(PEERS, _PEER_COLORS, strict=True)]
    width = 0.86 / len(series)
    for k, (label, pair, color) in enumerate(series):
        found = [find(timings, name, *pair, 1, 1) for name in names]
        values = [ratio["ratio"] if ratio else np.nan for ratio in found]
        places = np.arange(len(names)) + (k - (len(series) - 1) / 2) * width
        bars = axis.bar(places, np.array(values) - 1, width, bottom=1, label=label, color=color)
        labels = ["" if np.isnan(value) else f"{value:.1f}" for value in values]
        axis.bar_label(bars, labels, fontsize=6, padding=1)
    axis.set_yscale("log")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set_ylabel("CPU time / finercam-rt fp32", fontsize=8)
    axis.set_title("Others, and reduced precision: batch 1, 1 thread", fontsize=9, loc="left", pad=26)
