"""An ONNX file becomes the bytes of a plan: one path for TensorRT 10 and 11 and for TensorRT-RTX.

Networks are strongly typed: the precision of every tensor is what the ONNX file says, and no flag changes it.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finercam_rt.errors import BackendError
from finercam_rt.manifest import EMBEDDINGS
from finercam_rt.onnx_metadata import OnnxNode, read_nodes
from finercam_rt.tensorrt.api import Builder, Config, Network, Parser, RtxConfig
from finercam_rt.tensorrt.kernels import Kernel, read_kernels
from finercam_rt.tensorrt.library import RTX, Library
from finercam_rt.tensorrt.log import new_log
from finercam_rt.tensorrt.plugin import AUTO, MapPlugin, add_map

MIB = 1 << 20
Range = tuple[int, int, int]
"""Least, usual and largest."""
BATCH: Range = (1, 4, 16)
CLASSES: Range = (2, 100, 1000)
"""Where the user does not say."""


@dataclass(frozen=True)
class BuildOptions:
    """What a plan is built for; every field changes the plan.

    batch: least, usual (what it is tuned for) and largest number of images a run. classes: the same of a zero-shot
    model's classes. capabilities: GPUs, such as "SM89". workspace_mib: memory of the GPU that a kernel may take while
    it runs, None for all of it. tf32: whether float32 products may round their inputs to TF32, which is faster, and not
    what was verified. optimization_level: 0 to 5, None for the library's own; how long it looks for fast
    kernels. version_compatible: whether later versions of TensorRT can run it. map_kernel: what draws the map, one of
    plugin.MAP_KERNELS.
    """

    batch: Range
    classes: Range
    capabilities: tuple[str, ...]
    workspace_mib: int | None = None
    tf32: bool = False
    optimization_level: int | None = None
    version_compatible: bool = False
    map_kernel: str = AUTO


class Built(NamedTuple):
    """plan: its bytes, as a buffer. kernels: what it runs, in order; empty where the library does not say. seconds:
    wall time. timing_cache: the buffer to give to the next build, where there was one.
    """

    plan: Any
    kernels: tuple[Kernel, ...]
    seconds: float
    timing_cache: Any


class UnsupportedError(BackendError):
    """The library does not take the graph; `operation` is the one that it refuses, "" where it is no single one."""

    def __init__(self, message: str, operation: str = "") -> None:
        """With its sentence."""
        super().__init__(message)
        self.operation = operation


def build(
    graph: Path,
    library: Library,
    options: BuildOptions,
    *,
    plugin: MapPlugin | None = None,
    timing_cache: bytes | None = None,
    on_progress: Callable[[float, str], None] = lambda share, phase: None,
) -> Built:
    """Parse and build.

    Args:
        graph: an ONNX file.
        library: what builds.
        options: what for.
        plugin: the kernel that draws the map from the graph's taps; None where none does.
        timing_cache: what an earlier build has measured, b"" for a new one; None for none. Of TensorRT alone.
        on_progress: called with the share that is done and the name of the phase, from threads of the library's.

    Raises:
        UnsupportedError: an operation that the library does not have, or a graph that it cannot build.
        BackendError: the library itself fails, as where there is no GPU and it needs one.
    """
    trt = library.module
    began = time.perf_counter()
    log = new_log(trt)
    try:
        builder: Builder = trt.Builder(log)
    except TypeError:  # its factory gave nothing
        raise BackendError(f"{library.flavour} cannot build here ({log.reason('no GPU is found')}).") from None
    network: Any = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: Parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise _refused_node(graph, library, parser)
    if plugin is not None:
        add_map(library, network, plugin)
    config = builder.create_builder_config()
    monitor = _monitor(trt, on_progress)
    _configure(config, library, options)
    _add_profile(builder, network, config, options)
    if timing_cache is not None:
        _set_timing_cache(config, timing_cache)
    config.progress_monitor = monitor
    with _interrupting(monitor):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused_build(graph, library, log)
    kernels = read_kernels(line for message in log.verbose for line in message.splitlines())
    cache = None if timing_cache is None else config.get_timing_cache().serialize()
    return Built(memoryview(plan), kernels, time.perf_counter() - began, cache)


@contextmanager
def _interrupting(monitor: Any) -> Iterator[None]:
    """Ctrl-C ends the build at its next step: a KeyboardInterrupt raised in their frames would end the process.

    SIGTERM, too, where it raises one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        monitor.interrupted = True

    numbers = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        numbers.append(signal.SIGTERM)
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if monitor.interrupted:
        raise KeyboardInterrupt


def _configure(config: Any, library: Library, options: BuildOptions) -> None:
    trt = library.module
    any_config: Config = config
    any_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the log then lists the kernels
    if not options.tf32:  # TensorRT's own choice is to round
        any_config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        any_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.optimization_level is not None:
        any_config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        any_config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if library.flavour == RTX:
        rtx_config: RtxConfig = config
        rtx_config.num_compute_capabilities = len(options.capabilities)
        for index, name in enumerate(options.capabilities):
            rtx_config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        rtx_config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or its runs could not be captured
    else:
        any_config.max_aux_streams = 0  # one stream is what a CUDA graph is captured from


def _add_profile(builder: Builder, network: Network, config: Config, options: BuildOptions) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        fixed = value.shape[0]
        if fixed >= 0 and options.batch != (fixed,) * 3 and value.name != EMBEDDINGS:
            raise UnsupportedError(
                f"the engine was exported for exactly {fixed} images; give --min-batch, --opt-batch and --max-batch "
                f"{fixed}."
            )
        sizes = options.classes if value.name == EMBEDDINGS else options.batch
        shapes = [tuple(size if dynamic < 0 else dynamic for dynamic in value.shape) for size in sizes]
        profile.set_shape(value.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise UnsupportedError("the range of batch sizes does not fit the graph; export it again.")


def _set_timing_cache(config: Config, stored: bytes) -> None:
    if not config.set_timing_cache(config.create_timing_cache(stored), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # of another GPU or version


def _refused_node(graph: Path, library: Library, parser: Parser) -> UnsupportedError:
    """Which operation was refused, where it comes from, and why."""
    error = parser.get_error(0)
    nodes = read_nodes(graph)
    node = nodes[error.node()] if 0 <= error.node() < len(nodes) else None
    reason = " ".join(error.desc().split())[:200].rstrip(".")
    if node is None and "reduction" in reason:  # the parser names no node, and only a scatter has one
        node = next((scatter for scatter in nodes if scatter.operation.startswith("Scatter")), None)
    if node is None:
        return UnsupportedError(
            f"{graph}: {library.flavour} {library.version} cannot read it ({reason}); export it again."
        )
    return _unsupported(graph, library, node, "" if reason == "false" else reason)


def _refused_build(graph: Path, library: Library, log: Any) -> UnsupportedError:
    """The operation that the first error names, where it names one."""
    reason = log.reason("it does not say why")
    words = set(re.findall(r"[\w./]+", reason))
    for node in read_nodes(graph):
        if node.name in words:
            return _unsupported(graph, library, node, reason)
    return UnsupportedError(f"{graph}: {library.flavour} {library.version} cannot build it ({reason}).")


def _unsupported(graph: Path, library: Library, node: OnnxNode, reason: str) -> UnsupportedError:
    source = f", {node.source}" if node.source else ""
    why = f" ({reason})" if reason else ""
    return UnsupportedError(
        f"{graph}: {library.flavour} {library.version} does not take the operation {node.operation} of node "
        f"{node.name}{source}{why}; choose another target layer or method, or change that line of the model.",
        node.operation,
    )


def _monitor(trt: Any, on_progress: Callable[[float, str], None]) -> Any:
    """A progress monitor of theirs. Phases are nested, and the share of the outermost one grows with those inside."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases: dict[str, tuple[float, float, int]] = {}  # where its share begins, how large it is, steps
            self._done = 0.0
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                begin, size = 0.0, 1.0
                if parent_phase in self._phases:
                    _, whole, steps = self._phases[parent_phase]
                    begin, size = self._done, whole / max(1, steps)
                self._phases[phase_name] = begin, size, num_steps
            self._report(phase_name, begin)

        def step_complete(self, phase_name: str, step: int) -> bool:
            begin, size, steps = self._phases.get(phase_name, (self._done, 0.0, 1))
            self._report(phase_name, begin + size * min(1.0, (step + 1) / max(1, steps)))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            begin, size, _ = self._phases.pop(phase_name, (self._done, 0.0, 1))
            self._report(phase_name, begin + size)

        def _report(self, phase_name: str, share: float) -> None:
            with self._lock:
                self._done = done = max(self._done, min(1.0, share))
            on_progress(done, phase_name)

    return Monitor()
