"""A TensorRT that builds nothing, for what can be asked of it without a GPU; test_api.py holds it to the real one."""

from __future__ import annotations

import enum
from typing import Any, ClassVar

PLAN = b"a plan of the fake"
LAYERS = """\
Engine Layer Information:
Name: sizes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: conv, LayerType: correlation, Inputs: [ { Name: images, Dimensions: [-1,3,32,48] }], Constants: [], Outputs: [ { \
Name: activations, Dimensions: [-1,6,4,6] }, { Name: pooled, Dimensions: [-1,6] }], TacticName: t
Name: gemm, LayerType: gemm, Inputs: [ { Name: pooled, Dimensions: [-1,6] }], Constants: [], Outputs: [ { \
Name: logits, Dimensions: [-1,7] }], TacticName: t
Name: seed, LayerType: kgen, Inputs: [ { Name: logits, Dimensions: [-1,7] }], Constants: [], Outputs: [ { Name: w, \
Dimensions: [-1,6] }], TacticName: t
Name: map, LayerType: kgen, Inputs: [ { Name: w, Dimensions: [-1,6] }, { Name: activations, Dimensions: [-1,6,4,6] }], \
Constants: [], Outputs: [ { Name: saliency_map, Dimensions: [-1,4,6] }], TacticName: t"""


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class _Network:
    num_inputs = 4

    def __init__(self) -> None:
        self.outputs: list[_Tensor] = []

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> _Tensor:
        return self.outputs[index]

    def mark_output(self, tensor: _Tensor) -> None:
        assert all(tensor is not output for output in self.outputs)
        self.outputs.append(tensor)

    def unmark_output(self, tensor: _Tensor) -> None:
        self.outputs = [output for output in self.outputs if output is not tensor]

    def get_input(self, index: int) -> _Tensor:
        return (
            _Tensor("images", (-1, 3, 32, 48)),
            _Tensor("target", (-1,)),
            _Tensor("references", (-1, 3)),
            _Tensor("class_embeddings", (-1, 6)),
        )[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = min, opt, max


class _TimingCache:
    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def serialize(self) -> bytes:
        return self.stored + b"+measured"


class _Config:
    profiling_verbosity: Any = None
    progress_monitor: Any = None
    builder_optimization_level = 3
    max_aux_streams = -1

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.flags: list[Any] = []
        self.cleared: list[Any] = []
        self.limits: dict[Any, int] = {}
        self.profiles: list[_Profile] = []
        self.timing_cache: _TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return self._trt.profile_index

    def create_timing_cache(self, serialized_timing_cache: bytes) -> _TimingCache:
        return _TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache.stored != b"of another GPU"
        self.timing_cache = cache if fits else self.timing_cache
        return fits

    def get_timing_cache(self) -> _TimingCache:
        assert self.timing_cache is not None
        return self.timing_cache


class _ParserError:
    def __init__(self, node: int, desc: str) -> None:
        self._node, self._desc = node, desc

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return ""

    def desc(self) -> str:
        return self._desc


class FakeTensorRT:
    """Stands for the Python module. The attributes in front decide what it does; `config` is what it was given."""

    __version__ = "11.4.0.106"

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class ProfilingVerbosity(enum.Enum):
        DETAILED = 2

    class MemoryPoolType(enum.Enum):
        WORKSPACE = 0

    class BuilderFlag(enum.Enum):
        TF32 = 0
        VERSION_COMPATIBLE = 1

    class ILogger:
        ERROR, INTERNAL_ERROR, VERBOSE = "error", "internal error", "verbose"

    class IProgressMonitor:
        pass

    steps: ClassVar[int] = 4

    def __init__(self) -> None:
        self.has_gpu = True
        self.profile_index = 0
        self.errors: list[_ParserError] = []
        self.failure: str | None = None
        self.during_build = lambda: None
        self.network_flags = 0
        self.builds = 0
        self.config: _Config | None = None

    def refuse(self, node: int, desc: str) -> None:
        """Make the parser refuse a node."""
        self.errors.append(_ParserError(node, desc))

    def Builder(self, logger: Any) -> FakeTensorRT:  # noqa: N802
        if not self.has_gpu:
            logger.log(self.ILogger.ERROR, "CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger
        return self

    def OnnxParser(self, network: _Network, logger: Any) -> FakeTensorRT:  # noqa: N802
        return self

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> _ParserError:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        return not self.errors

    def create_network(self, flags: int = 0) -> _Network:
        self.network_flags = flags
        return _Network()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def create_builder_config(self) -> _Config:
        self.config = _Config(self)
        return self.config

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        self.builds += 1
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.step_complete("Building", 0)
        monitor.phase_start("Timing", "Building", self.steps)
        for step in range(self.steps):
            self.during_build()
            if not monitor.step_complete("Timing", step):
                return None
        monitor.phase_finish("Timing")
        monitor.phase_finish("Building")
        if self.failure is not None:
            self._logger.log(self.ILogger.ERROR, self.failure)
            return None
        self._logger.log(self.ILogger.VERBOSE, LAYERS)
        return PLAN
