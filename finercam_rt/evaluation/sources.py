"""Maps for the rows of one engine, with as few runs of it as they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.contrast import UNUSED, Contrast
from finercam_rt.engine import Engine
from finercam_rt.evaluation.batch import Explained, Floats
from finercam_rt.evaluation.perturbation import PERTURBATION, PerturbationOptions, perturbation_source
from finercam_rt.evaluation.rows import Row
from finercam_rt.evaluation.seeds import Seed
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, GRADIENTS, OBJECTIVES
from finercam_rt.methods.classifier import Classifier
from finercam_rt.methods.protocol import Asked
from finercam_rt.outputs import Drawing, Outputs, joined
from finercam_rt.padding import padded
from finercam_rt.tail import Tail

OnStep: TypeAlias = Callable[[str, int, int], None]
"""Called within a batch with a method, its runs done, and in all."""


class RowMaps(NamedTuple):
    """What one row gave for a batch: the raw maps (N,h,w), and the seconds that it alone would have taken."""

    row: Row
    saliency_map: Floats
    seconds: float


class Answers(NamedTuple):
    """What several rows say of images: maps, by row, raw (M,h,w); logits (M,K); target (M,), the class explained."""

    maps: Mapping[Row, Floats]
    logits: Floats
    target: NDArray[np.int64]

    def of(self, row: Row, size: tuple[int, ...]) -> Explained:
        """One row's, its maps resized to the images (H,W)."""
        return Explained(resized(self.maps[row], size), self.logits, self.target)


class EngineRows:
    """One engine and the rows that it serves: predictions, and maps of images for given classes.

    Methods that are drawn from the same activations and gradients share the run that made them, an engine of P
    contrasts computes P seeds a run, and the seeds of a method that perturbs images share those runs. classifier: the
    engine, asked for logits.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Sequence[Row],
        tail: Tail | None = None,
        options: PerturbationOptions = PerturbationOptions(),  # noqa: B008
        on_step: OnStep | None = None,
    ) -> None:
        """Take the rows, all of this engine, its tail where ablationcam is among them, and how images are perturbed."""
        self.engine = engine
        self.classifier = Classifier(engine)
        self._rows = tuple(rows)
        self._sources = {
            name: perturbation_source(name, engine, tail, options, on_step and partial(on_step, name))
            for name in dict.fromkeys(row.method for row in rows if row.method in PERTURBATION)
        }

    def maps(
        self,
        images: Floats,
        target: NDArray[np.int64],
        logits: Floats,
        rows: Sequence[Row] | None = None,
        references: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[RowMaps]:
        """The maps of these rows (None: of all), in an order of their own, for these classes (N,).

        logits: (N,K), what the engine says of the images. references: of each image the classes among which its
        references are, none or None where they are among all; a seed takes the nearest.
        """
        asked = self._rows if rows is None else rows
        nearest = _nearest(logits, target, references)
        yield from self._own_maps(images, target, nearest, [row for row in asked if row.method not in self._sources])
        for method, source in self._sources.items():
            of_method = [row for row in asked if row.method == method]
            if of_method:
                began = time.perf_counter()
                contrasts = [self._asked(nearest, row.seed) for row in of_method]
                found = source.explain_each(images, target, contrasts)
                seconds = time.perf_counter() - began
                for row, maps in zip(of_method, found, strict=True):
                    yield RowMaps(row, maps.saliency_map, seconds)

    def alike(self, row: Row) -> list[Row]:
        """The rows that share runs with this one, itself among them."""
        kind = row.method if row.method in self._sources else None
        return [other for other in self._rows if (other.method if other.method in self._sources else None) == kind]

    def explain(self, rows: Sequence[Row], images: Floats, target: NDArray[np.int64] | None) -> Answers:
        """Some rows' maps of other images, for these classes or the predicted ones."""
        logits = self.classifier.logits(images)
        classes = logits.argmax(axis=1).astype(np.int64) if target is None else np.asarray(target, np.int64)
        found = {maps.row: maps.saliency_map for maps in self.maps(images, classes, logits, rows)}
        return Answers(found, logits, classes)

    def _own_maps(
        self, images: Floats, target: NDArray[np.int64], nearest: NDArray[np.int64], rows: Sequence[Row]
    ) -> Iterator[RowMaps]:
        """Of the methods that the engine itself draws."""
        seeds = list(dict.fromkeys(row.seed for row in rows))
        at_once = self.engine.manifest.contrasts
        for start in range(0, len(seeds), at_once):
            part = seeds[start : start + at_once]
            began = time.perf_counter()
            outputs = self._explained(images, target, nearest, part)
            seconds = time.perf_counter() - began
            for place, seed in enumerate(part):
                one = outputs if at_once == 1 else _contrast(outputs, place)
                for row in rows:
                    if row.seed == seed:
                        began = time.perf_counter()
                        drawn = self._drawn(row.method, one)
                        yield RowMaps(row, drawn, seconds + time.perf_counter() - began)

    def _asked(self, nearest: NDArray[np.int64], seed: Seed) -> Asked:
        objective = seed.kind if seed.kind in OBJECTIVES else None
        return Asked(self._references(nearest, seed), seed.alpha, objective)

    def _references(self, nearest: NDArray[np.int64], seed: Seed) -> NDArray[np.int64]:
        """(N,R) of a seed, by name: what is nearest is known already."""
        references = np.full((len(nearest), self.engine.manifest.references), UNUSED, np.int64)
        near = nearest[:, : seed.references]  # of few classes there are fewer
        references[:, : near.shape[1]] = near
        return references

    def _explained(
        self, images: Floats, target: NDArray[np.int64], nearest: NDArray[np.int64], seeds: Sequence[Seed]
    ) -> Outputs:
        parts, start = [], 0
        for part, count in self.classifier.runs(images):
            classes, near = (padded(values[start : start + count], len(part)) for values in (target, nearest))
            if self.engine.manifest.contrasts == 1:
                (seed,) = seeds
                found = self.engine(part, target=classes, references=self._references(near, seed), alpha=seed.alpha)
            else:
                found = self.engine(part, contrasts=_contrasts(classes, near, seeds))
            parts.append(_first(found, count))
            start += count
        return parts[0] if len(parts) == 1 else joined(parts)

    def _drawn(self, method: str, outputs: Outputs) -> Floats:
        engine = self.engine
        if method == engine.method or outputs.activations is None:
            return np.asarray(outputs.saliency_map)
        taps = (
            (ACTIVATIONS, outputs.activations),
            (GRADIENTS, outputs.gradients),
            (CHANNEL_WEIGHTS, outputs.channel_weights),
        )
        return Drawing(engine.manifest, method).map_of({name: values for name, values in taps if values is not None})


def resized(maps: Floats, size: tuple[int, ...]) -> Floats:
    """Raw maps (N,h,w) after ReLU, resized bilinearly to (H,W); all zero where the status is not ok."""
    drawn = ops.render(maps, (size[0], size[1]))
    values: Floats = drawn.image
    usable = drawn.status == ops.Status.OK
    positive = np.maximum(maps[usable], 0)
    low = positive.min(axis=(1, 2))
    span, offset = np.zeros(len(maps), np.float32), np.zeros(len(maps), np.float32)
    span[usable], offset[usable] = positive.max(axis=(1, 2)) - low, low
    values *= span[:, None, None]
    values += offset[:, None, None]
    return values


def _contrasts(target: NDArray[np.int64], nearest: NDArray[np.int64], seeds: Sequence[Seed]) -> list[list[Contrast]]:
    """One contrast a seed for each image; the references by name, since the graph chooses all or none of a contrast."""
    return [
        [
            Contrast(int(c), row[: seed.references][row[: seed.references] != UNUSED].tolist(), seed.alpha)
            for seed in seeds
        ]
        for c, row in zip(target, nearest, strict=True)
    ]


def _nearest(
    logits: Floats, target: NDArray[np.int64], references: Sequence[Sequence[int]] | None = None
) -> NDArray[np.int64]:
    """(N,K-1) the other classes by the distance of their logits from the target's, ties to the lower index.

    Where an image has `references`, these alone, and UNUSED after them. Any others of logits that are not finite: they
    say nothing, but the target is not among them.
    """
    rows = np.arange(len(logits))
    logits = np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, 0)
    distance = np.abs(logits - logits[rows, target][:, None])
    for row, named in enumerate(references or ()):
        if named:
            distance[row, np.setdiff1d(np.arange(logits.shape[1]), named)] = np.inf
    distance[rows, target] = np.inf
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :-1].astype(np.int64)
    nearest[np.isinf(np.take_along_axis(distance, nearest, axis=1))] = UNUSED
    return nearest


def _contrast(outputs: Outputs, place: int) -> Outputs:
    """What belongs to one of several contrasts, without their axis."""

    def of(values: Any) -> Any:
        return None if values is None else values[:, place]

    return outputs._replace(
        saliency_map=outputs.saliency_map[:, place],
        gradients=of(outputs.gradients),
        channel_weights=of(outputs.channel_weights),
    )


def _first(outputs: Outputs, count: int) -> Outputs:
    """Of the first images alone, without the maps of single layers and what a tail reads."""
    fields = [values[:count] if isinstance(values, np.ndarray) else values for values in outputs]
    return Outputs._make(fields)._replace(layer_maps={}, carried=())
