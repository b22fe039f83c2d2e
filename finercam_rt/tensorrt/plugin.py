"""The map drawn by a kernel of ours inside the plan: an ahead-of-time plug-in of TensorRT, from a graph of head "taps".

TensorRT keeps the kernel's PTX in the plan and launches it itself, so that a run needs neither Python nor this package.
The taps of the graph become its inputs, and the plan's outputs are those of a graph of head "graph".
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from finercam_rt import _core
from finercam_rt.errors import BackendError
from finercam_rt.manifest import ACTIVATIONS, CHANNEL_WEIGHTS, LayerInfo, Manifest, TapsInfo
from finercam_rt.ops import KERNEL_METHODS
from finercam_rt.tensorrt.api import PluginModule, PluginNetwork, Tensor
from finercam_rt.tensorrt.library import RTX, Library

AUTO, PLUGIN = "auto", "plugin"
MAP_KERNELS = (AUTO, PLUGIN)
"""What draws the map: as the head of the file says, or this plug-in. Which is faster has not been measured on a GPU."""

ID, KERNEL = "finercam::cam", "finercam_cam"
"""Of the plug-in for TensorRT, and of the kernel in each PTX (csrc/kernels/cam_plugin.cu)."""
PTX = Path(_core.__file__).parent / "ptx"
"""METHOD.ptx, and channel_weights.ptx; there where the package was built with CUDA."""

_MAP = "saliency_map"
_THREADS = 256
"""Of a block: kThreads of csrc/kernels/cam_cuda.cuh."""
_PLANAR_TILE, _INTERLEAVED_TILE = 256, 16
"""Positions of a block, where the weights of the channels are known before: so many vectors of 16 bytes as a block has
threads are four rows of channels, and sixteen rows of positions two for each warp."""
_NO_SUMS = (CHANNEL_WEIGHTS, "layercam", "hirescam", "gradcamelementwise")
"""Kernels that need no sum over the positions."""


class MapPlugin(NamedTuple):
    """What the kernel draws: kernel: the name of its PTX. layer: where. taps: from what. contrasts: P."""

    kernel: str
    layer: LayerInfo
    taps: TapsInfo
    contrasts: int

    @property
    def ptx(self) -> Path:
        """The file of its code."""
        return PTX / f"{self.kernel}.ptx"

    @property
    def tile(self) -> int:
        """How many positions of a map a block of threads draws."""
        positions = self.layer.grid[0] * self.layer.grid[1]
        if self.kernel not in _NO_SUMS:
            return positions
        return min(positions, _PLANAR_TILE if self.layer.layout == "nchw" else _INTERLEAVED_TILE)

    @property
    def scalars(self) -> tuple[int, ...]:
        """The integers that the kernel takes between its inputs and its output; see csrc/kernels/cam_plugin.cuh."""
        layer = self.layer
        positions = layer.grid[0] * layer.grid[1]
        return self.taps.channels, positions, layer.prefix_tokens, int(layer.layout != "nchw"), self.tile

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along x and z; along y there is one for each image."""
        positions = self.layer.grid[0] * self.layer.grid[1]
        return self.contrasts, -(-positions // self.tile)


def map_plugin(graph: Path, manifest: Manifest, library: Library) -> MapPlugin:
    """What draws the maps of an engine, where this library, this package and the engine can have it.

    Raises:
        BackendError: they cannot.
    """
    if library.flavour == RTX:
        raise BackendError("TensorRT-RTX has no plug-ins; leave --map-kernel out, or take --runtime tensorrt.")
    if manifest.taps is None:
        raise BackendError(
            f"{graph} draws its map in the graph, and the kernel takes what a map is drawn from; export it with "
            "--head taps, or leave --map-kernel out."
        )
    if manifest.method not in KERNEL_METHODS:
        raise BackendError(
            f"{graph}: there is no kernel for the method {manifest.method}, only for {', '.join(KERNEL_METHODS)}; "
            "leave --map-kernel out."
        )
    name = manifest.method if manifest.taps.gradients else CHANNEL_WEIGHTS
    plugin = MapPlugin(name, manifest.layers[0], manifest.taps, manifest.contrasts)
    if not plugin.ptx.exists():
        raise BackendError(
            "this finercam-rt was built without CUDA and has no kernel for a plan; install it where there is an nvcc, "
            "or leave --map-kernel out."
        )
    _module(library)
    return plugin


def with_map(manifest: Manifest) -> Manifest:
    """The manifest of a plan with the plug-in in it: that of head "graph"."""
    return replace(manifest, head="graph", taps=None)


def add_map(library: Library, network: PluginNetwork, plugin: MapPlugin) -> None:
    """Put the kernel behind the taps of a network that has been parsed; the map takes their place among its outputs.

    Raises:
        BackendError: the library does not take it.
    """
    outputs: dict[str, Tensor] = {}
    for index in range(network.num_outputs):
        output = network.get_output(index)
        outputs[output.name] = output
    for name in (ACTIVATIONS, plugin.taps.second, *plugin.taps.carried_outputs):
        network.unmark_output(outputs[name])
    operation = _registered(library)
    created = operation(
        outputs[ACTIVATIONS],
        outputs[plugin.taps.second],
        kernel=plugin.kernel,
        layout=plugin.layer.layout,
        height=plugin.layer.grid[0],
        width=plugin.layer.grid[1],
        prefix_tokens=plugin.layer.prefix_tokens,
        channels=plugin.taps.channels,
        contrasts=plugin.contrasts,
    )
    layer = network.add_plugin(created, aot=True)
    if layer is None:
        raise BackendError(f"{library.flavour} {library.version} does not take the plug-in; leave --map-kernel out.")
    layer.name = ID
    drawn = layer.get_output(0)
    drawn.name = _MAP
    network.mark_output(drawn)


def _module(library: Library) -> PluginModule:
    """tensorrt.plugin.

    Raises:
        BackendError: it is not there, or knows of no plug-ins that are compiled beforehand.
    """
    try:
        module: Any = importlib.import_module(f"{library.module.__name__}.plugin")
    except ImportError:
        module = None
    if not hasattr(module, "aot_impl"):
        raise BackendError(
            f"{library.flavour} {library.version} has no plug-ins that are compiled beforehand; take TensorRT 10.9 or "
            "later, or leave --map-kernel out."
        )
    plugins: PluginModule = module
    return plugins


def _registered(library: Library) -> Any:
    """The plug-in as an operation; TensorRT knows it for as long as the process lives."""
    trt, plugins = library.module, _module(library)
    namespace, name = ID.split("::")
    known = getattr(getattr(plugins.op, namespace, None), name, None)
    if known is not None:
        return known

    def describe(
        activations: Any,
        second: Any,
        kernel: str,
        layout: str,
        height: int,
        width: int,
        prefix_tokens: int,
        channels: int,
        contrasts: int,
    ) -> Any:
        lead = (activations.shape_expr[0],) if contrasts == 1 else (activations.shape_expr[0], contrasts)
        return plugins.from_shape_expr((*lead, height, width), trt.float32)

    def types(activations: Any, second: Any, outputs: Any) -> Any:
        return [plugins.AutoTuneCombination("FP32, FP32, FP32", "LINEAR")]

    def compiled(
        activations: Any,
        second: Any,
        kernel: str,
        layout: str,
        height: int,
        width: int,
        prefix_tokens: int,
        channels: int,
        contrasts: int,
        outputs: Any,
        tactic: int,
    ) -> Any:
        layer = LayerInfo(_MAP, layout, (height, width), prefix_tokens)
        plugin = MapPlugin(kernel, layer, TapsInfo(channels, kernel != CHANNEL_WEIGHTS), contrasts)
        launch = plugins.KernelLaunchParams()
        launch.grid_x, launch.grid_z = plugin.grid
        launch.grid_y = activations.shape_expr[0]
        launch.block_x = _THREADS
        scalars = plugins.SymIntExprs(len(plugin.scalars))
        for index, value in enumerate(plugin.scalars):
            scalars[index] = plugins.SymInt32(value)
        return KERNEL, plugin.ptx.read_bytes(), launch, scalars

    # TensorRT reads the types themselves, where annotations of this file are text.
    tensors = {"activations": plugins.TensorDesc, "second": plugins.TensorDesc}
    attributes = {
        "kernel": str,
        "layout": str,
        "height": int,
        "width": int,
        "prefix_tokens": int,
        "channels": int,
        "contrasts": int,
    }
    describe.__annotations__ = {**tensors, **attributes, "return": plugins.TensorDesc}
    types.__annotations__ = {**tensors, "return": list[plugins.AutoTuneCombination]}  # type: ignore[name-defined]
    result = tuple[str, bytes, plugins.KernelLaunchParams, plugins.SymIntExprs]  # type: ignore[name-defined]
    compiled.__annotations__ = {**tensors, **attributes, "tactic": int, "return": result}
    # Lazily: it is told to the library itself where it is first used, which is in this build.
    plugins.register(ID, lazy_register=True)(describe)
    plugins.autotune(ID)(types)
    plugins.aot_impl(ID)(compiled)
    return getattr(getattr(plugins.op, namespace), name)
