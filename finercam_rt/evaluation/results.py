"""What an evaluation found: every figure of every image and row, and what they say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.evaluation.dataset import UNREADABLE, Dataset, LeftOut
from finercam_rt.evaluation.recommendation import Recommendation, recommend
from finercam_rt.evaluation.records import UNREAD, image_records, summary_record, table_records, text_table
from finercam_rt.evaluation.rows import Row
from finercam_rt.evaluation.statistics import ROUNDING, Bootstrap, Interval

_NORMAL = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


class Curve(NamedTuple):
    """A mean over so many images at each share of the pixels, with its normal interval of 95 %; all (S,)."""

    share: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    images: int


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """An evaluation of N images by M rows, the first of which is the baseline, in C columns.

    Printed, it is the table of means with the advice.

    produced: versions, engines and options, as plain JSON values. run: the command, when it was given, and how long the
    measuring took, which is not the same twice. rows, columns, higher_is_better: what was measured. names: the images.
    labels: (N,) int64, -1 where not known. predicted, target: (N,E) int64 of each engine, -1 where there is none.
    confidence: (N,E), the target's probability. status: (N,M) uint8, the codes of `ops.Status`, or UNREAD. values:
    (N,M,C) float64, NaN where there is none: of an image that is not measured, or for which the metric is not defined.
    curves: by row and name. seconds: (M,) an image. left_out: what was not evaluated at all.
    summary, difference: by row, then column, the mean with its interval, and that of the paired differences from the
    baseline.
    """

    produced: dict[str, Any]
    run: dict[str, Any]
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    higher_is_better: Mapping[str, bool]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    target: NDArray[np.int64]
    confidence: NDArray[np.float64]
    status: NDArray[np.uint8]
    values: NDArray[np.float64]
    curves: Mapping[int, Mapping[str, Curve]]
    seconds: NDArray[np.float64]
    left_out: tuple[LeftOut, ...]
    summary: tuple[Mapping[str, Interval], ...] = field(default=())
    difference: tuple[Mapping[str, Interval], ...] = field(default=())
    recommendation: Recommendation | None = None

    @property
    def read(self) -> NDArray[np.bool_]:
        """(N,) which images could be read."""
        return np.asarray(self.status[:, 0] != UNREAD)

    @property
    def advice(self) -> str:
        """What to take, as a sentence, or why that cannot be said."""
        if self.recommendation is None:
            return f"No map of the baseline {self.rows[0].name} has a figure to rank by, so nothing is recommended."
        return self.recommendation.sentence

    def statuses(self, row: int) -> dict[str, int]:
        """How many maps of a row have each status, of the images that could be read."""
        counts = Counter(self.status[self.read, row].tolist())
        return {status.label: counts[status] for status in ops.Status if counts[status]}

    def left_out_counts(self) -> dict[str, int]:
        """How many images were left out, by kind."""
        return dict(Counter(item.kind for item in self.left_out))

    def best(self, column: str) -> list[int]:
        """The rows with the best mean difference from the baseline, all that share it; none where there is one row."""
        gains = np.array([self.better(column) * of[column].mean for of in self.difference])
        if len(gains) < 2 or np.isnan(gains).all():
            return []
        return [int(m) for m in np.flatnonzero(gains >= np.nanmax(gains) - ROUNDING)]

    def figures(self, column: str) -> NDArray[np.float64]:
        """(N,M) of one column, NaN where there is none."""
        return self.values[:, :, self.columns.index(column)]

    def to_dict(self) -> dict[str, Any]:
        """What results.json holds, as plain values; None where there is no figure."""
        return {**summary_record(self), "images": list(image_records(self))}

    def table(self) -> list[dict[str, Any]]:
        """What results.csv holds, a line a row and column: what `pandas.DataFrame` takes."""
        return table_records(self)

    def __str__(self) -> str:
        """The table of means and the advice."""
        return text_table(self)

    __repr__ = __str__

    def better(self, column: str) -> float:
        """1 where larger figures of the column are better, -1 where smaller ones are."""
        return 1.0 if self.higher_is_better[column] else -1.0


def gather(
    batches: Iterable[Mapping[str, Any]],
    dataset: Dataset,
    rows: Sequence[Row],
    columns: Sequence[str],
    higher_is_better: Mapping[str, bool],
    *,
    engines: int,
    rank_by: str,
    seed: int,
    produced: dict[str, Any],
    run: dict[str, Any],
) -> Results:
    """The results of all batches, with their statistics; `seed` is of the bootstrap."""
    count = len(dataset.samples)
    predicted, target = np.full((2, count, engines), -1, np.int64)
    confidence = np.full((count, engines), np.nan)
    status = np.full((count, len(rows)), UNREAD, np.uint8)
    values = np.full((count, len(rows), len(columns)), np.nan)
    codes = {code.label: code for code in ops.Status}
    seconds = np.zeros(len(rows))
    sums: dict[int, dict[str, list[Any]]] = {}
    left_out = list(dataset.left_out)
    at, took = 0, 0.0
    for batch in batches:
        for error, known, figures in batch["images"]:
            if error is not None:
                left_out.append(LeftOut(dataset.samples[at].name, UNREADABLE, error))
            for engine, found in enumerate(known):
                if found is not None:
                    predicted[at, engine], target[at, engine] = found[:2]
                    confidence[at, engine] = np.nan if found[2] is None else found[2]
            for row, (label, *measured) in enumerate(figures):
                status[at, row] = codes[label]
                if measured:
                    values[at, row] = [np.nan if v is None else v for v in measured]
            at += 1
        seconds += batch["seconds"]
        took += batch["took"]
        _add_curves(sums, batch["curves"])
    read = int((status[:, 0] != UNREAD).sum())
    results = Results(
        produced=produced,
        run={**run, "seconds": round(took, 3)},
        rows=tuple(rows),
        columns=tuple(columns),
        higher_is_better=higher_is_better,
        names=tuple(sample.name for sample in dataset.samples),
        labels=np.array([-1 if s.label is None else s.label for s in dataset.samples], np.int64),
        predicted=predicted,
        target=target,
        confidence=confidence,
        status=status,
        values=values,
        curves={row: {name: _curve(*found) for name, found in of.items()} for row, of in sorted(sums.items())},
        seconds=seconds / max(1, read),
        left_out=tuple(left_out),
    )
    return _with_statistics(results, Bootstrap(count, seed), rank_by)


def _with_statistics(results: Results, bootstrap: Bootstrap, rank_by: str) -> Results:
    shape = results.values.shape
    differences = results.values - results.values[:, :1]

    def by_row(values: NDArray[np.float64]) -> tuple[dict[str, Interval], ...]:
        intervals = bootstrap.intervals(values.reshape(shape[0], -1))
        return tuple(
            dict(zip(results.columns, intervals[start : start + shape[2]], strict=True))
            for start in range(0, len(intervals), shape[2])
        )

    column = results.columns.index(rank_by)
    chosen = recommend(
        results.rows, rank_by, results.values[:, :, column], results.better(rank_by), bootstrap, results.seconds
    )
    fields = {**vars(results), "summary": by_row(results.values), "difference": by_row(differences)}
    return Results(**{**fields, "recommendation": chosen})


def _add_curves(sums: dict[int, dict[str, list[Any]]], curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    for row, of in curves.items():
        for name, (share, first, second, count) in of.items():
            known = sums.setdefault(int(row), {}).setdefault(name, [np.array(share), 0.0, 0.0, 0])
            known[1], known[2], known[3] = known[1] + np.array(first), known[2] + np.array(second), known[3] + count


def _curve(share: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64], count: int) -> Curve:
    if count == 0:
        nothing = np.full(len(share), np.nan)
        return Curve(share, nothing, nothing, nothing, 0)
    mean = first / count
    spread = np.sqrt(np.maximum(second / count - mean**2, 0) / max(1, count - 1))
    return Curve(share, mean, mean - _NORMAL * spread, mean + _NORMAL * spread, count)
