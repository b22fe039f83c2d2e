"""Perturbed copies of images: pixels removed in the order of a map, or the image masked by maps."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finercam_rt import _core
from finercam_rt.errors import InputError
from finercam_rt.kernel_arrays import (
    Array,
    check_same_device,
    describe,
    finish,
    output,
    stream_of,
    to_caller,
    workers_for,
)
from finercam_rt.ops.rendering import MAX_SIDE

_IMAGES = ("N", "C", "H", "W")


@overload
def rank(
    saliency: NDArray[np.float32],
    *,
    out: NDArray[np.int32] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> NDArray[np.int32]: ...
@overload
def rank(saliency: Any, *, out: Any = None, threads: int | None = None, stream: int | None = None) -> Any: ...
def rank(saliency: Any, *, out: Any = None, threads: int | None = None, stream: int | None = None) -> Any:
    """The place of each pixel in its map: 0 is the largest value, ties go to the lower index.

    Args:
        saliency: (N,H,W) float32; -0 equals 0.
        out: (N,H,W) int32, C-contiguous, on the same device: receives the ranks, and is returned.
        threads: of the CPU; by default as many physical cores as the work repays, at most one a map.
        stream: of a CUDA device; see the module. The call waits for it, to know that the values are finite.

    Returns:
        (N,H,W) int32, a permutation of 0 to H*W - 1 in each map.

    Raises:
        InputError: a value that is not finite; a shape, dtype, device or option that cannot be used.
    """
    maps = describe(saliency, "saliency maps", ("float32",), ("N", "H", "W"))
    _check_sides(maps)
    workers = workers_for(threads, math.prod(maps.shape) * 20)  # bytes of the sort's keys and items
    result = output(out, "out", "int32", maps.shape, maps)
    pointer = stream_of(stream, maps, saliency)
    wrong = _core.rank(saliency, result, threads=workers, stream=pointer)
    if wrong >= 0:
        raise InputError(f"saliency map {wrong} has a value that is not finite; leave out maps of that status.")
    return result if out is not None else to_caller(result, saliency, pointer)


@overload
def remove(
    images: NDArray[np.float32],
    ranks: NDArray[np.int32],
    counts: ArrayLike,
    fill: ArrayLike = 0.0,
    *,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> NDArray[np.float32]: ...
@overload
def remove(
    images: Any,
    ranks: Any,
    counts: ArrayLike,
    fill: Any = 0.0,
    *,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any: ...
def remove(
    images: Any,
    ranks: Any,
    counts: ArrayLike,
    fill: Any = 0.0,
    *,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any:
    """copies[n,s,c,p] = fill[n,c,p] where ranks[n,p] < counts[n,s], images[n,c,p] elsewhere.

    With the ranks of `rank`, copy s has its counts[s] most important pixels replaced (deletion);
    `remove(fill, ranks, counts, images)` shows those alone (insertion).

    Args:
        images: (N,C,H,W) float32.
        ranks: (N,H,W) int32, on the same device.
        counts: integers from 0 to H*W, (S,) for all images or (N,S); on the CPU.
        fill: a number, C numbers on the CPU, or an array of the images' shape, float32, on their device.
        out: (N,S,C,H,W) float32, C-contiguous, on the same device: receives the copies, and is returned.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    Returns:
        (N,S,C,H,W) float32.

    Raises:
        InputError: a shape, dtype, device, count or option that cannot be used.
    """
    described = describe(images, "images", ("float32",), _IMAGES)
    places = describe(ranks, "ranks", ("int32",), ("N", "H", "W"))
    _check_sides(described)
    batch, channels, height, width = described.shape
    if places.shape != (batch, height, width):
        raise InputError(f"the ranks have shape {places.shape}; for these images give {(batch, height, width)}.")
    check_same_device(places, described)
    limits = _counts(counts, batch, height * width)
    shape = (batch, limits.shape[1], channels, height, width)
    workers = workers_for(threads, math.prod(shape) * 4)
    result = output(out, "out", "float32", shape, described)
    values = _channel_values(fill, channels)
    run = _core.remove_pixels if values is None else _core.remove_values
    if values is None:
        values = fill
        _check_fill(describe(fill, "fill values", ("float32",), _IMAGES), described)
    pointer = stream_of(stream, described, images, ranks, values)
    run(images, ranks, limits, values, result, threads=workers, stream=pointer)
    finish(pointer, described, images, ranks, values)
    return result if out is not None else to_caller(result, images, pointer)


@overload
def mask(
    images: NDArray[np.float32],
    maps: NDArray[np.float32],
    *,
    align_corners: bool = False,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
    stream: int | None = None,
) -> NDArray[np.float32]: ...
@overload
def mask(
    images: Any,
    maps: Any,
    *,
    align_corners: bool = False,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any: ...
def mask(
    images: Any,
    maps: Any,
    *,
    align_corners: bool = False,
    out: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any:
    """copies[n,k] = images[n] * (U - min U) / (max U - min U + 1e-8), with U = maps[n,k] resized bilinearly to (H,W).

    A constant map gives an image of zeros; one with a value that is not finite, an image of NaN.

    Args:
        images: (N,C,H,W) float32.
        maps: (N,K,h,w) float32, such as a layer's activations, on the same device.
        align_corners: whether corner pixels lie on corner cells, as pytorch-grad-cam has it (UpsamplingBilinear2d);
            by default half-pixel centres, edges clamped.
        out: (N,K,C,H,W) float32, C-contiguous, on the same device: receives the copies, and is returned.
        threads: of the CPU; by default as many physical cores as the work repays.
        stream: of a CUDA device; see the module.

    Returns:
        (N,K,C,H,W) float32.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020; the 1e-8 as in pytorch-grad-cam.
    """
    described = describe(images, "images", ("float32",), _IMAGES)
    cells = describe(maps, "maps", ("float32",), ("N", "K", "h", "w"))
    _check_sides(described)
    _check_sides(cells)
    if cells.shape[0] != described.shape[0]:
        raise InputError(f"there are maps of {cells.shape[0]} images for {described.shape[0]}; give as many.")
    check_same_device(cells, described)
    shape = (*cells.shape[:2], *described.shape[1:])
    workers = workers_for(threads, math.prod(shape) * 4)
    result = output(out, "out", "float32", shape, described)
    pointer = stream_of(stream, described, images, maps)
    _core.mask(images, maps, result, align_corners=bool(align_corners), threads=workers, stream=pointer)
    finish(pointer, described, images, maps)
    return result if out is not None else to_caller(result, images, pointer)


def _check_sides(array: Array) -> None:
    if max(array.shape[-2:]) > MAX_SIDE:
        raise InputError(f"the {array.name} have shape {array.shape}; a side is at most {MAX_SIDE}.")


def _check_fill(fill: Array, images: Array) -> None:
    if fill.shape != images.shape:
        raise InputError(f"the fill values have shape {fill.shape}; for these images give {images.shape}.")
    check_same_device(fill, images)


def _counts(counts: ArrayLike, batch: int, pixels: int) -> NDArray[np.int32]:
    """(N,S)."""
    given = np.asarray(counts)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or given.size == 0:
        raise InputError(f"the counts are {given.dtype} of shape {given.shape}; give integers, (S,) or (N,S).")
    if given.ndim == 2 and len(given) != batch:
        raise InputError(f"the counts are those of {len(given)} images; give those of {batch}, or (S,) for all.")
    if given.min() < 0 or given.max() > pixels:
        raise InputError(f"the counts are {given.min()} to {given.max()}; give 0 to {pixels}, the pixels of an image.")
    return np.ascontiguousarray(np.broadcast_to(given, (batch, given.shape[-1])), np.int32)


def _channel_values(fill: Any, channels: int) -> NDArray[np.float32] | None:
    """(C,) of a fill that is given by channels; None for an array of pixels."""
    if len(getattr(fill, "shape", ())) == 4:
        return None
    try:
        values = np.asarray(fill, np.float32)
    except (TypeError, ValueError):  # such as a tensor on another device
        values = np.empty((0, 0), np.float32)
    if values.shape not in ((), (channels,)):
        raise InputError(f"the fill is neither a number nor {channels} numbers nor images; give one of these.")
    return np.ascontiguousarray(np.broadcast_to(values, channels))
