"""Results as plain values: of results.json, of results.csv, of a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finercam_rt import ops
from finercam_rt.evaluation.statistics import CONFIDENCE, RESAMPLES, Interval

if TYPE_CHECKING:
    from finercam_rt.evaluation.results import Results

SCHEMA = 1
"""The version of results.json."""
UNREAD = 255
"""The status of an image that could not be read, beside the codes of `ops.Status`."""


def summary_record(results: Results) -> dict[str, Any]:
    """All but the images, as plain JSON values: what `finercam evaluate --json` prints."""
    rows = []
    for number, row in enumerate(results.rows):
        rows.append(
            {
                "name": row.name,
                "engine": results.produced["engines"][row.engine]["name"],
                "method": row.method,
                "seed": {"name": row.seed.name, "references": row.seed.references, "alpha": row.seed.alpha},
                "maps": results.statuses(number),
                "summary": {column: _interval(of) for column, of in results.summary[number].items()},
                "difference": {column: _interval(of) for column, of in results.difference[number].items()},
                "curves": {
                    name: {
                        "share": curve.share.tolist(),
                        **{key: _finite_list(getattr(curve, key)) for key in ("mean", "low", "high")},
                        "images": curve.images,
                    }
                    for name, curve in results.curves.get(number, {}).items()
                },
            }
        )
    chosen = results.recommendation
    recommendation = None
    if chosen is not None:
        row = results.rows[chosen.row]
        recommendation = {
            "column": chosen.column,
            "row": row.name,
            "method": row.method,
            "seed": row.seed.name,
            "alpha": row.seed.alpha,
            "over_baseline": None if chosen.over_baseline is None else _interval(chosen.over_baseline),
            "runner_up": None if chosen.runner_up is None else results.rows[chosen.runner_up].name,
            "over_runner_up": None if chosen.over_runner_up is None else _interval(chosen.over_runner_up),
            "wins": chosen.wins,
        }
    return {
        "schema": SCHEMA,
        "produced": results.produced,
        "intervals": {"confidence": CONFIDENCE, "method": "percentile bootstrap over images", "resamples": RESAMPLES},
        "columns": {column: {"higher_is_better": results.higher_is_better[column]} for column in results.columns},
        "baseline": results.rows[0].name,
        "images_asked": len(results.names) + sum(item.kind != "unreadable" for item in results.left_out),
        "images_measured": int(results.read.sum()),
        "left_out": {
            "counts": results.left_out_counts(),
            "images": [{"image": item.name, "kind": item.kind, "reason": item.reason} for item in results.left_out],
        },
        "rows": rows,
        "recommendation": recommendation,
        "run": {
            **results.run,
            "seconds_per_image": {row.name: round(s, 6) for row, s in zip(results.rows, results.seconds, strict=True)},
            "sentence": None if chosen is None else chosen.sentence,
        },
    }


def image_records(results: Results) -> Iterator[dict[str, Any]]:
    """An image each: its classes by engine, and its figures by row."""
    engines = [engine["name"] for engine in results.produced["engines"]]
    for i, name in enumerate(results.names):
        record: dict[str, Any] = {"image": name, "label": int(results.labels[i]) if results.labels[i] >= 0 else None}
        if results.status[i, 0] == UNREAD:
            yield {**record, "measured": False}
            continue
        record["engines"] = {
            engine: {
                "predicted": int(results.predicted[i, e]),
                "target": int(results.target[i, e]),
                "confidence": _finite(results.confidence[i, e]),
            }
            for e, engine in enumerate(engines)
            if results.target[i, e] >= 0
        }
        record["rows"] = {
            row.name: {
                "status": ops.Status(int(results.status[i, m])).label,
                **{c: _finite(v) for c, v in zip(results.columns, results.values[i, m], strict=True)},
            }
            for m, row in enumerate(results.rows)
        }
        yield record


def table_records(results: Results) -> list[dict[str, Any]]:
    """A line a row and column, NaN where there is no figure: what a spreadsheet or a data frame wants."""
    lines = []
    for number, row in enumerate(results.rows):
        start = {
            "row": row.name,
            "engine": results.produced["engines"][row.engine]["name"],
            "method": row.method,
            "seed": row.seed.name,
            "references": row.seed.references,
            "alpha": row.seed.alpha,
        }
        for column in results.columns:
            mean, difference = results.summary[number][column], results.difference[number][column]
            lines.append(
                {
                    **start,
                    "metric": column,
                    **mean._asdict(),
                    "difference": difference.mean,
                    **{f"difference_{name}": getattr(difference, name) for name in ("low", "high", "images")},
                    "higher_is_better": int(results.higher_is_better[column]),
                }
            )
    return lines


def text_table(results: Results) -> str:
    """The means as a table of fixed width, * at the best of each column, and what to take."""
    width = max(len(row.name) for row in results.rows)
    widths = [max(9, len(column)) for column in results.columns]
    head = "  ".join(f"{column:>{w}} " for column, w in zip(results.columns, widths, strict=True))
    lines = [f"{'':{width}}  {head} no map  ms/image"]
    best = {column: results.best(column) for column in results.columns}
    for m, row in enumerate(results.rows):
        means = "  ".join(
            f"{results.summary[m][column].mean:{w}.4f}{'*' if m in best[column] else ' '}"
            for column, w in zip(results.columns, widths, strict=True)
        )
        missing = sum(count for status, count in results.statuses(m).items() if status != ops.Status.OK.label)
        lines.append(f"{row.name:{width}}  {means} {missing:6}  {1e3 * results.seconds[m]:8.1f}")
    return "\n".join([*lines, results.advice])


def _interval(interval: Interval) -> dict[str, Any]:
    return {name: _finite(value) for name, value in interval._asdict().items()}


def _finite(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _finite_list(values: Any) -> list[float | int | None]:
    return [_finite(float(value)) for value in values]
