"""An engine file, loaded: photographs or batches in, predictions and their explanations out."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt import arrays, device_arrays, ops
from finercam_rt.backends import open_backend
from finercam_rt.backends.protocol import DeviceBackend, Filling, RunTimes
from finercam_rt.classes import Classes
from finercam_rt.contrast import Alpha, ContrastArrays, ContrastResolver, Contrasts, CountError, References, Target
from finercam_rt.device_arrays import DeviceArray
from finercam_rt.device_inputs import DeviceInputs, PixelPool
from finercam_rt.device_outputs import logits_on_device, read_batch, run_on_device, run_on_host
from finercam_rt.embeddings import EmbeddingsSource, embeddings_for, no_classes
from finercam_rt.engine_file import read_manifest
from finercam_rt.errors import InputError
from finercam_rt.explanation import Explanation, concatenate
from finercam_rt.images import ImageSource
from finercam_rt.loading import as_list, as_stream, checked_batch, images_a_run
from finercam_rt.manifest import DEFAULT_ALPHA, EMBEDDINGS, Manifest
from finercam_rt.outputs import (
    Drawing,
    Outputs,
    checked_method,
    conflict_error,
    conflicts,
    rows_not_finite,
    run_graph,
    run_logits,
)
from finercam_rt.photographs import Batch, HostInputs, Photographs, RunInputs
from finercam_rt.preprocess import Preprocessor

DEFAULT_BATCH_SIZE = 16
"""Images a run where the caller does not say: on CPUs more gains nothing and only takes memory."""


class Engine:
    """A compiled classifier with its explanation; see DESIGN, section 4. Any number of threads may call one engine.

    Args:
        path: the .onnx file that `finercam export` wrote, or the .plan of `finercam build`.
        backend: "onnxruntime", "openvino", or "auto": the faster one of those installed, see `backends.open_backend`.
            On a GPU also "onnxruntime-tensorrt" and "onnxruntime-tensorrt-rtx". A plan is run by the library that
            built it: "auto" or "tensorrt".
        device: "auto" (the CPU; a GPU for plans and for backends that need one), "cpu", "cuda" or "cuda:N".
        threads: threads of one run; None is the number of physical cores granted to this process.
        spinning: whether idle threads of ONNX Runtime spin, for a lower latency at the price of a busy core each.
        compute: "f32", or "bf16": what OpenVINO computes in, on processors that can. Never chosen unasked, because
            maps then differ. It is no property of the file, whose own precision `manifest.precision` is.
        class_embeddings: the classes of an engine of a zero-shot model; see `with_classes`.
        method: how the map is drawn, one of manifest.METHODS; None is the engine's own. Engines of head "taps" have a
            choice, see `with_method`.
        cuda_graphs: on a GPU, whether runs of one size are captured and then replayed in one launch.

    Raises:
        EngineError: not an engine, a damaged one, or one that this version cannot run.
        BackendError: a runtime or device that is missing or not supported.
        InputError: class embeddings that are not this engine's; a method that it does not serve.
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
        method: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Read the manifest, refuse what cannot be served, then load the graph."""
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._drawing = Drawing(self.manifest, checked_method(self.manifest, method, self.path), threads)
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
            cuda_graphs=cuda_graphs,
        )
        self._gpu: DeviceBackend | None = self._backend if isinstance(self._backend, DeviceBackend) else None
        self._pixels = None if self._gpu is None else PixelPool(self._gpu.gpu)

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

    def with_method(self, method: str) -> Engine:
        """An engine that draws its maps by another method.

        With head "taps" and the gradients it is any method of manifest.METHODS, with the channel weights alone one that
        needs no more, and with head "graph" the one that was compiled. It shares the loaded graph, as `with_classes`
        does.

        Raises:
            InputError: a method that this engine does not serve.
        """
        engine = copy.copy(self)
        engine._drawing = replace(self._drawing, method=checked_method(self.manifest, method, self.path))
        return engine

    @property
    def method(self) -> str:
        """How its maps are drawn, such as "gradcam"."""
        return self._drawing.method

    @property
    def _draws_there(self) -> bool:
        """Whether the map is made where the graph runs, on a GPU."""
        return self._gpu is not None and self._gpu.draws(self.method)

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

    @property
    def fixed_batch(self) -> int | None:
        """How many images a run takes, of an engine that was made for exactly so many; None for any number."""
        return self._backend.fixed_batch

    @contextmanager
    def device_times(self) -> Iterator[list[RunTimes]]:
        """The times of every run of host arrays inside the block, on a GPU; of an engine on the CPU there are none."""
        times: list[RunTimes] = []
        if self._gpu is not None:
            self._gpu.record_times(times)
        try:
            yield times
        finally:
            if self._gpu is not None:
                self._gpu.record_times(None)

    def close(self) -> None:
        """Give the memory back once the runs under way have ended; later calls raise BackendError."""
        self._backend.close()
        if self._pixels is not None:
            self._pixels.close()

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
        *,
        stream: int | None = None,
    ) -> Outputs:
        """Predict and explain a preprocessed batch.

        Args:
            batch: (N,C,H,W) float32, normalised as the manifest says, C its number of channels, mostly 3; NumPy, or
                anything with DLPack on the CPU. Not contiguous is allowed and costs a copy. An image with NaN or
                infinity gets the status non_finite. An engine on a GPU also takes contiguous arrays of that GPU, by
                __cuda_array_interface__ (torch, CuPy, JAX, Numba, PyCUDA), and nothing of the call is then copied to
                the host or waited for, unless references are given for predicted classes.
            target: None (the predicted class), a class index or name, or one of these for each image.
            references: None (the nearest classes), a list of at most R indices or names for all images ([] for the
                plain map), a list of such lists, or an integer array (N,R) with -1 automatic, -2 unused.
            alpha: None (1 for the objective "weighted", 0.6 for "mean"), a number, or one for each image.
            contrasts: for an engine of P > 1 contrasts, at most P Contrasts instead of the three above: a list for all
                images (see top_classes, why_not and alpha_sweep), or one for each image. Without these and a target,
                the P largest classes are explained.
            stream: of arrays on a GPU: the handle of the CUDA stream that made the batch and will use the outputs; None
                is torch's or CuPy's current one, else the one that the array names, else the default stream.

        Returns:
            Arrays of the caller's own, in the framework of `batch`, on its device.

        Raises:
            InputError: a wrong shape, dtype, device, class or alpha; the target as a reference; too many contrasts.
            BackendError: the runtime failed, or the engine is closed.
        """
        found = self._on_device(batch, stream)
        if found is None:
            images = checked_batch(arrays.to_numpy(batch, "the batch"), self.manifest.input.shape, self.fixed_batch)
        count = len(images) if found is None else found.shape[0]
        resolver = self._resolver
        if target is None and references is None and alpha is None and contrasts is None:
            contrast = self._default_contrasts(count)
        else:
            contrast = resolver.resolve(count, target, references, alpha, contrasts)
        pinned = references is not None or contrasts is not None
        if found is not None and self._gpu is not None:
            outputs, few = run_on_device(
                self._gpu, self.manifest, self.method, batch, found, contrast, self._embeddings, stream, check=pinned
            )
            if few is not None:
                self._refuse_conflicts(contrast, few)
            return outputs
        # before the run, which needs the images in the cache as well; a GPU that draws looks itself
        damaged = None if self._draws_there else rows_not_finite(images)
        outputs = self._run(images, contrast, count, with_taps=True)
        if damaged is not None:
            outputs.status[damaged] = ops.Status.NON_FINITE
        if pinned:
            self._refuse_conflicts(contrast, outputs)
        return outputs if isinstance(batch, np.ndarray) else outputs.each(lambda values: arrays.like(values, batch))

    def logits(self, batch: Any, *, stream: int | None = None) -> Any:
        """The logits (N,K) of a preprocessed batch without an explanation, for less than `__call__` takes.

        Args:
            batch, stream: see `__call__`.

        Raises:
            InputError: a wrong shape, dtype or device; the classes of a zero-shot model have not been given.
            BackendError: see `__call__`.
        """
        found = self._on_device(batch, stream)
        _ = self._resolver  # which refuses where there are no classes
        if found is not None and self._gpu is not None:
            return logits_on_device(self._gpu, self.manifest, batch, found, self._embeddings, stream)
        images = checked_batch(arrays.to_numpy(batch, "the batch"), self.manifest.input.shape, self.fixed_batch)
        logits = run_logits(self._backend, images, self._embeddings)
        return logits if isinstance(batch, np.ndarray) else arrays.like(logits, batch)

    def explain(
        self,
        images: ImageSource | Iterable[ImageSource],
        target: Target = None,
        references: References = None,
        alpha: Alpha = None,
        batch_size: int | None = None,
        contrasts: Contrasts | None = None,
    ) -> Explanation:
        """Predict and explain photographs.

        Args:
            images: files, PIL images, uint8 arrays, bytes or objects to read from (see `images.load_image`), several
                or one. An engine of one channel takes photographs as grey, one of other channels than 1 and 3 takes
                arrays (H,W,C) alone. Arrays and PIL images are referred to, not copied. An iterator is read to its end,
                and all that it gives is kept: for a video take `explain_batches`.
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
        images: ImageSource | Iterable[ImageSource],
        target: Target = None,
        references: References = None,
        alpha: Alpha = None,
        batch_size: int | None = None,
        contrasts: Contrasts | None = None,
        *,
        skip_errors: bool = False,
    ) -> Iterator[Batch]:
        """As `explain`, one batch at a time, so that a folder or a video of any length takes the memory of one batch.

        An iterator, such as a generator of frames, may be endless. batch_size of its items are taken, explained and
        given before the next is taken; with batch_size=1 an answer comes as soon as its frame. Of target, references,
        alpha and contrasts it takes those that are for all images. It is closed when the batches end, however they end.

        With skip_errors, an image that cannot be read, or whose predicted class is one of its references, is reported
        in `Batch.failures` and the others go on; arguments that are wrong for all images still raise, at once.
        """
        size = images_a_run(batch_size, DEFAULT_BATCH_SIZE, self._backend.fixed_batch, self._backend.batch_range)
        photographs = Photographs(self.manifest, self.classes, self._inputs)
        stream = as_stream(images)
        if stream is not None:
            try:
                contrast = self._resolver.resolve(1, target, references, alpha, contrasts)
            except CountError:
                raise InputError(
                    "there may be any number of images in an iterator; give it one target, references, alpha and "
                    "contrasts for all, or explain a list."
                ) from None
            return photographs.batches(stream, contrast, size, skip_errors)
        sources = as_list(images)
        contrast = self._resolver.resolve(len(sources), target, references, alpha, contrasts)
        return photographs.batches(iter(sources), contrast, min(size, len(sources)), skip_errors)

    def _inputs(self, size: int) -> RunInputs:
        """Where `size` photographs become inputs: on the GPU, where it draws their maps too, else on the host."""
        gpu, pixels, manifest, method, constants = self._gpu, self._pixels, self.manifest, self.method, self._embeddings
        if gpu is not None and pixels is not None and self._draws_there:

            def run(images: Filling, asked: ContrastArrays) -> Outputs:
                return run_on_host(gpu, manifest, method, images, asked, constants, with_taps=False)

            return DeviceInputs(self._preprocess, pixels, run)
        images = np.zeros((self.fixed_batch or size, *manifest.input.shape), np.float32)
        return HostInputs(self._preprocess, functools.partial(self._run, with_taps=False), images, self.fixed_batch)

    def _on_device(self, batch: Any, stream: int | None) -> DeviceArray | None:
        """Where the batch lies on the engine's GPU; None where it is to be read on the host."""
        if self._gpu is not None and (where := device_arrays.device_of(batch)) is not None:
            return read_batch(batch, where, self._gpu, self.manifest, self.fixed_batch)
        if stream is not None:
            raise InputError("a stream is for a batch on the engine's GPU; leave it out.")
        return None

    def _refuse_conflicts(self, contrast: ContrastArrays, outputs: Outputs) -> None:
        """Of references that were given: one that is the class that the graph has chosen as the target."""
        for row in conflicts(contrast, outputs):
            raise conflict_error(contrast, outputs, row, f"image {row}", self.classes)

    def _take_embeddings(self, given: EmbeddingsSource) -> None:
        embeddings = embeddings_for(self.manifest, self.path, given)
        self._embeddings = {EMBEDDINGS: embeddings.values}
        self._take_classes(Classes(embeddings.names, len(embeddings)))

    def _take_classes(self, classes: Classes) -> None:
        manifest = self.manifest
        alpha = DEFAULT_ALPHA[manifest.objective]
        self._known_resolver = resolver = ContrastResolver(classes, manifest.references, alpha, manifest.contrasts)
        # resolving costs a small network's call some percent, and most calls of a service ask for nothing special
        self._default_contrasts = functools.lru_cache(maxsize=8)(
            lambda count: resolver.resolve(count, target=None, references=None, alpha=None)
        )

    @property
    def _resolver(self) -> ContrastResolver:
        if self._known_resolver is None:
            raise no_classes(self.path)
        return self._known_resolver

    def _run(self, images: NDArray[np.float32], contrast: ContrastArrays, count: int, *, with_taps: bool) -> Outputs:
        if self._gpu is not None and self._draws_there:
            constants = self._embeddings
            return run_on_host(self._gpu, self.manifest, self.method, images[:count], contrast, constants, with_taps)
        return run_graph(self._backend, self._drawing, images, contrast, count, self._embeddings, with_taps)
