"""Charts as inline SVG: intervals by row, and curves over the masked share."""

from __future__ import annotations

import io
import re
import zlib
from typing import Any, NamedTuple

import numpy as np

from finercam_rt.evaluation.metrics.confidence_drop import PREFIXES
from finercam_rt.evaluation.results import Curve, Results

_INK, _FAINT, _BASELINE, _CHOSEN, _GAIN, _LOSS = "#1f2933", "#9aa5b1", "#52606d", "#c2410c", "#15803d", "#b91c1c"
_COLOURS = (
    *("#2563eb", "#0891b2", "#7c3aed", "#65a30d", "#db2777"),
    *("#ca8a04", "#0f766e", "#111827", "#64748b", "#f472b6"),
)
_TITLES = {
    "deletion": ("Deletion", "probability of the class", "share of pixels removed, most salient first"),
    "insertion": ("Insertion", "probability of the class", "share of pixels inserted, most salient first"),
    "confidence_drop": ("Confidence drop", "drop of the class's probability", "share of pixels removed"),
    "relative_drop": ("Relative confidence drop", "drop beyond the nearest class's", "share of pixels removed"),
}
_BANDS = "Means over images; the bands are 95 %."


class Chart(NamedTuple):
    """A title, a line below it, and the picture."""

    title: str
    note: str
    svg: str


def difference_chart(results: Results, column: str) -> Chart:
    """The paired difference of every row from the baseline, with its interval."""
    sign = results.better(column)
    points = []
    for m, row in enumerate(results.rows[1:], 1):
        mean, low, high, images = results.difference[m][column]
        if images:
            clear = low > 0 or high < 0
            colour = _FAINT if not clear else _GAIN if sign * mean > 0 else _LOSS
            points.append((row.name, mean, low, high, colour))
    note = "higher is better" if sign > 0 else "lower is better"
    title = f"{column}: difference from the baseline {results.rows[0].name}"
    return Chart(title, f"Paired over images; {note}. Grey: the interval covers 0.", _forest(points, zero=True))


def interval_chart(results: Results, column: str) -> Chart:
    """The mean of every row, with its interval."""
    points = []
    for m, row in enumerate(results.rows):
        mean, low, high, images = results.summary[m][column]
        if images:
            points.append((row.name, mean, low, high, _colour(results, m)))
    better = "higher" if results.higher_is_better[column] else "lower"
    return Chart(column, f"Mean over images; {better} is better.", _forest(points, zero=False))


def curve_charts(results: Results) -> list[Chart]:
    """The curves that were measured; where none was, the drops at the shares that were."""
    names = list(dict.fromkeys(name for of in results.curves.values() for name in of))
    charts = []
    for name in names:
        title, y, x = _TITLES[name]
        curves = {m: of[name] for m, of in results.curves.items() if name in of and of[name].images}
        charts.append(Chart(title, _BANDS, _lines(results, curves, x, y)))
    for prefix, name in zip(PREFIXES, ("relative_drop", "confidence_drop"), strict=True):
        shares = sorted(float(c[len(prefix) :]) for c in results.columns if c.startswith(prefix))
        if name in names or not shares:
            continue
        title, y, x = _TITLES[name]
        charts.append(Chart(title, _BANDS, _lines(results, _drops(results, prefix), x, y)))
    return charts


def _drops(results: Results, prefix: str) -> dict[int, Curve]:
    """The columns of one kind as a curve from 0."""
    columns = sorted((c for c in results.columns if c.startswith(prefix)), key=lambda c: float(c[len(prefix) :]))
    share = np.array([0.0, *(float(c[len(prefix) :]) / 100 for c in columns)])
    curves = {}
    for m, summary in enumerate(results.summary):
        intervals = [summary[column] for column in columns]
        mean, low, high = (
            np.array([0.0, *(getattr(interval, key) for interval in intervals)]) for key in ("mean", "low", "high")
        )
        if intervals[0].images:
            curves[m] = Curve(share, mean, low, high, intervals[0].images)
    return curves


def _colour(results: Results, row: int) -> str:
    if results.recommendation is not None and results.recommendation.row == row:
        return _CHOSEN
    return _BASELINE if row == 0 else _COLOURS[(row - 1) % len(_COLOURS)]


def _style(row: int, chosen: int) -> str:
    """Dashed for the baseline; other strokes where the colours begin anew."""
    if row == chosen:
        return "-"
    return "--" if row == 0 else ("-", ":", "-.")[(row - 1) // len(_COLOURS) % 3]


def _forest(points: list[tuple[str, float, float, float, str]], *, zero: bool) -> str:
    """A line an entry: name, mean, the ends of its interval, colour."""
    if not points:
        return ""
    figure, axes = _figure(7.2, 0.55 + 0.27 * len(points))
    for y, (_, mean, low, high, colour) in enumerate(points):
        if np.isfinite(low):
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([mean], [y], "o", color=colour, markersize=5)
    if zero:
        axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(points)), [point[0] for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure)


def _lines(results: Results, curves: dict[int, Curve], x: str, y: str) -> str:
    figure, axes = _figure(7.2, max(3.3, 0.6 + 0.2 * len(curves)))
    last = -1 if results.recommendation is None else results.recommendation.row
    for m in sorted(curves, key=lambda row: (row == last, row == 0)):
        curve, colour, own = curves[m], _colour(results, m), m in (0, last)
        axes.plot(
            100 * curve.share,
            curve.mean,
            color=colour,
            linewidth=2.2 if own else 1.3,
            linestyle=_style(m, last),
            marker="o" if len(curve.share) < 8 else None,
            markersize=3.5,
            label=results.rows[m].name,
        )
        if own:
            axes.fill_between(100 * curve.share, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel(f"{x}, %")
    axes.set_ylabel(y)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.margins(x=0.01)
    handles, labels = axes.get_legend_handles_labels()
    order = np.argsort([next(m for m, row in enumerate(results.rows) if row.name == label) for label in labels])
    handles, labels = [handles[k] for k in order], [labels[k] for k in order]
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set(color=_INK, size=9)
    axes.yaxis.label.set(color=_INK, size=9)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an <svg> element: text as text, no prolog, no reference to anything outside."""
    import matplotlib

    stream = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "finercam", "font.size": 9}
    settings |= {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # ids are made of the content, and two charts of one page may share some
    prefix = f"c{zlib.crc32(text.encode()):08x}"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
