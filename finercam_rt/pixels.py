"""The pixels of an image of any number of channels: resized, shown as a photograph, recognised."""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.manifest import GREY, RGB

MODES = {GREY: "L", RGB: "RGB"}
"""Pillow's mode of the numbers of channels that photographs have."""

Pixels: TypeAlias = "Image.Image | NDArray[np.uint8]"
"""A PIL image of a mode of MODES; of any other number of channels a uint8 array (H,W,C)."""

_ROWS = 128
"""That a checksum reads; all pixels of them."""


def as_pixels(levels: NDArray[np.uint8]) -> Pixels:
    """(H,W,C) uint8 as `Pixels`."""
    if levels.shape[2] not in MODES:
        return levels
    return Image.fromarray(np.ascontiguousarray(levels[:, :, 0] if levels.shape[2] == GREY else levels))


def pixels_of(pixels: Pixels) -> NDArray[np.uint8]:
    """`Pixels` as (H,W,C) uint8."""
    values = np.asarray(pixels)
    return values if values.ndim == 3 else values[:, :, None]


def size_of(pixels: Pixels) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    return pixels.shape[0], pixels.shape[1]


def channels_of(pixels: Pixels) -> int:
    """C."""
    return len(pixels.getbands()) if isinstance(pixels, Image.Image) else pixels.shape[2]


def resized(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    """(height, width, C) uint8 of `size`, (height, width), each channel as Pillow resizes it."""
    if not isinstance(pixels, Image.Image):
        channels = [as_pixels(pixels[:, :, c : c + 1]) for c in range(pixels.shape[2])]
        return np.concatenate([resized(channel, size, resample) for channel in channels], axis=2)
    return pixels_of(pixels if size_of(pixels) == size else pixels.resize((size[1], size[0]), resample))


def as_rgb(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(...,C) uint8 as (...,3): RGB as it is, and any other number of channels as grey, the rounded mean of them."""
    if levels.shape[-1] == RGB:
        return levels
    if levels.shape[-1] != GREY:
        levels = np.rint(levels.mean(axis=-1, keepdims=True, dtype=np.float32)).astype(np.uint8)
    return np.repeat(levels, RGB, axis=-1)


def as_photograph(pixels: Pixels) -> Image.Image:
    """What is looked at, an RGB image; see `as_rgb`."""
    return pixels.convert("RGB") if isinstance(pixels, Image.Image) else Image.fromarray(as_rgb(pixels))


def checksum(pixels: Pixels) -> int:
    """CRC-32 of 128 rows of an image: notices that a file or an array holds another one now.

    Not of all of it, which takes 3 ms of a frame of 1080 rows: what moved within 1/128 of the height is missed.
    """
    height, width = size_of(pixels)
    count = min(height, _ROWS)
    if isinstance(pixels, Image.Image):
        rows = resized(pixels, (count, width), Image.Resampling.NEAREST)
    else:
        rows = pixels[(2 * np.arange(count) + 1) * height // (2 * count)]  # the same ones, of an array as it lies
    return zlib.crc32(rows.tobytes())
