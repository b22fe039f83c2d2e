"""Metrics by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Metric
from finercam_rt.evaluation.metrics.localisation import EnergyInMask, PointingGame
from finercam_rt.evaluation.metrics.options import MetricOptions

_MAKERS: Mapping[str, Callable[[MetricOptions], Metric]] = {
    "energy": lambda options: EnergyInMask(),
    "pointing_game": lambda options: PointingGame(),
}
NAMES = tuple(_MAKERS)
"""What may be asked for."""


def metrics_by_name(names: Sequence[str], options: MetricOptions = MetricOptions()) -> list[Metric]:  # noqa: B008
    """The metrics with these names, those that share their forward passes as one.

    Raises:
        InputError: no name, an unknown one (the message has the nearest), or one given twice.
    """
    if not names:
        raise InputError(f"no metric was named; give some of {', '.join(NAMES)}.")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(f"the metric {name!r} is given twice; leave one out.")
        if name not in _MAKERS:
            raise InputError(f"there is no metric {name!r}; {_advice(name)}")
    return [_MAKERS[name](options) for name in names]


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name.casefold(), NAMES, n=1)
    return f"the nearest is {near[0]!r}." if near else f"use some of {', '.join(NAMES)}."
