"""OpenVINO on the CPU, in float32, or with the prediction in bfloat16."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends.interface import (
    BATCH,
    CLASSES,
    Interface,
    Sizes,
    Value,
    checked_interface,
    fixed_batch,
    sizes_of,
)
from finercam_rt.backends.openvino_cut import cut_behind_logits, predicting
from finercam_rt.backends.openvino_weights import unshare_square_weights
from finercam_rt.backends.protocol import Run, Wanted
from finercam_rt.backends.slots import BATCH_SIZES_KEPT, Slots
from finercam_rt.errors import BackendError, EngineError
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.packages import import_package

_DTYPES = {"f32": "float32", "i64": "int64"}
_BF16, _PRECISION = "BF16", "INFERENCE_PRECISION_HINT"
"""What OpenVINO calls the capability, and the property."""


class _Slot:
    """The sizes of a run of one thread: an infer request a graph, and the buffers that they are bound to for good."""

    def __init__(self, openvino: Any, graphs: Sequence[Any], interface: Interface, sizes: Sizes) -> None:
        self.inputs, self.outputs = interface.buffers(sizes)
        self._embeddings: NDArray[Any] | None = None
        self._requests = [graph.create_infer_request() for graph in graphs]
        for graph, request in zip(graphs, self._requests, strict=True):
            names = {name for value in (*graph.inputs, *graph.outputs) for name in value.get_names()}
            for name, buffer in (self.inputs | self.outputs).items():
                if name in names:
                    request.set_tensor(name, openvino.Tensor(buffer, shared_memory=True))
        self._handed_on = len(graphs[0].outputs) - 1 if len(graphs) > 1 else 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copy the feeds in and fill the outputs.

        The images are copied too (about 1 % of a run): OpenVINO refuses arrays that are read-only, and would hold on
        to the caller's.
        """
        known, self._embeddings = self._embeddings, feeds.get(EMBEDDINGS)
        for name, buffer in self.inputs.items():
            if name != EMBEDDINGS or known is not feeds[name]:  # they are large, and the same ones for many runs
                np.copyto(buffer, feeds[name])
        first, *rest = self._requests
        first.infer(share_outputs=True)
        for request in rest:
            for position in range(self._handed_on):
                request.set_input_tensor(position, first.get_output_tensor(position + 1))
            request.infer(share_outputs=True)


class OpenVinoBackend:
    """Graphs compiled for the CPU, with inputs and outputs bound once for each thread and batch size.

    A single image, where latency matters, runs a graph compiled for just that; the other batch sizes share a dynamic
    one, compiled when the first of them comes. Where OpenVINO cannot compile a dynamic one, they have one each.
    """

    name = "openvino"
    device = "cpu"
    batch_range = None

    def __init__(self, path: Path, manifest: Manifest, *, threads: int, compute: str) -> None:
        """Load the graph; see open_backend for the errors."""
        openvino = _module()
        self._openvino: Any = openvino
        self._core = openvino.Core()
        if compute == "bf16" and _BF16 not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this processor does not compute in bf16; use compute='f32'.")
        self._options = {
            # Where the processor has bf16 units, OpenVINO would otherwise use them unasked.
            _PRECISION: compute,
            # Or matrix products with weights in int8 alone would round their inputs to int8 as well.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY",
            # OpenVINO 2026.4.1 computes some graphs (windows of 16 of Swin V2) wrong with more than one stream, without
            # an error and otherwise each time that they are compiled. So callers of one engine take turns.
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Pinned workers of two engines, or of two processes, would sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._path = path
        try:
            model = self._core.read_model(path)
            unshare_square_weights(openvino, model)
        except Exception as error:  # OpenVINO raises RuntimeError for nearly everything, and others for the rest
            raise self._cannot_load(error) from None
        inputs = {value.get_any_name(): _value(value) for value in model.inputs}
        outputs = {value.get_any_name(): _value(value) for value in model.outputs}
        self._interface = checked_interface(inputs, outputs, manifest, path)
        self.fixed_batch = fixed_batch(inputs)
        self._model: Any = model
        self._compute = compute
        # by whether they give the logits alone, and batch size, None the dynamic one; the oldest goes first
        self._compiled: dict[tuple[bool, int | None], list[Any]] = {}
        self._dynamic = self.fixed_batch is None
        self._compiling = threading.Lock()
        self._slots: Slots[_Slot] = Slots()
        self._predicting: Slots[_Slot] = Slots()
        self._graphs(self.fixed_batch or 1)

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        return self._run(feeds, self._slots, self._slot)

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend.logits; by graphs of their own, compiled when the first run comes."""
        values: NDArray[np.float32] = self._run(feeds, self._predicting, self._predicting_slot)["logits"]
        return values

    def _run(
        self, feeds: Mapping[str, NDArray[Any]], slots: Slots[_Slot], make: Callable[[Sizes], _Slot]
    ) -> Mapping[str, NDArray[Any]]:
        if self._model is None:
            raise BackendError("the engine is closed; make a new one.")
        slot = slots.get(sizes_of(feeds), make)
        try:
            slot.run(feeds)
        except Exception as error:  # see __init__
            raise BackendError(f"OpenVINO failed ({_reason(error)}).") from None
        return slot.outputs

    def close(self) -> None:
        """See Backend.close."""
        with self._compiling:
            self._model = None
            self._compiled.clear()
            self._slots, self._predicting = Slots(), Slots()

    def _slot(self, sizes: Sizes) -> _Slot:
        return _Slot(self._openvino, self._graphs(sizes.batch), self._interface, sizes)

    def _predicting_slot(self, sizes: Sizes) -> _Slot:
        graphs = self._graphs(sizes.batch, logits_alone=True)
        return _Slot(self._openvino, graphs, self._interface.predicting(), sizes)

    def _graphs(self, batch: int, *, logits_alone: bool = False) -> list[Any]:
        """The compiled graphs that serve this batch size: one, or in bf16 two that run one after the other."""
        with self._compiling:
            if self._model is None:
                raise BackendError("the engine is closed; make a new one.")
            any_size = batch != 1 or logits_alone  # logits alone are asked of many images, not soon of one
            if self._dynamic and any_size and (logits_alone, None) not in self._compiled:
                try:
                    self._compiled[logits_alone, None] = self._compile(None, logits_alone)
                except Exception:  # see __init__; some fusions of OpenVINO fail where the batch is not known
                    self._dynamic = False
            key = logits_alone, (None if self._dynamic and any_size else batch)
            if key not in self._compiled:
                try:
                    self._compiled[key] = self._compile(key[1], logits_alone)
                except Exception as error:  # see __init__
                    raise self._cannot_load(error) from None
                alike = [known for known in self._compiled if known[0] == logits_alone]
                if len(alike) > BATCH_SIZES_KEPT:
                    del self._compiled[alike[0]]
            return self._compiled[key]

    def _compile(self, batch: int | None, logits_alone: bool) -> list[Any]:
        """For one batch size, or for any (None)."""
        model = self._model.clone()
        if batch is not None:
            known = {BATCH: batch, CLASSES: -1}  # -1 is what may change from run to run
            shapes = {name: shape for name, (_, shape) in self._interface.inputs.items()}
            model.reshape({name: [known.get(size, size) for size in shape] for name, shape in shapes.items()})
            unshare_square_weights(self._openvino, model)
        if logits_alone:
            model = predicting(self._openvino, model)
        if self._compute == "f32" or logits_alone:
            return [self._core.compile_model(model, "CPU", self._options)]
        prediction, explanation = cut_behind_logits(self._openvino, model)
        return [
            self._core.compile_model(prediction, "CPU", self._options),
            self._core.compile_model(explanation, "CPU", {**self._options, _PRECISION: "f32"}),
        ]

    def _cannot_load(self, error: Exception) -> EngineError:
        return _refused(self._path, error)


def open_graph(path: Path, threads: int) -> Run:
    """See backends.open_graph."""
    openvino = _module()
    options = {_PRECISION: "f32", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", options)
    except Exception as error:  # see OpenVinoBackend
        raise _refused(path, error) from None
    names = [value.get_any_name() for value in compiled.outputs]

    def run(feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        try:
            results = compiled.create_infer_request().infer(dict(feeds))
            return {name: results[position] for position, name in enumerate(names)}
        except Exception as error:  # see OpenVinoBackend
            raise BackendError(f"OpenVINO failed ({_reason(error)}).") from None

    return run


def _module() -> Any:
    return import_package("openvino", "OpenVINO", 'install it with `pip install "finercam-rt[openvino]"`')


def _refused(path: Path, error: Exception) -> EngineError:
    return EngineError(
        f"{path}: OpenVINO cannot load it ({_reason(error)}); use backend='onnxruntime', or export it again."
    )


def _value(value: Any) -> Value:
    dtype = value.get_element_type().get_type_name()
    shape = value.get_partial_shape()
    return Value(_DTYPES.get(dtype, dtype), [d.get_length() if d.is_static else None for d in shape])


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message, which says what; the ones before it say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].lstrip("- ")[:300].rstrip(". ") if lines else type(error).__name__
