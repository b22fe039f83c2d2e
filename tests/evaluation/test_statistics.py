"""Bootstrap intervals and the recommendation, against SciPy and against data whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finercam_rt.evaluation.recommendation import recommend
from finercam_rt.evaluation.rows import Row
from finercam_rt.evaluation.seeds import Seed
from finercam_rt.evaluation.statistics import Bootstrap

stats: Any = pytest.importorskip("scipy.stats", reason="the intervals are held against scipy")


def _rows(count: int) -> list[Row]:
    return [Row(0, "gradcam", Seed("plain", 0, 0.0), f"row {k}") for k in range(count)]


def test_intervals_equal_scipys() -> None:
    """Both draw by chance, so they agree as far as 20,000 resamples do."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(1, 2, 60), rng.exponential(3, 60)], axis=1)
    found = Bootstrap(60, seed=1, resamples=20_000).intervals(values)
    for column, interval in enumerate(found):
        wanted = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        )
        width = wanted.confidence_interval.high - wanted.confidence_interval.low
        assert interval.mean == pytest.approx(values[:, column].mean())
        assert interval.low == pytest.approx(wanted.confidence_interval.low, abs=0.03 * width)
        assert interval.high == pytest.approx(wanted.confidence_interval.high, abs=0.03 * width)


def test_paired_differences_equal_scipys_and_are_narrower_than_unpaired_ones() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(0, 5, 80)
    second = first + rng.normal(0.5, 0.5, 80)
    bootstrap = Bootstrap(80, seed=4, resamples=20_000)
    (paired,) = bootstrap.intervals((second - first)[:, None])
    wanted = stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: np.mean(b - a, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert paired.low == pytest.approx(wanted.low, abs=0.03 * (wanted.high - wanted.low))
    assert paired.high == pytest.approx(wanted.high, abs=0.03 * (wanted.high - wanted.low))
    assert not paired.covers_zero
    # of the same resamples, the difference of the means is the mean of the differences
    means = bootstrap.means(np.stack([first, second], axis=1))
    assert np.allclose(means[:, 1] - means[:, 0], bootstrap.means((second - first)[:, None])[:, 0])
    assert paired.high - paired.low < 0.2 * (np.percentile(means[:, 1], 97.5) - np.percentile(means[:, 1], 2.5))


def test_missing_values_take_no_part() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan], [5.0, 7.0]])
    some, one = Bootstrap(4, seed=0).intervals(values)
    assert some[0] == pytest.approx(3)
    assert some.images == 3
    assert 1 <= some.low < 3 < some.high <= 5
    assert one.images == 1
    assert np.isnan(one.low)
    (none,) = Bootstrap(4, seed=0).intervals(np.full((4, 1), np.nan))
    assert none.images == 0
    assert np.isnan(none.mean)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    assert Bootstrap(50, 7).intervals(values) == Bootstrap(50, 7).intervals(values)
    assert Bootstrap(50, 7).intervals(values) != Bootstrap(50, 8).intervals(values)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_row_is_recommended_with_its_margin(sign: int) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    values = np.stack([base, base + sign * (1 + 0.1 * rng.normal(size=100)), base - sign], axis=1)
    found = recommend(_rows(3), "rd@5", values, sign, Bootstrap(100, 0), np.full(3, 0.01))
    assert found is not None
    assert (found.row, found.runner_up, found.wins) == (1, 0, 1.0)
    assert found.over_baseline is not None
    assert found.over_baseline.mean == pytest.approx(1, abs=0.05)
    assert not found.over_baseline.covers_zero
    assert found.sentence.startswith("By rd@5, take row 1: it is better than the baseline row 0 by ")
    assert "within noise" not in found.sentence
    assert "runner-up" not in found.sentence  # it is the baseline, which was named
    assert found.sentence.endswith("It takes 10.0 ms an image, the baseline 10.0 ms.")


def test_a_difference_within_noise_is_called_so() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(30, 2))
    values[:, 1] += values[:, 0].mean() - values[:, 1].mean() + 0.01
    found = recommend(_rows(2), "rd@5", values, 1, Bootstrap(30, 0), np.zeros(2))
    assert found is not None
    assert found.row == 1
    assert 0.2 < found.wins < 0.8
    assert found.sentence.startswith(
        "By rd@5, nothing is clearly better than the baseline row 0: row 1 is ahead of it by "
    )
    assert "images), which is within noise." in found.sentence


def test_a_row_gains_nothing_by_failing_on_the_hard_images() -> None:
    """Row 1 has values on the easy half alone, where it is worse than the baseline; its mean is larger all the same."""
    easy = np.repeat([1.0, 0.0], 20) + 0.01 * np.random.default_rng(0).normal(size=40)
    values = np.stack([easy, np.where(np.arange(40) < 20, easy - 0.1, np.nan)], axis=1)
    assert np.nanmean(values[:, 1]) > values[:, 0].mean()
    found = recommend(_rows(2), "rd@5", values, 1, Bootstrap(40, 0), np.zeros(2))
    assert found is not None
    assert found.row == 0
    assert "keep the baseline" in found.sentence


def _said(values: np.ndarray) -> str:
    found = recommend(_rows(values.shape[1]), "cd@5", values, 1, Bootstrap(len(values), 0), np.zeros(values.shape[1]))
    assert found is not None
    return found.sentence


def test_what_is_said_where_the_baseline_is_best() -> None:
    base = np.random.default_rng(0).normal(size=50)
    clear = _said(np.stack([base, base - 1, base - 2], axis=1))
    assert clear.startswith("By cd@5, keep the baseline row 0: it is better than the runner-up row 1 by 1.0000 (95 % ")
    assert "ms an image" not in clear
    tied = base + np.random.default_rng(1).normal(size=50)
    tied += base.mean() - tied.mean() - 0.01
    noise = _said(np.stack([base, tied], axis=1))
    assert noise.startswith("By cd@5, keep the baseline row 0: it is ahead of row 1 by 0.0100 (95 % interval -")
    assert "images), which is within noise. It is the best in" in noise


def test_what_is_said_of_a_runner_up_that_is_not_the_baseline() -> None:
    base = np.random.default_rng(0).normal(size=50)
    clear = _said(np.stack([base, base + 2, base + 1], axis=1))
    assert "take row 1: it is better than the baseline row 0 by 2.0000" in clear
    assert "Over the runner-up row 2 it is ahead by 1.0000" in clear
    assert "within noise" not in clear
    other = base + 2 + np.random.default_rng(1).normal(size=50)
    other += base.mean() + 1.99 - other.mean()
    tied = _said(np.stack([base, base + 2, other], axis=1))
    assert "take row 1: it is better than the baseline row 0 by 2.0000" in tied
    assert "Over the runner-up row 2 it is ahead by 0.0100" in tied
    assert tied.count("which is within noise") == 1


def test_rows_that_are_the_same_change_nothing() -> None:
    base = np.random.default_rng(0).normal(size=50)
    assert _said(np.stack([base, base, base], axis=1)).startswith(
        "By cd@5, keep the baseline row 0: row 1 has the same figures, and nothing is better. It is the best in 100 %"
    )
    rounded = base + 1e-8 * np.abs(np.random.default_rng(1).normal(size=50))  # as float32 makes it, always larger
    assert _said(np.stack([base, rounded], axis=1)).startswith("By cd@5, keep the baseline row 0: row 1 has the same")
    twins = _said(np.stack([base, base + 1, rounded + 1], axis=1))
    assert "take row 1" in twins
    assert "The runner-up row 2 has the same figures. It is the best in 100 %" in twins


def test_one_image_has_no_interval_and_shows_nothing() -> None:
    said = _said(np.array([[0.1, 0.3]]))
    assert said.startswith("By cd@5, nothing is clearly better than the baseline row 0: row 1 is ahead of it by 0.2000")
    assert "(one image, so without an interval). It takes" in said
    assert "noise" not in said
    assert "resamples" not in said
    assert "nan" not in said


def test_what_the_best_row_has_no_figure_for_is_said() -> None:
    base = np.random.default_rng(0).normal(size=20)
    best = np.where(np.arange(20) < 3, np.nan, base + 1)
    assert "It has no figure for 3 of the baseline's 20 images." in _said(np.stack([base, best], axis=1))
    assert "no figure" not in _said(np.stack([base, base + 1], axis=1))


def test_a_row_gains_nothing_by_failing_on_the_hard_ones() -> None:
    """A is ahead by 0.05 where it has a figure, and B by 0.08 there, though by nothing elsewhere."""
    rng = np.random.default_rng(3)
    base, easy = rng.normal(size=60), np.arange(60) < 30
    a = np.where(easy, base + 0.05, np.nan)
    b = base + np.where(easy, 0.08, 0) + 0.001 * rng.normal(size=60)
    values = np.stack([base, a, b], axis=1)
    found = recommend(_rows(3), "rd@5", values, 1, Bootstrap(60, 0), np.zeros(3))
    assert found is not None
    assert (found.row, found.runner_up) == (2, 1)
    assert found.over_runner_up is not None
    assert found.over_runner_up.low > 0
    assert found.over_runner_up.images == 30
    values[10:, 1] = np.nan
    few = recommend(_rows(3), "rd@5", values, 1, Bootstrap(60, 0), np.zeros(3))
    assert few is not None
    assert (few.row, few.runner_up) == (2, 0), "a row of a sixth of the images is no candidate"


def test_rows_without_values_are_not_candidates() -> None:
    base = np.random.default_rng(0).normal(size=20)
    nothing = np.full(20, np.nan)
    said = _said(np.stack([base, nothing, base + 1], axis=1))
    assert said.startswith("By cd@5, take row 2: it is better than the baseline row 0 by 1.0000")
    assert "row 1" not in said
    assert _said(np.stack([base, nothing], axis=1)) == (
        "row 0 is the only row with a value of cd@5, so there is nothing to choose."
    )
    # without a baseline there is no difference from it
    assert recommend(_rows(2), "cd@5", np.stack([nothing, base], axis=1), 1, Bootstrap(20, 0), np.zeros(2)) is None


def test_nothing_is_recommended_without_values() -> None:
    assert recommend(_rows(2), "energy", np.full((5, 2), np.nan), 1, Bootstrap(5, 0), np.zeros(2)) is None
    alone = recommend(_rows(1), "rd@5", np.ones((5, 1)), 1, Bootstrap(5, 0), np.zeros(1))
    assert alone is not None
    assert alone.runner_up is None
