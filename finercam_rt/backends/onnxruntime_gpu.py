"""ONNX Runtime on a GPU: its CUDA provider, its TensorRT provider, and NVIDIA's plug-in provider of TensorRT-RTX.

A session computes on one stream, which is given to it when it is made. A run on another stream is ordered by events.
Sources: onnxruntime.ai, CUDA and TensorRT execution providers; TensorRT-RTX-EP-ABI, provider options.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finercam_rt import cuda
from finercam_rt.backends.device_block import Values
from finercam_rt.backends.gpu import GpuBackend
from finercam_rt.backends.interface import Sizes, Value, expected_interface, fixed_batch
from finercam_rt.backends.onnxruntime_values import ONLY_FATAL, reason_of, value_of
from finercam_rt.cuda import Device
from finercam_rt.errors import BackendError, DeviceMemoryError, EngineError
from finercam_rt.files import cache_folder, sha256_of
from finercam_rt.manifest import EMBEDDINGS, Manifest
from finercam_rt.packages import import_package

BATCH_PROFILE, CLASS_PROFILE = (1, 4, 16), (1, 100, 1000)
"""Least, most usual and most images and classes that the TensorRT providers build for, as `finercam build` does."""
_GRAPH_ID, _ASYNCHRONOUS = "gpu_graph_id", "disable_synchronize_execution_providers"
_NO_GRAPH = "-1"
_GRAPHS_FROM = (1, 30)
"""Before that version the CUDA provider's graphs of several sizes read each other's pointers (pull request 32121)."""
_MOST_GRAPHS = 32
"""Of a session, which keeps each for as long as it lives: its providers on a GPU release none (1.31.1)."""

_logger = logging.getLogger("finercam_rt")


class Provider(NamedTuple):
    """An execution provider of ONNX Runtime.

    name: ONNX Runtime's. builds: whether it builds an engine of the graph, for a range of sizes, and keeps it in the
    cache folder. graph_option: what turns CUDA graphs on. missing: what to do where it is not there.
    """

    name: str
    builds: bool
    graph_option: str
    missing: str


PROVIDERS = {
    "onnxruntime": Provider(
        "CUDAExecutionProvider",
        False,
        "enable_cuda_graph",
        "install onnxruntime-gpu in the place of onnxruntime, with CUDA 13 and cuDNN 9",
    ),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider",
        True,
        "trt_cuda_graph_enable",
        "install onnxruntime-gpu in the place of onnxruntime, and the libraries of TensorRT 10",
    ),
    "onnxruntime-tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", True, "enable_cuda_graph", "install onnxruntime-ep-nv-tensorrt-rtx"
    ),
}
"""By the name of the backend."""


def open_session(path: Path, manifest: Manifest, *, backend: str, device: str, cuda_graphs: bool) -> GpuBackend:
    """Load and refuse; see open_backend for the errors. ONNX Runtime captures CUDA graphs of its runs by itself."""
    opened = cuda.open_device(device)

    def load() -> LoadedSession:
        return LoadedSession(path, manifest, backend, opened, graphs=cuda_graphs)

    return GpuBackend(backend, path, manifest, opened, load, cuda_graphs=cuda_graphs)


class LoadedSession:
    """A graph in a session of one provider. Any number of threads may make contexts; their runs take turns."""

    def __init__(self, path: Path, manifest: Manifest, backend: str, device: Device, *, graphs: bool) -> None:
        """Load it.

        Raises:
            BackendError: the provider is missing, or does not start.
            EngineError: it does not take the graph.
        """
        self._provider, self._device = PROVIDERS[backend], device
        self._manifest = manifest
        self._stream = device.stream()
        self._entered, self._left = device.event(), device.event()
        self._lock = threading.Lock()
        self._ids = iter(range(1, _MOST_GRAPHS + 1))
        ort = _import()
        self._graphs = self.wants_graphs = graphs
        if graphs and not self._provider.builds and _version(ort) < _GRAPHS_FROM:
            _warn_of_no_graphs(f"ONNX Runtime is {ort.__version__}, whose graphs are wrong; install 1.30 or later")
            self._graphs = False
        self._fixed = _fixed_batch(ort, path) if self._provider.builds else None
        try:
            self._session: Any = self._open(ort, path)
        except _CannotCaptureError as error:
            _warn_of_no_graphs(error)
            self._graphs = False
            self._session = self._open(ort, path)
        self._ort = ort

    @property
    def name(self) -> str:
        """The library, its version and the provider."""
        return f"ONNX Runtime {self._ort.__version__} ({self._provider.name})"

    def interface(self) -> tuple[dict[str, Value], dict[str, Value]]:
        """Its inputs and outputs by name."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return {v.name: value_of(v) for v in inputs}, {v.name: value_of(v) for v in outputs}

    def sizes(self, name: str) -> tuple[int, int] | None:
        """Least and largest first size of an input; None where any will do."""
        if not self._provider.builds or (self._fixed is not None and name != EMBEDDINGS):
            return None
        least, _, most = CLASS_PROFILE if name == EMBEDDINGS else BATCH_PROFILE
        return least, most

    def context(self, inputs: Values, outputs: Values) -> SessionContext:
        """A binding for inputs of these shapes."""
        options = self._ort.RunOptions()
        number = next(self._ids, None) if self._graphs else None
        if self._graphs and number is None:
            self._graphs = False
            _warn_of_no_graphs(f"the session has {_MOST_GRAPHS} of other sizes, and releases none")
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH if number is None else str(number))
        options.add_run_config_entry(_ASYNCHRONOUS, "1")
        return SessionContext(self, self._session.io_binding(), {**inputs, **outputs}, set(outputs), options, number)

    def run(self, binding: Any, options: Any, stream: int) -> None:
        """Queue a run behind what is on a stream, and let the stream wait for it."""
        caller = self._device.stream(stream)
        with self._lock, self._device.current():
            caller.record(self._entered)
            self._stream.wait(self._entered)
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:  # ONNX Runtime raises a dozen types
                raise self._failure(error, "a run") from None
            self._stream.record(self._left)
            caller.wait(self._left)

    def release(self, number: int) -> None:
        """Let go of a CUDA graph."""
        with self._lock, self._device.current():
            self._stream.synchronize()
            if hasattr(self._session, "release_captured_graph"):  # from 1.30 on
                self._session.release_captured_graph(number)

    @property
    def device_index(self) -> int:
        """The GPU's number."""
        return self._device.index

    def _open(self, ort: Any, path: Path) -> Any:
        provider = self._provider
        options = ort.SessionOptions()
        options.log_severity_level = ONLY_FATAL
        asked = self._options(path)
        plug_in = provider is PROVIDERS["onnxruntime-tensorrt-rtx"]
        chain: list[Any] = []
        if plug_in:
            options.add_provider_for_devices([_plug_in_device(ort, provider, self._device.index)], asked)
        else:
            _preload(ort)
            if provider.name not in ort.get_available_providers():
                raise BackendError(f"this ONNX Runtime has no {provider.name}; {provider.missing}.")
            chain = [(provider.name, asked)]
            if provider.builds:  # what TensorRT does not take stays on the GPU
                chain.append(("CUDAExecutionProvider", _cuda_options(self._device.index, self._stream.handle)))
            chain.append("CPUExecutionProvider")
        try:
            with self._device.current():
                session = ort.InferenceSession(str(path), options, **({} if plug_in else {"providers": chain}))
        except Exception as error:  # ONNX Runtime raises a dozen types
            text = reason_of(error)
            if self._graphs and "graph capture" in str(error).lower():
                raise _CannotCaptureError(text) from None
            raise EngineError(f"{path}: {provider.name} of ONNX Runtime does not take it ({text}).") from None
        if provider.name not in session.get_providers():  # it goes on with the CPU where a library does not load
            raise BackendError(f"{provider.name} of ONNX Runtime does not start here; {provider.missing}.")
        session.disable_fallback()
        return session

    def _options(self, path: Path) -> dict[str, str]:
        provider, index, stream = self._provider, self._device.index, self._stream.handle
        graph = {provider.graph_option: str(int(self._graphs))}
        if not provider.builds:
            return _cuda_options(index, stream) | graph
        found = {"user_compute_stream": str(stream), **graph}
        folder = cache_folder()
        kept = None if folder is None else folder / "onnxruntime" / sha256_of(path)[:32]
        try:
            if kept is not None:
                kept.mkdir(parents=True, exist_ok=True)
        except OSError:  # it costs the time to build again
            kept = None
        if provider is PROVIDERS["onnxruntime-tensorrt"]:
            prefix = "trt"
            found["device_id"] = str(index)
            if kept is not None:
                found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept)}
                found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(kept)}
        else:
            prefix = "nv"
            found["has_user_compute_stream"] = "1"
            if kept is not None:
                found["nv_runtime_cache_path"] = str(kept)
        for kind, batch, classes in zip(("min", "opt", "max"), BATCH_PROFILE, CLASS_PROFILE, strict=True):
            if shapes := self._profile(batch, classes):
                found[f"{prefix}_profile_{kind}_shapes"] = shapes
        return found

    def _profile(self, batch: int, classes: int) -> str:
        """The shapes of the inputs that have no fixed one, as the TensorRT providers read them."""
        shapes = {
            name: Sizes(batch, classes).of(shape)
            for name, (_, shape) in expected_interface(self._manifest).inputs.items()
            if self._fixed is None or name == EMBEDDINGS
        }
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())

    def _failure(self, error: Exception, what: str) -> BackendError:
        text = reason_of(error)
        if "out of memory" in text.lower() or "failed to allocate memory" in text.lower():
            return DeviceMemoryError(f"the GPU's memory does not suffice for {what} ({text}); free some.", 0)
        return BackendError(f"{self.name} failed in {what} ({text}).")


class SessionContext:
    """What runs a session for inputs of one shape, one run at a time."""

    def __init__(
        self, loaded: LoadedSession, binding: Any, values: Values, outputs: set[str], options: Any, number: int | None
    ) -> None:
        """See LoadedSession.context; `number` is that of its CUDA graph, which ONNX Runtime itself captures."""
        self._loaded, self._binding, self._values = loaded, binding, values
        self._outputs, self._options, self._number = outputs, options, number
        self._ran = False

    @property
    def bytes(self) -> int:
        """ONNX Runtime has an arena for all contexts and does not say."""
        return 0

    @property
    def rebindable(self) -> bool:
        """Whether an address may change from run to run."""
        return self._number is None

    @property
    def captures(self) -> bool:
        """Whether CUDA graphs of its runs are ONNX Runtime's affair."""
        return self._loaded.wants_graphs

    def bind(self, name: str, address: int) -> None:
        """Say where an input or output lies."""
        dtype, shape = self._values[name]
        bind = self._binding.bind_output if name in self._outputs else self._binding.bind_input
        bind(name, "cuda", self._loaded.device_index, dtype, shape, address)

    def enqueue(self, stream: int) -> None:
        """Queue a run on a stream, by its handle.

        Raises:
            BackendError: the library fails.
        """
        self._ran = True
        self._loaded.run(self._binding, self._options, stream)

    def capturable(self, stream: int) -> bool:
        """Never: it is ONNX Runtime itself that captures its runs, or nobody."""
        return False

    def ran(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Let the buffers go; its runs have ended."""
        if self._ran and self._number is not None:
            self._loaded.release(self._number)
        self._ran, self._binding = False, None


def _warn_of_no_graphs(reason: object) -> None:
    _logger.warning("runs are not captured in a CUDA graph, and take longer to queue: %s", reason)


def _version(ort: Any) -> tuple[int, ...]:
    """The first two numbers of such as "1.31.1"."""
    return tuple(int(number) for number in ort.__version__.split(".")[:2])


class _CannotCaptureError(Exception):
    """Not all of the graph runs on the provider, which CUDA graphs ask for."""


def _cuda_options(index: int, stream: int) -> dict[str, str]:
    # TF32 is not what was verified.
    return {"device_id": str(index), "user_compute_stream": str(stream), "use_tf32": "0"}


def _fixed_batch(ort: Any, path: Path) -> int | None:
    """Of the file itself: a provider that builds must be told sizes before it loads the graph."""
    options = ort.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen types
        raise EngineError(f"{path}: ONNX Runtime cannot load it ({reason_of(error)}); export it again.") from None
    return fixed_batch({value.name: value_of(value) for value in session.get_inputs()})


def _import() -> Any:
    return import_package("onnxruntime", "ONNX Runtime", "install onnxruntime-gpu")


def _preload(ort: Any) -> None:
    """CUDA's libraries out of the nvidia-* packages, where they are installed so; else the system's are found."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


@functools.cache
def _register_plug_in(ort: Any, plug_in: Any) -> str:
    """The provider's name, once its library is registered."""
    name: str = plug_in.get_ep_name()
    ort.register_execution_provider_library(name, plug_in.get_library_path())
    return name


def _plug_in_device(ort: Any, provider: Provider, index: int) -> Any:
    plug_in = import_package("onnxruntime_ep_nv_tensorrt_rtx", provider.name, provider.missing)
    try:
        name = _register_plug_in(ort, plug_in)
    except Exception as error:  # ONNX Runtime raises a dozen types
        raise BackendError(f"{provider.name} of ONNX Runtime does not start here ({reason_of(error)}).") from None
    devices: Sequence[Any] = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if index >= len(devices):
        raise BackendError(f"{provider.name} serves no device cuda:{index} here; it serves {len(devices)}.")
    return devices[index]
