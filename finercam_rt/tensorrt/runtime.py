"""A plan on the GPU: loaded once, with as many execution contexts as are needed at a time."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

from finercam_rt.backends.device_block import Values
from finercam_rt.backends.interface import Value
from finercam_rt.cuda import Device, Memory
from finercam_rt.errors import BackendError, DeviceMemoryError, EngineError, InputError
from finercam_rt.files import atomic_write
from finercam_rt.tensorrt.api import CudaEngine, ExecutionContext, RtxContext, RtxEngine, Runtime, RuntimeCache
from finercam_rt.tensorrt.library import RTX
from finercam_rt.tensorrt.log import new_log
from finercam_rt.tensorrt.serve import Served

_DTYPES = {"FLOAT": "float32", "INT64": "int64"}
_UNSAID = "it does not say why"


class LoadedPlan:
    """A plan whose weights lie on the GPU. Any number of threads may make contexts.

    Of TensorRT-RTX, `runtime_cache` is the file of the kernels that were compiled on this GPU: it is read first, and
    written again whenever there are more. A file that is foreign, damaged or cannot be written costs the time to
    compile them, and nothing else.
    """

    def __init__(self, plan: Path, served: Served, device: Device, runtime_cache: Path | None) -> None:
        """Load it.

        Raises:
            EngineError: the library does not take the plan.
            DeviceMemoryError: the GPU has too little memory for it.
            BackendError: the library does not start.
        """
        self._plan, self._library, self._device = plan, served.library, device
        trt = served.library.module
        self._log = new_log(trt)
        self._kept_cache: RuntimeCache | None = None
        self._cache_bytes = 0
        with device.current():
            try:
                runtime: Runtime = trt.Runtime(self._log)
            except TypeError:  # its factory gave nothing
                raise BackendError(
                    f"{self.name} does not start here ({self._log.reason('no GPU is found')})."
                ) from None
            # such plans bring the library's own code along; serve has seen that this one is what its sidecar tells of
            runtime.engine_host_code_allowed = bool(served.info.options.get("version_compatible"))
            engine = runtime.deserialize_cuda_engine(served.data)
            if engine is None:
                raise self._refusal(len(served.data))
            self._runtime, self._engine = runtime, engine
            if served.library.flavour == RTX:
                self._config, self._kept_cache, self._cache_bytes = _rtx_config(trt, engine, runtime_cache)
        self._cache_file = runtime_cache
        self._saving = threading.Lock()

    @property
    def name(self) -> str:
        """The library and its version."""
        return f"{self._library.flavour} {self._library.version}"

    def interface(self) -> tuple[dict[str, Value], dict[str, Value]]:
        """Its inputs and outputs by name, with "?" for dynamic sizes."""
        trt, engine = self._library.module, self._engine
        found: tuple[dict[str, Value], dict[str, Value]] = ({}, {})
        any_engine: CudaEngine = engine
        for index in range(any_engine.num_io_tensors):
            name = any_engine.get_tensor_name(index)
            dtype = str(any_engine.get_tensor_dtype(name)).rpartition(".")[2]
            shape = [int(size) if size >= 0 else "?" for size in any_engine.get_tensor_shape(name)]
            values = found[any_engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT]
            values[name] = Value(_DTYPES.get(dtype, dtype.lower()), shape)
        return found

    def sizes(self, name: str) -> tuple[int, int]:
        """Least and largest first size of an input."""
        engine: CudaEngine = self._engine
        least, _, most = engine.get_tensor_profile_shape(name, 0)
        return int(least[0]), int(most[0])

    def context(self, inputs: Values, outputs: Values) -> PlanContext:
        """A context for inputs of these shapes, whose outputs must have those; it has memory of its own.

        Raises:
            InputError: shapes that the plan was not built for.
            DeviceMemoryError: the GPU has too little memory.
            BackendError: the library fails.
            _core.CudaError: so does CUDA.
        """
        trt = self._library.module
        with self._device.current():
            if self._kept_cache is not None:
                context = self._engine.create_execution_context(self._config)
            else:
                strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self._engine.create_execution_context(strategy)
            if context is None:
                raise self.failure("a context")
            made: ExecutionContext = context
            for name, (_, shape) in inputs.items():
                if not made.set_input_shape(name, shape):
                    reason = self._log.take_reason(_UNSAID)
                    raise InputError(
                        f"{self._plan} was not built for {name} of {shape} ({reason}); build it for these sizes."
                    )
            if missing := made.infer_shapes():
                raise BackendError(f"{self._plan}: {self.name} wants shapes for {', '.join(missing)}; build it again.")
            for name, (_, shape) in outputs.items():
                if tuple(made.get_tensor_shape(name)) != shape:
                    raise EngineError(
                        f"{self._plan}: its output {name} is {tuple(made.get_tensor_shape(name))} and not {shape}, as "
                        "its manifest says; build it again."
                    )
            size = int(made.update_device_memory_size_for_shapes())
            memory = self._device.memory(max(size, 1))
            made.set_device_memory(memory.address, size)
        return PlanContext(self, context, memory, self._device, self._library.flavour == RTX)

    def save_cache(self) -> None:
        """Write the kernels that were compiled since, if there are more; see the class."""
        if self._kept_cache is None or self._cache_file is None:
            return
        with self._saving:
            blob = self._kept_cache.serialize()
            data = b"" if blob is None else bytes(memoryview(blob))
            if len(data) == self._cache_bytes:
                return
            self._cache_bytes = len(data)
            try:
                with atomic_write(self._cache_file) as stream:
                    stream.write(data)
            except InputError:  # a home that cannot be written
                self._cache_file = None

    def failure(self, what: str) -> BackendError:
        """What the library says went wrong in `what`, such as "a run"."""
        reason = self._log.take_reason(_UNSAID)
        if _is_short_of_memory(reason):
            size = re.search(r"size was (\d+)", reason)
            asked = int(size[1]) if size else 0
            return DeviceMemoryError(f"the GPU's memory does not suffice for {what} ({reason}); free some.", asked)
        return BackendError(f"{self.name} failed in {what} ({reason}).")

    def _refusal(self, size: int) -> Exception:
        reason = self._log.take_reason(_UNSAID)
        if _is_short_of_memory(reason):
            return DeviceMemoryError(
                f"the GPU's memory does not suffice for {self._plan} ({reason}); free some, or take a smaller engine.",
                size,
            )
        return EngineError(f"{self._plan}: {self.name} does not take it ({reason}); build it again on this machine.")


class PlanContext:
    """What runs a plan for inputs of one shape, one run at a time."""

    def __init__(self, plan: LoadedPlan, context: Any, memory: Memory, device: Device, rtx: bool) -> None:
        """See LoadedPlan.context."""
        self._plan, self._context, self._memory, self._device, self._rtx = plan, context, memory, device, rtx

    @property
    def bytes(self) -> int:
        """Of the memory that it computes in."""
        return self._memory.bytes

    rebindable = True
    captures = False

    def bind(self, name: str, address: int) -> None:
        """Say where an input or output lies, a multiple of 256."""
        context: ExecutionContext = self._context
        if not context.set_tensor_address(name, address):
            raise self._plan.failure(f"taking the buffer of {name}")

    def enqueue(self, stream: int) -> None:
        """Queue a run on a stream, by its handle.

        Raises:
            BackendError: the library fails.
        """
        context: ExecutionContext = self._context
        with self._device.current():
            if not context.execute_async_v3(stream):
                raise self._plan.failure("a run")

    def capturable(self, stream: int) -> bool:
        """Whether its runs on this stream can become a CUDA graph."""
        if not self._rtx:
            return True  # the plan was built for one stream, and nothing in it depends on values
        context: RtxContext = self._context
        return bool(context.is_stream_capturable(stream))

    def ran(self) -> None:
        """Called once the first run has ended, when the library has compiled what it needs."""
        self._plan.save_cache()

    def close(self) -> None:
        """Give the memory back; its runs have ended."""
        self._context = None
        self._memory.release()


def _rtx_config(trt: Any, engine: RtxEngine, file: Path | None) -> tuple[Any, RuntimeCache, int]:
    """The configuration of every context, the cache of compiled kernels in it, and how many bytes were read of it."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # Or the first runs of a shape would take slower kernels until better ones are compiled in the background, and a
    # CUDA graph of them would keep the slow ones for good.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    cache = config.create_runtime_cache()
    try:
        stored = b"" if file is None else file.read_bytes()
    except OSError:
        stored = b""  # the first run here
    if stored and not cache.deserialize(stored):  # it is of another GPU or version
        stored = b""
    config.set_runtime_cache(cache)
    return config, cache, len(stored)


def _is_short_of_memory(reason: str) -> bool:
    return "out of memory" in reason.lower() or "outofmemory" in reason.lower()
