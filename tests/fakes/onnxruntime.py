"""An ONNX Runtime with a GPU's providers, on a FakeDevice: what it computes, the real one computes on the CPU.

As the real one it captures CUDA graphs by itself, the first time a graph's number is run: later runs of that number
read and write where the first one did.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from .cuda import FakeDevice, cuda_error

_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_PLUG_IN = "NvTensorRTRTXExecutionProvider"


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        assert (kind, index) == ("cuda", 0)
        self.inputs[name] = np.dtype(dtype), tuple(shape), address

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        assert (kind, index) == ("cuda", 0)
        self.outputs[name] = np.dtype(dtype), tuple(shape), address


class FakeRunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class FakeSession:
    """graphs: by number, the addresses that they were captured with. They go with the session."""

    def __init__(self, ort: FakeOnnxRuntime, path: str, providers: list[Any]) -> None:
        self._ort, self._providers = ort, providers
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.options = dict(providers[0][1]) if isinstance(providers[0], tuple) else {}
        self.graphs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.fallback = True

    def disable_fallback(self) -> None:
        self.fallback = False

    def get_providers(self) -> list[str]:
        names = [name if isinstance(name, str) else name[0] for name in self._providers]
        return names if self._ort.starts else names[-1:]

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def release_captured_graph(self, number: int) -> None:
        """As of the providers that run on NVIDIA's GPUs, in 1.31.1: nothing."""

    def run_with_iobinding(self, binding: FakeBinding, options: FakeRunOptions) -> None:
        device = self._ort.device
        assert device.is_current()
        assert not self.fallback
        if self._ort.failing is not None:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {self._ort.failing}")
        assert options.entries["disable_synchronize_execution_providers"] == "1"
        number = options.entries["gpu_graph_id"]
        bound = dict(binding.inputs), dict(binding.outputs)
        if number != "-1":
            turned_on = self.options.get("enable_cuda_graph", self.options.get("trt_cuda_graph_enable"))
            assert turned_on == "1"
            bound = self.graphs.setdefault(number, bound)
        self._check_profile(bound[0])

        def work() -> None:
            feeds = {
                name: device.at(address, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape).copy()
                for name, (dtype, shape, address) in bound[0].items()
            }
            try:
                found = self._real.run(list(bound[1]), feeds)
            except Exception as error:
                raise cuda_error(f"running failed: {str(error).splitlines()[0]}") from None
            for (dtype, shape, address), values in zip(bound[1].values(), found, strict=True):
                assert values.shape == shape
                assert values.dtype == dtype
                raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                device.at(address, len(raw))[:] = raw

        device.streams[int(self.options["user_compute_stream"])].put(work)

    def _check_profile(self, inputs: dict[str, Any]) -> None:
        """Sizes outside of what was asked for would build another engine, for minutes."""
        for kind, wrong in (("min", np.less), ("max", np.greater)):
            for key, text in self.options.items():
                if key.endswith(f"profile_{kind}_shapes"):
                    for part in text.split(","):
                        name, _, shape = part.partition(":")
                        assert not wrong(inputs[name][1], [int(edge) for edge in shape.split("x")]).any(), name


class FakeOnnxRuntime:
    """providers: what it has. starts: whether their libraries load. captures: whether all nodes are on the GPU."""

    __version__ = "1.31.1"
    RunOptions = FakeRunOptions
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        self.starts = self.captures = True
        self.failing: str | None = None
        self.refusing: str | None = None
        self.sessions: list[FakeSession] = []
        self.registered: list[str] = []
        self.preloaded = False

    def SessionOptions(self) -> Any:  # noqa: N802
        options = SimpleNamespace(log_severity_level=0, devices=None)

        def add(devices: list[Any], asked: dict[str, str]) -> None:
            assert all(isinstance(value, str) for value in asked.values())
            options.devices = [(device.ep_name, asked) for device in devices]

        options.add_provider_for_devices = add
        return options

    def InferenceSession(self, path: str, options: Any, providers: Any = None) -> Any:  # noqa: N802
        if providers == ["CPUExecutionProvider"]:
            return onnxruntime.InferenceSession(path, providers=providers)
        assert self.device.is_current()
        chain = providers if options.devices is None else [*options.devices, "CPUExecutionProvider"]
        for part in chain:
            if isinstance(part, tuple):
                assert all(isinstance(value, str) for value in part[1].values())
        if self.refusing is not None:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {self.refusing}")
        session = FakeSession(self, path, chain)
        wants = "1" in (session.options.get("enable_cuda_graph"), session.options.get("trt_cuda_graph_enable"))
        if wants and not self.captures:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the "
                "user as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
            )
        self.sessions.append(session)
        return session

    def preload_dlls(self) -> None:
        self.preloaded = True

    def get_available_providers(self) -> list[str]:
        return self.providers

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert path.endswith(".so")
        self.registered.append(name)

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name="CPUExecutionProvider")] + [
            SimpleNamespace(ep_name=name) for name in self.registered
        ]


def install(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> FakeOnnxRuntime:
    """Make it what `import onnxruntime` gives to the GPU backend, with NVIDIA's plug-in beside it."""
    from finercam_rt.backends import onnxruntime_gpu

    fake = FakeOnnxRuntime(device)
    monkeypatch.setattr(onnxruntime_gpu, "_import", lambda: fake)
    plug_in = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plug_in.__dict__.update(get_ep_name=lambda: _PLUG_IN, get_library_path=lambda: "plug_in.so")
    monkeypatch.setitem(sys.modules, plug_in.__name__, plug_in)
    return fake
