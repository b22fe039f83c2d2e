"""Photographs of any size as a classifier takes them: resized as Pillow does it, cropped, normalised, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from finercam_rt import _core
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

_FILTERS = {"bilinear": _core.ResizeFilter.BILINEAR, "bicubic": _core.ResizeFilter.BICUBIC}
INTERPOLATIONS = tuple(_FILTERS)
"""Those of the kernel; Pillow has more."""
_DTYPES = ("float32", "float16", "bfloat16")
_LARGEST = 2**30
"""Of an edge in pixels, and of a crop's offset: int32, with room for sums."""


class Frame(NamedTuple):
    """A photograph is resized to (height, width); the crop begins at (top, left) of that, which may be negative."""

    resized: tuple[int, int]
    top: int
    left: int


def preprocess(
    images: Sequence[Any],
    frames: Sequence[Frame],
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    fill: Sequence[int] | None = None,
    out: Any = None,
    view: Any = None,
    threads: int | None = None,
    stream: int | None = None,
) -> Any:
    """(level / 255 - mean) / std of each photograph's crop, its levels as `PIL.Image.resize` gives them.

    Along x, rounded, then along y, as Pillow up to version 12 does it; 13 begins with y where that is less work. A
    level may be one off where Pillow's sum lies between two. Source: Pillow, src/libImaging/Resample.c.

    Args:
        images: N photographs (height,width,C) uint8, of different sizes and any strides, on one device; three channels
            are resized together, and those of any other number one by one.
        frames: of each how it is resized and where its crop lies, see `preprocess.Preprocessor.frame`.
        size: (H,W) of the crop.
        mean, std: of each channel, for levels from 0 to 1.
        interpolation: "bilinear" or "bicubic", with a wider filter where the photograph becomes smaller.
        fill: the level of each channel where the crop reaches beyond the resized photograph; None is black.
        out: (N,C,H,W) float32, float16 or bfloat16, C-contiguous, on the same device: receives the batch, and is
            returned.
        view: (N,H,W,C) uint8, C-contiguous, on the same device: receives the levels.
        threads: of the CPU; by default as many physical cores as the work repays, at most one a photograph.
        stream: of a CUDA device; see the module.

    Returns:
        (N,C,H,W), float32 where `out` was not given.

    Raises:
        InputError: a shape, dtype, device or option that cannot be used.
    """
    height, width = pair(size, "size")
    if not len(images) or len(images) != len(frames):
        raise InputError(
            f"there are {len(images)} images and {len(frames)} frames; give at least one, as many of each."
        )
    if interpolation not in _FILTERS:
        raise InputError(f"the interpolation is {interpolation!r}; the kernel has {listed(_FILTERS)}.")
    described = [describe(image, "images", ("uint8",), ("height", "width", "C")) for image in images]
    for array, frame in zip(described, frames, strict=True):
        check_same_device(array, described[0])
        _check_frame(array, frame)
    channels = described[0].shape[2]
    counts = {array.shape[2] for array in described}
    if len(counts) > 1:
        raise InputError(f"the images have {' and '.join(map(str, sorted(counts)))} channels; give as many each.")
    shape = (len(images), channels, height, width)
    if math.prod(shape) > _LARGEST * 2:
        raise InputError(f"the batch would have the shape {shape}; give fewer images, or a smaller size.")
    batch = _batch(out, shape, described[0])
    if view is not None:
        output(view, "view", "uint8", (len(images), height, width, channels), described[0])
    pointer = stream_of(stream, described[0], *images)
    _core.preprocess(
        list(images),
        [(*frame.resized, frame.top, frame.left) for frame in frames],
        batch,
        view,
        filter=_FILTERS[interpolation],
        mean=_numbers(mean, "mean", channels),
        std=_numbers(std, "std", channels),
        fill=[0] * channels if fill is None else _levels(fill, channels),
        threads=workers_for(threads, sum(math.prod(array.shape) for array in described)),
        stream=pointer,
    )
    finish(pointer, described[0], *images)
    return batch if out is not None else to_caller(batch, images[0], pointer)


def _batch(out: Any, shape: tuple[int, ...], like: Array) -> Any:
    if out is None:
        return output(None, "out", "float32", shape, like)
    return output(out, "out", describe(out, "out", _DTYPES, ("N", "C", "H", "W")).dtype, shape, like)


def _check_frame(array: Array, frame: Frame) -> None:
    edges = (*array.shape[:2], *frame.resized)
    if not all(1 <= edge < _LARGEST for edge in edges) or max(abs(frame.top), abs(frame.left)) >= _LARGEST:
        raise InputError(
            f"the frame of an image of shape {array.shape} is {tuple(frame)}; give sizes of 1 to {_LARGEST}."
        )


def _numbers(values: Sequence[float], name: str, channels: int) -> list[float]:
    found = [float(value) for value in values]
    if len(found) != channels or not all(map(math.isfinite, found)) or (name == "std" and 0 in found):
        raise InputError(
            f"the {name} is {values!r}; give a finite number{' other than 0' * (name == 'std')} for each of {channels} "
            "channels."
        )
    return found


def _levels(values: Sequence[int], channels: int) -> list[int]:
    found = [int(value) for value in values]
    if len(found) != channels or not all(0 <= value <= 255 for value in found):
        raise InputError(f"the fill is {values!r}; give a level from 0 to 255 for each of {channels} channels.")
    return found
