"""Two engines' maps of the same contrasts, judged by the first engine's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.engine import Engine
from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Floats, MeasuredBatch
from finercam_rt.evaluation.metrics import metrics_by_name
from finercam_rt.evaluation.sources import resized
from finercam_rt.evaluation.statistics import Bootstrap, Interval
from finercam_rt.images import load_image
from finercam_rt.methods.classifier import Classifier
from finercam_rt.pixels import Pixels
from finercam_rt.preprocess import Preprocessor


class Fidelity:
    """Metrics of the maps of engines A and B, both taken as explanations of A.

    The difference is what B's deviation costs: image, class, references, alpha and classifier are the same for both.
    """

    def __init__(self, engine: Engine, metrics: Sequence[str]) -> None:
        """Take A and the names of metrics.

        Raises:
            InputError: an unknown metric, or one that needs more than a map: other maps, boxes or masks.
        """
        self._preprocess, self._classifier = Preprocessor(engine.manifest.input), Classifier(engine)
        self._metrics = metrics_by_name(metrics)
        self.higher_is_better = {c: metric.higher_is_better[c] for metric in self._metrics for c in metric.columns}
        for metric in self._metrics:
            if metric.needs_explain or metric.name in ("energy", "pointing_game"):
                columns = ", ".join(metric.columns)
                raise InputError(f"{columns} needs more than two engines' maps; `finercam evaluate A B` measures it.")

    def measure(
        self, photographs: Sequence[Pixels], target: NDArray[np.int64], first: Floats, second: Floats
    ) -> list[dict[str, list[float]]]:
        """A record an image: each column's figure of A's and of B's map; NaN where it is not defined.

        Args:
            photographs: N.
            target: (N,) the classes explained.
            first, second: (N,h,w) the raw maps of A and B.
        """
        spec = self._preprocess.spec
        images, view = np.empty((len(photographs), *spec.shape), np.float32), np.empty(spec.view_shape, np.uint8)
        for row, photograph in enumerate(photographs):
            self._preprocess(load_image(photograph, row, spec.channels), images[row], view, f"image {row}")
        forward, size = self._classifier.logits, self._classifier.batch_size
        batch = MeasuredBatch(images, forward(images), target, forward, forward_size=size)
        records: list[dict[str, list[float]]] = [{} for _ in photographs]
        maps = [resized(np.ascontiguousarray(of), spec.size) for of in (first, second)]
        for metric in self._metrics:
            found = [metric.measure(batch, of) for of in maps]
            for column in metric.columns:
                for row, record in enumerate(records):
                    record[column] = [float(values[column][row]) for values in found]
        return records


def differences(records: Sequence[dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Of each column the mean of A and of B over the images with both, and the interval of B - A, by bootstrap."""
    result: dict[str, dict[str, Any]] = {}
    for column in records[0] if records else ():
        values = np.array([record[column] for record in records], np.float64)
        values = values[np.isfinite(values).all(axis=1)]
        interval = Interval(float("nan"), float("nan"), float("nan"), 0)
        if len(values):
            (interval,) = Bootstrap(len(values), seed=0).intervals(values[:, 1:] - values[:, :1])
        a, b = values.mean(axis=0) if len(values) else (float("nan"), float("nan"))
        result[column] = {"a": float(a), "b": float(b), "difference": interval}
    return result
