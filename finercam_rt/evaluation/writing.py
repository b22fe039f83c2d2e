"""results.json and results.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finercam_rt import ops
from finercam_rt.evaluation.results import UNREAD, Results
from finercam_rt.evaluation.statistics import CONFIDENCE, RESAMPLES, Interval
from finercam_rt.files import atomic_write

RESULTS, TABLE = "results.json", "results.csv"
SCHEMA = 1
"""The version of results.json."""
_HEADER = (
    *("row", "engine", "method", "seed", "references", "alpha", "metric", "mean", "low", "high", "images"),
    *("difference", "difference_low", "difference_high", "difference_images", "higher_is_better"),
)


def summary_record(results: Results) -> dict[str, Any]:
    """All but the images, as plain JSON values."""
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


def write_results(results: Results, folder: Path) -> None:
    """Write both files; each appears whole or not at all.

    Raises:
        InputError: one cannot be written.
    """
    head = json.dumps(summary_record(results), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(folder / RESULTS) as stream:
        stream.write(head[: head.rindex("\n}")].encode() + b',\n "images": [\n')
        for number, record in enumerate(_image_records(results)):
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            stream.write((b",\n" if number else b"") + b"  " + line.encode())
        stream.write(b"\n ]\n}\n")
    with atomic_write(folder / TABLE) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        _write_table(results, text)


def _image_records(results: Results) -> Iterator[dict[str, Any]]:
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


def _write_table(results: Results, text: io.TextIOWrapper) -> None:
    """A line a row and column: what a spreadsheet wants."""
    writer = csv.writer(text)
    writer.writerow(_HEADER)
    for number, row in enumerate(results.rows):
        engine = results.produced["engines"][row.engine]["name"]
        start = [row.name, engine, row.method, row.seed.name, row.seed.references, f"{row.seed.alpha:g}"]
        for column in results.columns:
            figures = (*results.summary[number][column], *results.difference[number][column])
            shown = [v if isinstance(v, int) else "" if math.isnan(v) else f"{v:.9g}" for v in figures]
            writer.writerow([*start, column, *shown, int(results.higher_is_better[column])])


def _interval(interval: Interval) -> dict[str, Any]:
    return {name: _finite(value) for name, value in interval._asdict().items()}


def _finite(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _finite_list(values: Any) -> list[float | int | None]:
    return [_finite(float(value)) for value in values]
