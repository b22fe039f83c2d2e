"""Raw maps made visible, and what they are worth."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from finercam_rt import _core, colormaps
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import (
    Array,
    allocate,
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

MAX_SIDE = 32767
"""Of maps and pictures, in cells and pixels: resize positions are then exact in 32-bit integers."""
_MAX_BOX = 2.0**30

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
    height, width = checked_size(size)
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
    workers = workers_for(threads, math.prod(shape[:3]) * 4)
    pointer = stream_of(stream, maps, saliency_map, images)
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
    finish(pointer, maps, saliency_map, images)
    picture = image if out is not None else to_caller(image, saliency_map, pointer)
    return Rendered(picture, to_caller(status_out, saliency_map, pointer))


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
    pointer = stream_of(stream, maps, saliency_map)
    _core.map_status(saliency_map, result, threads=1, stream=pointer)
    finish(pointer, maps, saliency_map)
    return to_caller(result, saliency_map, pointer)


def _describe_maps(saliency_map: Any) -> Array:
    maps = describe(saliency_map, "saliency maps", ("float32",), ("N", "h", "w"))
    if max(maps.shape[1:]) > MAX_SIDE:
        raise InputError(f"the saliency maps have shape {maps.shape}; a side is at most {MAX_SIDE}.")
    return maps


def checked_size(size: Any) -> tuple[int, int]:
    """(height, width) of a picture in pixels, if it is one.

    Raises:
        InputError: not two integers of 1 to MAX_SIDE.
    """
    height, width = pair(size, "size")
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


def _colors(colormap: Any) -> NDArray[np.uint8]:
    if isinstance(colormap, str):
        if colormap not in colormaps.NAMES:
            raise InputError(f"the colormap is {colormap!r}; use one of {listed(colormaps.NAMES)} or a (256,3) table.")
        return colormaps.table(colormap)
    if not isinstance(colormap, np.ndarray) or colormap.shape != (256, 3) or colormap.dtype != np.uint8:
        raise InputError("the colormap is neither a name nor a NumPy table; give (256,3) uint8, red green blue.")
    return np.ascontiguousarray(colormap)
