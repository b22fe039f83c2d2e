"""What the most salient pixels are worth: confidence drop CD@x and relative confidence drop RD@x."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch, Values
from finercam_rt.evaluation.metrics.options import MetricOptions
from finercam_rt.evaluation.metrics.perturbed import (
    counts,
    measurable,
    nearest_probability,
    removed,
    rows_of,
    spread,
    target_probability,
)

PREFIXES = ("rd@", "cd@")


class ConfidenceDrop:
    """CD@x = p_c - p*_c and RD@x = (p_c - p*_c) - (p_d - p*_d), for several x with one forward pass a share.

    p are the softmax probabilities of the image, p* of the image whose x % most salient pixels became the fill, d is
    the class with the logit nearest to c's.

    Source: Finer-CAM, CVPR 2025, eq. 10; fill and tie rule are ours.
    """

    name = "confidence_drop"
    needs_explain = False

    def __init__(self, columns: Sequence[str], options: MetricOptions) -> None:
        """Take names like "rd@5" and "cd@10"."""
        self.columns = tuple(columns)
        self._options = options
        percents = [float(column[3:]) for column in columns]
        self._percents = sorted(set(percents))
        self._places = [self._percents.index(percent) for percent in percents]

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """A larger drop is better."""
        return dict.fromkeys(self.columns, True)

    def measure(self, batch: MeasuredBatch, saliency: Floats) -> dict[str, Values]:
        """-1 to 1 for CD, -2 to 2 for RD; NaN for a map that says nothing or a target of probability zero."""
        rows = measurable(batch, saliency)
        if not len(rows):
            return {column: np.full(len(saliency), np.nan) for column in self.columns}
        number = counts(rows_of(saliency, rows), np.array(self._percents) / 100, self._options.ties)
        after = removed(batch, saliency, number, self._options.fill)
        drop = target_probability(batch)[rows, None] - after.target
        relative = drop - (nearest_probability(batch)[rows, None] - after.nearest)
        return {
            column: spread((relative if column.startswith("rd") else drop)[:, place], rows, len(saliency))
            for column, place in zip(self.columns, self._places, strict=True)
        }


def canonical(name: str) -> str:
    """ "rd@5" for "rd@05" or "rd@5.0"; other names as they are.

    Raises:
        InputError: a share that is no number between 0 and 100.
    """
    if not name.startswith(PREFIXES):
        return name
    share = name[3:].removesuffix("%")
    if not re.fullmatch(r"\d+(\.\d+)?", share) or not 0 < float(share) < 100:
        raise InputError(
            f"the metric {name!r} has no share between 0 and 100; give per cent of the pixels: {name[:3]}5."
        )
    return f"{name[:3]}{float(share):g}"
