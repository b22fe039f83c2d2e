"""The kernels by themselves: `cam` makes a raw map, `render` makes it visible, `status` says what it is worth.

Arrays come in from NumPy or from any framework by DLPack, on the CPU or on a CUDA device, with any strides. Results
come back as NumPy arrays, as torch tensors where the first argument is one, and as DLPack arrays for other CUDA input.
On a CUDA device the kernels are queued on `stream` (a cudaStream_t as an integer): by default torch's current stream
for torch tensors, the device's default stream otherwise. Freeing a result that was allocated here waits for the
device, so a loop should give `out`.
"""

from __future__ import annotations

import functools
import math
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, colormaps
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import Array, allocate, check_same_device, describe, listed, output, stream_of, to_caller
from finercam_rt.kernel_arrays import cuda_status as cuda_status
from finercam_rt.threads import physical_cores_granted

_METHODS = {"gradcam": _core.Method.GRADCAM}
_LAYOUTS = {
    "nchw": (_core.Layout.NCHW, ("N", "C", "h", "w")),
    "nhwc": (_core.Layout.NHWC, ("N", "h", "w", "C")),
    "tokens": (_core.Layout.TOKENS, ("N", "L", "C")),
}
_FLOATS = ("float32", "float16", "bfloat16")
MAX_SIDE = 32767
"""Of maps and pictures, in cells and pixels: resize positions are then exact in 32-bit integers."""
_MAX_BOX = 2.0**30
_BYTES_PER_THREAD = 1 << 20  # what one core reads in the time that a thread takes to start and to join

Box: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, edges and not centres: the first pixel reaches from 0 to 1."""


class Status(IntEnum):
    """What a raw map is worth as an explanation."""

    OK = 0
    NO_POSITIVE_EVIDENCE = 1
    CONSTANT = 2
    NON_FINITE = 3

    @property
    def label(self) -> str:
        """The name in lower case: "ok", "no_positive_evidence", "constant" or "non_finite"."""
        return self.name.lower()


class Rendered(NamedTuple):
    """image: what `render` drew; status: (N,) uint8, the codes of `Status`."""

    image: Any
    status: Any


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
    workers = _threads(threads, math.prod(a.shape) * (4 if a.dtype == "float32" else 2))
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


@overload
def render(
    saliency_map: NDArray[np.float32],
    size: tuple[int, int],
    *,
    images: NDArray[np.uint8] | None = None,
    colormap: str | NDArray[np.uint8] | None = None,
    opacity: float = 0.5,
    box: Box | None = None,
    value_range: tuple[float, float] | None = None,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Rendered: ...
@overload
def render(
    saliency_map: Any,
    size: tuple[int, int],
    *,
    images: Any = None,
    colormap: str | NDArray[np.uint8] | None = None,
    opacity: float = 0.5,
    box: Box | None = None,
    value_range: tuple[float, float] | None = None,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Rendered: ...
def render(
    saliency_map: Any,
    size: tuple[int, int],
    *,
    images: Any = None,
    colormap: str | NDArray[np.uint8] | None = None,
    opacity: float = 0.5,
    box: Box | None = None,
    value_range: tuple[float, float] | None = None,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Rendered:
    """Resize((ReLU(map) - min) / (max - min)) per image, and optionally its colours, blended with a photograph.

    Resizing is bilinear with half-pixel centres, edges clamped, no antialiasing (torch's align_corners=False). The
    colour of a value is entry round(255 * value) of the table; a blended channel is
    round(opacity * colour + (1 - opacity) * photograph); halves round up.

    Args:
        saliency_map: raw maps, (N,h,w) float32.
        size: (H, W) of the image in pixels.
        images: photographs to blend with, (N,H,W,3) uint8 RGB, on the maps' device; needs a colormap.
        colormap: "turbo", "jet", "gray", a (256,3) uint8 NumPy table, or None for values.
        opacity: of the colours over the photographs, 0 to 1.
        box: (left, top, right, bottom), where in the image the maps lie, in pixels; by default they fill it. It may
            reach beyond the image. Pixels with their centres outside of it are NaN, transparent, or the photograph
            under black of the same opacity.
        value_range: (low, high), the raw values that are drawn as 0 and 1, so that pictures can be compared; by
            default each map's own least and greatest. Values beyond it are drawn as its ends.
        out: C-contiguous, of the image's shape, dtype and device: receives the image, and is returned in the result.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    Returns:
        image: (N,H,W) float32 in [0, 1] without a colormap, (N,H,W,4) uint8 RGBA with one. status: (N,) uint8.
        A map whose status is not ok is not drawn: its image is all zeros (RGBA: transparent), or the photograph as it
        is.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.
    """
    maps = _describe_maps(saliency_map)
    height, width = _size(size)
    colors = None if colormap is None else _colors(colormap)
    shape = (maps.shape[0], height, width) if colors is None else (maps.shape[0], height, width, 4)
    if not 0.0 <= opacity <= 1.0:
        raise InputError(f"the opacity is {opacity}; give a number from 0 to 1.")
    if images is not None:
        if colors is None:
            raise InputError("images were given without a colormap to blend over them; choose a colormap.")
        photos = describe(images, "images", ("uint8",), ("N", "H", "W", "3"))
        if photos.shape != (*shape[:3], 3):
            raise InputError(
                f"the images have shape {photos.shape}; for these maps and this size give {shape[:3]} x 3."
            )
        check_same_device(photos, maps)
    edges, limits = _box(box), _value_range(value_range)
    workers = _threads(threads, math.prod(shape[:3]) * 4)
    pointer = stream_of(stream, saliency_map, maps)
    image = output(out, "out", "float32" if colors is None else "uint8", shape, maps)
    status_out = allocate("uint8", shape[:1], maps)
    if colors is None:
        _core.render_values(
            saliency_map, status_out, image, box=edges, value_range=limits, threads=workers, stream=pointer
        )
    else:
        _core.render_rgba(
            saliency_map,
            status_out,
            image,
            colors=colors,
            photos=images,
            opacity=opacity,
            box=edges,
            value_range=limits,
            threads=workers,
            stream=pointer,
        )
    return Rendered(image if out is not None else to_caller(image, saliency_map), to_caller(status_out, saliency_map))


@overload
def status(saliency_map: NDArray[np.float32], *, stream: int | None = None) -> NDArray[np.uint8]: ...
@overload
def status(saliency_map: Any, *, stream: int | None = None) -> Any: ...
def status(saliency_map: Any, *, stream: int | None = None) -> Any:
    """What each raw map is worth: NON_FINITE, else max <= 0, else max == min, else OK.

    Args:
        saliency_map: raw maps, (N,h,w) float32.
        stream: of a CUDA device; see the module.

    Returns:
        (N,) uint8, the codes of `Status`.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.
    """
    maps = _describe_maps(saliency_map)
    result = allocate("uint8", maps.shape[:1], maps)
    _core.map_status(saliency_map, result, threads=1, stream=stream_of(stream, saliency_map, maps))
    return to_caller(result, saliency_map)


def _describe_maps(saliency_map: Any) -> Array:
    maps = describe(saliency_map, "saliency maps", ("float32",), ("N", "h", "w"))
    if max(maps.shape[1:]) > MAX_SIDE:
        raise InputError(f"the saliency maps have shape {maps.shape}; a side is at most {MAX_SIDE}.")
    return maps


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
    height, width = _pair(grid, "grid")
    if height * width != patches:
        raise InputError(f"the grid is {height} x {width}, but there are {patches} patch tokens; give one that fits.")
    return height, width


def _size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = _pair(size, "size")
    if max(height, width) > MAX_SIDE:
        raise InputError(f"the size is {height} x {width}; a side is at most {MAX_SIDE}.")
    return height, width


def _box(box: Any) -> Box | None:
    if box is None:
        return None
    try:
        left, top, right, bottom = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise InputError(f"the box is {box!r}; give (left, top, right, bottom) in pixels.") from None
    # written so that NaN is wrong
    if not (-_MAX_BOX <= left < right <= _MAX_BOX and -_MAX_BOX <= top < bottom <= _MAX_BOX):
        raise InputError(f"the box is {box!r}; give (left, top, right, bottom) with left < right and top < bottom.")
    return left, top, right, bottom


def _value_range(value_range: Any) -> tuple[float, float] | None:
    if value_range is None:
        return None
    try:
        low, high = (float(np.float32(value)) for value in value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (0.0 <= low < high <= float(np.finfo(np.float32).max)):
        raise InputError(f"the value_range is {value_range!r}; give (low, high), raw values with 0 <= low < high.")
    return low, high


def _pair(values: Any, name: str) -> tuple[int, int]:
    try:
        height, width = (int(v) if int(v) == v else 0 for v in values)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"the {name} is {values!r}; give (height, width), two integers of at least 1.")
    return height, width


def _colors(colormap: Any) -> NDArray[np.uint8]:
    if isinstance(colormap, str):
        if colormap not in colormaps.NAMES:
            raise InputError(f"the colormap is {colormap!r}; use one of {listed(colormaps.NAMES)} or a (256,3) table.")
        return colormaps.table(colormap)
    if not isinstance(colormap, np.ndarray) or colormap.shape != (256, 3) or colormap.dtype != np.uint8:
        raise InputError("the colormap is neither a name nor a NumPy table; give (256,3) uint8, red green blue.")
    return np.ascontiguousarray(colormap)


def _threads(threads: int | None, size: int) -> int:
    """The caller's choice, or as many cores as work on `size` bytes repays."""
    if threads is None:
        repaid = size // _BYTES_PER_THREAD
        return 1 if repaid < 2 else min(_cores(), repaid)
    if threads < 1:
        raise InputError(f"threads is {threads}; give at least 1, or None to choose.")
    return threads


@functools.cache
def _cores() -> int:
    return physical_cores_granted()
