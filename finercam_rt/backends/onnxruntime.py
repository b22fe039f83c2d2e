"""ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import BackendError, EngineError
from finercam_rt.manifest import Manifest
from finercam_rt.threads import physical_cores_granted

_BATCH_SIZES_KEPT = 4
"""Bindings kept for each thread; a service sees few batch sizes, and the buffers of the rest go."""
_ONLY_FATAL = 4
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
_BATCH = -1
"""Stands for N in the shapes below."""


class _Interface(NamedTuple):
    """Name to (dtype, shape after N) of what each slot has buffers for: the inputs but the images, and the outputs."""

    inputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    outputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


class _Slot:
    """One batch size of one thread: a binding, and the buffers that all but the images are bound to for good."""

    def __init__(self, session: Any, interface: _Interface, batch: int) -> None:
        self.binding = session.io_binding()
        self.inputs = {name: np.empty((batch, *tail), dtype) for name, (dtype, tail) in interface.inputs.items()}
        self.outputs = {name: np.empty((batch, *tail), dtype) for name, (dtype, tail) in interface.outputs.items()}
        for name, buffer in self.inputs.items():
            self.binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name, buffer in self.outputs.items():
            self.binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copy the small feeds into their buffers and point the binding at the images.

        By address, because bind_cpu_input keeps the caller's array alive until the next call. The address is not read
        after this run: every run binds its own images first.
        """
        for name, buffer in self.inputs.items():
            buffer[...] = feeds[name]
        images = feeds["images"]
        self.binding.bind_input("images", "cpu", 0, images.dtype, images.shape, images.ctypes.data)


class OnnxRuntimeBackend:
    """A session on the CPU provider, with outputs bound once for each thread and batch size and then reused."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, path: Path, manifest: Manifest, *, threads: int | None, spinning: bool) -> None:
        """Load the graph; see open_backend for the errors."""
        try:
            import onnxruntime
        except ImportError:
            raise BackendError(
                'ONNX Runtime is not installed; install it with `pip install "finercam-rt[cpu]"`.'
            ) from None
        if threads is not None and threads < 1:
            raise BackendError(f"threads is {threads}; give 1 or more, or None for the physical cores.")
        if manifest.precision == "bf16":
            raise BackendError(
                f"{path}: its trunk is in bf16, which ONNX Runtime does not compute on the CPU; use "
                "backend='openvino', or export it with --precision fp32 or int8."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = physical_cores_granted() if threads is None else threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning workers burn the cores that other threads of the process need; facts/runtimes.md, section 3.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        # Without VNNI, sums of two products of uint8 and int8 saturate in 16 bits (24 % off in the logits of an int8
        # MobileNet); this takes exact kernels there, and changes nothing elsewhere.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = _ONLY_FATAL
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen types, RuntimeError and ValueError among them
            raise EngineError(f"{path}: ONNX Runtime cannot load it ({_reason(error)}); export it again.") from None
        self._interface = _checked_interface(session, manifest, path)
        images = session.get_inputs()[[v.name for v in session.get_inputs()].index("images")]
        self.fixed_batch = images.shape[0] if isinstance(images.shape[0], int) else None
        self._session: Any = session
        self._local = threading.local()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """See Backend.run; every feed is contiguous, of the graph's dtype and shape."""
        session, local = self._session, self._local
        if session is None:
            raise BackendError("the engine is closed; make a new one.")
        slot = self._slot(session, local, feeds["images"].shape[0])
        try:
            slot.bind(feeds)
            session.run_with_iobinding(slot.binding)
        except Exception as error:  # see __init__
            raise BackendError(f"ONNX Runtime failed ({_reason(error)}).") from None
        return slot.outputs

    def close(self) -> None:
        """See Backend.close."""
        self._session = None
        self._local = threading.local()

    def _slot(self, session: Any, local: threading.local, batch: int) -> _Slot:
        slots: OrderedDict[int, _Slot] | None = getattr(local, "slots", None)
        if slots is None:
            slots = local.slots = OrderedDict()
        slot = slots.get(batch)
        if slot is None:
            slot = slots[batch] = _Slot(session, self._interface, batch)
            if len(slots) > _BATCH_SIZES_KEPT:
                slots.popitem(last=False)
        slots.move_to_end(batch)
        return slot


def _checked_interface(session: Any, manifest: Manifest, path: Path) -> _Interface:
    """What is bound, once the graph is known to be what its manifest says."""
    references, classes, grid = manifest.references, manifest.num_classes, manifest.layers[0].grid
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": ("tensor(float)", (_BATCH, 3, *manifest.input.size)),
        "target": ("tensor(int64)", (_BATCH,)),
        "references": ("tensor(int64)", (_BATCH, references)),
        "alpha": ("tensor(float)", (_BATCH,)),
    }
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {
        "logits": ("tensor(float)", (_BATCH, classes)),
        "saliency_map": ("tensor(float)", (_BATCH, *grid)),
        "target_class": ("tensor(int64)", (_BATCH,)),
        "reference_classes": ("tensor(int64)", (_BATCH, references)),
    }
    for kind, expected, found in (
        ("input", inputs, {v.name: v for v in session.get_inputs()}),
        ("output", outputs, {v.name: v for v in session.get_outputs()}),
    ):
        if set(found) != set(expected):
            raise EngineError(
                f"{path}: its graph has the {kind}s {', '.join(found) or 'none'}, and an engine has "
                f"{', '.join(expected)}; export it again."
            )
        for name, (dtype, shape) in expected.items():
            value = found[name]
            if value.type != dtype or not _fits(value.shape, shape):
                raise EngineError(
                    f"{path}: its {kind} {name} is {value.type} {_text(value.shape)}, and its manifest says {dtype} "
                    f"{_text(shape)}; export it again."
                )
    del inputs["images"]
    return _Interface(_after_batch(inputs), _after_batch(outputs))


def _after_batch(values: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    return {name: (_DTYPES[dtype], shape[1:]) for name, (dtype, shape) in values.items()}


def _fits(found: list[int | str | None], expected: tuple[int, ...]) -> bool:
    """Whether a shape with symbols in it can be the expected one."""
    return len(found) == len(expected) and all(
        not isinstance(a, int) or b == _BATCH or a == b for a, b in zip(found, expected, strict=True)
    )


def _text(shape: list[int | str | None] | tuple[int, ...]) -> str:
    return f"({','.join('N' if d == _BATCH else '?' if d is None else str(d) for d in shape)})"


def _reason(error: Exception) -> str:
    """ONNX Runtime's message on one line, without its "[ONNXRuntimeError] : 1 : FAIL : " and its source path."""
    text = " ".join(str(error).split())
    text = text.rsplit(" : ", 1)[-1] if text.startswith("[ONNXRuntimeError]") else text
    return text[:300].rstrip(". ") or type(error).__name__
