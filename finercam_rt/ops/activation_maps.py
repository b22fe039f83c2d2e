"""Raw maps from the activations of a target layer and their gradients, or the means of these."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, arrays
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import (
    Array,
    check_same_device,
    describe,
    finish,
    listed,
    output,
    pair,
    stream_of,
    to_caller,
    workers_for,
)
from finercam_rt.manifest import METHODS
from finercam_rt.ops.host_methods import host_map

_KERNELS = {
    "gradcam": _core.Method.GRADCAM,
    "gradcam++": _core.Method.GRADCAM_PLUS_PLUS,
    "xgradcam": _core.Method.XGRADCAM,
    "fem": _core.Method.FEM,
    "layercam": _core.Method.LAYERCAM,
    "hirescam": _core.Method.HIRESCAM,
    "gradcamelementwise": _core.Method.GRADCAM_ELEMENTWISE,
}
KERNEL_METHODS = tuple(_KERNELS)
"""The methods that have a kernel, on the CPU and on CUDA devices; the others are NumPy's."""
_LAYOUTS = {
    "nchw": (_core.Layout.NCHW, ("N", "C", "h", "w")),
    "nhwc": (_core.Layout.NHWC, ("N", "h", "w", "C")),
    "tokens": (_core.Layout.TOKENS, ("N", "L", "C")),
}
_FLOATS = ("float32", "float16", "bfloat16")


@overload
def cam(
    activations: NDArray[Any],
    gradients: NDArray[Any] | None = None,
    *,
    channel_weights: NDArray[Any] | None = None,
    method: str = "gradcam",
    layout: str = "nchw",
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> NDArray[np.float32]: ...
@overload
def cam(
    activations: Any,
    gradients: Any = None,
    *,
    channel_weights: Any = None,
    method: str = "gradcam",
    layout: str = "nchw",
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any: ...
def cam(
    activations: Any,
    gradients: Any = None,
    *,
    channel_weights: Any = None,
    method: str = "gradcam",
    layout: str = "nchw",
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any:
    """ReLU(sum_k w_k A_k), with w_k the mean over the positions of G_k (Grad-CAM), or another method's map.

    Args:
        activations: A, float32, float16 or bfloat16: (N,C,h,w) for layout "nchw", (N,h,w,C) for "nhwc", (N,L,C) for
            "tokens".
        gradients: G, of the same shape, dtype and device. For P contrasts an axis P follows N: (N,P,C,h,w), ...
        channel_weights: in place of the gradients, for methods that need only their means: w, (N,C) or (N,P,C), of the
            same dtype and device.
        method: one of manifest.METHODS. "eigencam", "eigengradcam" and those that end in "-eigen" need a principal
            component: they are for float32 and float16 on the CPU, where NumPy computes them in float32.
        layout: "nchw", "nhwc" or "tokens".
        prefix_tokens: how many tokens (CLS, registers) come before the h*w patch tokens; they take no part.
        grid: (h, w) of the patch tokens; by default the square of their number. For "tokens" only.
        out: (N,h,w) or (N,P,h,w) float32, C-contiguous, on the same device: receives the map, and is returned.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    Returns:
        The raw map, (N,h,w) or (N,P,h,w) float32, accumulated in float32 or better. NaN and infinities of the input
        show in it.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017; G from the Finer-CAM seed makes it Finer-CAM. The other methods as in
    pytorch-grad-cam, which the tests hold them against.
    """
    if method not in METHODS:
        raise InputError(f"the method is {method!r}; use one of {listed(METHODS)}.")
    if layout not in _LAYOUTS:
        raise InputError(f"the layout is {layout!r}; use one of {listed(_LAYOUTS)}.")
    code, axes = _LAYOUTS[layout]
    a = describe(activations, "activations", _FLOATS, axes)
    height, width = _grid(a.shape, layout, prefix_tokens, grid)
    second, several = _second(gradients, channel_weights, method, layout, a)
    shape = (a.shape[0], height, width) if several is None else (a.shape[0], several, height, width)
    if method not in _KERNELS and a.device != "cpu":
        raise InputError(f"{method} is for the CPU, and the activations lie on {a.device}; move the arrays there.")
    result = output(out, "out", "float32", shape, a)
    pointer = stream_of(stream, a, activations, second)
    if method in _KERNELS:
        given = channel_weights is not None and METHODS[method] == "pooled"
        _core.cam(
            activations,
            second,
            result,
            method=_core.Method.CHANNEL_WEIGHTS if given else _KERNELS[method],
            layout=code,
            prefix_tokens=prefix_tokens,
            threads=workers_for(threads, math.prod(a.shape) * (4 if a.dtype == "float32" else 2)),
            stream=pointer,
        )
        finish(pointer, a, activations, second)
    else:
        values, others = arrays.to_numpy(activations, "activations"), arrays.to_numpy(second, "gradients")
        if several is None:
            others = others[:, None]
        if channel_weights is None:
            others = _by_channel(others, layout, prefix_tokens)
            others = others.mean(-1) if METHODS[method] == "pooled" else others
        maps = host_map(method, _by_channel(values, layout, prefix_tokens), others.astype(np.float32, copy=False))
        arrays.to_numpy(result, "out")[...] = maps.reshape(shape)
    return result if out is not None else to_caller(result, activations, pointer)


def _second(gradients: Any, weights: Any, method: str, layout: str, a: Array) -> tuple[Any, int | None]:
    """The gradients or the weights, checked, and P where they have that axis."""
    if (gradients is None) == (weights is None):
        raise InputError("a map is made from gradients or from channel weights; give one of them.")
    if METHODS[method] == "gradients" and gradients is None:
        raise InputError(f"{method} reads the gradients at every position; give gradients and no channel weights.")
    given, name = (weights, "channel weights") if gradients is None else (gradients, "gradients")
    axes = ("N", "C") if gradients is None else _LAYOUTS[layout][1]
    found = _core.describe(given)
    several = found is not None and len(found[0]) == len(axes) + 1
    g = describe(given, name, _FLOATS, (axes[0], "P", *axes[1:]) if several else axes)
    shape = a.shape if weights is None else (a.shape[0], a.shape[1 if layout == "nchw" else -1])
    if (g.shape[0], *g.shape[1 + several :]) != shape:
        same = "the two must be equal" if weights is None else "give a weight for each image and channel"
        raise InputError(f"the {name} have shape {g.shape} and the activations {a.shape}; {same}.")
    if g.dtype != a.dtype:
        raise InputError(f"the {name} are {g.dtype} and the activations {a.dtype}; convert one of them.")
    check_same_device(g, a)
    return given, g.shape[1] if several else None


def _by_channel(values: NDArray[Any], layout: str, prefix_tokens: int) -> NDArray[np.float32]:
    """(...,C,L) float32 over the map's positions, of values in a layout, with any axes before its own."""
    if layout == "nchw":
        values = values.reshape(*values.shape[:-2], -1)
    elif layout == "nhwc":
        values = values.reshape(*values.shape[:-3], -1, values.shape[-1]).swapaxes(-2, -1)
    else:
        values = values[..., prefix_tokens:, :].swapaxes(-2, -1)
    return values.astype(np.float32, copy=False)


def _grid(shape: tuple[int, ...], layout: str, prefix_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(h, w) of the map of a feature map of this shape."""
    if layout != "tokens":
        if prefix_tokens or grid is not None:
            raise InputError(f"prefix_tokens and grid are for the layout 'tokens'; leave them out for {layout!r}.")
        return (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    patches = shape[1] - prefix_tokens
    if prefix_tokens < 0 or patches < 1:
        raise InputError(
            f"prefix_tokens is {prefix_tokens} of {shape[1]} tokens; at least one must be left, of zero up."
        )
    if grid is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise InputError(f"{patches} patch tokens are no square; give grid=(h, w).")
        return side, side
    height, width = pair(grid, "grid")
    if height * width != patches:
        raise InputError(f"the grid is {height} x {width}, but there are {patches} patch tokens; give one that fits.")
    return height, width
