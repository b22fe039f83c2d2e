"""An engine file, loaded: photographs or batches in, predictions and their explanations out."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt import arrays, ops
from finercam_rt.backends import open_backend
from finercam_rt.classes import Classes
from finercam_rt.contrast import Alpha, ContrastArrays, ContrastResolver, Contrasts, References, Target
from finercam_rt.embeddings import EmbeddingsSource, embeddings_for
from finercam_rt.errors import InputError
from finercam_rt.explanation import Explanation, concatenate, labels, status_of
from finercam_rt.images import ImageSource, load_image, source_name
from finercam_rt.manifest import DEFAULT_ALPHA, EMBEDDINGS, Manifest
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.preprocess import Preprocessor

DEFAULT_BATCH_SIZE = 16
"""Images a run where the caller does not say: on CPUs more gains nothing and only takes memory."""


class Outputs(NamedTuple):
    """What `engine(batch)` returns, in the framework of the batch; one row an image.

    logits (N,K) float32; saliency_map (N,h,w) float32, raw; target (N,) int64; references (N,R) int64, -2 where
    unused; alpha (N,) float32; status (N,) uint8, the codes of `ops.Status`: 0 ok, 1 no_positive_evidence, 2 constant,
    3 non_finite; layer_maps, the raw map (N,h,w) of each layer by its name, where the engine gives them. An engine of
    several contrasts has an axis for them behind N on all but the logits.
    """

    logits: Any
    saliency_map: Any
    target: Any
    references: Any
    alpha: Any
    status: Any
    layer_maps: dict[str, Any]


class Batch(NamedTuple):
    """One step of `explain_batches`.

    indices: the positions, among all images, of the rows of `explanation` (None where every image failed); failures:
    position to error of the images that could not be explained; prepare_seconds, run_seconds: wall time of reading
    and preprocessing, and of the engine.
    """

    indices: tuple[int, ...]
    explanation: Explanation | None
    failures: dict[int, InputError]
    prepare_seconds: float
    run_seconds: float


class Engine:
    """A compiled classifier with its explanation; see DESIGN, section 4. Any number of threads may call one engine.

    Args:
        path: the .onnx file that `finercam export` wrote.
        backend: "onnxruntime", "openvino", or "auto": the faster one of those installed, see `backends.open_backend`.
        device: "auto" or "cpu".
        threads: threads of one run; None is the number of physical cores granted to this process.
        spinning: whether idle threads of ONNX Runtime spin, for a lower latency at the price of a busy core each.
        compute: "f32", or "bf16": what OpenVINO computes in, on processors that can. Never chosen unasked, because
            maps then differ. It is no property of the file, whose own precision `manifest.precision` is.
        class_embeddings: the classes of an engine of a zero-shot model; see `with_classes`.

    Raises:
        EngineError: not an engine, a damaged one, or one that this version cannot run.
        BackendError: a runtime or device that is missing or not supported.
        InputError: class embeddings that are not this engine's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        spinning: bool = False,
        compute: str = "f32",
        class_embeddings: EmbeddingsSource | None = None,
    ) -> None:
        """Read the manifest, refuse what cannot be served, then load the graph."""
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._known_resolver: ContrastResolver | None = None
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        if class_embeddings is not None:
            self._take_embeddings(class_embeddings)
        elif self.manifest.num_classes is not None:
            self._take_classes(Classes(self.manifest.classes, self.manifest.num_classes))
        self._preprocess = Preprocessor(self.manifest.input)
        self._compute = compute
        self._backend = open_backend(
            self.path,
            self.manifest,
            backend=backend,
            device=device,
            threads=threads,
            spinning=spinning,
            compute=compute,
        )

    def with_classes(self, class_embeddings: EmbeddingsSource) -> Engine:
        """An engine of the same zero-shot model with these classes, given as embeddings or as their file.

        It shares the loaded graph, so it costs nothing to make, and each may be used in its own thread; closing one
        closes all.

        Raises:
            InputError: the engine's classes are fixed; embeddings of another model, or of another size.
        """
        engine = copy.copy(self)
        engine._take_embeddings(class_embeddings)
        return engine

    @property
    def classes(self) -> Classes:
        """The classes by name and index.

        Raises:
            InputError: those of a zero-shot model have not been given.
        """
        return self._resolver.classes

    @property
    def backend(self) -> str:
        """The runtime that serves the engine, such as "onnxruntime"."""
        return self._backend.name

    @property
    def compute(self) -> str:
        """What it computes in: "f32" or "bf16"."""
        return self._compute

    @property
    def device(self) -> str:
        """Where it computes, such as "cpu"."""
        return self._backend.device

    def close(self) -> None:
        """Give the memory back once the runs under way have ended; later calls raise BackendError."""
        self._backend.close()

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the engine."""
        self.close()

    def __repr__(self) -> str:
        """What it is, on one line."""
        return f"Engine({str(self.path)!r}: {self.manifest.model.name}, {self.backend} on {self.device})"

    def __call__(
        self,
        batch: Any,
        target: Target = None,
        references: References = None,
        alpha: Alpha = None,
        contrasts: Contrasts | None = None,
    ) -> Outputs:
        """Predict and explain a preprocessed batch.

        Args:
            batch: (N,3,H,W) float32, normalised as the manifest says; NumPy, or anything with DLPack on the CPU. Not
                contiguous is allowed and costs a copy. An image with NaN or infinity gets the status non_finite.
            target: None (the predicted class), a class index or name, or one of these for each image.
            references: None (the nearest classes), a list of at most R indices or names for all images ([] for the
                plain map), a list of such lists, or an integer array (N,R) with -1 automatic, -2 unused.
            alpha: None (1 for the objective "weighted", 0.6 for "mean"), a number, or one for each image.
            contrasts: for an engine of P > 1 contrasts, at most P Contrasts instead of the three above: a list for all
                images (see top_classes, why_not and alpha_sweep), or one for each image. Without these and a target,
                the P largest classes are explained.

        Returns:
            Arrays of the caller's own, in the framework of `batch`.

        Raises:
            InputError: a wrong shape, dtype, device, class, reference or alpha; a reference that is the target; more
                contrasts than the engine has.
            BackendError: the runtime failed, or the engine is closed.
        """
        images = self._checked_batch(arrays.to_numpy(batch, "the batch"))
        resolver = self._resolver
        if target is None and references is None and alpha is None and contrasts is None:
            contrast = self._default_contrasts(len(images))
        else:
            contrast = resolver.resolve(len(images), target, references, alpha, contrasts)
        damaged = _rows_not_finite(images)  # before the run, which needs the images in the cache as well
        outputs = self._run(images, contrast, len(images))
        if damaged is not None:
            outputs.status[damaged] = ops.Status.NON_FINITE
        if references is not None or contrasts is not None:
            for row in self._conflicts(contrast, outputs):
                raise self._conflict_error(contrast, outputs, row, f"image {row}")
        layer_maps = {name: arrays.like(values, batch) for name, values in outputs.layer_maps.items()}
        fields = {name: arrays.like(field, batch) for name, field in outputs._asdict().items() if name != "layer_maps"}
        return Outputs(**fields, layer_maps=layer_maps)

    def explain(
        self,
        images: ImageSource | Sequence[ImageSource],
        target: Target = None,
        references: References = None,
        alpha: Alpha = None,
        batch_size: int | None = None,
        contrasts: Contrasts | None = None,
    ) -> Explanation:
        """Predict and explain photographs.

        Args:
            images: files, PIL images or uint8 arrays (see `images.load_image`), several or one.
            target, references, alpha, contrasts: see `__call__`.
            batch_size: images a run; None is 16, or the engine's own where it was exported with a fixed one.

        Raises:
            InputError: see `__call__`; a photograph that cannot be read; no images.
            BackendError: see `__call__`.
        """
        batches = self.explain_batches(images, target, references, alpha, batch_size, contrasts)
        return concatenate([batch.explanation for batch in batches if batch.explanation is not None])

    def explain_batches(
        self,
        images: ImageSource | Sequence[ImageSource],
        target: Target = None,
        references: References = None,
        alpha: Alpha = None,
        batch_size: int | None = None,
        contrasts: Contrasts | None = None,
        *,
        skip_errors: bool = False,
    ) -> Iterator[Batch]:
        """As `explain`, one batch at a time, so that a folder of any size takes the memory of one batch.

        With skip_errors, an image that cannot be read, or whose predicted class is one of its references, is reported
        in `Batch.failures` and the others go on; arguments that are wrong for all images still raise, at once.
        """
        sources = _as_list(images)
        contrast = self._resolver.resolve(len(sources), target, references, alpha, contrasts)
        size = self._batch_size(batch_size)
        return self._batches(sources, contrast, min(size, len(sources)), skip_errors)

    def _batches(
        self, sources: list[ImageSource], contrast: ContrastArrays, size: int, skip_errors: bool
    ) -> Iterator[Batch]:
        height, width = self.manifest.input.size
        # Zeros, because a fixed batch runs in full: rows that no image has filled must be finite.
        inputs = np.zeros((self._backend.fixed_batch or size, 3, height, width), np.float32)
        for start in range(0, len(sources), size):
            began = time.perf_counter()
            views = np.empty((min(size, len(sources) - start), height, width, 3), np.uint8)
            kept: list[int] = []
            failures: dict[int, InputError] = {}
            for position in range(start, start + len(views)):
                source, row = sources[position], len(kept)
                try:
                    image = load_image(source, position)
                    self._preprocess(image, inputs[row], views[row], source_name(source, position))
                except InputError as error:
                    if not skip_errors:
                        raise
                    failures[position] = error
                else:
                    kept.append(position)
            prepared = time.perf_counter()
            explanation = None
            if kept:
                part = contrast.rows(kept)
                outputs = self._run(inputs if self._backend.fixed_batch else inputs[: len(kept)], part, len(kept))
                names = [source_name(sources[position], position) for position in kept]
                conflicts = self._conflicts(part, outputs)
                for row in conflicts:
                    failures[kept[row]] = self._conflict_error(part, outputs, row, names[row])
                    if not skip_errors:
                        raise failures[kept[row]]
                good = [row for row in range(len(kept)) if row not in conflicts]
                kept = [kept[row] for row in good]
                if good:
                    explanation = self._explanation(outputs, views, [names[row] for row in good], good)
            yield Batch(tuple(kept), explanation, failures, prepared - began, time.perf_counter() - prepared)

    def _explanation(
        self, outputs: Outputs, views: NDArray[np.uint8], names: list[str], rows: list[int]
    ) -> Explanation:
        whole = len(rows) == len(views) == len(outputs.logits)
        logits, saliency_map, target, references, alpha, status = (v if whole else v[rows] for v in outputs[:-1])
        return Explanation(
            logits=logits,
            saliency_map=saliency_map,
            target=target,
            references=references,
            alpha=alpha,
            status=labels(status),
            names=tuple(names),
            classes=self.classes,
            size=self.manifest.input.size,
            images=views if whole else views[rows],
            layer_maps={name: v if whole else v[rows] for name, v in outputs.layer_maps.items()},
        )

    def _take_embeddings(self, given: EmbeddingsSource) -> None:
        embeddings = embeddings_for(self.manifest, self.path, given)
        self._embeddings = {EMBEDDINGS: embeddings.values}
        self._take_classes(Classes(embeddings.names, len(embeddings)))

    def _take_classes(self, classes: Classes) -> None:
        manifest = self.manifest
        resolver = ContrastResolver(classes, manifest.references, DEFAULT_ALPHA[manifest.objective], manifest.contrasts)
        self._known_resolver = resolver
        # resolving costs a small network's call some percent, and most calls of a service ask for nothing special
        self._default_contrasts = lru_cache(maxsize=8)(
            lambda count: resolver.resolve(count, target=None, references=None, alpha=None)
        )

    @property
    def _resolver(self) -> ContrastResolver:
        if self._known_resolver is None:
            raise InputError(
                f"{self.path} is a zero-shot model, whose classes are given when it runs; make them with `finercam "
                "embed-text` and give the file as class_embeddings (--class-embeddings)."
            )
        return self._known_resolver

    def _run(self, images: NDArray[np.float32], contrast: ContrastArrays, count: int) -> Outputs:
        """NumPy outputs of the first `count` images, copied out of the backend's buffers; status of the maps."""
        several = self.manifest.contrasts > 1
        asked = contrast.padded(self.manifest.contrasts) if several else contrast
        feeds: dict[str, NDArray[Any]] = {"images": images, **asked._asdict()}
        if count < len(images):
            feeds = {name: _padded(value, len(images)) for name, value in feeds.items()}
        feeds |= self._embeddings
        buffers: Mapping[str, NDArray[Any]] = self._backend.run(feeds)
        part = (slice(count), slice(contrast.target.shape[1])) if several else slice(count)
        logits, saliency_map = buffers["logits"][:count].copy(), buffers["saliency_map"][part].copy()
        status = status_of(saliency_map)
        # A ReLU may turn NaN into 0 on the way to the map, so the map alone does not tell.
        damaged = _rows_not_finite(logits)
        if damaged is not None:
            status[damaged] = ops.Status.NON_FINITE
        return Outputs(
            logits,
            saliency_map,
            buffers["target_class"][part].copy(),
            buffers["reference_classes"][part].copy(),
            contrast.alpha.copy(),
            status,
            {layer.name: buffers[output][part].copy() for output, layer in self.manifest.layer_outputs.items()},
        )

    def _conflicts(self, contrast: ContrastArrays, outputs: Outputs) -> list[int]:
        """The images with a target, which the graph chose, that is one of the references that the caller gave."""
        conflicts = _same_class(contrast, outputs)
        # Logits that are not finite make the predicted class an accident.
        conflicts &= outputs.status != ops.Status.NON_FINITE
        return [int(row) for row in np.flatnonzero(conflicts.reshape(len(conflicts), -1).any(axis=1))]

    def _conflict_error(self, contrast: ContrastArrays, outputs: Outputs, row: int, name: str) -> InputError:
        targets = np.atleast_1d(outputs.target[row])
        predicted = self.classes.name(int(targets[np.atleast_1d(_same_class(contrast, outputs)[row])][0]))
        return InputError(
            f"{name}: the predicted class {predicted!r} is one of the references; give another reference or a target."
        )

    def _checked_batch(self, images: NDArray[Any]) -> NDArray[np.float32]:
        height, width = self.manifest.input.size
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise InputError(f"the batch has the shape {images.shape}; expected (N,3,{height},{width}).")
        if images.dtype != np.float32:
            raise InputError(f"the batch is {images.dtype}; expected float32, normalised as the manifest says.")
        if len(images) == 0:
            raise InputError("the batch is empty; give at least one image.")
        fixed = self._backend.fixed_batch
        if fixed is not None and len(images) != fixed:
            raise InputError(f"the batch has {len(images)} images; the engine was exported for exactly {fixed}.")
        return np.ascontiguousarray(images)

    def _batch_size(self, wanted: int | None) -> int:
        fixed = self._backend.fixed_batch
        if wanted is None:
            return fixed or DEFAULT_BATCH_SIZE
        if wanted < 1:
            raise InputError(f"the batch size is {wanted}; give at least 1.")
        if fixed is not None and wanted != fixed:
            raise InputError(f"the batch size is {wanted}; the engine was exported for exactly {fixed}.")
        return wanted


def _as_list(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    if isinstance(images, (str, os.PathLike, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    try:
        sources = list(images)
    except TypeError:
        raise InputError(
            f"images is of type {type(images).__name__}; give a list of files, images or arrays."
        ) from None
    if not sources:
        raise InputError("there are no images to explain; give at least one.")
    return sources


def _same_class(contrast: ContrastArrays, outputs: Outputs) -> NDArray[np.bool_]:
    """Which contrasts, (N,) or (N,P), have their target among the references that were asked for."""
    same: NDArray[np.bool_] = (contrast.references == outputs.target[..., None]).any(axis=-1)
    return same


def _padded(value: NDArray[Any], count: int) -> NDArray[Any]:
    """`value` with its last row repeated up to `count` rows."""
    return value if len(value) == count else np.concatenate([value, np.repeat(value[-1:], count - len(value), axis=0)])


def _rows_not_finite(values: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Which rows (N,) have a value that is not finite; None where all are finite, which costs two fast reductions."""
    # max and min propagate NaN, and unlike a sum they neither overflow nor warn.
    if math.isfinite(np.maximum.reduce(values, axis=None)) and math.isfinite(np.minimum.reduce(values, axis=None)):
        return None
    finite: NDArray[np.bool_] = np.all(np.isfinite(values.reshape(len(values), -1)), axis=1)
    return ~finite
