"""Metrics by name, and the options that are refused."""

from __future__ import annotations

import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.metrics import NAMES, MetricOptions, metrics_by_name
from finercam_rt.evaluation.report.meanings import meaning


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no metric was named"),
        (["energi"], "nearest is 'energy'"),
        (["energy", "energy"], "given twice"),
        (["xyz"], "use some of"),
        (["average-drops"], "nearest is 'average_drop'"),
        (["road", "energy", "road"], "given twice"),
    ],
)
def test_wrong_names_are_refused_in_a_sentence(names, message):
    with pytest.raises(InputError, match=message) as refused:
        metrics_by_name(names)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "wrong",
    [
        {"fill": "grey"},
        {"insertion_fill": ""},
        {"ties": "all"},
        {"steps": 0},
        {"tiles": 1},
        {"noise": ()},
        {"noise": (float("nan"),)},
        {"noise_draws": 0},
        {"seed": -1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError):
        MetricOptions(**wrong)


def test_every_column_has_a_meaning_for_the_report():
    metrics = metrics_by_name([name.replace("X", "7.5") for name in NAMES])
    said = [meaning(column) for metric in metrics for column in metric.columns]
    assert len(set(said)) == len(said)
    assert not any(text.endswith(".") for text in said)
    assert "the 7.5 % most salient" in meaning("rd@7.5")


def test_every_name_gives_a_metric_with_that_column():
    names = [name.replace("X", "7") for name in NAMES]
    metrics = metrics_by_name(names)
    columns = [column for metric in metrics for column in metric.columns]
    assert set(names) <= set(columns)
    assert len(set(columns)) == len(columns)
    for metric in metrics:
        assert set(metric.higher_is_better) == set(metric.columns)
    assert {metric.name for metric in metrics if metric.needs_explain} == {
        "masked_image",
        "grid_pointing_game",
        "noise_robustness",
    }


def test_what_shares_forward_passes_is_one_metric():
    metrics = metrics_by_name(["rd@5", "road", "cd@10", "adcc", "road_morf", "coherency", "deletion"])
    assert [metric.columns for metric in metrics] == [
        ("rd@5", "cd@10"),
        ("road", "road_morf"),
        ("adcc", "coherency"),
        ("deletion",),
    ]
