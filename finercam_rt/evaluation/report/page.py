"""The page out of its template, the charts and the gallery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from finercam_rt import ops
from finercam_rt.evaluation.dataset import Dataset
from finercam_rt.evaluation.report.charts import curve_charts, difference_chart, interval_chart, time_chart
from finercam_rt.evaluation.report.gallery import gallery
from finercam_rt.evaluation.report.meanings import meaning
from finercam_rt.evaluation.results import Results
from finercam_rt.evaluation.sources import EngineRows
from finercam_rt.evaluation.statistics import RESAMPLES, Interval
from finercam_rt.files import atomic_write

REPORT = "report.html"
_LISTED = 200
"""Images that were left out, by name at most: results.json has them all."""


def write_report(results: Results, dataset: Dataset, engines: Sequence[EngineRows], folder: Path) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    import jinja2

    template = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = environment.from_string(template).render(**_content(results, dataset, engines))
    with atomic_write(folder / REPORT) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def _content(results: Results, dataset: Dataset, engines: Sequence[EngineRows]) -> dict[str, Any]:
    chosen = results.recommendation
    ranked_by = results.columns[0] if chosen is None else chosen.column
    produced = results.produced
    return {
        "title": f"{', '.join(engine['name'] for engine in produced['engines'])} on {produced['data']['name']}",
        "results": results,
        "date": results.run["date"].replace("T", " ").replace("+00:00", " UTC"),
        "verdict": _verdict(results),
        "columns": [(c, "higher" if results.higher_is_better[c] else "lower", meaning(c)) for c in results.columns],
        "table": _table(results),
        "against": [difference_chart(results, ranked_by), time_chart(results, ranked_by)],
        "intervals": [interval_chart(results, column) for column in results.columns if column != ranked_by],
        "curves": curve_charts(results),
        "gallery": gallery(results, dataset, engines),
        "ranked_by": ranked_by,
        "measured": int(results.read.sum()),
        "left_out_counts": results.left_out_counts(),
        "left_out": results.left_out[:_LISTED],
        "not_listed": max(0, len(results.left_out) - _LISTED),
        "degenerate": [
            (row.name, status.label, [results.names[i] for i in np.flatnonzero(results.status[:, m] == status)])
            for m, row in enumerate(results.rows)
            for status in ops.Status
            if status != ops.Status.OK and (results.status[:, m] == status).any()
        ],
        "listed": _LISTED,
        "resamples": RESAMPLES,
        "settings": _settings(produced),
        "versions": ", ".join(f"{name} {version}" for name, version in produced["versions"].items()),
    }


def _verdict(results: Results) -> str:
    """ "clear" where the best row can be told from the baseline, "noise" where it cannot, "keep" for the baseline."""
    chosen = results.recommendation
    if chosen is None or chosen.runner_up is None:
        return "none"
    if chosen.over_baseline is None:
        return "keep"
    return "noise" if chosen.over_baseline.covers_zero else "clear"


def _table(results: Results) -> list[dict[str, Any]]:
    best = {column: results.best(column) for column in results.columns}
    table = []
    for m, row in enumerate(results.rows):
        cells = []
        for column in results.columns:
            of, difference = results.summary[m][column], results.difference[m][column]
            gain = results.better(column) * difference.mean
            certain = m > 0 and difference.images > 1 and not difference.covers_zero
            cells.append(
                {
                    "mean": _number(of.mean),
                    "interval": _range(of),
                    "difference": _number(difference.mean, "+") if m and difference.images else "",
                    "range": "" if m == 0 else _range(difference),
                    "kind": ("gain" if gain > 0 else "loss") if certain else "same",
                    "best": m in best[column],
                    "images": of.images,
                }
            )
        degenerate = sum(count for name, count in results.statuses(m).items() if name != "ok")
        table.append(
            {
                "row": row,
                "cells": cells,
                "degenerate": degenerate,
                "milliseconds": f"{1e3 * results.seconds[m]:.1f}",
                "chosen": results.recommendation is not None and results.recommendation.row == m,
            }
        )
    return table


def _settings(produced: dict[str, Any]) -> list[tuple[str, str]]:
    options = produced["metric options"]
    return [
        ("data", "{name}, {images} images, SHA-256 {sha256}".format(**produced["data"])),
        ("class explained", produced["target"]),
        ("references", "the nearest classes" + _among(produced["data"])),
        ("perturbation", "{masks} masks, {channels} channels".format(**_named(produced["perturbation"]))),
        ("metrics", ", ".join(produced["metrics"])),
        ("metric options", ", ".join(f"{name} {value}" for name, value in options.items())),
        ("limit", "none" if produced["limit"] is None else str(produced["limit"])),
        ("seed of chance", str(produced["seed"])),
        ("batch size", str(produced["batch size"])),
    ]


def _among(data: dict[str, Any]) -> str:
    """Of which classes the nearest are taken."""
    return f" of those that the data name for {data['references_named']} images" if data["references_named"] else ""


def _named(options: dict[str, Any]) -> dict[str, Any]:
    return {name: "all" if value is None else value for name, value in options.items()}


def _number(value: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{round(value, 4) or 0.0:{sign}.4f}".replace("-", "\N{MINUS SIGN}").replace("+0.0000", "0.0000")


def _range(interval: Interval) -> str:
    return f"{_number(interval.low)} … {_number(interval.high)}" if math.isfinite(interval.low) else ""
