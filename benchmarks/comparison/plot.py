"""A result file as a picture: each contender's CPU time in units of the plain forward pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from comparison.contenders import CONTENDERS, OURS, PLAIN
from comparison.tables import of_kind

_COLORS = {
    OURS: "#1b6ca8",
    "torch forward": "#b8b8b8",
    "torch-cam": "#e0a030",
    "grad-cam": "#c0503a",
    "captum": "#7a9a3a",
}


def draw(document: dict[str, Any], picture: Path) -> None:
    """One panel for each number of threads and batch; written in one step.

    Raises:
        ValueError: the file has no times.
    """
    timings = of_kind(document, "timing")
    if not timings:
        raise ValueError("there are no times to draw; run.py says which jobs failed.")
    panels = sorted({(record["threads"], record["batch"]) for record in timings})
    figure = Figure(figsize=(11, 3.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    names = [contender.name for contender in CONTENDERS if contender.name != PLAIN]
    width = 0.8 / len(names)
    for axis, (threads, batch) in zip(axes, panels, strict=True):
        found = [record for record in timings if (record["threads"], record["batch"]) == (threads, batch)]
        for k, name in enumerate(names):
            units = [_in_forwards(record, name) for record in found]
            places = np.arange(len(found)) + (k - (len(names) - 1) / 2) * width
            bars = axis.bar(places, units, width, label=name, color=_COLORS[name])
            labels = ["" if np.isnan(value) else f"{value:.2f}" for value in units]
            axis.bar_label(bars, labels, fontsize=6.5, padding=1)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(np.arange(len(found)), [record["case"]["name"] for record in found], fontsize=8)
        axis.set_ylabel("CPU time / ONNX Runtime forward", fontsize=8)
        axis.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, ncols=len(names), frameon=False, loc="upper right")
    part = picture.with_name(f".{picture.name}.part")
    figure.savefig(part, format="png", dpi=130)
    os.replace(part, picture)


def _in_forwards(record: dict[str, Any], name: str) -> float:
    times = record["cpu_ms"]
    return float(times[name]["median"] / times[PLAIN]["median"]) if name in times else float("nan")
