"""From an image to the graph's input, as timm's evaluation transform does it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finercam_rt.errors import InputError
from finercam_rt.geometry import Geometry
from finercam_rt.manifest import InputSpec
from finercam_rt.ops import Frame
from finercam_rt.pixels import Pixels, resized, size_of

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_LARGEST_RESIZED = 2**25
"""Pixels of the resized photograph before the crop: a strip of 1 x 100000 pixels would otherwise ask for gigabytes."""


class Preprocessor:
    """Makes the normalised input (C,H,W) and the view, the uint8 crop (H,W,C) that the model sees.

    value = (view / 255 - mean) / std in float32, per channel. The result equals
    timm.data.transforms_factory.transforms_imagenet_eval, rounding included. Reentrant.
    """

    def __init__(self, spec: InputSpec) -> None:
        """Prepare what depends on the specification alone."""
        self.spec = spec
        self._scale = tuple(math.floor(edge / spec.crop_pct) for edge in spec.size)
        # 256 values a channel, so normalising is a look-up; each entry is computed in float32 in timm's order.
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.asarray(v, dtype=np.float32)[:, None] for v in (spec.mean, spec.std))  # (C,1)
        self._levels: NDArray[np.float32] = (levels[None, :] - mean) / std

    def __call__(self, image: Pixels, out: NDArray[np.float32], view: NDArray[np.uint8], name: str) -> Geometry:
        """Write the input to `out` (C,H,W) float32 and the crop to `view` (H,W,C) uint8; `image` has C channels.

        Returns:
            Where in the image the crop lies.

        Raises:
            InputError: the photograph is so narrow that its resized form would not fit in memory.
        """
        whole = size_of(image)
        (height, width), top, left = self.frame(whole, name)
        _crop(resized(image, (height, width), _RESAMPLING[self.spec.interpolation]), view, top, left, self.fill)
        for channel in range(self.spec.channels):
            np.take(self._levels[channel], view[:, :, channel], out=out[channel], mode="clip")
        return self.geometry(whole, Frame((height, width), top, left))

    def geometry(self, size: tuple[int, int], frame: Frame) -> Geometry:
        """Where the crop lies in a photograph of (height, width) with this frame."""
        # Pillow lays the resized photograph's edges on the photograph's, so one factor an axis tells all.
        y, x = size[0] / frame.resized[0], size[1] / frame.resized[1]
        (height, width), (top, left) = self.spec.size, frame[1:]
        return Geometry(size, self.spec.size, (left * x, top * y, (left + width) * x, (top + height) * y))

    def frame(self, size: tuple[int, int], name: str) -> Frame:
        """How a photograph of (height, width) is resized, and where its crop lies in that.

        Raises:
            InputError: it is so narrow that its resized form would not fit in memory.
        """
        height, width = resized_size(size, self.spec, self._scale)
        if height * width > _LARGEST_RESIZED or min(height, width) < 1:
            raise InputError(f"{name} is {size[1]}x{size[0]} pixels, too narrow to be resized for the model; crop it.")
        floor = self.spec.crop_mode == "center_floor"
        top, left = (_start(*edges, floor) for edges in zip((height, width), self.spec.size, strict=True))
        return Frame((height, width), top, left)

    @property
    def fill(self) -> tuple[int, ...]:
        """The level of each channel where the crop reaches beyond the photograph."""
        if self.spec.crop_mode != "border":
            return (0,) * self.spec.channels
        return tuple(round(255 * v) for v in self.spec.mean)


def resized_size(size: tuple[int, int], spec: InputSpec, scale: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of the photograph before the crop; `scale` is floor(spec.size / crop_pct).

    Sources: torchvision _compute_resized_output_size (int() of the longer edge), timm ResizeKeepRatio (round()).
    """
    height, width = size
    if spec.crop_mode == "squash":
        return scale[0], scale[1]
    if spec.crop_mode in ("center", "center_floor") and scale[0] == scale[1]:
        if width <= height:
            return int(scale[0] * height / width), scale[0]
        return scale[0], int(scale[0] * width / height)
    ratios = height / scale[0], width / scale[1]
    # timm blends the two ratios with weights 0 and 1; the sum with a zero is exact.
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _crop(image: NDArray[np.uint8], view: NDArray[np.uint8], top: int, left: int, fill: tuple[int, ...]) -> None:
    """Copy of `image` (h,w,C) what begins at (top, left) into `view` (H,W,C), and `fill` where it reaches beyond."""
    rows = slice(max(top, 0), min(top + view.shape[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + view.shape[1], image.shape[1]))
    source = image[rows, columns]
    if source.shape != view.shape:
        view[...] = np.asarray(fill, dtype=np.uint8)
    view[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = source


def _start(edge: int, crop: int, floor: bool) -> int:
    """Where the crop begins: torchvision's center_crop along one edge, below zero by what is padded before it.

    Where the edge is shorter, that is (crop - edge) // 2. Otherwise the offset is round((edge - crop) / 2), halves to
    even, or rounded down, as transformers does it.
    """
    if edge < crop:
        return -((crop - edge) // 2)
    return (edge - crop) // 2 if floor else round((edge - crop) / 2.0)
