"""One batch of photographs: read, explained by every row, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.errors import InputError
from finercam_rt.evaluation.annotations import object_mask
from finercam_rt.evaluation.batch import Explained, Floats, MeasuredBatch, Metric
from finercam_rt.evaluation.dataset import Dataset, Sample
from finercam_rt.evaluation.metrics.curves import PerturbationCurve
from finercam_rt.evaluation.rows import Row
from finercam_rt.evaluation.sources import EngineRows, resized
from finercam_rt.images import load_image
from finercam_rt.manifest import InputSpec
from finercam_rt.preprocess import Preprocessor

NON_FINITE = ops.Status.NON_FINITE.label
_DIGITS = 9
"""Of a stored figure: more than float32 carries."""


class LoadedPhotographs(NamedTuple):
    """Those that could be read, a row each: inputs (n,C,H,W) float32, views (n,H,W,C) uint8, masks (n,H,W) or None.

    places: (n,) their numbers among the samples asked for; errors: number to sentence of the others.
    """

    inputs: Floats
    views: NDArray[np.uint8]
    masks: NDArray[np.bool_] | None
    places: NDArray[np.int64]
    errors: dict[int, str]


def load_photographs(samples: Sequence[Sample], preprocess: Preprocessor) -> LoadedPhotographs:
    """Read photographs and their annotations as an engine takes them."""
    spec = preprocess.spec
    inputs, views = (
        np.empty((len(samples), *spec.shape), np.float32),
        np.empty((len(samples), *spec.view_shape), np.uint8),
    )
    masks = np.zeros((len(samples), *spec.size), np.bool_)
    places: list[int] = []
    errors: dict[int, str] = {}
    for number, sample in enumerate(samples):
        row = len(places)
        try:
            geometry = preprocess(load_image(sample.path, channels=spec.channels), inputs[row], views[row], sample.name)
            masks[row] = object_mask(geometry, sample.boxes, sample.mask)
        except InputError as error:
            text = (
                str(error) if sample.mask is None else str(error).replace(str(sample.mask), f"mask {sample.mask.name}")
            )
            errors[number] = text.replace(str(sample.path), sample.name)
        else:
            places.append(number)
    there = len(places)
    annotated = any(sample.annotated for sample in samples)
    return LoadedPhotographs(
        inputs[:there], views[:there], masks[:there] if annotated else None, np.array(places, np.int64), errors
    )


class DataPool:
    """The data set's photographs for metrics that take others than the batch's; see `batch.Pool`."""

    def __init__(self, dataset: Dataset, preprocess: Preprocessor) -> None:
        """Take the samples, to be read when they are asked for."""
        self._dataset, self._preprocess = dataset, preprocess
        self.labels = np.array([-1 if s.label is None else s.label for s in dataset.samples], np.int64)

    def load(self, indices: Sequence[int]) -> Floats:
        """(M,C,H,W) float32.

        Raises:
            InputError: one cannot be read.
        """
        found = load_photographs([self._dataset.samples[index] for index in indices], self._preprocess)
        for error in found.errors.values():
            raise InputError(error)
        return found.inputs


class Measurer:
    """Measures batches of a data set by all metrics, for the rows of several engines.

    A batch becomes a record of plain JSON values: what `results` reads. on_row: called with the batch's start, its
    images and its rows so far as each row is done.
    """

    on_row: Callable[[int, int, int], None] | None = None

    def __init__(
        self,
        dataset: Dataset,
        engines: Sequence[EngineRows],
        rows: Sequence[Row],
        metrics: Sequence[Metric],
        *,
        by_label: bool,
    ) -> None:
        """Take what is asked; `by_label` explains the true class, else the predicted one."""
        self._dataset, self._engines, self._rows, self._metrics = dataset, engines, rows, metrics
        self._by_label = by_label
        self._columns = [column for metric in metrics for column in metric.columns]
        self._preprocess: dict[InputSpec, Preprocessor] = {}
        for engine in engines:
            spec = engine.engine.manifest.input
            self._preprocess.setdefault(spec, Preprocessor(spec))
        self._pools = {spec: DataPool(dataset, preprocess) for spec, preprocess in self._preprocess.items()}

    def measure(self, start: int, stop: int) -> dict[str, Any]:
        """The record of the samples from `start` to `stop`.

        images: a list an image, [error or None, [[predicted, target, confidence] an engine], [[status, values...] a
        row]]. seconds: of each row, for all images. curves: by row and name, [share, sum, sum of squares, count].
        """
        samples = self._dataset.samples[start:stop]
        loaded = {spec: load_photographs(samples, preprocess) for spec, preprocess in self._preprocess.items()}
        errors = {number: error for found in loaded.values() for number, error in found.errors.items()}
        images: list[list[Any]] = [
            [errors.get(number), [None] * len(self._engines), [None] * len(self._rows)]
            for number in range(len(samples))
        ]
        record: dict[str, Any] = {"images": images, "seconds": [0.0] * len(self._rows), "curves": {}}
        for place, engine in enumerate(self._engines):
            found = loaded[engine.engine.manifest.input]
            if len(found.places):
                self._measure_engine(place, engine, found, start, record)
        for image in images:
            if image[0] is not None:
                image[1:] = [[], []]
        return record

    def _measure_engine(
        self, place: int, engine: EngineRows, found: LoadedPhotographs, start: int, record: dict[str, Any]
    ) -> None:
        images = record["images"]
        logits = engine.classifier.logits(found.inputs)
        target = logits.argmax(axis=1).astype(np.int64)
        predicted = target
        if self._by_label:
            target = self._pools[engine.engine.manifest.input].labels[start + found.places]
        finite = np.asarray(np.isfinite(logits).all(axis=1) & np.isfinite(found.inputs).all(axis=(1, 2, 3)))
        logits = np.where(finite[:, None], logits, 0)
        batch = MeasuredBatch(
            images=found.inputs,
            logits=logits,
            target=target,
            forward=engine.classifier.logits,
            masks=found.masks,
            indices=start + found.places,
            pool=self._pools[engine.engine.manifest.input],
            forward_size=engine.classifier.batch_size,
        )
        confidence = batch.probabilities[np.arange(len(target)), target]
        for row, number in enumerate(found.places.tolist()):
            known = [int(predicted[row]), int(target[row]), _rounded(confidence[row])]
            images[number][1][place] = known if finite[row] else None
        references = [self._dataset.samples[start + place].references for place in found.places.tolist()]
        for maps in engine.maps(found.inputs, target, logits, references=references):
            at = self._rows.index(maps.row)
            record["seconds"][at] += maps.seconds
            status = np.where(finite, ops.status(maps.saliency_map), ops.Status.NON_FINITE)
            usable = status == ops.Status.OK
            raw = np.where(usable[:, None, None], maps.saliency_map, 0)
            values = self._values(batch, engine, maps.row, resized(raw, found.inputs.shape[2:]), record["curves"], at)
            for row, number in enumerate(found.places.tolist()):
                label = ops.Status(int(status[row])).label
                figures = [_rounded(v) for v in values[row]] if usable[row] else []
                images[number][2][at] = [label, *figures]
            if self.on_row is not None:
                self.on_row(start, len(images), sum(image is not None for image in images[found.places[0]][2]))

    def _values(
        self,
        batch: MeasuredBatch,
        engine: EngineRows,
        row: Row,
        saliency: Floats,
        curves: dict[str, Any],
        at: int,
    ) -> NDArray[np.float64]:
        """(N, columns) of maps that are zero where they are not usable."""

        def explain(images: Floats, target: NDArray[np.int64] | None, *, shared: bool = False) -> Explained:
            if not shared:
                return engine.explain([row], images, target).of(row, images.shape[2:])
            rows = engine.alike(row)
            answers = batch.once(("explained", rows[0], id(images)), lambda: engine.explain(rows, images, target))
            return answers.of(row, images.shape[2:])

        asked = batch.explained_by(explain)
        values: dict[str, NDArray[np.float64]] = {}
        for metric in self._metrics:
            values |= metric.measure(asked, saliency)
            if isinstance(metric, PerturbationCurve):
                drawn = metric.curves(asked, saliency)
                for name, points in drawn.values.items():
                    curves.setdefault(str(at), {})[name] = _sums(drawn.share, points)
        return np.stack([values[column] for column in self._columns], axis=1)


def _sums(share: NDArray[np.float64], points: NDArray[np.float64]) -> list[Any]:
    there = points[np.isfinite(points).all(axis=1)]
    sums = there.sum(axis=0), (there**2).sum(axis=0)
    return [share.tolist(), *(part.tolist() for part in sums), len(there)]


def _rounded(value: float) -> float | None:
    """The value as it is stored; what is not finite is None."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
