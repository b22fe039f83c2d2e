"""Metrics by name, and the options that are refused."""

from __future__ import annotations

import pytest

from finercam_rt.errors import InputError
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no metric was named"),
        (["energi"], "nearest is 'energy'"),
        (["energy", "energy"], "given twice"),
        (["xyz"], "use some of"),
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
