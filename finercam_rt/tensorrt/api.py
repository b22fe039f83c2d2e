"""All that is asked of TensorRT to build and run a plan; tests hold it to the signatures of the real bindings.

TensorRT 10 and 11 and TensorRT-RTX 1.7 have the same Python interface but for what the classes of `RTX_CLASSES` add.
Names of classes are theirs in `CLASSES`, names of parameters are theirs throughout, but for those before a /, which go
by their place. What has a default of ours has one of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Tensor(Protocol):
    """An input or output of the network; a dynamic size is -1."""

    name: str
    shape: Sequence[int]


class Layer(Protocol):
    """One operation of the network."""

    name: str

    def get_output(self, index: int) -> Tensor:
        """One of its outputs."""


class Network(Protocol):
    """What the parser fills."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor:
        """One input."""

    def get_output(self, index: int) -> Tensor:
        """One output."""

    def mark_output(self, tensor: Tensor) -> None:
        """Make it an output."""

    def unmark_output(self, tensor: Tensor) -> None:
        """Leave it out of the outputs."""


class ParserError(Protocol):
    """Why a node was refused."""

    def node(self) -> int:
        """The position of the node in the ONNX graph; -1 where it is about the whole."""

    def node_name(self) -> str:
        """Its name."""

    def node_operator(self) -> str:
        """Its operation."""

    def desc(self) -> str:
        """The reason, in the parser's words."""


class Parser(Protocol):
    """ONNX into a network."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool:
        """Whether all of the file was taken."""

    def get_error(self, index: int) -> ParserError:
        """Why not."""


class Profile(Protocol):
    """The range of every dynamic input's shape."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Of one input."""


class TimingCache(Protocol):
    """What a build has measured of kernels, for the next one on the same GPU."""

    def serialize(self) -> Any:
        """As a buffer."""


class Config(Protocol):
    """How to build."""

    profiling_verbosity: Any
    progress_monitor: Any
    builder_optimization_level: int
    max_aux_streams: int

    def set_flag(self, flag: Any) -> None:
        """Turn one on."""

    def clear_flag(self, flag: Any) -> None:
        """Turn one off."""

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """In bytes."""

    def add_optimization_profile(self, profile: Any) -> int:
        """-1 where it does not fit the network."""

    def create_timing_cache(self, serialized_timing_cache: Any) -> TimingCache:
        """From a buffer, which may be empty."""

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        """Whether it was made by this version on this GPU."""

    def get_timing_cache(self) -> TimingCache:
        """With what was measured."""


class PluginNetwork(Network, Protocol):
    """TensorRT's own, which takes kernels of others."""

    def add_plugin(self, operation: Any, /, aot: bool = False) -> Layer | None:
        """What a plug-in's operation has given, its kernel compiled beforehand where `aot`."""


class PluginModule(Protocol):
    """tensorrt.plugin, from 10.9 on: plug-ins that are functions of Python, and kernels that are compiled."""

    op: Any
    TensorDesc: Any
    AutoTuneCombination: Any
    KernelLaunchParams: Any
    SymInt32: Any
    SymIntExprs: Any

    def register(self, plugin_id: str, lazy_register: bool = False) -> Callable[[Any], Any]:
        """The function that says what the output is, as a decorator."""

    def autotune(self, plugin_id: str) -> Callable[[Any], Any]:
        """The function that says the types and formats it takes, as a decorator."""

    def aot_impl(self, plugin_id: str) -> Callable[[Any], Any]:
        """The function that gives the kernel and its launch, as a decorator."""

    def from_shape_expr(self, shape_expr: tuple[Any, ...], dtype: Any) -> Any:
        """A TensorDesc."""


class RtxConfig(Config, Protocol):
    """TensorRT-RTX builds for GPUs that it does not have."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        """One of the GPUs."""


class Builder(Protocol):
    """Makes plans."""

    def create_network(self, flags: int = 0) -> Network:
        """Empty."""

    def create_builder_config(self) -> Any:
        """A Config, or an RtxConfig."""

    def create_optimization_profile(self) -> Profile:
        """Empty."""

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        """The plan as a buffer; None where it failed, for a reason that is in the log."""


class Runtime(Protocol):
    """Loads plans."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: Any, /) -> Any:
        """A CudaEngine, or an RtxEngine, from a buffer; None where it failed, for a reason that is in the log."""


class CudaEngine(Protocol):
    """A plan that has been loaded: its weights lie on the GPU."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str:
        """Of one input or output."""

    def get_tensor_mode(self, name: str) -> Any:
        """Which of the two it is."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Of its elements."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Its shape; a dynamic size is -1."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Least, usual and largest shape of an input."""

    def create_execution_context(self, strategy: Any = None, /) -> Any:
        """An ExecutionContext; None where it failed."""


class ExecutionContext(Protocol):
    """One run at a time of a plan, in memory that it is given."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """Whether it is inside of the profile."""

    def infer_shapes(self) -> Sequence[str]:
        """The inputs that have no shape yet."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Of an input, as set, or of an output, as it follows."""

    def update_device_memory_size_for_shapes(self) -> int:
        """The bytes that a run of these shapes needs."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Where it computes, an address of the device."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where an input or an output lies on the device."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run."""


class RuntimeCache(Protocol):
    """The kernels that TensorRT-RTX has compiled on this GPU."""

    def serialize(self) -> Any:
        """As a buffer."""

    def deserialize(self, blob: Any) -> bool:
        """Whether they were made by this version on this GPU."""


class RuntimeConfig(Protocol):
    """How contexts of TensorRT-RTX run."""

    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any = None, /) -> None:
        """Who allocates; theirs unless one is given."""

    def create_runtime_cache(self) -> RuntimeCache:
        """Empty."""

    def set_runtime_cache(self, cache: Any = None, /) -> bool:
        """The one that is given, to be read and filled."""


class RtxEngine(CudaEngine, Protocol):
    """A plan of TensorRT-RTX."""

    def create_runtime_config(self) -> RuntimeConfig:
        """Its defaults."""


class RtxContext(ExecutionContext, Protocol):
    """A context of TensorRT-RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether its runs can become a CUDA graph."""


CLASSES = {
    "ITensor": Tensor,
    "INetworkDefinition": Network,
    "ParserError": ParserError,
    "OnnxParser": Parser,
    "IOptimizationProfile": Profile,
    "ITimingCache": TimingCache,
    "IBuilderConfig": Config,
    "Builder": Builder,
    "Runtime": Runtime,
    "ICudaEngine": CudaEngine,
    "IExecutionContext": ExecutionContext,
}
"""Their classes, as both libraries call them."""
PLUGIN_CLASSES = {"INetworkDefinition": PluginNetwork, "ILayer": Layer}
"""Those that a plug-in needs besides, of TensorRT alone."""
RTX_CLASSES = {
    **CLASSES,
    "IBuilderConfig": RtxConfig,
    "ICudaEngine": RtxEngine,
    "IExecutionContext": RtxContext,
    "IRuntimeConfig": RuntimeConfig,
    "IRuntimeCache": RuntimeCache,
}

MEMBERS = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "ProfilingVerbosity": ("DETAILED",),
    "MemoryPoolType": ("WORKSPACE",),
    "BuilderFlag": ("VERSION_COMPATIBLE", "TF32"),
    "ILogger": ("ERROR", "INTERNAL_ERROR", "VERBOSE"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}
"""The members of their enumerations that are used."""
RTX_MEMBERS = {
    **MEMBERS,
    "BuilderFlag": ("REQUIRE_USER_ALLOCATION", "TF32"),
    "ComputeCapability": ("SM86", "SM89", "SM120"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}

CALLBACKS = {
    "ILogger": {"log": ("severity", "msg")},
    "IProgressMonitor": {
        "phase_start": ("phase_name", "parent_phase", "num_steps"),
        "step_complete": ("phase_name", "step"),
        "phase_finish": ("phase_name",),
    },
}
"""What they call of the classes that are derived from theirs."""
