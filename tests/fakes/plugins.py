"""tensorrt.plugin for the stand-ins of TensorRT: the kernel in a plan is launched on the CPU, as it was registered."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finercam_rt.tensorrt import plugin

from . import ptx
from .kernels import METHODS

BATCH = "N"
"""The one size that is not known when a plan is built."""
NAME = "fake_tensorrt"


class _Desc:
    def __init__(self, shape_expr: tuple[Any, ...], dtype: Any) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class _Combination:
    def __init__(self, io_types: str, layouts: str) -> None:
        self.io_types, self.layouts = io_types, layouts


class _Scalars(list):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class _Launch:
    grid_x = grid_y = grid_z = block_x = block_y = block_z = 1
    shared_mem = 0


class FakePlugins:
    """The module. What is registered stays, as it does in TensorRT; tests/tensorrt/test_plugin.py holds it to the real
    one.
    """

    TensorDesc, AutoTuneCombination, KernelLaunchParams, SymInt32, SymIntExprs = (
        _Desc,
        _Combination,
        _Launch,
        int,
        _Scalars,
    )

    def __init__(self) -> None:
        self.op = SimpleNamespace()
        self.functions: dict[str, Any] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Become what is imported, with a file of PTX for each method that says no more than its name."""
        monkeypatch.setitem(sys.modules, f"{NAME}.plugin", self)
        monkeypatch.setattr(plugin, "PTX", folder)
        for method in METHODS:
            (folder / f"{method}.ptx").write_text(method)

    def register(self, plugin_id: str, lazy_register: bool = False) -> Any:
        assert lazy_register
        namespace, name = plugin_id.split("::")
        assert not hasattr(self.op, namespace), "a plug-in is registered once"
        setattr(self.op, namespace, SimpleNamespace(**{name: self._created}))
        return self._keep("describe")

    def autotune(self, plugin_id: str) -> Any:
        return self._keep("autotune")

    def aot_impl(self, plugin_id: str) -> Any:
        return self._keep("aot_impl")

    def from_shape_expr(self, shape_expr: tuple[Any, ...], dtype: Any) -> _Desc:
        return _Desc(shape_expr, dtype)

    def _keep(self, what: str) -> Any:
        def keep(function: Any) -> Any:
            self.functions[what] = function
            return function

        return keep

    def _created(self, *tensors: Any, **attributes: Any) -> dict[str, Any]:
        """What a plan keeps of it."""
        inputs = [_Desc(tuple(BATCH if size < 0 else size for size in t.shape), "float32") for t in tensors]
        output = self.functions["describe"](*inputs, **attributes)
        (types,) = self.functions["autotune"](*inputs, (output,))
        assert (types.io_types, types.layouts) == ("FP32, FP32, FP32", "LINEAR")
        name, ptx, launch, scalars = self.functions["aot_impl"](*inputs, *attributes.values(), (output,), 0)
        assert (name, launch.block_y, launch.block_z, launch.shared_mem) == ("finercam_cam", 1, 1, 0)
        assert all(type(value) is int for value in scalars)
        return {
            "inputs": [t.name for t in tensors],
            "shape": output.shape_expr,
            "method": ptx.decode(),
            "grid": (launch.grid_x, launch.grid_y, launch.grid_z),
            "threads": launch.block_x,
            "scalars": scalars,
        }


class PluginSession:
    """A session of ONNX Runtime with the kernel behind it, and the outputs that were left to the network."""

    def __init__(self, session: Any, created: dict[str, Any], outputs: list[str]) -> None:
        self._session, self._created = session, created
        self.get_inputs = session.get_inputs
        drawn = SimpleNamespace(name="saliency_map", type="tensor(float)", shape=list(created["shape"]))
        self._outputs = [drawn, *(value for value in session.get_outputs() if value.name in outputs)]

    def get_outputs(self) -> list[Any]:
        return self._outputs

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        others = [name for name in names if name != "saliency_map"]
        found = self._session.run([*others, *self._created["inputs"]], feeds)
        values = dict(zip(others, found, strict=False))
        values["saliency_map"] = self._draw(*found[len(others) :])
        return [values[name] for name in names]

    def _draw(self, activations: np.ndarray, second: np.ndarray) -> np.ndarray:
        count = len(activations)
        maps = np.full([count if size == BATCH else size for size in self._created["shape"]], np.nan, np.float32)
        ptx.draw_by_plugin(
            self._created["method"],
            activations,
            second,
            self._created["scalars"],
            [count if size == BATCH else size for size in self._created["grid"]],
            self._created["threads"],
            maps,
        )
        return maps
