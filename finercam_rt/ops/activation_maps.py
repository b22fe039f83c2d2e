"""Raw maps from the activations and the gradients of a target layer."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import (
    check_same_device,
    describe,
    listed,
    output,
    pair,
    stream_of,
    to_caller,
    workers_for,
)

_METHODS = {"gradcam": _core.Method.GRADCAM}
_LAYOUTS = {
    "nchw": (_core.Layout.NCHW, ("N", "C", "h", "w")),
    "nhwc": (_core.Layout.NHWC, ("N", "h", "w", "C")),
    "tokens": (_core.Layout.TOKENS, ("N", "L", "C")),
}
_FLOATS = ("float32", "float16", "bfloat16")


@overload
def cam(
    activations: NDArray[Any],
    gradients: NDArray[Any],
    *,
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
    gradients: Any,
    *,
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
    gradients: Any,
    *,
    method: str = "gradcam",
    layout: str = "nchw",
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any:
    """ReLU(sum_k w_k A_k), with w_k the mean over the positions of G_k (Grad-CAM).

    Args:
        activations: A, float32, float16 or bfloat16: (N,C,h,w) for layout "nchw", (N,h,w,C) for "nhwc", (N,L,C) for
            "tokens".
        gradients: G, of the same shape, dtype and device.
        method: "gradcam".
        layout: "nchw", "nhwc" or "tokens".
        prefix_tokens: how many tokens (CLS, registers) come before the h*w patch tokens; they take no part.
        grid: (h, w) of the patch tokens; by default the square of their number. For "tokens" only.
        out: (N,h,w) float32, C-contiguous, on the same device: receives the map, and is returned.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    Returns:
        The raw map, (N,h,w) float32, accumulated in float32 or better. NaN and infinities of the input show in it.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017; G from the Finer-CAM seed makes it Finer-CAM.
    """
    if method not in _METHODS:
        raise InputError(f"the method is {method!r}; use one of {listed(_METHODS)}.")
    if layout not in _LAYOUTS:
        raise InputError(f"the layout is {layout!r}; use one of {listed(_LAYOUTS)}.")
    code, axes = _LAYOUTS[layout]
    a = describe(activations, "activations", _FLOATS, axes)
    g = describe(gradients, "gradients", _FLOATS, axes)
    if a.shape != g.shape:
        raise InputError(f"the gradients have shape {g.shape} and the activations {a.shape}; the two must be equal.")
    if a.dtype != g.dtype:
        raise InputError(f"the gradients are {g.dtype} and the activations {a.dtype}; convert one of them.")
    check_same_device(g, a)
    height, width = _grid(a.shape, layout, prefix_tokens, grid)
    shape = (a.shape[0], height, width)
    workers = workers_for(threads, math.prod(a.shape) * (4 if a.dtype == "float32" else 2))
    result = output(out, "out", "float32", shape, a)
    _core.cam(
        activations,
        gradients,
        result,
        method=_METHODS[method],
        layout=code,
        prefix_tokens=prefix_tokens,
        threads=workers,
        stream=stream_of(stream, activations, a),
    )
    return result if out is not None else to_caller(result, activations)


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
