"""Charts as inline SVG: intervals by row, and curves over the masked share."""

from __future__ import annotations

import html
import io
import re
import zlib
from typing import Any, NamedTuple

import numpy as np

from finercam_rt.evaluation.metrics.confidence_drop import PREFIXES
from finercam_rt.evaluation.results import Curve, Results

_INK, _FAINT, _GRID, _BASELINE = "#1f2933", "#9aa5b1", "#e4e7eb", "#52606d"
_CHOSEN, _GAIN, _LOSS = "#c2410c", "#15803d", "#b91c1c"
_VARIABLES = {
    **{_INK: "--ink", _FAINT: "--faint", _GRID: "--line", _BASELINE: "--soft"},
    **{_CHOSEN: "--chosen", _GAIN: "--gain", _LOSS: "--loss"},
}
"""What the page's style makes of these colours, so that the charts follow it into the dark."""
_COLOURS = (
    "#3b82f6",
    "#0d9488",
    "#8b5cf6",
    "#65a30d",
    "#db2777",
    "#ca8a04",
    "#0891b2",
    "#a16207",
    "#6366f1",
    "#64748b",
)
"""Of an engine's method; they can be told from a light and from a dark ground."""
_STROKES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 3)), (0, (3, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
"""Of a seed."""
_POINTS = 9
"""Of the text."""
_TITLES = {
    "deletion": ("Deletion", "probability of the class", "share of pixels removed, most salient first"),
    "insertion": ("Insertion", "probability of the class", "share of pixels inserted, most salient first"),
    "confidence_drop": ("Confidence drop", "drop of the class's probability", "share of pixels removed"),
    "relative_drop": ("Relative confidence drop", "drop beyond the nearest class's", "share of pixels removed"),
}
_BANDS = "Means over images. A colour a method, a stroke a seed; thick, with bands of 95 %: the baseline, and the best."


class Chart(NamedTuple):
    """A title, a line below it, and the picture; "" where there is nothing to draw."""

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
            clear = not results.difference[m][column].covers_zero
            colour = _FAINT if not clear else _GAIN if sign * mean > 0 else _LOSS
            points.append((row.name, mean, low, high, colour))
    note = "higher is better" if sign > 0 else "lower is better"
    title = f"{column}: difference from the baseline {results.rows[0].name}"
    return Chart(title, f"Paired over images; {note}. Grey: the interval covers 0.", _forest(title, points, 2.9, 0))


def interval_chart(results: Results, column: str) -> Chart:
    """The mean of every row, with its interval."""
    points = []
    for m, row in enumerate(results.rows):
        mean, low, high, images = results.summary[m][column]
        if images:
            points.append((row.name, mean, low, high, _colour(results, m)))
    better = "higher" if results.higher_is_better[column] else "lower"
    return Chart(column, f"Mean over images with 95 %; {better} is better.", _forest(column, points, 2.6, None))


def time_chart(results: Results, column: str) -> Chart:
    """The mean of every row over the time that an image takes."""
    points = {m: of[column] for m, of in enumerate(results.summary) if of[column].images and results.seconds[m] > 0}
    title = f"{column} against time"
    better = "higher" if results.higher_is_better[column] else "lower"
    note = f"Means over images with 95 %; {better} is better, and left is faster. A colour a method, a shape a seed."
    if len(points) < 2:
        return Chart(title, note, "")
    figure, axes = _figure(3.0, max(2.6, 0.19 * len(points)))
    handles = {}
    times = 1e3 * results.seconds
    for m, (mean, low, high, _) in points.items():
        colour = _colour(results, m)
        if np.isfinite(low):
            axes.plot([times[m]] * 2, [low, high], color=colour, linewidth=1, alpha=0.45)
        marker = _MARKERS[_seed(results, m) % len(_MARKERS)]
        (handles[m],) = axes.plot([times[m]], [mean], marker, color=colour, markersize=6)
    shown = times[list(points)]
    if shown.max() > 5 * shown.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("ms an image")
    axes.set_ylabel(column)
    axes.grid(color=_GRID, linewidth=0.8)
    _legend(results, axes, handles)
    return Chart(title, note, _svg(figure, title))


def curve_charts(results: Results) -> list[Chart]:
    """The curves that were measured; where none was, the drops at the shares that were."""
    names = list(dict.fromkeys(name for of in results.curves.values() for name in of))
    charts = []
    for name in names:
        title, y, x = _TITLES[name]
        curves = {m: of[name] for m, of in results.curves.items() if name in of and of[name].images}
        charts.append(Chart(title, _BANDS, _lines(results, curves, title, x, y)))
    for prefix, name in zip(PREFIXES, ("relative_drop", "confidence_drop"), strict=True):
        shares = sorted(float(c[len(prefix) :]) for c in results.columns if c.startswith(prefix))
        if name in names or len(shares) < 2:
            continue
        title, y, x = _TITLES[name]
        charts.append(Chart(title, _BANDS, _lines(results, _drops(results, prefix), title, x, y)))
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
    if row == 0:
        return _BASELINE
    methods = list(dict.fromkeys((of.engine, of.method) for of in results.rows))
    return _COLOURS[methods.index((results.rows[row].engine, results.rows[row].method)) % len(_COLOURS)]


def _seed(results: Results, row: int) -> int:
    """The place of a row's seed among all that there are."""
    return list(dict.fromkeys(of.seed for of in results.rows)).index(results.rows[row].seed)


def _forest(title: str, points: list[tuple[str, float, float, float, str]], width: float, line: float | None) -> str:
    """A line an entry: name, mean, the ends of its interval, colour; and one across, where it is."""
    if not points:
        return ""
    figure, axes = _figure(width, 0.3 + 0.23 * len(points))
    for y, (_, mean, low, high, colour) in enumerate(points):
        if np.isfinite(low):
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([mean], [y], "o", color=colour, markersize=5)
    if line is not None:
        axes.axvline(line, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(points)), [point[0] for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, title)


def _lines(results: Results, curves: dict[int, Curve], title: str, x: str, y: str) -> str:
    figure, axes = _figure(3.3, max(2.6, 0.19 * len(curves)))
    chosen = -1 if results.recommendation is None else results.recommendation.row
    handles = {}
    for m in sorted(curves, key=lambda row: (row == chosen, row == 0)):
        curve, colour, own = curves[m], _colour(results, m), m in (0, chosen)
        (handles[m],) = axes.plot(
            100 * curve.share,
            curve.mean,
            color=colour,
            linewidth=2.4 if own else 1.3,
            linestyle=_STROKES[_seed(results, m) % len(_STROKES)],
            marker="o" if len(curve.share) < 8 else None,
            markersize=3.5,
        )
        if own:
            axes.fill_between(100 * curve.share, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel(f"{x}, %")
    axes.set_ylabel(y)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.margins(x=0.01)
    _legend(results, axes, handles)
    return _svg(figure, title)


def _legend(results: Results, axes: Any, handles: dict[int, Any]) -> None:
    """To the right of the axes, in the order of the rows."""
    rows = sorted(handles)
    axes.legend(
        [handles[m] for m in rows],
        [results.rows[m].name for m in rows],
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0.0,
        frameon=False,
        labelcolor=_INK,
        fontsize=_POINTS,
        handlelength=2.4,
    )


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure whose axes are so many inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(color=_FAINT, labelcolor=_INK, labelsize=_POINTS)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, size=_POINTS)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an <svg> element: text as text, no prolog, no reference to anything outside."""
    import matplotlib

    stream = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "finercam"}
    settings |= {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    label = html.escape(f"Chart: {title}. Its figures are in the table and in results.json.", quote=True)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    # ids are made of the content, and two charts of one page may share some
    prefix = f"c{zlib.crc32(text.encode()):08x}"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
