"""Metrics by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Metric
from finercam_rt.evaluation.metrics import masked_image, road
from finercam_rt.evaluation.metrics.confidence_drop import PREFIXES, ConfidenceDrop, canonical
from finercam_rt.evaluation.metrics.curves import DELETION, INSERTION, PerturbationCurve
from finercam_rt.evaluation.metrics.grid import GridPointingGame
from finercam_rt.evaluation.metrics.localisation import EnergyInMask, PointingGame
from finercam_rt.evaluation.metrics.masked_image import Complexity, MaskedImage
from finercam_rt.evaluation.metrics.noise import NoiseRobustness
from finercam_rt.evaluation.metrics.options import MetricOptions
from finercam_rt.evaluation.metrics.road import Road

_SINGLE: Mapping[str, Callable[[MetricOptions], Metric]] = {
    DELETION: lambda options: PerturbationCurve(DELETION, options),
    INSERTION: lambda options: PerturbationCurve(INSERTION, options),
    "energy": lambda options: EnergyInMask(),
    "pointing_game": lambda options: PointingGame(),
    "grid_pointing_game": GridPointingGame,
    "complexity": lambda options: Complexity(),
    "noise_robustness": NoiseRobustness,
}
_FAMILIES: Mapping[str, Callable[[list[str], MetricOptions], Metric]] = {
    "drop": ConfidenceDrop,
    "road": Road,
    "masked": lambda columns, options: MaskedImage(columns),
}
"""Metrics that share their forward passes: the names asked for of a family become one."""
_FAMILY_OF = {
    **dict.fromkeys(road.COLUMNS, "road"),
    **dict.fromkeys(masked_image.COLUMNS, "masked"),
}
NAMES = (*(f"{prefix}X" for prefix in PREFIXES), *_SINGLE, *_FAMILY_OF)
"""What may be asked for; X is per cent of the pixels."""


def metrics_by_name(names: Sequence[str], options: MetricOptions = MetricOptions()) -> list[Metric]:  # noqa: B008
    """The metrics with these names; those that share their forward passes become one of several columns.

    Raises:
        InputError: no name, an unknown one (the message has the nearest), one given twice, or no share after rd@, cd@.
    """
    if not names:
        raise InputError(f"no metric was named; give some of {', '.join(NAMES)}.")
    families: dict[str, list[str]] = {}
    for name in map(canonical, names):
        family = "drop" if name.startswith(PREFIXES) else _FAMILY_OF.get(name, name)
        if family not in _FAMILIES and family not in _SINGLE:
            raise InputError(f"there is no metric {name!r}; {_advice(name)}")
        columns = families.setdefault(family, [])
        if name in columns:
            raise InputError(f"the metric {name!r} is given twice; leave one out.")
        columns.append(name)
    return [
        _FAMILIES[family](columns, options) if family in _FAMILIES else _SINGLE[family](options)
        for family, columns in families.items()
    ]


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), NAMES, n=1)
    return f"the nearest is {near[0]!r}." if near else f"use some of {', '.join(NAMES)}."
