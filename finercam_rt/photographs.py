"""Photographs in, explanations out, one batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from finercam_rt.classes import Classes
from finercam_rt.contrast import ContrastArrays
from finercam_rt.errors import InputError
from finercam_rt.explanation import Explanation, labels
from finercam_rt.images import ImageSource, load_photograph
from finercam_rt.loading import Inputs, LoadedBatch, load_batch
from finercam_rt.manifest import Manifest
from finercam_rt.original import Original, original_of
from finercam_rt.outputs import Outputs, conflict_error, conflicts
from finercam_rt.preprocess import Preprocessor


class Batch(NamedTuple):
    """One step of `Engine.explain_batches`.

    indices: the positions, among all images, of the rows of `explanation` (None where every image failed). failures:
    position to error of the others. prepare_seconds, run_seconds: wall time of reading them, and of the engine.
    """

    indices: tuple[int, ...]
    explanation: Explanation | None
    failures: dict[int, InputError]
    prepare_seconds: float
    run_seconds: float


class RunInputs(Inputs, Protocol):
    """Inputs with the engine that they are for."""

    def run(self, contrast: ContrastArrays, views: NDArray[np.uint8]) -> Outputs:
        """The outputs of as many rows as there are views, which are filled."""


@dataclass(frozen=True)
class HostInputs:
    """Photographs preprocessed on the host.

    run_images: images (N,C,H,W), a contrast of `count` of them, and `count`, to their outputs. images: one for each row
    of a run, zeros, because a fixed batch runs in full: rows that no image has filled must be finite. fixed: how
    many those are, see Engine.
    """

    preprocess: Preprocessor
    run_images: Callable[[NDArray[np.float32], ContrastArrays, int], Outputs]
    images: NDArray[np.float32]
    fixed: int | None

    def put(self, source: ImageSource, position: int, row: int, view: NDArray[np.uint8], name: str) -> Original:
        """See Inputs.put."""
        photograph = load_photograph(source, position, self.preprocess.spec.channels)
        return original_of(photograph, position, self.preprocess(photograph.image, self.images[row], view, name))

    def run(self, contrast: ContrastArrays, views: NDArray[np.uint8]) -> Outputs:
        """See RunInputs.run."""
        return self.run_images(self.images if self.fixed else self.images[: len(views)], contrast, len(views))


@dataclass(frozen=True)
class Photographs:
    """What explaining photographs takes of an engine. inputs: for runs of at most so many photographs."""

    manifest: Manifest
    classes: Classes
    inputs: Callable[[int], RunInputs]

    def batches(
        self, sources: Iterator[ImageSource], contrast: ContrastArrays, size: int, skip_errors: bool
    ) -> Iterator[Batch]:
        """The batches of `sources`; a contrast of one row is that of all images."""
        start, ended = 0, False
        try:
            inputs = self._inputs(size)
            while not ended:
                began = time.perf_counter()
                loaded = load_batch(sources, start, size, inputs, self.manifest.input.view_shape, skip_errors)
                start, ended = start + loaded.taken, loaded.taken < size
                if start == 0 and not loaded.failures:
                    raise InputError("there are no images to explain; give at least one.")
                if loaded.taken or loaded.failures:
                    yield self._batch(loaded, contrast, inputs, skip_errors, began)
                del loaded  # the caller's photographs, of which one batch is held at a time
        finally:
            close = getattr(sources, "close", None)
            if close is not None:
                close()

    def _inputs(self, size: int) -> RunInputs:
        try:
            return self.inputs(size)
        except (MemoryError, ValueError):  # the latter of more than NumPy can count
            raise InputError(f"{size} images a run do not fit into memory; give a smaller batch size.") from None

    def _batch(
        self,
        loaded: LoadedBatch,
        contrast: ContrastArrays,
        inputs: RunInputs,
        skip_errors: bool,
        began: float,
    ) -> Batch:
        prepared = time.perf_counter()
        failures, kept, good = dict(loaded.failures), loaded.positions, []
        explanation = None
        if kept:
            part = contrast.rows([0] * len(kept) if len(contrast.target) == 1 else kept)
            outputs = inputs.run(part, loaded.views)
            wrong = conflicts(part, outputs)
            for row in wrong:
                failures[kept[row]] = conflict_error(part, outputs, row, loaded.names[row], self.classes)
                if not skip_errors:
                    raise failures[kept[row]]
            good = [row for row in range(len(kept)) if row not in wrong]
            if good:
                explanation = self._explanation(outputs, loaded, good)
        indices = tuple(kept[row] for row in good)
        return Batch(indices, explanation, failures, prepared - began, time.perf_counter() - prepared)

    def _explanation(self, outputs: Outputs, loaded: LoadedBatch, rows: list[int]) -> Explanation:
        whole = len(rows) == len(outputs.logits)
        logits, saliency_map, target, references, alpha, status = (v if whole else v[rows] for v in outputs[:6])
        return Explanation(
            logits=logits,
            saliency_map=saliency_map,
            target=target,
            references=references,
            alpha=alpha,
            status=labels(status),
            names=tuple(loaded.names[row] for row in rows),
            classes=self.classes,
            size=self.manifest.input.size,
            images=loaded.views if whole else loaded.views[rows],
            layer_maps={name: v if whole else v[rows] for name, v in outputs.layer_maps.items()},
            originals=tuple(loaded.originals[row] for row in rows),
        )
