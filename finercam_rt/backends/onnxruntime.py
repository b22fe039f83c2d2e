"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finercam_rt.backends.interface import Interface, Sizes, checked_interface, fixed_batch, sizes_of
from finercam_rt.backends.onnxruntime_values import ONLY_FATAL, reason_of, value_of
from finercam_rt.backends.protocol import Run, Wanted
from finercam_rt.backends.slots import Slots
from finercam_rt.errors import BackendError, EngineError
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.packages import import_package
from finercam_rt.processor import sums_of_int8_saturate

_BOUND_IN_PLACE = ("images", EMBEDDINGS)
"""Inputs that are read where the caller has them; the others are small, and copied."""


class _Slot:
    """The sizes of a run of one thread: a binding, and the buffers that all small values are bound to for good."""

    def __init__(self, session: Any, interface: Interface, sizes: Sizes) -> None:
        self.binding = session.io_binding()
        self.inputs, self.outputs = interface.buffers(sizes)
        for name, buffer in self.inputs.items():
            buffer.fill(0)  # what a run of the logits does not feed, and they do not depend on
            self.binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in self.outputs.items():
            self.binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copy the small feeds into their buffers and point the binding at the others.

        By address, because bind_cpu_input keeps the caller's array alive until the next call. The address is not read
        after this run: every run binds its own images first.
        """
        for name, buffer in self.inputs.items():
            if (given := feeds.get(name)) is not None:
                buffer[...] = given
        for name in _BOUND_IN_PLACE:
            if (value := feeds.get(name)) is not None:
                self.binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)


class OnnxRuntimeBackend:
    """A session on the CPU provider, with outputs bound once for each thread and batch size and then reused."""

    name = "onnxruntime"
    device = "cpu"
    batch_range = None

    def __init__(self, path: Path, manifest: Manifest, *, threads: int, spinning: bool) -> None:
        """Load the graph; see open_backend for the errors."""
        if manifest.precision == "bf16":
            raise BackendError(
                f"{path}: its trunk is in bf16, which ONNX Runtime does not compute on the CPU; use "
                "backend='openvino', or export it with --precision fp32 or int8."
            )
        session = _session(path, threads=threads, spinning=spinning, half=manifest.precision == "fp16")
        inputs = {value.name: value_of(value) for value in session.get_inputs()}
        outputs = {value.name: value_of(value) for value in session.get_outputs()}
        interface = checked_interface(inputs, outputs, manifest, path)
        for name in _BOUND_IN_PLACE:  # they need no buffer
            interface.inputs.pop(name, None)
        self._interface = interface
        self.fixed_batch = fixed_batch(inputs)
        self._session: Any = session
        self._slots: Slots[_Slot] = Slots()
        self._predicting: Slots[_Slot] = Slots()

    def run(self, feeds: Mapping[str, NDArray[Any]], wanted: Wanted | None = None) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        return self._run(feeds, self._slots, self._interface)

    def logits(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend.logits. ONNX Runtime computes the other outputs too, but does not hand them out."""
        interface = Interface(self._interface.inputs, {"logits": self._interface.outputs["logits"]})
        values: NDArray[np.float32] = self._run(feeds, self._predicting, interface)["logits"]
        return values

    def _run(
        self, feeds: Mapping[str, NDArray[Any]], slots: Slots[_Slot], interface: Interface
    ) -> Mapping[str, NDArray[Any]]:
        session = self._session
        if session is None:
            raise BackendError("the engine is closed; make a new one.")
        slot = slots.get(sizes_of(feeds), lambda sizes: _Slot(session, interface, sizes))
        try:
            slot.bind(feeds)
            session.run_with_iobinding(slot.binding)
        except Exception as error:  # see _session
            raise BackendError(f"ONNX Runtime failed ({reason_of(error)}).") from None
        return slot.outputs

    def close(self) -> None:
        """See Backend.close."""
        self._session = None
        self._slots, self._predicting = Slots(), Slots()


def open_graph(path: Path, threads: int) -> Run:
    """See backends.open_graph."""
    session = _session(path, threads=threads, spinning=False, half=False)
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # see _session
            raise BackendError(f"ONNX Runtime failed ({reason_of(error)}).") from None

    return run


def _session(path: Path, *, threads: int, spinning: bool, half: bool) -> Any:
    onnxruntime = import_package("onnxruntime", "ONNX Runtime", 'install it with `pip install "finercam-rt[cpu]"`')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Spinning workers burn the cores that other threads of the process need; facts/runtimes.md, section 3.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Without VNNI, sums of two products of uint8 and int8 saturate in 16 bits (24 % off in the logits of an int8
    # MobileNet). The exact kernels take twice as long, with VNNI too, which does not need them.
    options.add_session_config_entry("session.x64quantprecision", "1" if sums_of_int8_saturate() else "0")
    options.log_severity_level = ONLY_FATAL
    # From 1.24 to 1.31 at least this pass ends the process where a float16 Transpose feeds a MatMul (its issue 28392).
    left_out = ["NchwcTransformer"] if half else None
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except Exception as error:  # ONNX Runtime raises a dozen types, RuntimeError and ValueError among them
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({reason_of(error)}); export it again.") from None
