"""A TensorRT whose plans run, on a FakeDevice: a plan is its ONNX file, which ONNX Runtime computes."""

from __future__ import annotations

import enum
import pickle
import struct
from typing import Any

import numpy as np

from .cuda import FakeDevice, cuda_error
from .plugins import NAME, PluginSession
from .tensorrt import FakeTensorRT, _Config, _Network, _Tensor

_HEADER = struct.Struct("<4s7q")
_SCRATCH = 1000
_DTYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(int64)": ("INT64", np.int64)}


class _Layer:
    def __init__(self, created: dict[str, Any]) -> None:
        self.name = "(Unnamed Layer* 0) [Plugin]"
        self._output = _Tensor("(Unnamed Layer* 0) [Plugin]_output", created["shape"])

    def get_output(self, index: int) -> _Tensor:
        return (self._output,)[index]


class _RealNetwork(_Network):
    """Of the inputs and outputs that the file has. created: what the kernel in it is launched by."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[_Tensor] = []
        self.created: dict[str, Any] | None = None
        self.layers: list[_Layer] = []

    def add_plugin(self, operation: Any, /, aot: bool = False) -> _Layer | None:
        assert aot, "a plug-in of another kind calls Python when it runs"
        if operation is None:
            return None
        self.created = operation
        self.layers.append(_Layer(operation))
        return self.layers[-1]

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return len(self.inputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]


def _session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)


class RunningTensorRT(FakeTensorRT):
    """failing: what every run says in the log before it fails. host_code_allowed: as the last runtime was told."""

    __name__ = NAME
    float32 = "float32"

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = 0, 1, 2

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2

    DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64"])

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device
        self.failing: str | None = None
        self.context_failing: str | None = None
        self.load_failing: str | None = None
        self.host_code_allowed = False
        self.contexts: list[FakeContext] = []

    def create_network(self, flags: int = 0) -> _RealNetwork:
        self._network = _RealNetwork()
        return self._network

    def parse_from_file(self, model: str) -> bool:
        with open(model, "rb") as stream:
            self._graph = stream.read()
        try:
            session = _session(self._graph)
            inputs = session.get_inputs()
            self._network.outputs = [_Tensor(value.name, _shape(value)) for value in session.get_outputs()]
        except Exception:  # what a build would refuse; these tests are about running
            import onnx

            inputs = []
            for value in onnx.load_from_string(self._graph).graph.input:
                sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
                self._network.inputs.append(_Tensor(value.name, tuple(sizes)))
        self._network.inputs += [_Tensor(value.name, _shape(value)) for value in inputs]
        return True

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        super().build_serialized_network(network, config)
        shapes = config.profiles[0].shapes
        batch = [shape[0] for shape in shapes["images"]]
        classes = [shape[0] for shape in shapes["class_embeddings"]] if "class_embeddings" in shapes else [0, 0, 0]
        created = self._network.created
        kernel = b"" if created is None else pickle.dumps((created, [o.name for o in self._network.outputs]))
        return _HEADER.pack(b"PLAN", *batch, *classes, len(kernel)) + kernel + self._graph

    def Runtime(self, logger: Any) -> FakeRuntime:  # noqa: N802
        assert self.device.is_current()
        return FakeRuntime(self, logger)


class FakeRuntime:
    def __init__(self, trt: RunningTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> FakeEngine | None:
        assert self._trt.device.is_current()
        self._trt.host_code_allowed = self.engine_host_code_allowed
        if self._trt.load_failing is not None:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.load_failing)
            return None
        magic, *sizes, kernel = _HEADER.unpack_from(serialized_engine)
        assert magic == b"PLAN"
        begin = _HEADER.size + kernel
        try:
            session = _session(serialized_engine[begin:])
        except Exception as error:
            self._logger.log(self._trt.ILogger.ERROR, f"deserialising failed: {error}")
            return None
        if kernel:
            session = PluginSession(session, *pickle.loads(serialized_engine[_HEADER.size : begin]))
        return FakeEngine(self._trt, self._logger, session, sizes)


class FakeEngine:
    def __init__(self, trt: RunningTensorRT, logger: Any, session: Any, sizes: list[int]) -> None:
        self.trt, self.logger, self.session = trt, logger, session
        self.batch, self.classes = sizes[:3], sizes[3:]
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.outputs = {value.name: value for value in session.get_outputs()}
        self.values = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[_DTYPES[self.values[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(self.values[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        sizes = self.classes if name == "class_embeddings" else self.batch
        shape = self.get_tensor_shape(name)
        return [tuple(size if dim < 0 else dim for dim in shape) for size in sizes]

    def create_execution_context(self, strategy: Any = None, /) -> FakeContext | None:
        assert self.trt.device.is_current()
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.new_context(FakeContext)

    def new_context(self, kind: Any) -> Any:
        if self.trt.context_failing is not None:
            self.logger.log(self.trt.ILogger.ERROR, self.trt.context_failing)
            return None
        context = kind(self)
        self.trt.contexts.append(context)
        return context


class FakeContext:
    """Holds its caller to the rules: shapes first, memory of its own, one run that has ended before a capture, and one
    graph alone.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._device = engine, engine.trt.device
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._ended, self.runs = 0, 0
        self._capture: list[Any] | None = None

    @property
    def _captured(self) -> bool:
        """Whether there is a graph of it; a capture may have failed."""
        return any(graph.work is self._capture for graph in self._device.graphs)

    def _refuse(self, reason: str) -> bool:
        self._engine.logger.log(self._engine.trt.ILogger.ERROR, reason)
        return False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._captured, "a graph of this context is in use"
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return self._refuse(f"setInputShape: {name} {shape} is outside of the profile")
        self._shapes[name] = tuple(shape)
        self._memory = None
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batch, classes = self._shapes["images"][0], self._shapes.get("class_embeddings", (0,))[0]
        shape = self._engine.outputs[name].shape
        return tuple(size if isinstance(size, int) else classes if size == "K" else batch for size in shape)

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes()
        return _SCRATCH * self._shapes["images"][0]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        self._memory = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine.values or memory % 256:
            return self._refuse(f"setTensorAddress: {name} at {memory}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._device.is_current()
        engine, stream = self._engine, self._device.streams[stream_handle]
        if engine.trt.failing is not None:
            return self._refuse(engine.trt.failing)
        if set(self._addresses) != set(engine.values) or self._memory is None:
            return self._refuse("enqueueV3: an address or the memory is missing")
        if stream.captured is not None:
            if not self._ended or self._captured:
                return self._refuse("enqueueV3: a capture before a run has ended, or a second one")
            self._capture = stream.captured
        else:
            assert not self._captured, "a graph of this context is in use"
        addresses, shapes, memory = dict(self._addresses), dict(self._shapes), self._memory

        def work() -> None:
            self._device.at(*memory)[:] = 0xAB
            feeds = {
                name: _read(self._device, addresses[name], shapes[name], _DTYPES[value.type][1])
                for name, value in engine.inputs.items()
            }
            try:
                found = engine.session.run(list(engine.outputs), feeds)
            except Exception as error:
                raise cuda_error(f"running failed: {str(error).splitlines()[0]}") from None
            for name, values in zip(engine.outputs, found, strict=True):
                assert values.shape == self.get_tensor_shape(name), name
                raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                self._device.at(addresses[name], len(raw))[:] = raw
            self._ended += 1

        self.runs += 1
        stream.put(work)
        return True


def _read(device: FakeDevice, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return device.at(address, size).view(dtype).reshape(shape).copy()


class RunningRtx(RunningTensorRT):
    """TensorRT-RTX. capturable: what a context says of its stream. cache: what its runtime cache holds."""

    __version__ = "1.7.1.116"

    class BuilderFlag(enum.Enum):
        TF32, REQUIRE_USER_ALLOCATION = 0, 1

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY, EAGER, NONE = 0, 1, 2

    ComputeCapability = enum.Enum("ComputeCapability", ["SM86", "SM89", "SM120"])

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device)
        self.capturable = True
        self.cache = b""

    def create_builder_config(self) -> _RtxConfig:
        self.config = _RtxConfig(self)
        return self.config

    def Runtime(self, logger: Any) -> _RtxRuntime:  # noqa: N802
        return _RtxRuntime(self, logger)


class _RtxConfig(_Config):
    num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        return index < self.num_compute_capabilities


class _RtxRuntime(FakeRuntime):
    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> FakeRtxEngine | None:
        found = super().deserialize_cuda_engine(serialized_engine)
        if found is None:
            return None
        return FakeRtxEngine(found.trt, found.logger, found.session, [*found.batch, *found.classes])


class FakeRtxEngine(FakeEngine):
    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self)

    def create_execution_context(self, strategy: Any = None, /) -> Any:
        trt = self.trt
        assert isinstance(strategy, FakeRuntimeConfig)
        assert strategy.allocation == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        assert strategy.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        return self.new_context(FakeRtxContext)


class FakeRtxContext(FakeContext):
    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._device.streams
        return self._engine.trt.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.runs == 0:
            compiled = f"{self._shapes['images']};".encode()
            self._engine.trt.cache += b"" if compiled in self._engine.trt.cache else compiled
        return super().execute_async_v3(stream_handle)


class FakeRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, engine: FakeRtxEngine) -> None:
        self._engine = engine
        self.allocation: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any = None, /) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self._engine.trt)

    def set_runtime_cache(self, cache: Any = None, /) -> bool:
        assert isinstance(cache, FakeRuntimeCache)
        return True


class FakeRuntimeCache:
    def __init__(self, trt: RunningRtx) -> None:
        self._trt = trt

    def serialize(self) -> bytes:
        return self._trt.cache

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"("):
            return False
        self._trt.cache = blob
        return True
