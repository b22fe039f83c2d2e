"""Which row to use: the best by one metric, and whether the data can tell it from the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.evaluation.rows import Row
from finercam_rt.evaluation.statistics import ROUNDING, Bootstrap, Interval


class Recommendation(NamedTuple):
    """The best row by one column, and how sure that is.

    row, runner_up: numbers of rows, runner_up None where there is one row. over_baseline, over_runner_up: the mean
    paired difference with its interval, positive where the row is better, whichever way the column counts; None of the
    row from itself. wins: in how many of the resamples of the images it is the best. sentence: all of it for reading.
    """

    column: str
    row: int
    runner_up: int | None
    over_baseline: Interval | None
    over_runner_up: Interval | None
    wins: float
    sentence: str


def recommend(
    rows: Sequence[Row],
    column: str,
    values: NDArray[np.float64],
    sign: float,
    bootstrap: Bootstrap,
    seconds: NDArray[np.float64],
) -> Recommendation | None:
    """The row with the largest mean paired gain over the baseline, the first row; None where nothing was measured.

    Gains count the images that have a value in all rows, so that none looks better for having failed on the hard ones;
    a row that has one for less than half of the baseline's images is no candidate. The images that choose are those
    that measure the margin, which flatters the winner a little; `wins` says how stable the choice is.

    Args:
        rows: what `values` has columns of.
        column: its name.
        values: (N,M), NaN where there is none.
        sign: 1 where larger is better, -1 where smaller is.
        bootstrap: of the N images.
        seconds: (M,) an image, for the sentence.
    """
    there = np.isfinite(values[:, 0])
    if not there.any():
        return None
    known = np.isfinite(values) & there[:, None]
    measured = np.asarray(2 * known.sum(axis=0) >= there.sum())
    shared: NDArray[np.bool_] = np.all(known[:, measured], axis=1)
    measured &= shared.any() | (np.arange(len(rows)) == 0)
    missing = (there[:, None] & ~known).sum(axis=0)
    values = np.where((shared if shared.any() else there)[:, None], values, np.nan)
    gains = sign * (values - values[:, :1])
    mean = np.array([np.nanmean(gains[:, m]) if measured[m] else -np.inf for m in range(len(rows))])
    order = np.argsort(-_whole(mean), kind="stable")
    best, second = int(order[0]), int(order[1]) if len(rows) > 1 and measured[order[1]] else None
    resampled = _whole(np.nan_to_num(bootstrap.means(gains[:, measured]), nan=-np.inf))
    wins = float((resampled.argmax(axis=1) == int(measured[:best].sum())).mean())
    over_baseline = None if best == 0 else bootstrap.intervals(gains[:, [best]])[0]
    over_runner_up = None
    if second is not None:
        over_runner_up = bootstrap.intervals(sign * (values[:, [best]] - values[:, [second]]))[0]
    sentence = _sentence(rows, column, best, second, over_baseline, over_runner_up, wins)
    if missing[best]:
        sentence += f" It has no figure for {missing[best]} of the baseline's {int(there.sum())} images."
    if best != 0:
        sentence += f" It takes {1e3 * seconds[best]:.1f} ms an image, the baseline {1e3 * seconds[0]:.1f} ms."
    return Recommendation(column, best, second, over_baseline, over_runner_up, wins, sentence)


def _whole(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """In steps of what float32 rounds, so that of rows with the same figures the first is taken."""
    return np.round(gains / ROUNDING)


def _sentence(
    rows: Sequence[Row],
    column: str,
    best: int,
    second: int | None,
    over_baseline: Interval | None,
    over_runner_up: Interval | None,
    wins: float,
) -> str:
    """What to take, how far it is ahead, and whether the images can tell."""
    name, baseline = rows[best].name, rows[0].name
    if second is None or over_runner_up is None:
        return f"{name} is the only row with a value of {column}, so there is nothing to choose."
    other, margin = rows[second].name, _margin(over_runner_up)
    several = over_runner_up.images > 1
    tied = over_runner_up.covers_zero
    noise = ", which is within noise" if several else ""
    same = max(abs(over_runner_up.low), abs(over_runner_up.high)) <= ROUNDING
    if over_baseline is None and same:
        text = f"By {column}, keep the baseline {name}: {other} has the same figures, and nothing is better."
    elif over_baseline is None and tied:
        text = f"By {column}, keep the baseline {name}: it is ahead of {other} by {margin}{noise}."
    elif over_baseline is None:
        text = f"By {column}, keep the baseline {name}: it is better than the runner-up {other} by {margin}."
    elif over_baseline.covers_zero:
        text = f"By {column}, nothing is clearly better than the baseline {baseline}: {name} is ahead of it by "
        text += f"{_margin(over_baseline)}{noise}."
    else:
        text = f"By {column}, take {name}: it is better than the baseline {baseline} by {_margin(over_baseline)}."
    if over_baseline is not None and second != 0 and same:
        text += f" The runner-up {other} has the same figures."
    elif over_baseline is not None and second != 0:
        text += f" Over the runner-up {other} it is ahead by {margin}{noise if tied else ''}."
    if not several:
        return text
    return f"{text} It is the best in {100 * wins:.0f} % of the resamples."


def _margin(interval: Interval) -> str:
    if interval.images < 2:
        return f"{interval.mean:.4f} (one image, so without an interval)"
    return f"{interval.mean:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f}, {interval.images} images)"
